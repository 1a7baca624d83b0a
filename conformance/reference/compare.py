"""Two traces of the same scenario side by side: how far, where, and whether to the bit.

Accumulators are compared in units in the last place. Parameters and averages are compared in units of motion:
``ε · path + spacing``, where the path is what the element has moved so far and the spacing is the last place of
its largest value so far (see `accuracy`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..data.floats import format_of, parts, spacing, ulps
from ..data.trajectory import STATES, Trajectory


@dataclass(frozen=True)
class Distance:
    """The worst element of one kind of state: how far from what it is compared with, and where.

    ``units`` as the module says; infinite where one is NaN or infinite and the other is not. ``step`` counts steps
    taken, ``element`` is flat (a complex number counts as two).
    """

    kind: str
    units: float
    step: int = 0
    tensor: str = ""
    element: int = 0
    ours: float = 0.0
    theirs: float = 0.0
    same_bits: bool = False

    def __str__(self) -> str:
        if self.same_bits:
            return f"{self.kind}: the same bits"
        place = f"{self.kind}/{self.tensor}[{self.element}] after step {self.step}"
        return f"{place}: {self.ours!r} against {self.theirs!r}, {self.units:.3g} units apart"


def inputs_agree(a: Trajectory, b: Trajectory) -> bool:
    """Tell whether both traces began at the same parameters and were given the same gradients."""
    mine, theirs = a.case.inputs, b.case.inputs
    if (a.dtype, a.case.shapes, a.case.missing, mine.keys()) != (b.dtype, b.case.shapes, b.case.missing, theirs.keys()):
        return False
    return all(same_bits(mine[key], theirs[key]) for key in mine) and all(map(same_bits, a.at("x", 0), b.at("x", 0)))


def same_bits(a: NDArray[np.generic], b: NDArray[np.generic]) -> bool:
    """Tell whether two arrays hold the same bits: −0 is not +0 (traces hold only one NaN)."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def motion_units(values: NDArray[np.generic], dtype: str) -> NDArray[np.float64]:
    """Return, for a series over time, one unit of motion at each step and element."""
    series = parts(values).astype(np.float64)
    finite = np.where(np.isfinite(series), series, 0.0)
    steps = np.abs(np.diff(finite, axis=0, prepend=finite[:1]))
    epsilon = 2.0 ** (1 - format_of(dtype).precision)
    largest = np.maximum.accumulate(np.abs(finite), axis=0)
    return epsilon * np.cumsum(steps, axis=0) + spacing(largest, dtype)


def differences(a: Trajectory, b: Trajectory) -> dict[str, Distance]:
    """Return the worst difference of each kind of state that both traces have; a `ValueError` if inputs differ."""
    if not inputs_agree(a, b):
        raise ValueError(f"{a.scenario}: {a.name} and {b.name} were given different inputs")
    whole = "complex-arithmetic" in (*a.deviations, *b.deviations)
    found = {}
    for kind in STATES:
        if not (a.has(kind) and b.has(kind)):
            continue
        worst = Distance(kind, 0.0, same_bits=True)
        for name, one, other in zip(a.names, a.states[kind], b.states[kind], strict=True):
            if same_bits(one, other) or one.size == 0:
                continue
            apart = units_apart(kind, one, other, a.dtype, whole=whole)
            place = np.unravel_index(int(np.argmax(apart)), apart.shape)
            units = float(apart[place])
            if worst.same_bits or units > worst.units:
                element = int(np.ravel_multi_index(place[1:], apart.shape[1:])) if apart.ndim > 1 else 0
                pair = float(parts(one)[place]), float(parts(other)[place])
                worst = Distance(kind, units, int(place[0]), name, element, *pair)
        found[kind] = worst
    return found


def units_apart(
    kind: str, one: NDArray[np.generic], other: NDArray[np.generic], dtype: str, *, whole: bool = False
) -> NDArray[np.float64]:
    """Return how far two series over time are apart, element by element, in the units of their kind of state.

    ``whole`` judges the accumulators of complex numbers as whole numbers, not part by part.
    """
    steps = ulps(one, other, dtype)
    if kind in ("square_avg", "acc_delta") and not whole:
        return steps
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.abs(parts(one).astype(np.float64) - parts(other).astype(np.float64))
    if kind in ("square_avg", "acc_delta"):
        # Products of complex numbers cancel in one part: the error is that of the whole number.
        size = np.maximum(np.abs(one), np.abs(other)).astype(np.float64)
        unit = spacing(np.where(np.isfinite(size), size, 0.0), dtype)[..., np.newaxis]
    else:
        unit = np.maximum(motion_units(one, dtype), motion_units(other, dtype))
    return np.where(np.isfinite(gap), gap / unit, steps)
