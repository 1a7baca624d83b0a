"""Error over time, and trajectories of different frameworks from the same gradients: what the page draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..data.traces import TraceFile
from ..data.trajectory import Trajectory
from ..reference.accuracy import errors_over_time
from ..targets.run import run_target
from ..targets.target import Target, all_targets

#: Whose trajectories stand for ours: the others have the same bits.
OURS = "multiopt"


@dataclass(frozen=True)
class Curve:
    """Numbers over steps, by whom."""

    who: str
    steps: list[int]
    values: list[float]


def errors(trace: Trajectory) -> Curve:
    """Return after each step how far the accumulators are from the reference, in ulps."""
    return Curve(trace.name, list(range(1, trace.steps + 1)), errors_over_time(trace))


def binned(curve: Curve, width: int) -> Curve:
    """Return the worst of every `width` steps."""
    cuts = range(0, len(curve.values), width)
    return Curve(curve.who, [curve.steps[i] for i in cuts], [max(curve.values[i : i + width]) for i in cuts])


def error_growth(files: Mapping[str, TraceFile], scenario: str, ours: Target) -> list[Curve]:
    """Return `errors` for every framework that has a long run, and for ours; ten steps at a time, at worst."""
    found = [errors(content.traces[scenario]) for content in files.values() if scenario in content.traces]
    one = next(content.traces[scenario] for content in files.values() if scenario in content.traces)
    mine = run_target(ours, one.case.published())
    return [binned(curve, 10) for curve in (*found, replace(errors(mine), who=OURS))]


def moved(trace: Trajectory, who: str, tensor: int = 0, element: int = 0) -> Curve:
    """Return how far an element has moved from its start."""
    series = trace.states["x"][tensor].reshape(trace.steps + 1, -1)[:, element]
    far = np.abs(series.astype(np.float64) - float(series[0]))
    return Curve(who, list(range(1, trace.steps + 1)), [float(value) for value in far[1:]])


def values(trace: Trajectory, who: str, kind: str = "x", tensor: int = 0, element: int = 0, begin: int = 0) -> Curve:
    """Return an element of a state over time; by default from before the first step on."""
    series = trace.states[kind][tensor].reshape(trace.steps + 1, -1)[begin:, element]
    return Curve(who, list(range(begin, trace.steps + 1)), [float(value) for value in series])


def rates(trace: Trajectory, who: str) -> Curve:
    """Return the learning rate of every step."""
    return Curve(who, list(range(1, trace.steps + 1)), [float(rate) for rate in trace.lr])


@dataclass(frozen=True)
class Difference:
    """A picture of frameworks that part: title, what to see, the y axis and whether it is logarithmic, curves."""

    title: str
    text: str
    axis: str
    curves: list[Curve]
    log: bool = False


def side_by_side(files: Mapping[str, TraceFile], ours: Target) -> list[Difference]:
    """Return where two frameworks that are given the same gradients part."""

    def of(system: str, scenario: str) -> Trajectory:
        return files[system].traces[scenario]

    def mine(trace: Trajectory, **changes: Any) -> Trajectory:
        case = trace.case.published()
        return run_target(ours, replace(case, config=replace(case.config, **changes)))

    face = all_targets()["keras-face"]
    decay, clip, boundary, average, sparse = (
        of(*pair)
        for pair in (
            ("torch-forloop", "coupled-decay"),
            ("tf-keras-legacy", "clipvalue-clipnorm"),
            ("tf-keras-legacy", "schedule-piecewise"),
            ("tf-keras", "ema"),
            ("tf-keras", "sparse"),
        )
    )
    return [
        Difference(
            "Told nothing: the defaults",
            "The same gradients, no options. lr 1, .001 or none; ε 1e-6, 1e-7 or 1e-8: after ten steps the frameworks "
            "have moved distances that are four decades apart.",
            "distance moved",
            [
                *(moved(of(s, "defaults"), s) for s in ("torch-forloop", "tf-keras", "keras-jax", "tf-v1", "optax")),
                moved(mine(of("torch-forloop", "defaults")), "multiopt, .torch()"),
                moved(mine(of("tf-keras", "defaults")), "multiopt, .keras()"),
            ],
            log=True,
        ),
        Difference(
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
        Difference(
            "Two clips at once",
            "With clipvalue and clipnorm both set, the legacy optimizer applies both, tf_keras forgets clipvalue, and "
            "Keras 3 refuses. multiopt applies value, then norm.",
            "parameter",
            [
                values(clip, "tf-keras-legacy", tensor=1, element=1),
                values(of("tf-keras", "clipvalue-clipnorm"), "tf-keras", tensor=1, element=1),
                values(mine(clip), OURS, tensor=1, element=1),
            ],
        ),
        Difference(
            "Where a piece ends",
            "Boundaries 3 and 7 of a piecewise learning rate: Keras keeps the old rate for one step more than PyTorch "
            "and optax do. multiopt follows Keras.",
            "learning rate",
            [
                rates(of("torch-forloop", "schedule-piecewise"), "torch-forloop"),
                rates(of("optax", "schedule-piecewise"), "optax"),
                rates(boundary, "tf-keras-legacy"),
                rates(mine(boundary), OURS),
            ],
        ),
        Difference(
            "An average of the weights",
            "tf_keras' begins at the initial weights, Keras 3's and PyTorch's after the first step, and that of "
            "the DTensor optimizer never moves. multiopt begins at the initial weights.",
            "moving average",
            [
                values(of("tf-keras-dtensor", "ema"), "tf-keras-dtensor", "average"),
                values(average, "tf-keras", "average"),
                values(of("keras-jax", "ema"), "keras-jax", "average", begin=1),
                values(mine(average), OURS, "average"),
            ],
        ),
        Difference(
            "Rows that occur twice",
            "The same sparse gradients: stepped twice in turn (raw op), left alone when absent (legacy, v1), squared "
            "apart (Keras 3 on TensorFlow), or as the dense sum that they stand for (tf_keras, multiopt).",
            "parameter",
            [
                *(
                    values(of(s, "sparse"), s, element=9)
                    for s in ("tf-raw", "tf-keras-legacy", "keras-tensorflow", "tf-keras")
                ),
                values(run_target(face, sparse.case.published()), OURS, element=9),
            ],
        ),
    ]
