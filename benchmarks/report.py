"""Tables of what was measured: for the terminal, for Markdown, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from .figures import Point, Result, Row

__all__ = ["as_json", "as_markdown", "heading", "show", "table"]

MIB = 1 << 20
NOTHING, ABSENT = "–", "absent"
#: Characters a line where the output is no terminal.
WIDTH = 200


def duration(seconds: float | None) -> str:
    """Write seconds with three digits and a fitting unit."""
    if seconds is None:
        return NOTHING
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{digits(seconds / size)} {unit}"
    return f"{digits(seconds * 1e9)} ns"


def digits(value: float) -> str:
    """Write a number with three digits."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def times(ratio: float | None) -> str:
    """Write a ratio."""
    return NOTHING if ratio is None else f"{digits(ratio)} ×"


def table(result: Result) -> tuple[list[str], list[list[str]]]:
    """Turn a result into a header and lines of text."""
    if result.kind == "import":
        return ["", "time"], [[r.label, ABSENT if r.absent else duration(r.time)] for r in result.points[0].rows]
    if result.kind == "memory":
        return _by_point(result.points, lambda _, row: _memory(row))
    if len(result.points) > 1:
        return _by_point(result.points, lambda _, row: f"{duration(row.time)} ({times(row.ratio)})".replace(" ×", "×"))
    point = result.points[0]
    header = ["", "time", "÷ floor", "faster than torch.optim", "GB/s", "ready"]
    extra = [name for name in ("launches", "allocations") if any(name in row.extra for row in point.rows)]
    lines = [[row.label, *_cells(point, row), *(_count(row, name) for name in extra)] for row in point.rows]
    return header + extra, lines


def notes(result: Result) -> list[str]:
    """List what is said below a table: the case's own notes, and why which contender is absent."""
    reasons: dict[str, str] = {}
    for point in result.points:
        reasons |= {row.label: row.absent for row in point.rows if row.absent is not None}
    return [*result.notes, *(f"{label}: {reason}" for label, reason in reasons.items())]


def _cells(point: Point, row: Row) -> list[str]:
    if row.absent is not None:
        return [ABSENT, *[NOTHING] * 4]
    bandwidth = point.bandwidth(row)
    return [
        duration(row.time),
        times(row.ratio),
        times(point.speedup(row)),
        NOTHING if bandwidth is None else digits(bandwidth / 1e9),
        duration(row.ready),
    ]


def _count(row: Row, name: str) -> str:
    return NOTHING if row.extra.get(name) is None else str(row.extra[name])


def _memory(row: Row) -> str:
    seen = [row.extra[name] for name in ("resident", "traced") if row.extra.get(name) is not None]
    return f"{digits(max(seen) / MIB)} MiB" if seen else NOTHING


def _by_point(points: Sequence[Point], cell: Any) -> tuple[list[str], list[list[str]]]:
    """Make one column a point."""
    lines = []
    for row in points[0].rows:
        found = [(point, point.row(row.key)) for point in points]
        cells = [NOTHING if r is None else ABSENT if r.absent else cell(p, r) for p, r in found]
        lines.append([row.label, *cells])
    return ["", *(point.name for point in points)], lines


def heading(facts: Mapping[str, str], command: str) -> str:
    """Say what was run, on what."""
    return f"`{command}`, on: " + ", ".join(f"{name} {value}" for name, value in facts.items())


def show(result: Result) -> None:
    """Print a result to the terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
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
        document["results"].append(plain)
    return json.dumps(document, indent=1) + "\n"
