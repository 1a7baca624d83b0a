"""Assertions for other people's tests: two optimizers do the same, or one does what the paper says.

>>> import numpy as np, multiopt
>>> from multiopt.conformance import assert_same_trajectory
>>> def ours(params):
...     return multiopt.Adadelta(params, lr=0.5)
>>> worst = assert_same_trajectory(ours, ours, params=[np.ones(3)])
>>> worst["x"]
0.0

Where two differ, the error says after which step, in which tensor and element, by how much, and which known
difference it looks like (`diagnosis`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from multiopt import Adadelta

from ..data.case import Array
from ..data.trajectory import Trajectory
from ..reference.accuracy import distances
from ..reference.tolerances import against_oracle
from .diagnosis import Diagnosis, Explanation, explain, simulate
from .differences import LIMITS, StateDifference, check_comparable, first_differences, worst
from .sides import Gradients, trajectories

#: Explanations that a message tells, at most.
MOST = 4
UNKNOWN = (
    "It looks like none of the differences that are known here, and is no Adadelta as far as can be told:\n"
    "neither other options, nor mistakes in gradients or equations, nor another optimizer give these numbers."
)


class TrajectoryError(AssertionError):
    """Two trajectories differ.

    Attributes
    ----------
    differences : list of StateDifference
        At the first step that is beyond the limits: the worst element of each kind of state.
    explanations : list of Explanation
        What it looks like.
    """

    def __init__(self, message: str, differences: list[StateDifference], explanations: list[Explanation]) -> None:
        super().__init__(message)
        self.differences, self.explanations = differences, explanations


def assert_same_trajectory(
    a: Any,
    b: Any,
    *,
    params: Sequence[Array] | None = None,
    gradients: Gradients | None = None,
    steps: int = 20,
    seed: int = 0,
    limits: Mapping[str, float] | None = None,
    diagnose: bool = True,
) -> dict[str, float]:
    """Feed two optimizers the same gradients, and compare every state after every step.

    Parameters
    ----------
    a, b : optimizer, callable, trajectory, or sequence of states
        A `multiopt.Optimizer`, a `torch.optim.Optimizer`, a Keras optimizer, an optax transformation, a
        `targets.protocol.TargetOptimizer` of your own, or a function that makes one of these from a list of NumPy
        arrays. Or what was recorded before: a `Trajectory`, or a sequence of states, the first before any step, each
        one a mapping from ``"x"``, ``"square_avg"``, ``"acc_delta"``, ``"average"`` to arrays, or the parameters
        alone.
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
        If they differ: an `AssertionError`, with `differences` and `explanations`.
    TypeError, ValueError
        If they cannot be compared: other shapes, dtypes or initial values, or unknown kinds of object.
    """
    limits = LIMITS if limits is None else _checked(limits)
    one, other = trajectories([a, b], params, gradients, steps, seed)
    check_comparable(one, other)
    found = first_differences(one, other, limits)
    if not found:
        return worst(one, other, limits)
    told = explain(one, other) if diagnose else Diagnosis([], [])
    raise TrajectoryError(_message(one, other, found, told, diagnose), found, told.explanations)


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
    gradients: Gradients | None = None,
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
    sides = [optimizer]
    if options:
        sides.append(lambda values: Adadelta(values, engine="eager", **options))
    one, *rest = trajectories(sides, params, gradients, steps, seed)
    said = rest[0] if rest else one
    if not said.options_known or not one.case.gradients:
        raise ValueError(f"options: {one.name} does not say what it was asked for; pass lr=…, rho=…, eps=…")
    case = replace(one.case, config=said.config, rates=said.case.rates)
    rates = np.repeat(case.update_rates(), case.config.accumulate)[: case.steps]
    # In 16 bits ours computes in float32: its hyperparameters are not rounded to the parameters' dtype.
    as_held = one.dtype not in ("float16", "bfloat16")
    far = distances(replace(one, case=case, lr=rates), stepwise=False, as_held=as_held)
    wrong = [d for kind, d in far.items() if not d.units <= against_oracle(kind, one.dtype, stepwise=False).limit]
    if wrong:
        true = simulate(case)
        assert true is not None
        told = explain(true, one)
        lines = [f"{one.name} does not follow the published rule:", *(f"  {d}" for d in wrong), *_looks(told, True)]
        raise TrajectoryError("\n".join(lines), first_differences(true, one), told.explanations)
    return {kind: d.units for kind, d in far.items()}


def _checked(limits: Mapping[str, float]) -> Mapping[str, float]:
    unknown = limits.keys() - LIMITS.keys()
    if unknown or not limits:
        raise ValueError(f"limits: expected some of {', '.join(LIMITS)}, got {', '.join(sorted(unknown)) or 'none'}")
    return limits


# --- messages ---


def _message(a: Trajectory, b: Trajectory, found: list[StateDifference], told: Diagnosis, diagnosed: bool) -> str:
    bad = [p for p in found if not p.units <= p.allowed]
    good = [p.kind for p in found if p.units <= p.allowed]
    step = f"after step {found[0].step} of {a.steps}"
    lines = [f"a ({a.name}) and b ({b.name}) differ {step}:", *(f"  {p}" for p in bad)]
    if good:
        lines.append(f"  {' and '.join(good)} still agree{'s' * (len(good) == 1)} at that step")
    given = a if a.case.gradients else b
    lines.extend(_given(given, bad[0]))
    return "\n".join([*lines, *_looks(told, diagnosed and bool(given.case.gradients))])


def _given(t: Trajectory, at: StateDifference) -> list[str]:
    if not t.case.gradients or at.step == 0:
        return []
    g = t.case.gradients[at.step - 1][at.tensor]
    gradient = "None" if g is None else repr(np.asarray(g)[at.index].item())
    parameter = t.states["x"][at.tensor][at.step - 1][at.index].item()
    return [f"  the gradient there was {gradient}, the parameter {parameter!r}"]


def _looks(told: Diagnosis, diagnosed: bool) -> list[str]:
    lines = [str(explanation) for explanation in told.explanations]
    if lines:
        more = [f"… and {len(lines) - MOST} more (see .explanations)"] if len(lines) > MOST else []
        alike = "It looks like this:" + " one of these, which give the same numbers" * (len(lines) > 1)
        return [alike, *(f"  {line}" for line in [*lines[:MOST], *more])]
    return [UNKNOWN, *(f"  {note}" for note in told.notes)] if diagnosed else []
