"""What an optimizer did with some gradients: every state after every step, and where two of them part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.specification import HOLDERS, Config
from ..data.tracefile import STATES, Trace
from ..reference.compare import units_apart
from ..reference.floats import parts
from ..targets.adapters import Adapter, Asked, adapt, asked
from ..targets.players import Array
from ..targets.replay import Question, question_of

_UNITS = {"square_avg": "ulp", "acc_delta": "ulp", "x": "units of motion", "average": "units of motion"}


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Every state after every step.

    Attributes
    ----------
    name : str
        Whose it is, for messages.
    dtype : str
        Data type of parameters and state. bfloat16 is held in float32.
    states : mapping of str to sequence of arrays
        ``"x"``, and where known ``"square_avg"``, ``"acc_delta"`` and ``"average"``: for each parameter one array, with
        time as its first axis; entry 0 is before any step.
    gradients : sequence of sequences of arrays or None
        What was given at each step to each parameter; None where nothing is known of it.
    asked : Asked or None
        The options, as far as they are known.
    """

    name: str
    dtype: str
    states: Mapping[str, Sequence[Array]]
    gradients: Sequence[Sequence[Array | None]] | None = None
    asked: Asked | None = None

    @property
    def steps(self) -> int:
        """How many steps were taken."""
        return len(self.states["x"][0]) - 1

    @property
    def start(self) -> list[Array]:
        """The initial parameters."""
        return [series[0] for series in self.states["x"]]

    def question(self, config: Config, rates: tuple[float, ...] | None = None) -> Question:
        """Ask what it was asked, with other options. It must have gradients."""
        assert self.gradients is not None
        return question_of("parity", self.dtype, config, self.start, self.gradients, rates)

    @classmethod
    def of_trace(cls, trace: Trace) -> Trajectory:
        """Return a recorded trace (`multiopt.conformance.data.tracefile`) as a trajectory."""
        states = {kind: trace.series(kind) for kind in STATES if trace.has(kind)}
        gradients: Any = None if trace.is_sparse else [trace.gradients(step) for step in range(trace.steps)]
        rates = tuple(float(r) for r in trace.arrays["lr"]) if trace.config.schedule is not None else None
        return cls(f"{trace.system}, {trace.scenario}", trace.dtype, states, gradients, Asked(trace.config, rates))


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


def record(adapter: Adapter, gradients: Sequence[Sequence[Array | None]]) -> Trajectory:
    """Step an adapter through gradients."""
    # Before the steps: what an optimizer says of itself may change with them.
    options = asked(adapter, len(gradients) + 1)
    holder = HOLDERS[adapter.dtype]
    given = [[None if g is None else np.asarray(g).astype(holder) for g in row] for row in gradients]
    seen = [adapter.states()]
    for number, row in enumerate(given):
        adapter.step(number, row)
        seen.append(adapter.states())
    kinds = [kind for kind in STATES if all(kind in shot for shot in seen)]
    states = {k: [np.stack([shot[k][i] for shot in seen]) for i in range(len(seen[0][k]))] for k in kinds}
    return Trajectory(adapter.name, adapter.dtype, states, given, options)


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
    return Trajectory(name, found["x"][0].dtype.name, found, gradients)


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
    for i, (one, other) in enumerate(zip(a.start, b.start, strict=True)):
        if not np.array_equal(one, other, equal_nan=True):
            raise ValueError(f"params[{i}]: expected the same initial values, {a.name} and {b.name} start apart")
