"""Laws: what must hold between an optimizer's answers to related cases, whatever the numbers are.

Each law runs a target on two cases, one made of the other, and compares every state after every step. Where the
target is promised NumPy's bits, the law holds to the bit; where its compiler may contract to multiply-add, within the
tolerance for that. Laws about the optimizer as an object (what it leaves alone, what it keeps) are in `promises`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from operator import methodcaller

import numpy as np

from ..data.case import Array, Case, Gradient
from ..data.floats import rounded
from ..data.specification import Config
from ..data.trajectory import STATES, Trajectory
from ..reference.compare import differences
from ..reference.tolerances import COMPILED
from ..targets.run import run_target
from ..targets.target import Target
from .law import OPTIONS, BrokenError, Law, law
from .promises import PROMISES

Series = Sequence[Array]
Rng = np.random.Generator
_MOVING = ("x", "average")
_WIDE = ("float32", "float64", "complex64", "complex128")
_PLAIN = ("plain", "paper", "coupled", "decoupled", "clipvalue")

# --- asking and comparing ---


def agree(target: Target, one: Trajectory, other: Trajectory, what: str) -> None:
    """Raise unless two answers to the same case have the same states (zeros of either sign agree)."""
    for kind, found in differences(one, other).items():
        allowed = 0.0 if target.bits else COMPILED[kind].limit
        if not found.units <= allowed:
            raise BrokenError(f"{kind} is another one {what}", found)


def back(one: Trajectory, other: Trajectory, change: Callable[[str, Series], Series]) -> Trajectory:
    """Return what `other` would be as an answer to the case of `one`: its states, changed back."""
    return replace(one, states={kind: change(kind, other.states[kind]) for kind in STATES if other.has(kind)})


def related(target: Target, case: Case, other: Case, change: Callable[[str, Series], Series], what: str) -> None:
    """Run a case and another one made of it, change the states of that one back, and compare."""
    one = run_target(target, case)
    agree(target, one, back(one, run_target(target, other), change), what)


def asked(case: Case, start: Series, gradients: Sequence[Sequence[Gradient]], **options: object) -> Case:
    """Return the case with other parameters, gradients and options."""
    return replace(case, start=start, gradients=gradients).with_options(**options)


def every(case: Case, change: Callable[[Array], Array], *, start: bool = True) -> Case:
    """Return the case with every gradient, and every parameter, changed in the same way."""
    return asked(
        case,
        [change(values) if start else values for values in case.start],
        [[None if g is None else change(np.asarray(g)) for g in row] for row in case.gradients],
    )


# --- the laws ---


@law()
def sign_symmetry(target: Target, case: Case, rng: Rng) -> None:
    """Negated parameters and gradients give negated parameters and the same state."""
    mirrored = every(case, np.negative)
    related(target, case, mirrored, lambda kind, s: [-a for a in s] if kind in _MOVING else s, "mirrored")


@law()
def permutation(target: Target, case: Case, rng: Rng) -> None:
    """The order of tensors and elements does not matter."""
    tensors = rng.permutation(len(case.shapes))
    orders = [rng.permutation(int(np.prod(shape))) for shape in case.shapes]

    def shuffled(row: Sequence[Gradient]) -> list[Array]:
        return [np.asarray(row[i]).ravel()[orders[i]] for i in tensors]

    def sorted_(kind: str, series: Series) -> Series:
        found: dict[int, Array] = {}
        for i, values in zip(tensors, series, strict=True):
            found[int(i)] = values[:, np.argsort(orders[i])].reshape(len(values), *case.shapes[i])
        return [found[i] for i in range(len(case.shapes))]

    other = asked(case, shuffled(case.start), [shuffled(row) for row in case.gradients])
    related(target, case, other, sorted_, "in another order")


@law()
def reshape(target: Target, case: Case, rng: Rng) -> None:
    """The shape does not matter."""

    def restored(kind: str, series: Series) -> Series:
        return [a.reshape(len(a), *shape) for a, shape in zip(series, case.shapes, strict=True)]

    one = run_target(target, case)
    for shape, what in (((-1,), "as vectors"), ((-1, 1), "as columns")):
        other = every(case, methodcaller("reshape", shape))
        agree(target, one, back(one, run_target(target, other), restored), what)


@law(labels=tuple(label for label in OPTIONS if label != "clipnorm"))
def split(target: Target, case: Case, rng: Rng) -> None:
    """The split into tensors does not matter, to the global norm neither."""
    sizes = [int(np.prod(shape)) for shape in case.shapes]

    def joined(row: Sequence[Gradient]) -> list[Array]:
        return [np.concatenate([np.asarray(a).ravel() for a in row])]

    def apart(kind: str, series: Series) -> Series:
        pieces = np.split(series[0], np.cumsum(sizes)[:-1], axis=1)
        return [a.reshape(len(a), *shape) for a, shape in zip(pieces, case.shapes, strict=True)]

    other = asked(case, joined(case.start), [joined(row) for row in case.gradients])
    related(target, case, other, apart, "as one tensor")


@law(labels=("plain", "paper", "clipvalue", "global-clipnorm"))
def zero_gradient(target: Target, case: Case, rng: Rng) -> None:
    """A gradient of 0 leaves x and lets the state decay."""
    zeros = [np.zeros_like(values) for values in case.start]
    found = run_target(target, asked(case, case.start, [*case.gradients, zeros]))

    def expected(kind: str, series: Series) -> Series:
        factor = 1.0 if kind == "x" else case.config.rho
        return [np.concatenate([a[:-1], rounded(factor * a[-2:-1], case.dtype)]) for a in series]

    for kind, apart in differences(found, back(found, found, expected)).items():
        # The rule has rho rounded to the data type, then a product: half a unit each. x does not round.
        if not apart.units <= (0.0 if kind == "x" else 2.0):
            wanted = "x stays" if kind == "x" else f"{kind} becomes rho times what it was"
            raise BrokenError(f"{wanted} when the gradient is 0", apart)


@law(labels=("plain", "paper", "clipvalue", "clipnorm", "ema"), dtypes=_WIDE)
def learning_rate(target: Target, case: Case, rng: Rng) -> None:
    """The learning rate scales the motion and never the state."""
    # From 0, and four times as large: powers of two scale without rounding.
    zeros = [np.zeros_like(values) for values in case.start]
    one, other = (asked(case, zeros, case.gradients, lr=lr) for lr in (0.25, 1.0))
    quarter = lambda kind, s: [a / 4 for a in s] if kind in _MOVING else s  # noqa: E731
    related(target, one, other, quarter, "at four times the learning rate")


@law(labels=(*_PLAIN, "clipnorm"))
def missing_gradient(target: Target, case: Case, rng: Rng) -> None:
    """A gradient of None freezes its tensor and nothing else."""
    other = np.ones_like(case.start[0])
    start = [*case.start, other]
    rows = [[*row, other] for row in case.gradients]
    step, i = int(rng.integers(len(rows))), int(rng.integers(len(start) - 1))
    left_out = [[None if (t, k) == (step, i) else g for k, g in enumerate(row)] for t, row in enumerate(rows)]
    found = run_target(target, asked(case, start, left_out))

    def frozen(kind: str, series: Series) -> Series:
        kept = series[i].copy()
        kept[step + 1] = kept[step]
        return [*series[:i], kept, *series[i + 1 :]]

    for kind, apart in differences(found, back(found, found, frozen)).items():
        if not apart.same_bits:
            raise BrokenError(f"{kind} stays when the gradient is None", apart)
    full = run_target(target, asked(case, start, rows))
    others = back(full, found, lambda kind, s: [*s[:i], full.states[kind][i], *s[i + 1 :]])
    agree(target, full, others, "for the tensors beside the one without gradient")


@law(needs=Config(maximize=True))
def maximize(target: Target, case: Case, rng: Rng) -> None:
    """Maximizing is minimizing with negated gradients."""
    up, down = case.with_options(maximize=True), every(case, np.negative, start=False)
    related(target, up, down, lambda _, s: s, "with negated gradients")


@law(labels=(*_PLAIN, "clipnorm", "global-clipnorm"), needs=Config(accumulate=2))
def accumulation(target: Target, case: Case, rng: Rng) -> None:
    """The mean of two equal gradients is that gradient."""
    twice = asked(case, case.start, [row for row in case.gradients for _ in range(2)], accumulate=2)
    related(target, case, twice, lambda _, s: [a[::2] for a in s], "as the mean of two equal gradients")


LAWS: Mapping[str, Law] = {
    law.name: law
    for law in (
        sign_symmetry, permutation, reshape, split, zero_gradient, learning_rate, missing_gradient, maximize,
        accumulation, *PROMISES,
    )
}  # fmt: skip
