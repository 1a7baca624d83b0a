"""How far a trace is from the reference, element by element and step by step.

Accumulators are judged in units in the last place of the exact value. A parameter's last place says little about a
step (near a zero crossing the units shrink to nothing, and far from it they hide the step), so its error is
divided by ``ε · path + spacing``: the rounding of the motion so far, plus the last place of the largest value so
far. Both come out as small numbers where the arithmetic is sound, whatever the data type.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, localcontext

import numpy as np

from ..data.case import Array
from ..data.floats import format_of, spacing
from ..data.trajectory import STATES, Trajectory
from .arithmetic import Digits
from .reference import Reference

#: Every state, by kind: one flat array of exact numbers for each tensor.
Columns = dict[str, list[Array]]
Numbers = list[Decimal]

#: Units that a sound implementation stays within, one step at a time and over a whole trace, with the reason.
#: Worst seen in the traces, all systems and data types: 5.6, 5.2, 1.4 and 1.6 in one step; 6.5, 37, 4.7 and 2.6 in all.
WITHIN_STEP: Mapping[str, float] = {
    # g² and two products and a sum round: 2 units; a gradient scaled by a norm brings its own rounding, squared.
    "square_avg": 8.0,
    # The update has two roots, a quotient and a product in it (3 roundings), squared: 6, and as before.
    "acc_delta": 8.0,
    # One rounding of the difference, and the update's own in proportion to the motion.
    "x": 2.0,
    "average": 2.0,
}
WITHIN_TRACE: Mapping[str, float] = {
    # Old errors fade with rho: 1 / (1 − .95) = 20 steps' worth at most, and they do not all point one way.
    "square_avg": 16.0,
    # Each update is made with the root of the old one: errors feed back on themselves.
    "acc_delta": 64.0,
    # Roundings of a thousand steps add up like a random walk, against a path of a thousand steps.
    "x": 8.0,
    "average": 8.0,
}


@dataclass(frozen=True)
class Distance:
    """The worst element of one kind of state: how far, and where.

    ``units`` are units in the last place for accumulators, units of motion for parameters and averages. ``step``
    counts steps taken, ``element`` is flat (a complex number counts as two).
    """

    kind: str
    units: float
    step: int
    tensor: str
    element: int
    recorded: float
    exact: float

    def within(self, *, stepwise: bool) -> bool:
        """Tell whether the distance is one that rounding explains."""
        return self.units <= (WITHIN_STEP if stepwise else WITHIN_TRACE)[self.kind]

    def __str__(self) -> str:
        place = f"{self.kind}/{self.tensor}[{self.element}] after step {self.step}"
        return f"{place}: recorded {self.recorded!r}, exact {self.exact!r}, {self.units:.3g} units apart"


def walk(
    trace: Trajectory, *, stepwise: bool, deviations: Collection[str] | None = None, as_held: bool = True
) -> Iterator[tuple[Columns, Columns, Columns]]:
    """Yield, after each step of a trace, the exact states before and after it, and the recorded ones after it.

    Parameters
    ----------
    trace : Trajectory
        Whose case and data type are taken.
    stepwise : bool
        Begin each step at the recorded state before it. False: let the reference run by itself.
    deviations : collection of str, optional
        Those to follow; by default those of the trace. Empty: the published rule alone.
    as_held : bool
        Round lr, rho, eps and 1 − rho to the trace's data type first, as every framework must, and take the learning
        rates that the framework reported. False: the configuration's own doubles, and the published schedules.
    """
    names = trace.deviations if deviations is None else deviations
    case, every = trace.case, trace.config.accumulate
    if as_held and trace.lr is not None:
        # Under accumulation an update has the rate of its last gradient.
        case = replace(case, rates=tuple(float(rate) for rate in trace.lr[every - 1 :: every]))
    digits = Digits(trace.dtype, as_held=as_held, flushes="flushes-subnormals" in names)
    reference = Reference(case, digits, deviations=names)
    kinds = [kind for kind in STATES if trace.has(kind)]

    def recorded_at(step: int) -> Columns:
        return {kind: [digits.array(values) for values in trace.at(kind, step)] for kind in kinds}

    recorded = recorded_at(0)
    reference.averages = recorded.get("average")
    for step, row in enumerate(case.gradients):
        if stepwise:
            reference.begin_at(recorded)
        before = {kind: list(column) for kind, column in reference.columns().items()}
        reference.step(step, row)
        recorded = recorded_at(step + 1)
        yield before, reference.columns(), recorded


def distances(
    trace: Trajectory,
    *,
    stepwise: bool = True,
    deviations: Collection[str] | None = None,
    as_held: bool = True,
) -> dict[str, Distance]:
    """Return the worst distance of each kind of state from the reference in 50 digits.

    Parameters
    ----------
    trace : Trajectory
        One that was not refused.
    stepwise : bool
        Begin each step at the recorded state before it, so that the distance is the error of one step. False: let
        the reference run by itself from the initial parameters, so that errors add up as they do in use.
    deviations, as_held
        As for `walk`.

    Returns
    -------
    dict
        Kind (``x``, ``square_avg``, ``acc_delta``, ``average``) to `Distance`.
    """
    worst: dict[str, Distance] = {}
    path, largest = _still([])
    states = walk(trace, stepwise=stepwise, deviations=deviations, as_held=as_held)
    with localcontext(Digits.context):
        for step, (before, exact, recorded) in enumerate(states, start=1):
            if stepwise or step == 1:
                path, largest = _still(before["x"])
            _travel(path, largest, before["x"], exact["x"])
            for kind in recorded:
                found = _worst(trace, kind, step, exact[kind], recorded[kind], path, largest)
                # "not <=" lets NaN count as worse than any number.
                if found is not None and (kind not in worst or not found.units <= worst[kind].units):
                    worst[kind] = found
    return worst


def errors_over_time(trace: Trajectory) -> list[float]:
    """Return after each step how far the accumulators are from a reference that runs by itself, in ulps.

    Deviations are followed: what remains is the rounding of the arithmetic.
    """
    found = []
    with localcontext(Digits.context):
        for _, exact, recorded in walk(trace, stepwise=False):
            kinds = ("square_avg", "acc_delta")
            worst = (_worst(trace, kind, 0, exact[kind], recorded[kind], [], []) for kind in kinds)
            found.append(max(distance.units for distance in worst if distance is not None))
    return found


def _still(start: Sequence[Array]) -> tuple[list[Numbers], list[Numbers]]:
    """Return the path of elements that have not moved, and the largest that each has been."""
    return [[Decimal(0)] * len(values) for values in start], [[abs(value) for value in values] for values in start]


def _travel(path: list[Numbers], largest: list[Numbers], earlier: list[Array], now: list[Array]) -> None:
    for i, (old, new) in enumerate(zip(earlier, now, strict=True)):
        for k, (value, was) in enumerate(zip(new, old, strict=True)):
            if value.is_finite() and was.is_finite():
                path[i][k] += abs(value - was)
                largest[i][k] = max(largest[i][k], abs(value))


def _worst(
    trace: Trajectory,
    kind: str,
    step: int,
    exact_all: list[Array],
    recorded_all: list[Array],
    path: list[Numbers],
    largest: list[Numbers],
) -> Distance | None:
    epsilon = Decimal(2) ** (1 - format_of(trace.dtype).precision)
    moves = kind in ("x", "average")
    found: Distance | None = None
    for i, (exact, recorded) in enumerate(zip(exact_all, recorded_all, strict=True)):
        scale = [value if value.is_finite() else Decimal(0) for value in exact]
        if moves:
            scale = [max(a, abs(b)) for a, b in zip(largest[i], scale, strict=True)]
        units = spacing(np.array([float(value) for value in scale]), trace.dtype)
        for k, (mine, theirs) in enumerate(zip(exact, recorded, strict=True)):
            unit = Decimal(float(units[k]))
            if moves:
                unit += epsilon * path[i][k]
            far = _apart(mine, theirs, unit)
            if found is None or not far <= found.units:
                found = Distance(kind, far, step, f"p{i}", k, float(theirs), float(mine))
    return found


def _apart(exact: Decimal, recorded: Decimal, unit: Decimal) -> float:
    if exact.is_nan() and recorded.is_nan():
        return 0.0
    if exact.is_infinite() or recorded.is_infinite():
        return 0.0 if exact == recorded else float("inf")
    if exact.is_nan() or recorded.is_nan():
        return float("inf")
    return float(abs(exact - recorded) / unit)


@dataclass(frozen=True)
class Accuracy:
    """How accurate one trace is, over all its steps.

    ``followed``: from the rule with the trace's own deviations and hyperparameters as the framework held them, which is
    the error of its arithmetic. ``published``: from the published rule with the hyperparameters that were asked for,
    which is how far a user of that framework is from the paper.
    """

    system: str
    scenario: str
    deviations: tuple[str, ...]
    followed: Mapping[str, Distance]
    published: Mapping[str, Distance]


def accuracy_of(trace: Trajectory) -> Accuracy:
    """Return both distances of ``trace`` from the reference."""
    followed = distances(trace, stepwise=False)
    published = distances(trace, stepwise=False, deviations=(), as_held=False)
    return Accuracy(trace.name, trace.scenario, trace.deviations, followed, published)
