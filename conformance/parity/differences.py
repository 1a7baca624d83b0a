"""Where two trajectories leave each other, and by how much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.case import Array
from ..data.floats import parts
from ..data.trajectory import Trajectory
from ..reference.compare import units_apart
from ..reference.tolerances import TRACE

#: What two frameworks are allowed: see `tolerances`, where the reasons stand.
LIMITS: Mapping[str, float] = {kind: tolerance.limit for kind, tolerance in TRACE.items()}
_UNITS = {"square_avg": "ulp", "acc_delta": "ulp", "x": "units of motion", "average": "units of motion"}


@dataclass(frozen=True)
class StateDifference:
    """The worst element of one kind of state at one step.

    ``index`` is the element's place in its tensor; ``units`` are units in the last place for accumulators and units
    of motion for parameters (see `multiopt.conformance.reference.accuracy`).
    """

    kind: str
    step: int
    tensor: int
    index: tuple[int, ...]
    units: float
    allowed: float
    a: Any
    b: Any

    def __str__(self) -> str:
        place = f"[{', '.join(map(str, self.index))}]" if self.index else ""
        return (
            f"{self.kind} of params[{self.tensor}]{place}: {self.a.item()!r} against {self.b.item()!r}, "
            f"{self.units:.3g} {_UNITS[self.kind]} apart ({self.allowed:g} allowed)"
        )


def _distances(a: Trajectory, b: Trajectory, kinds: Mapping[str, float]) -> dict[str, list[Array]]:
    """Return how far each element is at each step, for each kind of state that both have."""
    return {
        kind: [
            units_apart(kind, one, other, a.dtype) if one.size else np.zeros(one.shape)
            for one, other in zip(a.states[kind], b.states[kind], strict=True)
        ]
        for kind in kinds
        if kind in a.states and kind in b.states
    }


def worst(a: Trajectory, b: Trajectory, limits: Mapping[str, float] = LIMITS) -> dict[str, float]:
    """Return the worst distance of each kind of state that both have, over all steps."""
    found = _distances(a, b, limits)
    return {kind: max(float(np.max(units, initial=0.0)) for units in tensors) for kind, tensors in found.items()}


def first_differences(a: Trajectory, b: Trajectory, limits: Mapping[str, float] = LIMITS) -> list[StateDifference]:
    """Return where two differ first: at the first step with a difference beyond the limits, the worst of each kind.

    Kinds that are within their limits at that step are there too, so that one sees what agrees. Empty: they never do.
    """
    found = _distances(a, b, limits)
    firsts = [
        int(np.argmax(beyond))
        for kind, tensors in found.items()
        for units in tensors
        if (beyond := ~(units.reshape(len(units), -1) <= limits[kind]).all(axis=1)).any()
    ]
    if not firsts:
        return []
    return [_worst_at(a, b, kind, min(firsts), tensors, limits[kind]) for kind, tensors in found.items()]


def _worst_at(
    a: Trajectory, b: Trajectory, kind: str, step: int, tensors: list[Array], allowed: float
) -> StateDifference:
    tensor = int(np.argmax([float(np.max(units[step], initial=-1.0)) for units in tensors]))
    units = tensors[tensor][step]
    at = tuple(int(i) for i in np.unravel_index(int(np.argmax(units)), units.shape))
    one, other = (parts(t.states[kind][tensor][step])[at] for t in (a, b))
    shape = a.states[kind][tensor].shape[1:]
    return StateDifference(kind, step, tensor, at[: len(shape)], float(units[at]), allowed, one, other)


def check_comparable(a: Trajectory, b: Trajectory) -> None:
    """Raise a ValueError unless two trajectories began alike and have the same dtype, shapes and length."""
    if a.dtype != b.dtype:
        raise ValueError(f"expected one dtype, got {a.dtype} ({a.name}) and {b.dtype} ({b.name})")
    shapes = [[series.shape for series in t.states["x"]] for t in (a, b)]
    if shapes[0] != shapes[1]:
        told = " and ".join(f"{shape} ({t.name})" for shape, t in zip(shapes, (a, b), strict=True))
        raise ValueError(f"expected as many steps of the same shapes, got, with time first, {told}")
    for i, (one, other) in enumerate(zip(a.case.start, b.case.start, strict=True)):
        if not np.array_equal(one, other, equal_nan=True):
            raise ValueError(
                f"params[{i}]: expected the same initial values, {a.name} and {b.name} start from different values"
            )
