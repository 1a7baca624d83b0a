"""Tables of what was measured: for the terminal, for Markdown, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ..harness.figures import AT_FLOOR, FLOOR, Point, Result, Row

__all__ = ["as_json", "as_markdown", "duration", "show", "times"]

NOTHING, ABSENT = "–", "absent"
#: Marks a time that is its floor's.
AT = "✓"
#: Writes a contender's figure.
Cell = Callable[[Point, Row], str]


def duration(seconds: float | None) -> str:
    """Write seconds with three digits and a fitting unit."""
    if seconds is None:
        return NOTHING
    unit, size = next((u for u in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)) if seconds >= u[1]), ("ns", 1e-9))
    return f"{digits(seconds / size)} {unit}"


def digits(value: float) -> str:
    """Write a number with three digits."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def times(ratio: float | None) -> str:
    """Write a ratio."""
    return NOTHING if ratio is None else f"{digits(ratio)} ×"


def _time(point: Point, row: Row) -> str:
    return ABSENT if row.absent else duration(row.time)


def _time_and_ratio(point: Point, row: Row) -> str:
    return ABSENT if row.absent else f"{duration(row.time)} ({times(row.ratio)})".replace(" ×", "×")


def _turn(point: Point, row: Row) -> str:
    """A time, and what it is compared with: the floor of its own, or what there are many of."""
    if row.absent or row.time is None:
        return ABSENT
    many, one = (point.groups, "group") if point.groups > 1 else (point.tensors, "tensor")
    against = times(row.ratio) if row.ratio else f"{duration(row.time / many)} a {one}"
    return f"{duration(row.time)} ({against.replace(' ×', '×')})" + row.at_floor * f" {AT}"


def _turns(points: Sequence[Point]) -> tuple[list[str], list[list[str]]]:
    """A line for each point, with what it must move, its floor against the first one, and every contender."""
    labels = {row.key: row.label for point in points for row in point.rows if row.key != FLOOR}
    lines = []
    for point in points:
        floor = point.row(FLOOR)
        bytes_ = f"{point.moved / point.elements:.0f}"
        against = (
            f"{duration(floor.time)} ({times(point.floor_ratio)})".replace(" ×", "×")
            if floor and floor.time
            else NOTHING
        )
        cells = [_turn(point, row) if (row := point.row(key)) else NOTHING for key in labels]
        lines.append([point.name, bytes_, against, *cells])
    return ["", "bytes", f"own floor (÷ {points[0].dtype}'s)", *labels.values()], lines


def _memory(point: Point, row: Row) -> str:
    seen = [row.extra[name] for name in ("resident", "traced") if row.extra.get(name) is not None]
    return ABSENT if row.absent else f"{digits(max(seen) / 2**20)} MiB" if seen else NOTHING


def _extra(name: str) -> Cell:
    return lambda point, row: NOTHING if row.extra.get(name) is None else str(row.extra[name])


def table(result: Result) -> tuple[list[str], list[list[str]]]:
    """Turn a result into a header and lines of text."""
    if result.kind == "turns":
        return _turns(result.points)
    point = result.points[0]
    columns: dict[str, tuple[Point, Cell]]
    if result.kind == "memory" or len(result.points) > 1:
        cell = _memory if result.kind == "memory" else _time_and_ratio
        columns = {point.name: (point, cell) for point in result.points}
    elif result.kind == "import":
        columns = {"time": (point, _time)}
    else:
        columns = {
            "time": (point, _time),
            "÷ floor": (point, lambda point, row: times(row.ratio)),
            "faster than torch.optim": (point, lambda point, row: times(point.speedup(row))),
            "GB/s": (point, lambda point, row: digits(point.moved / row.time / 1e9) if row.time else NOTHING),
            "ready": (point, lambda point, row: duration(row.ready)),
        }
        counted = [name for name in ("launches", "allocations") if any(name in row.extra for row in point.rows)]
        columns |= {name: (point, _extra(name)) for name in counted}
    lines = [
        [row.label, *(cell(p, found) if (found := p.row(row.key)) else NOTHING for p, cell in columns.values())]
        for row in point.rows
    ]
    return ["", *columns], lines


def notes(result: Result) -> list[str]:
    """List what is said below a table: the case's own notes, and why which contender is absent."""
    reasons = {row.label: row.absent for point in result.points for row in point.rows if row.absent is not None}
    legend = f"In brackets: ÷ its own floor; {AT}: it is at its floor, that is, at most {AT_FLOOR - 1:.0%} above"
    legends = [legend] if result.kind == "turns" else []
    return [*result.notes, *legends, *(f"{label}: {reason}" for label, reason in reasons.items())]


def show(result: Result) -> None:
    """Print a result to the terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    header, lines = table(result)
    drawn = Table(title=result.title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for i, name in enumerate(header):
        drawn.add_column(name, justify="right" if i else "left", no_wrap=True)
    for line in lines:
        ours, floor = line[0].startswith("multiopt"), line[0].startswith(("floor", "device-to-device"))
        drawn.add_row(*line, style="bold green" if ours else "dim" if floor else "")
    console.print(drawn)
    for note in notes(result):
        console.print(f"  {note}", highlight=False)


def as_markdown(result: Result) -> str:
    """Write a result as Markdown."""
    header, lines = table(result)
    text = ["", f"**{result.title}**", "", "| " + " | ".join(header) + " |"]
    text.append("|---" + "|---:" * (len(header) - 1) + "|")
    for name, *cells in lines:
        bold = "**" if name.startswith("multiopt") else ""
        text.append(f"| {bold}{name}{bold} | " + " | ".join(cells) + " |")
    text += ["", *(f"{note}.  " for note in notes(result))] if notes(result) else []
    return "\n".join(text)


def as_json(facts: Mapping[str, str], results: Sequence[Result], command: str) -> str:
    """Write everything, each sample included, as JSON; derived figures stand beside what they come from."""
    document: dict[str, Any] = {"command": command, "machine": dict(facts), "results": []}
    for result in results:
        plain = asdict(result)
        for point, written in zip(result.points, plain["points"], strict=True):
            for row, line in zip(point.rows, written["rows"], strict=True):
                line |= {"time": row.time, "ratio": row.ratio, "speedup": point.speedup(row)}
            written["floor_ratio"] = point.floor_ratio
        document["results"].append(plain)
    return json.dumps(document, indent=1) + "\n"
