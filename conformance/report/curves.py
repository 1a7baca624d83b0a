"""What the page draws: errors over time, and frameworks that leave each other though given the same gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.traces import TraceFile
from ..data.trajectory import Trajectory
from ..reference.accuracy import errors_over_time
from ..targets.run import run_target
from ..targets.target import find

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


def errors(run: Trajectory, who: str, width: int = 10) -> Curve:
    """Return how far the accumulators are from the oracle, which runs by itself, in ulps: the worst of `width` steps.

    Deviations are followed: what remains is the rounding of the arithmetic.
    """
    worst = errors_over_time(run)
    cuts = range(0, len(worst), width)
    return Curve(who, [i + 1 for i in cuts], [max(worst[i : i + width]) for i in cuts])


def error_growth(files: Mapping[str, TraceFile]) -> list[Chart]:
    """Return the errors of every framework in its long runs, and ours."""
    charts = []
    for dtype in ("float64", "float32"):
        traces = [content.traces.get(f"long-{dtype}") for content in files.values()]
        found = [errors(trace, trace.name) for trace in traces if trace is not None]
        case = next(trace.case for trace in traces if trace is not None).published()
        found.append(errors(run_target(find("numpy-eager"), case), OURS))
        charts.append(Chart(f"{dtype}, the paper’s settings", "", "ulps", found))
    return charts


def values(
    run: Trajectory,
    who: str,
    *,
    kind: str = "x",
    tensor: int = 0,
    element: int = 0,
    begin: int = 0,
    moved: bool = False,
) -> Curve:
    """Return an element of a state over time, or how far it has moved; by default from before the first step on."""
    series = run.states[kind][tensor].reshape(run.steps + 1, -1)[:, element].astype(np.float64)
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
                values(clip, "tf-keras-legacy", tensor=1, element=1),
                values(of("tf-keras", "clipvalue-clipnorm"), "tf-keras", tensor=1, element=1),
                values(mine(clip), OURS, tensor=1, element=1),
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
                *(values(of(s, "sparse"), s, element=9) for s in sparse),
                values(mine(of("tf-keras", "sparse"), "keras-face"), OURS, element=9),
            ],
        ),
    ]
