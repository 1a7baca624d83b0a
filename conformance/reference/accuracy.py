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
from numpy.typing import NDArray

from ..data.case import Array
from ..data.floats import format_of, spacing
from ..data.trajectory import STATES, Trajectory
from .arithmetic import Digits, through
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
    with localcontext(Digits.context):
        states = list(walk(trace, stepwise=stepwise, deviations=deviations, as_held=as_held))
        for kind, i, units, exact, recorded in _errors(trace, states, stepwise=stepwise):
            step, k = np.unravel_index(int(np.argmax(units)), units.shape)
            if kind in worst and (units[step, k], -step - 1) <= (worst[kind].units, -worst[kind].step):
                continue
            values = float(recorded[step, k]), float(exact[step, k])
            worst[kind] = Distance(kind, float(units[step, k]), int(step) + 1, f"p{i}", int(k), *values)
    return worst


def errors_over_time(trace: Trajectory) -> list[float]:
    """Return after each step how far the accumulators are from a reference that runs by itself, in ulps.

    Deviations are followed: what remains is the rounding of the arithmetic.
    """
    with localcontext(Digits.context):
        errors = _errors(trace, list(walk(trace, stepwise=False)), stepwise=False)
        worst = [units.max(axis=1) for kind, _, units, *_ in errors if kind in ("square_avg", "acc_delta")]
    return [float(units) for units in np.max(worst, axis=0)]


def _errors(
    trace: Trajectory, states: Sequence[tuple[Columns, Columns, Columns]], *, stepwise: bool
) -> Iterator[tuple[str, int, NDArray[np.float64], Array, Array]]:
    """Yield each kind of state and tensor: the errors in units, by step and element; exact and recorded values."""
    epsilon = Decimal(2) ** (1 - format_of(trace.dtype).precision)
    for i, shape in enumerate(trace.case.shapes if states else ()):
        if 0 in shape:
            continue
        before, exact, recorded = (
            {kind: np.stack([columns[kind][i] for columns in series]) for kind in series[0]}
            for series in zip(*states, strict=True)
        )
        finite = _is_finite(before["x"]) & _is_finite(exact["x"])
        path = np.where(finite, np.abs(_finite(exact["x"]) - _finite(before["x"])), 0)
        largest = np.where(finite, np.maximum(np.abs(before["x"]), np.abs(exact["x"])), 0)
        if not stepwise:
            path, largest = np.cumsum(path, axis=0), np.maximum.accumulate(largest, axis=0)
        for kind, seen in recorded.items():
            mine, moves = exact[kind], kind in ("x", "average")
            scale = np.maximum(largest, np.abs(_finite(mine))) if moves else _finite(mine)
            unit = np.frompyfunc(Decimal, 1, 1)(spacing(scale.astype(np.float64), trace.dtype))
            unit = unit + epsilon * path if moves else unit
            units = (np.abs(_finite(mine) - _finite(seen)) / unit).astype(np.float64)
            same = (mine == seen) | (np.isnan(mine.astype(np.float64)) & np.isnan(seen.astype(np.float64)))
            odd = np.where(same, 0.0, np.inf)
            yield kind, i, np.where(_is_finite(mine) & _is_finite(seen), units, odd), mine, seen


def _is_finite(values: Array) -> Array:
    return np.asarray(np.frompyfunc(Decimal.is_finite, 1, 1)(values), dtype=bool)


def _finite(values: Array) -> Array:
    return np.where(_is_finite(values), values, 0)


@dataclass(frozen=True)
class Accuracy:
    """How far a trace is from the reference, over all its steps."""

    #: From the rule with the trace's deviations and hyperparameters as the framework held them: its arithmetic's error.
    followed: Mapping[str, Distance]
    #: From the published rule with the hyperparameters that were asked for: how far its users are from the paper.
    published: Mapping[str, Distance]


def accuracy_of(trace: Trajectory, *, as_held: bool = True) -> Accuracy:
    """Return both distances of ``trace``; ``as_held`` as for `walk`, in the first."""
    followed = distances(trace, stepwise=False, as_held=as_held)
    same = not trace.deviations and (not as_held or _asked(trace))
    return Accuracy(followed, followed if same else distances(trace, stepwise=False, deviations=(), as_held=False))


def _asked(trace: Trajectory) -> bool:
    """Tell whether a trace's hyperparameters are held as they were asked for."""
    c, every = trace.config, trace.config.accumulate
    numbers = (c.lr, c.rho, 1.0 - c.rho, c.eps, c.weight_decay)
    rates = trace.case.update_rates() if trace.lr is None else list(trace.lr[every - 1 :: every])
    return rates == trace.case.update_rates()[: len(rates)] and all(
        number is None or through(number, trace.dtype) == number for number in (*numbers, *rates)
    )
