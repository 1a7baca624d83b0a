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

from .demo_digits import Run

__all__ = ["draw"]

#: Okabe and Ito's colours, which colour-blind readers tell apart.
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2", "#F0E442")
MARKERS = "osD^vPX*"


def draw(runs: Sequence[Run], per_epoch: int, path: Path) -> None:
    """Draw the losses of one run, or those of several and their differences.

    Parameters
    ----------
    runs : sequence of Run
        The first one is what the others are compared with.
    per_epoch : int
        Steps in an epoch.
    path : Path
        Where the picture goes; its ending says the format.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    figure = Figure(figsize=(8, 7.2 if len(runs) > 1 else 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    epochs = np.arange(1, len(runs[0].losses) + 1) / per_epoch
    if len(runs) > 1:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        _differences(bottom, runs, epochs, per_epoch)
        top.set_title(f"{len(runs)} array libraries, one curve", loc="left", fontweight="bold")
    else:
        top = figure.subplots()
        text = f"Adadelta on {runs[0].name}: {runs[0].accuracy:.1%} of the test digits right"
        top.set_title(text, loc="left", fontweight="bold")
        top.set_xlabel("epoch")
    top.plot(epochs, runs[0].losses, color="0.8", linewidth=0.8, label="each step")
    middles = np.arange(len(epochs) // per_epoch) + 0.5
    for i, run in enumerate(runs):
        mean = run.losses.reshape(-1, per_epoch).mean(axis=1)
        label = f"{run.name}: {run.accuracy:.1%} right" if len(runs) > 1 else "mean of an epoch"
        # The lines lie upon each other: the later ones are thinner, and their markers stand apart.
        top.plot(
            middles,
            mean,
            color=COLOURS[i % 8],
            linewidth=1.0 + 0.8 * (len(runs) - 1 - i),
            **_marker(i),
            markevery=(i % len(middles), len(runs)),
            label=label,
        )
    top.set_yscale("log")
    top.set_ylabel("training loss (cross-entropy)")
    top.legend(frameon=False, fontsize="small")
    for axes in figure.axes:
        axes.grid(True, which="major", color="0.92")
        axes.set_axisbelow(True)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _marker(i: int) -> dict[str, Any]:
    return {"marker": MARKERS[i % 8], "markersize": 6, "markeredgecolor": "white", "markeredgewidth": 0.6}


def _differences(axes: Axes, runs: Sequence[Run], epochs: np.ndarray, per_epoch: int) -> None:
    first = runs[0].losses
    for i, run in enumerate(runs[1:], 1):
        far = np.abs(run.losses - first) / first
        if not far.any():
            axes.plot([], [], color=COLOURS[i % 8], label=f"{run.name}: no difference")
            continue
        # A step without a difference has no place on a logarithmic axis.
        far = np.where(far > 0, far, np.nan)
        axes.plot(epochs, far, ".", color=COLOURS[i % 8], markersize=3, alpha=0.45, markeredgewidth=0)
        largest = np.fmax.reduce(far.reshape(-1, per_epoch), axis=1)
        middles = np.arange(len(largest)) + 0.5
        axes.plot(middles, largest, color=COLOURS[i % 8], label=f"{run.name}, largest of an epoch", **_marker(i))
    axes.set_yscale("log")
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"difference of the loss\nfrom {runs[0].name}'s, relative")
    axes.set_ylim(top=axes.get_ylim()[1] * 6)  # room for the legend
    axes.legend(frameon=False, fontsize="small", ncols=2, loc="upper left")
