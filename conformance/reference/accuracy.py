"""How far a trace is from the oracle, element by element and step by step.

Accumulators are judged in units in the last place of the exact value. A parameter's last place says little about a
step (near a zero crossing the units shrink to nothing, and far from it they hide the step), so its error is
divided by ``ε · path + spacing``: the rounding of the motion so far, plus the last place of the largest value so
far. Both come out as small numbers where the arithmetic is sound, whatever the data type.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from decimal import Decimal, localcontext

import numpy as np

from ..data.floats import format_of, spacing
from ..data.trajectory import Trajectory
from .oracle import CONTEXT, Numbers, Oracle, State

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


def distances(
    trace: Trajectory,
    *,
    stepwise: bool = True,
    deviations: Collection[str] | None = None,
    as_held: bool = True,
) -> dict[str, Distance]:
    """Return the worst distance of each kind of state from the oracle.

    Parameters
    ----------
    trace : Trajectory
        One that was not refused.
    stepwise : bool
        Begin each step at the recorded state before it, so that the distance is the error of one step. False: let
        the oracle run by itself from the initial parameters, so that errors add up as they do in use.
    deviations, as_held
        As in `oracle.Oracle`.

    Returns
    -------
    dict
        Kind (``x``, ``square_avg``, ``acc_delta``, ``average``) to `Distance`.
    """
    oracle = Oracle(trace, deviations=deviations, as_held=as_held)
    kinds = [kind for kind in ("square_avg", "acc_delta", "x", "average") if trace.has(kind)]
    worst: dict[str, Distance] = {}
    state = oracle.start()
    before = oracle.recorded(0)
    if not stepwise and before.average is not None:
        state.average = [list(values) for values in before.average]
    path = [[Decimal(0)] * len(values) for values in state.x]
    largest = [[abs(value) for value in values] for values in state.x]
    for step in range(trace.steps):
        if stepwise:
            state, path = before, [[Decimal(0)] * len(values) for values in before.x]
            largest = [[abs(value) for value in values] for values in before.x]
        earlier = [list(values) for values in state.x]
        oracle.advance(state, step)
        after = oracle.recorded(step + 1)
        with localcontext(CONTEXT):
            _travel(path, largest, earlier, state)
            for kind in kinds:
                found = _worst(trace, kind, step + 1, state, after, path, largest)
                # "not <=" lets NaN count as worse than any number.
                if found is not None and (kind not in worst or not found.units <= worst[kind].units):
                    worst[kind] = found
        before = after
    return worst


def _travel(path: list[Numbers], largest: list[Numbers], earlier: list[Numbers], state: State) -> None:
    for i, values in enumerate(state.x):
        for k, value in enumerate(values):
            if value.is_finite() and earlier[i][k].is_finite():
                path[i][k] += abs(value - earlier[i][k])
                largest[i][k] = max(largest[i][k], abs(value))


def _worst(
    trace: Trajectory,
    kind: str,
    step: int,
    state: State,
    after: State,
    path: list[Numbers],
    largest: list[Numbers],
) -> Distance | None:
    precision = format_of(trace.dtype).precision
    epsilon = Decimal(2) ** (1 - precision)
    exact_all, recorded_all = getattr(state, kind), getattr(after, kind)
    found: Distance | None = None
    for i, name in enumerate(trace.names):
        exact, recorded = exact_all[i], recorded_all[i]
        scale = [value if value.is_finite() else Decimal(0) for value in exact]
        if kind in ("x", "average"):
            scale = [max(a, abs(b)) for a, b in zip(largest[i], scale, strict=True)]
        units = spacing(np.array([float(value) for value in scale]), trace.dtype)
        for k, (mine, theirs) in enumerate(zip(exact, recorded, strict=True)):
            unit = Decimal(float(units[k]))
            if kind in ("x", "average"):
                unit += epsilon * path[i][k]
            far = _apart(mine, theirs, unit)
            if found is None or not far <= found.units:
                found = Distance(kind, far, step, name, k, float(theirs), float(mine))
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
    """Return both distances of ``trace`` from the oracle."""
    followed = distances(trace, stepwise=False)
    published = distances(trace, stepwise=False, deviations=(), as_held=False)
    return Accuracy(trace.name, trace.scenario, trace.deviations, followed, published)
