"""What can be compared: optimizers that are stepped, and what was recorded before, as trajectories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..data.case import Array, Case
from ..data.specification import HOLDERS, Config
from ..data.trajectory import STATES, Trajectory
from ..targets import run
from ..targets.optimizers import adapt, options_of
from ..targets.protocol import TargetOptimizer

#: By step and parameter; None leaves a parameter out.
Gradients = Sequence[Sequence[Array | None]]
#: Shapes of the parameters where none are given: several elements, a matrix, one number without axes.
SHAPES = ((5,), (3, 2), ())
#: Name of cases that come from no scenario.
_NAME = "parity"


def record_trajectory(optimizer: Any, gradients: Gradients, *, params: Sequence[Array] | None = None) -> Trajectory:
    """Step an optimizer through gradients, and return every state after every step.

    Parameters
    ----------
    optimizer : object
        What `multiopt.conformance.targets.optimizers.adapt` takes.
    gradients : sequence of sequences of arrays or None
        By step and parameter, as NumPy arrays.
    params : sequence of arrays, optional
        Initial parameters, where the optimizer does not hold them.

    Returns
    -------
    Trajectory
    """
    return _record(adapt(optimizer, params, dtype=_dtype(params)), gradients)


def _dtype(params: Sequence[Array] | None) -> str:
    return "float32" if params is None else np.asarray(params[0]).dtype.name


def _record(optimizer: TargetOptimizer, gradients: Gradients) -> Trajectory:
    # Before the steps: what an optimizer says of itself may change with them.
    options = options_of(optimizer, len(gradients) + 1)
    holder = HOLDERS[optimizer.dtype]
    given = [[None if g is None else np.asarray(g).astype(holder) for g in row] for row in gradients]
    config, rates = (Config(), None) if options is None else options
    case = Case(_NAME, optimizer.dtype, config, optimizer.states()["x"], given, rates=rates)
    return replace(run.record(optimizer, case), options_known=options is not None)


def _of_trace(trace: Trajectory) -> Trajectory:
    """Return a recorded trace with the rates that the framework used."""
    rates = None
    if trace.config.schedule is not None and trace.lr is not None:
        rates = tuple(float(rate) for rate in trace.lr[trace.config.accumulate - 1 :: trace.config.accumulate])
    case = replace(trace.case, rates=rates, gradients=[] if trace.case.is_sparse else trace.case.gradients)
    states = {kind: trace.states[kind] for kind in STATES if trace.has(kind)}
    return replace(trace, name=f"{trace.name}, {trace.scenario}", case=case, states=states)


def _of_sequence(states: Sequence[Any], name: str, gradients: Gradients | None) -> Trajectory:
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
    case = Case(_NAME, found["x"][0].dtype.name, Config(), start, gradients or [])
    return Trajectory(name, case, found, options_known=False)


def trajectories(
    sides: Sequence[Any], params: Sequence[Array] | None, gradients: Gradients | None, steps: int, seed: int
) -> list[Trajectory]:
    """Return what each side did: those that can be stepped are, all with the same numbers."""
    done = [_recorded(side, name, gradients) for side, name in zip(sides, "ab", strict=False)]
    for trajectory in done:
        if trajectory is not None:
            params = trajectory.case.start if params is None else params
            gradients = (trajectory.case.gradients or None) if gradients is None else gradients  # type: ignore[assignment]
    made = [None if d is not None else _optimizer(side, params) for d, side in zip(done, sides, strict=True)]
    if params is None:
        params = next((m.states()["x"] for m in made if m is not None), None)
    if gradients is None:
        if any(trajectory is not None for trajectory in done) and not all(done):
            raise ValueError("gradients: expected those that the recorded side was given")
        params = random_params(seed) if params is None else params
        gradients = random_gradients(params, steps, seed)
    found = []
    for side, trajectory, optimizer in zip(sides, done, made, strict=True):
        if trajectory is None:
            optimizer = _optimizer(side, params) if optimizer is None else optimizer
            if optimizer is None:
                raise ValueError(f"params: expected initial parameters for {type(side).__name__}")
            trajectory = _record(optimizer, gradients)
        found.append(trajectory)
    return found


def _recorded(side: Any, name: str, gradients: Gradients | None) -> Trajectory | None:
    if isinstance(side, Trajectory):
        return side if side.scenario == _NAME else _of_trace(side)
    # Named tuples of functions are optimizers (optax).
    listed = isinstance(side, (list, tuple)) and not hasattr(side, "init")
    return _of_sequence(side, name, gradients) if listed else None


def _optimizer(side: Any, params: Sequence[Array] | None) -> TargetOptimizer | None:
    """Return what can be stepped, or None where parameters are needed first."""
    makes = callable(side) and not hasattr(side, "step") and not hasattr(side, "apply")
    holds = not makes and (hasattr(side, "step") or getattr(side, "_trainable_variables", None))
    if params is None and not holds:
        return None
    made = side([np.array(values) for values in params or ()]) if makes else side
    return adapt(made, params, dtype=_dtype(params))


def random_params(seed: int) -> list[Array]:
    """Return initial parameters where nobody has any."""
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.uniform(-1.0, 1.0, shape), dtype=np.float32) for shape in SHAPES]


def random_gradients(params: Sequence[Array], steps: int, seed: int) -> Gradients:
    """Return gradients over several decades, with zeros among them."""
    rng = np.random.default_rng([seed, 1])

    def draw(like: Array) -> Array:
        like = np.asarray(like)
        shape = (*like.shape, 2) if like.dtype.kind == "c" else like.shape
        values = rng.uniform(1.0, 9.0, shape) * 10.0 ** rng.integers(-3, 1, shape) * rng.choice([-1.0, 1.0], shape)
        values = values * (rng.random(shape) > 0.05)
        if like.dtype.kind == "c":
            values = values[..., 0] + 1j * values[..., 1]
        return np.asarray(values).astype(like.dtype if like.dtype.kind in "fc" else HOLDERS["float32"])

    return [[draw(values) for values in params] for _ in range(steps)]
