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
from .compare import Distance
from .reference import Reference

#: Every state, by kind: one flat array of exact numbers for each tensor.
Columns = dict[str, list[Array]]


def walk(
    trace: Trajectory, *, stepwise: bool, deviations: Collection[str] | None = None, as_held: bool = True
) -> Iterator[tuple[Columns, Columns, Columns]]:
    """Yield, for each step of a trace, the exact states before and after it, and the recorded ones after it.

    ``stepwise`` begins each step at the recorded state before it; else the reference runs by itself. ``deviations`` are
    those to follow, by default those of the trace; with none of them it is the published rule. ``as_held`` rounds lr,
    rho, eps and 1 − rho to the trace's data type first, as every framework must, and takes the learning rates that the
    framework reported; else they are the configuration's own doubles, and the published schedules.
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
    trace: Trajectory, *, stepwise: bool = True, deviations: Collection[str] | None = None, as_held: bool = True
) -> dict[str, Distance]:
    """Return the worst distance of each kind of state from the reference in 50 digits; options as for `walk`.

    ``stepwise`` makes it the error of one step; else errors add up, as they do in use.
    """
    worst: dict[str, Distance] = {}
    states = walk(trace, stepwise=stepwise, deviations=deviations, as_held=as_held)
    with localcontext(Digits.context):
        for step, (before, exact, recorded) in enumerate(states, start=1):
            if stepwise or step == 1:
                path = [0 * _finite(x) for x in before["x"]]
                largest = [np.abs(x) for x in before["x"]]
            for i, (old, new) in enumerate(zip(before["x"], exact["x"], strict=True)):
                finite = _is_finite(old) & _is_finite(new)
                path[i] = path[i] + np.where(finite, np.abs(_finite(new) - _finite(old)), 0)
                largest[i] = np.where(finite, np.maximum(largest[i], np.abs(new)), largest[i])
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
    worst = []
    with localcontext(Digits.context):
        for _, exact, recorded in walk(trace, stepwise=False):
            both = [_worst(trace, kind, 0, exact[kind], recorded[kind]) for kind in ("square_avg", "acc_delta")]
            worst.append(max(found.units for found in both if found is not None))
    return worst


def _is_finite(values: Array) -> Array:
    return np.array([value.is_finite() for value in values], dtype=bool)


def _finite(values: Array) -> Array:
    return np.array([value if value.is_finite() else Decimal(0) for value in values], dtype=object)


def _worst(
    trace: Trajectory, kind: str, step: int, exact_all: list[Array], recorded_all: list[Array],
    path: Sequence[Array] = (), largest: Sequence[Array] = (),
) -> Distance | None:  # fmt: skip
    epsilon, moves = Decimal(2) ** (1 - format_of(trace.dtype).precision), kind in ("x", "average")
    found: Distance | None = None
    for i, (exact, recorded) in enumerate(zip(exact_all, recorded_all, strict=True)):
        if not len(exact):
            continue
        scale = np.maximum(largest[i], np.abs(_finite(exact))) if moves else _finite(exact)
        unit = np.array([Decimal(float(value)) for value in spacing(scale.astype(np.float64), trace.dtype)])
        unit = unit + epsilon * path[i] if moves else unit
        units = (np.abs(_finite(exact) - _finite(recorded)) / unit).astype(np.float64)
        mine, theirs = exact.astype(np.float64), recorded.astype(np.float64)
        odd = ~(_is_finite(exact) & _is_finite(recorded))
        same = (exact == recorded) | (np.isnan(mine) & np.isnan(theirs))
        units = np.where(odd, np.where(same, 0.0, np.inf), units)
        k = int(np.argmax(units))
        if found is None or not units[k] <= found.units:
            found = Distance(kind, float(units[k]), step, f"p{i}", k, float(theirs[k]), float(mine[k]))
    return found


@dataclass(frozen=True)
class Accuracy:
    """How far a trace is from the reference, over all its steps."""

    #: From the rule with the trace's deviations and hyperparameters as the framework held them: its arithmetic's error.
    followed: Mapping[str, Distance]
    #: From the published rule with the hyperparameters that were asked for: how far its users are from the paper.
    published: Mapping[str, Distance]


def accuracy_of(trace: Trajectory) -> Accuracy:
    """Return both distances of ``trace``."""
    published = distances(trace, stepwise=False, deviations=(), as_held=False)
    return Accuracy(distances(trace, stepwise=False), published)
