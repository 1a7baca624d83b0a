"""Assertions for other people's tests: two optimizers do the same, or one does what the paper says.

>>> import numpy as np, multiopt
>>> from multiopt.conformance import assert_same_trajectory
>>> def ours(params):
...     return multiopt.Adadelta(params, lr=0.5)
>>> worst = assert_same_trajectory(ours, ours, params=[np.ones(3)])
>>> worst["x"]
0.0

Where two part, the error says after which step, in which tensor and element, by how much, and which known
difference it looks like (`diagnosis`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..data.case import Array
from ..data.specification import HOLDERS
from ..data.trajectory import Trajectory
from ..reference.accuracy import distances
from ..reference.tolerances import TRACE, against_oracle
from ..targets.optimizers import adapt
from ..targets.protocol import TargetOptimizer
from .diagnosis import Explanation, explain, simulate
from .trajectory import (
    Parting,
    check_comparable,
    of_sequence,
    of_trace,
    options_in,
    partings,
    record,
    with_options,
    worst,
)

#: What two frameworks are allowed: see `tolerances`, where the reasons stand.
LIMITS: Mapping[str, float] = {kind: tolerance.limit for kind, tolerance in TRACE.items()}
#: Shapes of the parameters where none are given: several elements, a matrix, one number without axes.
SHAPES = ((5,), (3, 2), ())


class TrajectoryError(AssertionError):
    """Two trajectories part.

    Attributes
    ----------
    partings : list of Parting
        At the first step that is beyond the limits: the worst element of each kind of state.
    explanations : list of Explanation
        What it looks like.
    """

    def __init__(self, message: str, partings: list[Parting], explanations: list[Explanation]) -> None:
        super().__init__(message)
        self.partings, self.explanations = partings, explanations


def assert_same_trajectory(
    a: Any,
    b: Any,
    *,
    params: Sequence[Array] | None = None,
    gradients: Sequence[Sequence[Array | None]] | None = None,
    steps: int = 20,
    seed: int = 0,
    limits: Mapping[str, float] | None = None,
    diagnose: bool = True,
) -> dict[str, float]:
    """Feed two optimizers the same gradients, and compare every state after every step.

    Parameters
    ----------
    a, b : optimizer, callable, trajectory, or sequence of states
        A `multiopt.Optimizer`, a `torch.optim.Optimizer`, a Keras optimizer, an optax transformation, an adapter
        (`TargetOptimizer`), or a function that makes one of these from a list of NumPy arrays. Or what was recorded
        before: a `Trajectory`, or a sequence of states, the first before any step, each one a mapping from
        ``"x"``, ``"square_avg"``, ``"acc_delta"``, ``"average"`` to arrays, or the parameters alone.
        An optimizer must be new: it is stepped.
    params : sequence of arrays, optional
        Initial parameters, for what does not hold its own. By default those of the other side, or random ones.
    gradients : sequence of sequences of arrays or None
        By step and parameter, NumPy arrays; None leaves a parameter out. By default random ones over several
        decades, with zeros among them; or those of a recorded side.
    steps, seed : int
        Of random gradients.
    limits : mapping, optional
        Largest distance allowed for each kind of state: accumulators in units in the last place, parameters and
        averages in units of motion (the rounding of the path so far, and the last place of the largest value).
        Kinds that are left out are not compared. By default what rounding explains between two frameworks:
        32 for square_avg, 128 for acc_delta, 16 for parameters and averages.
    diagnose : bool
        Whether to find out what the difference looks like; it takes a second or two.

    Returns
    -------
    dict of str to float
        The worst distance of each kind of state that both sides show.

    Raises
    ------
    TrajectoryError
        If they part: an `AssertionError`, with `partings` and `explanations`.
    TypeError, ValueError
        If they cannot be compared: other shapes, dtypes or initial values, or unknown kinds of object.
    """
    limits = LIMITS if limits is None else _checked(limits)
    one, other = _sides(a, b, params, gradients, steps, seed)
    check_comparable(one, other)
    found = partings(one, other, limits)
    if not found:
        return worst(one, other, limits)
    explanations = explain(one, other) if diagnose else []
    raise TrajectoryError(_message(one, other, found, explanations, diagnose), found, explanations)


def assert_same_bits(a: Any, b: Any, **options: Any) -> None:
    """Demand that every state after every step is the same, to the last bit (but for the sign of zeros).

    Parameters
    ----------
    a, b, **options
        As for `assert_same_trajectory`, without ``limits``.

    Raises
    ------
    TrajectoryError
        If one element of one state differs.
    """
    assert_same_trajectory(a, b, limits=dict.fromkeys(LIMITS, 0.0), **options)


def assert_published_rule(
    optimizer: Any,
    *,
    params: Sequence[Array] | None = None,
    gradients: Sequence[Sequence[Array]] | None = None,
    steps: int = 20,
    seed: int = 0,
    **options: float,
) -> dict[str, float]:
    """Compare an optimizer with the published rule, computed in 50 digits.

    Parameters
    ----------
    optimizer, params, gradients, steps, seed
        As for `assert_same_trajectory`.
    **options
        ``lr``, ``rho``, ``eps``, ``weight_decay``: what it was asked for, where it does not say so itself.

    Returns
    -------
    dict of str to float
        The worst distance of each kind of state over the whole run, in units as for `assert_same_trajectory`.

    Raises
    ------
    TrajectoryError
        If rounding does not explain the distance.
    ValueError
        If it is not known what the optimizer was asked for.
    """
    import multiopt

    if options:
        exact: Any = lambda values: multiopt.Adadelta(values, engine="eager", **options)  # noqa: E731
        one, other = _sides(optimizer, exact, params, gradients, steps, seed)
    else:
        one, other = _sides(optimizer, optimizer, params, gradients, steps, seed, twice=False)
    said = options_in(other)
    if said is None or not one.case.gradients:
        raise ValueError(f"options: {one.name} does not say what it was asked for; pass lr=…, rho=…, eps=…")
    case = with_options(one, said)
    rates = np.repeat(case.update_rates(), case.config.accumulate)[: case.steps]
    trace = replace(one, case=case, lr=rates)
    as_held = one.dtype not in ("float16", "bfloat16")
    far = distances(trace, stepwise=False, as_held=as_held)
    wrong = [d for kind, d in far.items() if not d.units <= against_oracle(kind, one.dtype, stepwise=False).limit]
    if wrong:
        true = simulate(one, said)
        assert true is not None
        told = explain(true, one)
        found = partings(true, one, LIMITS)
        lines = [f"{one.name} does not follow the published rule:", *(f"  {d}" for d in wrong), *_looks(told, True)]
        raise TrajectoryError("\n".join(lines), found, told)
    return {kind: d.units for kind, d in far.items()}


def _checked(limits: Mapping[str, float]) -> Mapping[str, float]:
    unknown = limits.keys() - LIMITS.keys()
    if unknown or not limits:
        raise ValueError(f"limits: expected some of {', '.join(LIMITS)}, got {', '.join(sorted(unknown)) or 'none'}")
    return limits


# --- both sides, stepped with the same numbers ---


def _sides(
    a: Any,
    b: Any,
    params: Sequence[Array] | None,
    gradients: Sequence[Sequence[Array | None]] | None,
    steps: int,
    seed: int,
    *,
    twice: bool = True,
) -> tuple[Trajectory, Trajectory]:
    given = [a, b] if twice else [a]
    recorded = [_recorded(side, name, gradients) for side, name in zip(given, "ab", strict=False)]
    for trajectory in recorded:
        if trajectory is not None and params is None:
            params = trajectory.case.start
        if trajectory is not None and gradients is None:
            gradients = trajectory.case.gradients or None
    if gradients is None and all(trajectory is None for trajectory in recorded):
        made = [_adapter(side, params) for side in given]
        if params is None:
            params = next((m.states()["x"] for m in made if m is not None), _random_params(seed))
        adapters = [m if m is not None else _adapter(side, params) for m, side in zip(made, given, strict=True)]
        gradients = _random_gradients(params, steps, seed)
        trajectories = [record(m, gradients) for m in adapters if m is not None]
    else:
        trajectories = []
        for side, trajectory in zip(given, recorded, strict=True):
            if trajectory is not None:
                trajectories.append(trajectory)
                continue
            if gradients is None:
                raise ValueError("gradients: expected those that the recorded side was given")
            adapter = _adapter(side, params)
            if adapter is None:
                raise ValueError(f"params: expected initial parameters for {type(side).__name__}")
            trajectories.append(record(adapter, gradients))
    return trajectories[0], trajectories[-1]


def _recorded(side: Any, name: str, gradients: Any) -> Trajectory | None:
    if isinstance(side, Trajectory):
        return side if side.scenario == "parity" else of_trace(side)
    # Named tuples of functions are optimizers (optax).
    return of_sequence(side, name, gradients) if isinstance(side, (list, tuple)) and not hasattr(side, "init") else None


def _adapter(side: Any, params: Sequence[Array] | None) -> TargetOptimizer | None:
    """Return an adapter, or None where parameters are needed first."""
    if callable(side) and not hasattr(side, "step") and not hasattr(side, "apply"):
        if params is None:
            return None
        return adapt(side([np.array(values) for values in params]), params, dtype=np.asarray(params[0]).dtype.name)
    needs = not (hasattr(side, "step") or getattr(side, "_trainable_variables", None))
    if needs and params is None:
        return None
    return adapt(side, params, dtype="float32" if params is None else np.asarray(params[0]).dtype.name)


def _random_params(seed: int) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.uniform(-1.0, 1.0, shape), dtype=np.float32) for shape in SHAPES]


def _random_gradients(params: Sequence[Array], steps: int, seed: int) -> list[list[Array | None]]:
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


# --- messages ---


def _message(
    a: Trajectory, b: Trajectory, found: list[Parting], explanations: list[Explanation], diagnosed: bool
) -> str:
    step = found[0].step
    bad = [p for p in found if not p.units <= p.allowed]
    good = [p.kind for p in found if p.units <= p.allowed]
    lines = [f"a ({a.name}) and b ({b.name}) part after step {step} of {a.steps}:", *(f"  {p}" for p in bad)]
    if good:
        lines.append(f"  {' and '.join(good)} still agree{'s' * (len(good) == 1)} at that step")
    lines.extend(_given(a if a.case.gradients else b, bad[0]))
    return "\n".join([*lines, *_looks(explanations, diagnosed and bool(a.case.gradients or b.case.gradients))])


def _given(t: Trajectory, at: Parting) -> list[str]:
    if not t.case.gradients or at.step == 0:
        return []
    g = t.case.gradients[at.step - 1][at.tensor]
    gradient = "None" if g is None else repr(np.asarray(g)[at.index].item())
    parameter = t.states["x"][at.tensor][at.step - 1][at.index].item()
    return [f"  the gradient there was {gradient}, the parameter {parameter!r}"]


def _looks(explanations: list[Explanation], diagnosed: bool) -> list[str]:
    if explanations:
        return ["It looks like this:", *(f"  {explanation}" for explanation in explanations[:4])]
    return ["It looks like none of the differences that are known here."] if diagnosed else []
