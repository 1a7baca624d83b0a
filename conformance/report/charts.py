"""What the page draws: errors over time, and frameworks that leave each other though given the same gradients.

matplotlib makes the SVG; colours come from the page's style sheet, so that they fit light and dark.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from ..data.traces import TraceFile
from ..data.trajectory import Trajectory
from ..reference.accuracy import errors_over_time
from ..targets.run import run_target
from ..targets.target import find

#: Names of curves begin with one of these; the style sheet has a colour of the name. The first that fits counts.
FAMILIES = (
    "multiopt", "torch", "optax", "tf-v1", "tf-raw", "tf-keras-legacy", "tf-keras-dtensor", "tf-keras", "keras",
)  # fmt: skip
_NEUTRAL = ("ink", "soft", "faint")
#: What stands for each of these colours until the style sheet's variable replaces it: matplotlib takes numbers only.
_STANDS_FOR = {name: f"#0102{i:02x}" for i, name in enumerate((*FAMILIES, *_NEUTRAL))}
#: Curves of one family differ in their lines.
_LINES = ("solid", "dashed", "dotted", "dashdot")
#: Whose trajectories stand for ours: the others have the same bits.
OURS = "multiopt"


@dataclass(frozen=True)
class Curve:
    """Numbers over steps, by whom."""

    who: str
    steps: list[int]
    values: list[float]


@dataclass(frozen=True)
class Chart:
    """A title, what to see, the y axis and whether it is logarithmic, and the curves."""

    title: str
    text: str
    axis: str
    curves: list[Curve]
    log: bool = False


def line_chart(curves: Sequence[Curve], axis: str, *, log: bool = False, across: str = "steps") -> str:
    """Return a chart of the curves as an SVG element; their names are in a legend, in the order of their ends."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    soft, faint = _STANDS_FOR["soft"], _STANDS_FOR["faint"]
    style: dict[Any, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": "multiopt", "font.size": 11, "text.color": soft, "grid.color": faint,
        "axes.labelcolor": soft, "axes.edgecolor": faint, "xtick.color": soft, "ytick.color": soft,
        "xtick.bottom": False, "ytick.left": False, "ytick.minor.left": False,
        "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
    }  # fmt: skip
    with rc_context(style):
        figure = Figure(figsize=(6.8, 3.6))
        axes = figure.subplots()
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.grid(axis="y")
        seen: dict[str, int] = {}
        ends = []
        for curve in curves:
            family = next(name for name in FAMILIES if curve.who.startswith(name))
            line = _LINES[seen.setdefault(family, 0) % len(_LINES)]
            seen[family] += 1
            ours = family == "multiopt"
            (drawn,) = axes.plot(
                curve.steps, curve.values, color=_STANDS_FOR[family], linestyle=line, label=curve.who,
                # Ours is wide and pale, beneath the others: where they agree both are seen.
                linewidth=4.5 if ours else 1.4, alpha=0.55 if ours else 1.0, zorder=1 if ours else 2,
            )  # fmt: skip
            ends.append((curve.values[-1] if math.isfinite(curve.values[-1]) else math.inf, drawn))
        axes.set_xlabel(across)
        axes.set_ylabel(axis)
        lines = [drawn for _, drawn in sorted(ends, key=lambda end: -end[0])]
        axes.legend(handles=lines, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    return _for_the_page(file.getvalue(), f"{axis} over {across}: {', '.join(curve.who for curve in curves)}")


def _for_the_page(text: str, label: str) -> str:
    """Return the SVG element alone, with a name for those who do not see it, and the style sheet's colours."""
    drop = r"<metadata>.*?</metadata>|<defs>.*?</defs>|<!--.*?-->"
    svg = re.sub(drop, "", text[text.index("<svg") :], flags=re.DOTALL)
    # Nothing is outside the axes, and several charts on one page would have the same ids.
    svg = re.sub(r' (id|clip-path)="[^"]*"', "", svg)
    for name, colour in _STANDS_FOR.items():
        svg = svg.replace(colour, f"var(--{name})")
    opening = svg.index(">") + 1
    name = f"<title>{escape(label)}</title>"
    return f'<svg role="img" aria-label="{escape(label)}"{svg[4:opening]}{name}{svg[opening:]}'


def error_growth(files: Mapping[str, TraceFile]) -> list[Chart]:
    """Return how far the accumulators of long runs, and ours, are from the oracle, in ulps: the worst of ten steps.

    The oracle runs by itself and follows deviations: what remains is the rounding of the arithmetic.
    """
    charts = []
    for dtype in ("float64", "float32"):
        recorded = [content.traces.get(f"long-{dtype}") for content in files.values()]
        runs = {trace.name: trace for trace in recorded if trace is not None}
        runs[OURS] = run_target(find("numpy-eager"), next(iter(runs.values())).case.published())
        found = []
        for who, worst in ((who, errors_over_time(run)) for who, run in runs.items()):
            cuts = range(0, len(worst), 10)
            found.append(Curve(who, [i + 1 for i in cuts], [max(worst[i : i + 10]) for i in cuts]))
        charts.append(Chart(f"{dtype}, the paper’s settings", "", "ulps", found))
    return charts


def values(
    run: Trajectory, who: str, *, kind: str = "x", at: tuple[int, int] = (0, 0), begin: int = 0, moved: bool = False
) -> Curve:
    """Return one element of a state over time (`at`: tensor and element), or how far it has moved."""
    series = run.states[kind][at[0]].reshape(run.steps + 1, -1)[:, at[1]].astype(np.float64)
    shown = np.abs(series - series[0]) if moved else series
    return Curve(who, list(range(begin, run.steps + 1)), [float(value) for value in shown[begin:]])


def rates(run: Trajectory, who: str) -> Curve:
    """Return the learning rate of every step."""
    assert run.lr is not None
    return Curve(who, list(range(1, run.steps + 1)), [float(rate) for rate in run.lr])


def side_by_side(files: Mapping[str, TraceFile]) -> list[Chart]:
    """Return where two frameworks that are given the same gradients leave each other."""

    def of(system: str, scenario: str) -> Trajectory:
        return files[system].traces[scenario]

    def mine(trace: Trajectory, target: str = "numpy-eager", **options: Any) -> Trajectory:
        return run_target(find(target), trace.case.published().with_options(**options))

    def moved(trace: Trajectory, who: str) -> Curve:
        return values(trace, who, begin=1, moved=True)

    decay, average = of("torch-forloop", "coupled-decay"), of("tf-keras", "ema")
    clip, boundary = of("tf-keras-legacy", "clipvalue-clipnorm"), of("tf-keras-legacy", "schedule-piecewise")
    sparse = ("tf-raw", "tf-keras-legacy", "keras-tensorflow", "tf-keras")
    return [
        Chart(
            "No options: the defaults",
            "The same gradients. lr 1, .001 or none; ε 1e-6, 1e-7 or 1e-8: after ten steps the frameworks "
            "have moved distances that are four decades apart.",
            "distance moved",
            [
                *(moved(of(s, "defaults"), s) for s in ("torch-forloop", "tf-keras", "keras-jax", "tf-v1", "optax")),
                moved(mine(of("torch-forloop", "defaults")), "multiopt, .torch()"),
                moved(mine(of("tf-keras", "defaults")), "multiopt, .keras()"),
            ],
            log=True,
        ),
        Chart(
            "Weight decay: two meanings",
            "PyTorch and optax add it to the gradient (coupled), where Adadelta's own scale all but hides it; Keras "
            "takes it from the parameter (decoupled). multiopt does either, by name.",
            "parameter",
            [
                values(decay, "torch-forloop"),
                values(mine(decay), "multiopt, coupled"),
                values(mine(decay, decay_kind="decoupled"), "multiopt, decoupled"),
            ],
        ),
        Chart(
            "Two clips at once",
            "With clipvalue and clipnorm both set, the legacy optimizer applies both, tf_keras ignores clipvalue, and "
            "Keras 3 raises an error. multiopt applies value, then norm.",
            "parameter",
            [
                values(clip, "tf-keras-legacy", at=(1, 1)),
                values(of("tf-keras", "clipvalue-clipnorm"), "tf-keras", at=(1, 1)),
                values(mine(clip), OURS, at=(1, 1)),
            ],
        ),
        Chart(
            "Where a piece ends",
            "Boundaries 3 and 7 of a piecewise learning rate: Keras keeps the old rate for one step more than PyTorch "
            "and optax do. multiopt follows Keras.",
            "learning rate",
            [
                *(rates(of(s, "schedule-piecewise"), s) for s in ("torch-forloop", "optax")),
                rates(boundary, "tf-keras-legacy"),
                rates(mine(boundary), OURS),
            ],
        ),
        Chart(
            "An average of the weights",
            "tf_keras' begins at the initial weights, Keras 3's and PyTorch's after the first step, and that of "
            "the DTensor optimizer never moves. multiopt begins at the initial weights.",
            "moving average",
            [
                values(of("tf-keras-dtensor", "ema"), "tf-keras-dtensor", kind="average"),
                values(average, "tf-keras", kind="average"),
                values(of("keras-jax", "ema"), "keras-jax", kind="average", begin=1),
                values(mine(average), OURS, kind="average"),
            ],
        ),
        Chart(
            "Rows that occur twice",
            "The same sparse gradients: stepped twice in turn (raw op), left alone when absent (legacy, v1), squared "
            "separately (Keras 3 on TensorFlow), or as the dense sum that they stand for (tf_keras, multiopt).",
            "parameter",
            [
                *(values(of(s, "sparse"), s, at=(0, 9)) for s in sparse),
                values(mine(of("tf-keras", "sparse"), "keras-face"), OURS, at=(0, 9)),
            ],
        ),
    ]
