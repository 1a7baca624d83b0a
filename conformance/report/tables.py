"""The verdicts as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..checks.run import Selection
from ..checks.verdict import Verdict
from . import summary
from .summary import Cell

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text


def short(number: float) -> str:
    """Return a number in few characters."""
    if number == 0:
        return "0"
    if number != number or number == float("inf"):
        return "∞"
    if number < 0.01:
        return "<.01"
    return f"{number:.2g}" if number < 10 else f"{number:.0f}" if 10 <= number < 1e5 else f"{number:.0e}"


def _table(title: str, caption: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(
        *columns, title=title, caption=caption, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left",
        title_style="bold", caption_style="dim",
    )  # fmt: skip


def _cell(cell: Cell | None) -> Text:
    from rich.text import Text

    if cell is None or not any(cell.outcomes.values()):
        return Text("")
    lines = []
    marks = [("✓", "passed", "green"), ("✗", "failed", "bold red"), ("x", "expected failure", "yellow")]
    text = Text()
    for mark, outcome, style in marks:
        if cell.outcomes[outcome]:
            text.append(f"{mark}{cell.outcomes[outcome]} ", style=style)
    if cell.outcomes["habit"]:
        text.append(f"~{cell.outcomes['habit']}", style="yellow")
    lines.append(text)
    if cell.judged:
        lines.append(Text(f"{short(cell.state)} · {short(cell.motion)}", style="dim"))
    return Text("\n").join(lines)


def matrix(verdicts: Sequence[Verdict], selection: Selection) -> Table:
    """Systems × backends: scenarios passed, failed and told, and the worst numbers."""
    cells = summary.matrix(verdicts)
    table = _table(
        "Every state after every step, against recorded frameworks and the published rule",
        "✓ scenarios within tolerance   ~ the framework has a habit of its own there: told, ours judged by the rule\n"
        "below: worst state in ulps · worst parameter in units of motion (rounding of the path so far + last place)",
        "against", *selection.backends,
    )  # fmt: skip
    for system in (*selection.systems, ""):
        row = [_cell(cells.get((system, backend))) for backend in selection.backends]
        table.add_row(system or "the published rule", *row, end_section=system == selection.systems[-1])
    return table


def bits(verdicts: Sequence[Verdict], selection: Selection) -> Table | None:
    """Runs × backends: the same bits or not."""
    from rich.text import Text

    cells = summary.bits(verdicts)
    if not cells:
        return None
    table = _table(
        "The same bits: long runs over many decades of gradients, against NumPy operation by operation",
        "= every value of every step has the same bits   ≈ compiled with multiply-add: worst state in ulps · motion",
        "run", *selection.backends,
    )  # fmt: skip
    for run in dict.fromkeys(run for run, _ in cells):
        row = []
        for backend in selection.backends:
            cell = cells.get((run, backend))
            if cell is None or not cell.judged:
                row.append(Text("–", style="dim"))
            elif cell.failed:
                row.append(Text(f"✗ {short(cell.values or cell.state)}", style="bold red"))
            elif cell.state or cell.motion:
                row.append(Text(f"≈ {short(cell.state)} · {short(cell.motion)}", style="yellow"))
            else:
                row.append(Text("=", style="green"))
        table.add_row(run, *row)
    return table


def laws(verdicts: Sequence[Verdict], selection: Selection) -> Table | None:
    """Laws × backends: how many cases each was tried on."""
    from rich.text import Text

    found = summary.laws(verdicts)
    if not found:
        return None
    table = _table(
        "Laws",
        "✓ and the number of cases   – has no words for it, or the law says nothing of it",
        "law",
        *selection.backends,
    )
    for law in dict.fromkeys(law for law, _ in found):
        row = []
        for backend in selection.backends:
            verdict = found.get((law, backend))
            if verdict is None:
                row.append(Text("–", style="dim"))
            elif verdict.outcome == "passed":
                row.append(Text(f"✓ {verdict.note.partition(' ')[0]}", style="green"))
            else:
                row.append(Text("✗", style="bold red" if verdict.failed else "yellow"))
        table.add_row(law, *row)
    return table


def accuracy(verdicts: Sequence[Verdict]) -> Table | None:
    """Who is how accurate."""
    rows = summary.accuracy(verdicts)
    if not rows:
        return None
    table = _table(
        "Who is how accurate: worst distance from the published rule in 50 digits, over the scenarios that all share",
        "state in ulps · parameters in units of motion; in parentheses: with the numbers as they rounded them first",
        "", *summary.FAIR,
    )  # fmt: skip
    for who, cells in rows.items():
        row = []
        for dtype in summary.FAIR:
            found = cells.get(dtype)
            if found is None:
                row.append("–")
                continue
            published, arithmetic = (f"{short(a)} · {short(b)}" for a, b in (found.published, found.arithmetic))
            row.append(published if published == arithmetic else f"{published} ({arithmetic})")
        table.add_row(who, *row)
    return table


def habits(found: Sequence[summary.Habit]) -> Table | None:
    """The frameworks' habits, with both numbers."""
    if not found:
        return None
    table = _table(
        "Habits: where frameworks leave the published rule",
        "state in ulps · parameters in units of motion, from the published rule, in the trace that shows it best",
        "habit", "who", "what", "they", "we",
    )  # fmt: skip
    for habit in found:
        they, we = (
            None if pair is None else f"{short(pair[0])} · {short(pair[1])}" for pair in (habit.apart, habit.ours)
        )
        table.add_row(habit.name, ", ".join(habit.systems), habit.about, they, we or "refused")
    return table


def limits(verdicts: Sequence[Verdict]) -> Table:
    """Tolerances, with the worst that was seen."""
    table = _table("Tolerances", "", "comparison", "of", "worst", "allowed", "unit", "why", "worst where")
    for limit in summary.limits(verdicts):
        style = "red" if not limit.observed <= limit.allowed else ""
        table.add_row(limit.about, limit.kind, short(limit.observed), short(limit.allowed), limit.unit, limit.reason,
                      limit.where, style=style)  # fmt: skip
    return table


def failures(verdicts: Sequence[Verdict], most: int = 20) -> RenderableType | None:
    """What failed, in words."""
    from rich.console import Group
    from rich.text import Text

    found = summary.failures(verdicts)
    if not found:
        return None
    lines = [Text("Failures", style="bold red"), *(Text(f" ✗ {v}") for v in found[:most])]
    if len(found) > most:
        lines.append(Text(f"   and {len(found) - most} more (--json FILE has all)"))
    return Group(*lines)
