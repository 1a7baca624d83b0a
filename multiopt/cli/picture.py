"""The demo's picture: training losses, and how far each library's are from the first one's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .digits import Run

__all__ = ["draw"]

#: Okabe and Ito's colours, which colour-blind readers tell apart, each with its marker.
COLORS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2", "#F0E442")
STYLES: list[dict[str, Any]] = [
    {"color": color, "marker": marker, "markersize": 6, "markeredgecolor": "white", "markeredgewidth": 0.6}
    for color, marker in zip(COLORS, "osD^vPX*", strict=True)
]


def draw(runs: Sequence[Run], per_epoch: int, path: Path) -> None:
    """Draw the losses of one run, or those of several and their differences from the first one's.

    `per_epoch` is the number of steps in an epoch; the ending of `path` says the format.
    """
    several = len(runs) > 1
    figure = Figure(figsize=(8, 7.2 if several else 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    epochs = np.arange(1, len(runs[0].losses) + 1) / per_epoch
    top, *below = figure.subplots(1 + several, 1, sharex=True, squeeze=False, height_ratios=(3, 2)[: 1 + several])[:, 0]
    title = f"Adadelta on {runs[0].name}: {runs[0].accuracy:.1%} of the test digits right"
    top.set_title(f"{len(runs)} array libraries, one curve" if several else title, loc="left", fontweight="bold")
    top.plot(epochs, runs[0].losses, color="0.8", linewidth=0.8, label="each step")
    middles = np.arange(len(epochs) // per_epoch) + 0.5
    for i, run in enumerate(runs):
        mean = run.losses.reshape(-1, per_epoch).mean(axis=1)
        label = f"{run.name}: {run.accuracy:.1%} right" if several else "mean of an epoch"
        # The lines overlap: the later ones are thinner, and their markers are at different places.
        width, every = 1.0 + 0.8 * (len(runs) - 1 - i), (i % len(middles), len(runs))
        top.plot(middles, mean, linewidth=width, markevery=every, label=label, **STYLES[i % 8])
    top.set_ylabel("training loss (cross-entropy)")
    top.legend(frameon=False, fontsize="small")
    for axes in below:
        _differences(axes, runs, epochs, per_epoch)
    for axes in figure.axes:
        axes.set_yscale("log")
        axes.grid(True, which="major", color="0.92")
        axes.set_axisbelow(True)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[-1].set_xlabel("epoch")
    figure.savefig(path)


def _differences(axes: Axes, runs: Sequence[Run], epochs: np.ndarray, per_epoch: int) -> None:
    first = runs[0].losses
    for run, style in zip(runs[1:], (STYLES * len(runs))[1:], strict=False):
        difference = np.abs(run.losses - first) / first
        if not difference.any():
            axes.plot([], [], color=style["color"], label=f"{run.name}: no difference")
            continue
        # A step without a difference has no place on a logarithmic axis.
        difference = np.where(difference > 0, difference, np.nan)
        axes.plot(epochs, difference, ".", color=style["color"], markersize=3, alpha=0.45, markeredgewidth=0)
        largest = np.fmax.reduce(difference.reshape(-1, per_epoch), axis=1)
        axes.plot(np.arange(len(largest)) + 0.5, largest, label=f"{run.name}, largest of an epoch", **style)
    axes.set_yscale("log")
    axes.set_ylabel(f"difference of the loss\nfrom {runs[0].name}'s, relative")
    axes.set_ylim(top=axes.get_ylim()[1] * 6)  # room for the legend
    axes.legend(frameon=False, fontsize="small", ncols=2, loc="upper left")
