"""What an optimizer did with some gradients: every state after every step, and where two of them part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..data.case import Array, Case
from ..data.floats import parts
from ..data.specification import HOLDERS, Config
from ..data.trajectory import STATES, Trajectory
from ..reference.compare import units_apart
from ..targets import run
from ..targets.optimizers import adapt, options_of
from ..targets.protocol import Options, TargetOptimizer

_UNITS = {"square_avg": "ulp", "acc_delta": "ulp", "x": "units of motion", "average": "units of motion"}


def record_trajectory(
    optimizer: Any, gradients: Sequence[Sequence[Array | None]], *, params: Sequence[Array] | None = None
) -> Trajectory:
    """Step an optimizer through gradients, and return every state after every step.

    Parameters
    ----------
    optimizer : object
        What `adapters.adapt` takes.
    gradients : sequence of sequences of arrays or None
        By step and parameter, as NumPy arrays.
    params : sequence of arrays, optional
        Initial parameters, where the optimizer does not hold them.

    Returns
    -------
    Trajectory
    """
    adapter = adapt(optimizer, params) if params is None else adapt(optimizer, params, dtype=_dtype(params))
    return record(adapter, gradients)


def _dtype(params: Sequence[Array]) -> str:
    return np.asarray(params[0]).dtype.name


def record(optimizer: TargetOptimizer, gradients: Sequence[Sequence[Array | None]]) -> Trajectory:
    """Step an optimizer through gradients."""
    # Before the steps: what an optimizer says of itself may change with them.
    options = options_of(optimizer, len(gradients) + 1)
    holder = HOLDERS[optimizer.dtype]
    given = [[None if g is None else np.asarray(g).astype(holder) for g in row] for row in gradients]
    config, rates = (Config(), None) if options is None else options
    case = Case("parity", optimizer.dtype, config, optimizer.states()["x"], given, rates=rates)
    return replace(run.record(optimizer, case), options_known=options is not None)


def options_in(trajectory: Trajectory) -> Options | None:
    """Return the options with which a trajectory came about, as far as they are known."""
    return Options(trajectory.config, trajectory.case.rates) if trajectory.options_known else None


def with_options(trajectory: Trajectory, options: Options) -> Case:
    """Return a trajectory's case with other options."""
    return replace(trajectory.case, scenario="parity", config=options.config, rates=options.rates)


def of_trace(trace: Trajectory) -> Trajectory:
    """Return a recorded trace as `assert_same_trajectory` takes it: with the rates that the framework used."""
    rates = None
    if trace.config.schedule is not None and trace.lr is not None:
        rates = tuple(float(rate) for rate in trace.lr[trace.config.accumulate - 1 :: trace.config.accumulate])
    gradients = [] if trace.case.is_sparse else trace.case.gradients
    case = replace(trace.case, rates=rates, gradients=gradients)
    states = {kind: trace.states[kind] for kind in STATES if trace.has(kind)}
    return replace(trace, name=f"{trace.name}, {trace.scenario}", case=case, states=states)


def of_sequence(states: Sequence[Any], name: str, gradients: Sequence[Any] | None) -> Trajectory:
    """Return plain recorded states as a trajectory: one entry a point in time, the first before any step.

    An entry is a mapping from kind of state to arrays, or the parameters alone: one array, or one for each.
    """
    columns = [entry if isinstance(entry, Mapping) else {"x": entry} for entry in states]
    if len(columns) < 2 or any("x" not in entry for entry in columns):
        raise ValueError(f"{name}: expected at least two entries with 'x' in each: before and after a step")
    listed = [{k: list(v) if isinstance(v, (list, tuple)) else [v] for k, v in entry.items()} for entry in columns]
    found = {
        kind: [np.stack([np.asarray(entry[kind][i]) for entry in listed]) for i in range(len(listed[0][kind]))]
        for kind in STATES
        if all(kind in entry for entry in listed)
    }
    start = [series[0] for series in found["x"]]
    case = Case("parity", found["x"][0].dtype.name, Config(), start, gradients or [])
    return Trajectory(name, case, found, options_known=False)


# --- where two part ---


@dataclass(frozen=True)
class Parting:
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
            f"{self.kind} of params[{self.tensor}]{place}: {_plain(self.a)} against {_plain(self.b)}, "
            f"{self.units:.3g} {_UNITS[self.kind]} apart ({self.allowed:g} allowed)"
        )


def _plain(value: Any) -> str:
    return repr(value.item() if hasattr(value, "item") else value)


def worst(a: Trajectory, b: Trajectory, limits: Mapping[str, float]) -> dict[str, float]:
    """Return the worst distance of each kind of state that both have, over all steps."""
    found = {kind: 0.0 for kind in limits if kind in a.states and kind in b.states}
    for kind in found:
        for apart in _apart(a, b, kind):
            found[kind] = max(found[kind], float(np.max(apart, initial=0.0)))
    return found


def _apart(a: Trajectory, b: Trajectory, kind: str) -> list[Array]:
    pairs = zip(a.states[kind], b.states[kind], strict=True)
    return [units_apart(kind, one, other, a.dtype) if one.size else np.zeros(one.shape) for one, other in pairs]


def partings(a: Trajectory, b: Trajectory, limits: Mapping[str, float]) -> list[Parting]:
    """Return where two part first: at the first step with a difference beyond the limits, the worst of each kind.

    Kinds that are within their limits at that step are there too, so that one sees what agrees. Empty: they never do.
    """
    apart = {kind: _apart(a, b, kind) for kind in limits if kind in a.states and kind in b.states}
    first = a.steps + 1
    for kind, tensors in apart.items():
        for units in tensors:
            beyond = ~(units.reshape(len(units), -1) <= limits[kind]).all(axis=1)
            first = min(first, int(np.argmax(beyond))) if beyond.any() else first
    if first > a.steps:
        return []
    return [_worst_at(a, b, kind, first, tensors, limits[kind]) for kind, tensors in apart.items()]


def _worst_at(a: Trajectory, b: Trajectory, kind: str, step: int, tensors: list[Array], allowed: float) -> Parting:
    sizes = [float(np.max(units[step], initial=-1.0)) for units in tensors]
    tensor = int(np.argmax(sizes))
    units = tensors[tensor][step]
    at = tuple(int(i) for i in np.unravel_index(int(np.argmax(units)), units.shape))
    one, other = (parts(t.states[kind][tensor][step])[at] for t in (a, b))
    shape = a.states[kind][tensor].shape[1:]
    return Parting(kind, step, tensor, at[: len(shape)], float(units[at]), allowed, one, other)


def check_comparable(a: Trajectory, b: Trajectory) -> None:
    """Raise unless two trajectories began alike and have the same dtype, shapes and length.

    Raises
    ------
    ValueError
    """
    if a.dtype != b.dtype:
        raise ValueError(f"expected one dtype, got {a.dtype} ({a.name}) and {b.dtype} ({b.name})")
    shapes = [[series.shape for series in t.states["x"]] for t in (a, b)]
    if shapes[0] != shapes[1]:
        told = " and ".join(f"{shape} ({t.name})" for shape, t in zip(shapes, (a, b), strict=True))
        raise ValueError(f"expected as many steps of the same shapes, got, with time first, {told}")
    for i, (one, other) in enumerate(zip(a.case.start, b.case.start, strict=True)):
        if not np.array_equal(one, other, equal_nan=True):
            raise ValueError(f"params[{i}]: expected the same initial values, {a.name} and {b.name} start apart")
