"""The picture: times against the floor, for the cases that were run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..harness.figures import FLOOR, Result
from .report import duration, times

__all__ = ["draw"]

OURS, OTHER, FLOOR_LINE, INK = "#0b7a5e", "#9aa5b1", "#c2410c", "#1f2933"
LINES = ["#5b8def", "#8e6bbf", "#d08c2f", "#52606d", "#c75a8b", "#7a9e3b", "#3aa6b9"]


def draw(results: Sequence[Result], path: Path) -> None:
    """Draw bars for cases of one workload and curves for sweeps, and write a picture to `path`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    timed = [
        r for r in results if r.kind in ("race", "turns") and any(row.ratio for point in r.points for row in point.rows)
    ]
    columns = 2 if len(timed) > 1 else 1
    lines = max(1, -(-len(timed) // columns))
    figure = Figure(figsize=(7.2 * columns, 4.4 * lines), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    for number, result in enumerate(timed, start=1):
        axes = figure.add_subplot(lines, columns, number)
        axes.set_title(result.title, loc="left", fontsize=11, fontweight="bold", color=INK, pad=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK, labelsize=9)
        (curves if result.case in ("sweep", "count") else bars)(axes, result)
    figure.savefig(path, dpi=150)


def bars(axes: Any, result: Result) -> None:
    """Draw one bar a contender: its time as a multiple of its floor, which is a line at 1."""
    turns = result.kind == "turns"
    points = result.points if turns else result.points[-1:]
    found = [
        (row, row.ratio, f"{point.name}: {row.label}" if turns else row.label)
        for point in points for row in point.rows if row.ratio is not None and row.key != FLOOR
    ]  # fmt: skip
    rows, ratios, labels = zip(*sorted(found, key=lambda bar: bar[1]), strict=True) if found else ((), (), ())
    colors = [OURS if row.label.startswith("multiopt") else OTHER for row in rows]
    drawn = axes.barh(labels, ratios, color=colors, height=0.7)
    texts = [f" {times(row.ratio)}  {duration(row.time)}" for row in rows]
    axes.bar_label(drawn, texts, fontsize=8, color=INK)
    largest = max(ratios, default=1.0)
    axes.set_xscale("log")
    axes.set_xticks([1, 2, 5, 10, 20, 50] if largest < 50 else [1, 10, 100, 1000, 10_000], minor=False)
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} ×")
    axes.set_xlim(0.5, max(largest, 2.0) ** 1.3 * 1.5)
    axes.axvline(1, color=FLOOR_LINE, linewidth=1.6)
    axes.text(1.04, len(rows) - 0.3, "floor", color=FLOOR_LINE, va="center", fontsize=9)
    axes.set_ylim(len(rows), -0.7)
    floor = points[-1].row(FLOOR)
    own = "its own floor's" if turns else f"the floor's ({duration(floor.time if floor else None)})"
    axes.set_xlabel(f"time ÷ {own}, logarithmic", fontsize=9, color=INK)


def curves(axes: Any, result: Result) -> None:
    """Draw one curve a contender: its time against the elements or tensors; the floor is the dashed one."""
    by_count = result.case == "count"
    axes.set_prop_cycle(color=LINES)
    for row in result.points[0].rows:
        found = [(point, point.row(row.key)) for point in result.points]
        seen = [(p.tensors if by_count else p.elements, r.time) for p, r in found if r and r.time]
        ours, floor = row.label.startswith("multiopt"), row.key == FLOOR
        dash = "--" if floor else {"multiopt-tensors": ":", "multiopt-torch": "-."}.get(row.key, "-")
        if seen:
            axes.plot(*zip(*seen, strict=True), dash, color=FLOOR_LINE if floor else OURS if ours else None,
                      label=row.label, marker="" if floor else "o", markersize=3.5, linewidth=2.2 if ours else 1.5,
                      zorder=3 if ours or floor else 2)  # fmt: skip
    axes.loglog()
    axes.yaxis.set_major_formatter(lambda value, _: duration(value).replace(".00", "").replace(".0", ""))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(color="#e4e7eb", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel("tensors" if by_count else "elements", fontsize=9, color=INK)
    axes.legend(fontsize=8, frameon=False, loc="upper left")
