"""A trajectory one step at a time: what each equation of the rule was given and what came out, and where it fails.

Every step begins at the states that were seen before it, so that a mistake shows in its own equation alone and two
mistakes show apart. Elements of all tensors stand side by side: arrays have steps × elements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from multiopt import ADADELTA, Rule

from ..data.case import Array, Case
from ..data.floats import REAL, format_of, parts, rounded, spacing
from ..data.trajectory import Trajectory
from ..mutation.mutants import build
from ..reference.tolerances import STEP
from ..targets.run import record

#: Twice what one step may round to: 1 − ρ may have been formed in the parameters' data type.
LIMITS = {kind: 2 * tolerance.limit for kind, tolerance in STEP.items()}
#: Elements of all tensors that are looked at, at most.
MOST = 600
#: As many are tried first.
FEW = 16
#: What fails must show in so many numbers more than were fitted to them.
EVIDENCE = 3
#: The gradient as a rule gets it, scaled and clipped, in place of the parameter.
GRADIENT = Rule("gradient", lambda xp, x, g, *, lr, rho, eps: (g,), {}, ADADELTA.hypers)


@dataclass(frozen=True)
class Steps:
    """What was seen. ``raw`` is the gradient before it was clipped and decayed; ``t`` counts from 1."""

    g: Array
    raw: Array
    x0: Array
    x1: Array
    v0: Array
    v1: Array
    u0: Array
    u1: Array
    given: Array
    owner: Array
    lr: Array
    t: Array
    rho: float
    eps: float
    dtype: str

    def update(self, upper: Array | None = None, lower: Array | None = None) -> Array:
        """√(u + ε) / √(v + ε) · g, with what is read in place of u and v."""
        upper, lower = (self.u0 if upper is None else upper), (self.v1 if lower is None else lower)
        return np.asarray(np.sqrt(upper + self.eps) / np.sqrt(lower + self.eps) * self.g)

    def holds(self, kind: str, value: Array) -> Array:
        """Tell of each number of one kind of state whether it is this value, but for rounding."""
        return np.asarray(self.apart(kind, value) <= LIMITS[kind])

    def apart(self, kind: str, value: Array) -> Array:
        """Return how far each number is from this value: units in the last place, or of the step's motion."""
        seen = {"square_avg": self.v1, "acc_delta": self.u1, "x": self.x1}[kind]
        size = np.maximum(np.abs(seen), np.abs(value))
        path = 0.0
        if kind == "x":
            size, path = np.maximum(size, np.abs(self.x0)), np.abs(value - self.x0)
        unit = spacing(np.where(np.isfinite(size), size, 0.0), self.dtype) + self.epsilon * path
        same = (seen == value) | (np.isnan(seen) & np.isnan(value))
        far = np.where(same, 0.0, np.abs(value - seen) / unit)
        return np.where(np.isnan(far), np.inf, far)

    @property
    def epsilon(self) -> float:
        """Distance from 1 to the next number."""
        return float(2.0 ** (1 - format_of(self.dtype).precision))

    def some(self, at: Array) -> tuple[Array, Steps]:
        """Return a few of these numbers: their places in flat arrays, and what was seen there."""
        places = np.flatnonzero(at)
        places = places[np.linspace(0, len(places) - 1, min(len(places), FEW)).astype(int)]
        names = ("g", "raw", "x0", "x1", "v0", "v1", "u0", "u1", "given", "lr", "t")
        taken = {name: np.broadcast_to(getattr(self, name), at.shape).ravel()[places] for name in names}
        return places, replace(self, **taken)

    def before(self, values: Array) -> Array:
        """Return the values of one step before; zeros before the first."""
        return np.concatenate([np.zeros_like(values[:1]), values[:-1]])

    def mean(self, values: Array) -> Array:
        """Return the mean of each tensor's values."""
        return self._each(lambda i: values[:, self.owner == i].mean(axis=1, keepdims=True))

    def norm(self, values: Array) -> Array:
        """Return the norm of each tensor's values."""
        return self._each(lambda i: np.sqrt(np.sum(values[:, self.owner == i] ** 2, axis=1, keepdims=True)))

    def of_tensor(self, values: Array, number: Callable[[int], int]) -> Array:
        """Return the values of another tensor, repeated or cut to this one's size."""

        def taken(i: int) -> Array:
            theirs = values[:, self.owner == number(i)]
            return theirs[:, np.arange(np.sum(self.owner == i)) % theirs.shape[1]]

        return self._each(taken)

    @property
    def tensors(self) -> Array:
        """Numbers of the tensors that have elements."""
        return np.unique(self.owner)

    def _each(self, made: Callable[[int], Array]) -> Array:
        result = np.empty(self.g.shape)
        for i in self.tensors:
            result[:, self.owner == i] = made(i)
        return result


def narrower(dtype: str) -> Iterator[tuple[str, Callable[[Array], Array]]]:
    """Yield formats with fewer bits, and what rounds to them."""
    for name, held in (("float32", "float32"), ("float16", "float16"), ("bfloat16", "float32")):
        if format_of(name).precision < format_of(dtype).precision:
            yield name, partial(_through, name, held)


def _through(name: str, held: str, values: Array) -> Array:
    with np.errstate(all="ignore"):
        return np.asarray(rounded(np.asarray(values, dtype=held), name).astype(np.float64))


def steps_of(seen: Trajectory, case: Case) -> Steps | None:
    """Return the steps of a trajectory under the options of a case, or None where they cannot be told apart."""
    c = case.config
    if seen.dtype in ("float16", "bfloat16") or not all(map(seen.has, ("square_avg", "acc_delta"))) or case.is_sparse:
        return None  # in 16 bits too many mistakes look alike
    case = replace(seen.case, config=replace(c, ema_momentum=None, ema_every=None), rates=case.rates)
    kept = [i for i, x in enumerate(case.start) if x.size]
    chosen = {i: _chosen(parts(np.asarray(case.start[i])).size, MOST // max(1, len(kept))) for i in kept}
    owner = np.repeat(kept, [len(chosen[i]) for i in kept])
    times = np.arange(0, seen.steps + 1, c.accumulate)

    def flat(column: Sequence[Array]) -> Array:
        return np.concatenate([_rows(column[i])[:, chosen[i]] for i in kept], axis=1).astype(np.float64)

    zeros = [np.zeros_like(x) for x in case.start]
    plain = replace(case, start=zeros).with_options(weight_decay=0.0, decay_kind=None)
    try:
        used = record(build(plain, "eager", GRADIENT), plain).states["x"]
    except ValueError:
        return None
    x, v, u = (flat(seen.states[kind])[times] for kind in ("x", "square_avg", "acc_delta"))
    g, raw = flat(used)[times[1:]], flat([seen_gradients(case, i) for i in range(len(case.start))])[times[1:] - 1]
    there = np.array([[any(row[i] is not None for row in case.gradients[t - c.accumulate : t]) for i in kept]
                      for t in times[1:]])  # fmt: skip
    lr = np.array(case.update_rates()[: len(times) - 1], dtype=np.float64)[:, np.newaxis]
    x0 = x[:-1]
    if c.decay_kind == "coupled":
        g = g + c.weight_decay * x0
    x0 = x0 * (1.0 - lr * c.weight_decay) if c.decay_kind == "decoupled" else x0
    given = there[:, np.searchsorted(kept, owner)]
    t = np.arange(1.0, len(lr) + 1)[:, np.newaxis]
    real = REAL.get(seen.dtype, seen.dtype)
    return Steps(g, raw, x0, x[1:], v[:-1], v[1:], u[:-1], u[1:], given, owner, lr, t, c.rho, c.eps, real)


def seen_gradients(case: Case, i: int) -> Array:
    """Return the gradients of a tensor over time; zeros where there is none."""
    like = np.asarray(case.start[i])
    return np.stack([np.zeros_like(like) if row[i] is None else np.asarray(row[i]) for row in case.gradients])


def _rows(values: Any) -> Array:
    made = parts(np.asarray(values))
    return np.asarray(made.reshape(len(made), -1))


def _chosen(count: int, most: int) -> Array:
    return np.unique(np.linspace(0, count - 1, min(count, max(1, most))).astype(int))


# --- where something fails ---


def places(s: Steps, failing: Array) -> list[tuple[str, Array]]:
    """Return where something may be wrong, in words and as a mask, that takes in all that fails: everywhere first."""
    whole = np.ones(failing.shape, dtype=bool)
    times, columns = np.asarray(failing.any(axis=1)), np.asarray(failing.any(axis=0))
    mine = np.isin(s.owner, s.owner[columns])
    tensors = " and ".join(f"params[{i}]" for i in np.unique(s.owner[columns]))
    found = [("", whole), (f"in {tensors}", whole & mine)]
    if steps := _spoken(np.flatnonzero(times) + 1, len(times)):
        found += [(steps, whole & times[:, np.newaxis]), (f"{steps} in {tensors}", times[:, np.newaxis] & mine)]
    size = np.abs(s.g)
    bounds = size[failing].min(initial=np.inf), size[failing].max(initial=0.0)
    conditions = [
        ("where there is no gradient", ~s.given), ("where the gradient is 0", s.given & (s.g == 0)),
        ("where the gradient is negative", s.g < 0), ("where the gradient is positive", s.g > 0),
        (f"where the gradient is {bounds[0]:.3g} or larger", size >= bounds[0]),
        (f"where the gradient is {bounds[1]:.3g} or smaller", size <= bounds[1]),
    ]  # fmt: skip
    found += [(text, mask) for text, mask in conditions if mask[failing].all()]
    if columns.sum() <= 3:
        names = [f"params[{s.owner[k]}], element {k - np.searchsorted(s.owner, s.owner[k])}" for k in
                 np.flatnonzero(columns)]  # fmt: skip
        found.append((f"in {' and '.join(names)}", whole & columns))
    elif s.given.any() and columns.sum() < len(columns):
        found.append((f"in {columns.sum()} of {len(columns)} elements", whole & columns))
    # A place that is everywhere needs no words.
    return [(text, mask) for text, mask in found if not text or not mask.all()]


def _spoken(steps: Array, last: int) -> str:
    """Say which steps these are; empty if there are no few words for it."""
    gaps = set(np.diff(steps).tolist())
    if len(steps) in (0, last):
        return ""
    if len(steps) == 1:
        return f"at step {steps[0]}"
    if gaps == {1} and steps[-1] == last:
        return f"from step {steps[0]} on"
    if gaps == {1}:
        return f"at steps {steps[0]} to {steps[-1]}"
    return f"at every {min(gaps)}th step from step {steps[0]} on" if len(gaps) == 1 else ""


# --- fitting ---


def fitted(s: Steps, seen: Array, features: Sequence[Array], at: Array) -> list[float] | None:
    """Return the factors with which features add up to what was seen, relative errors weighing alike; None: too few."""
    columns = [np.broadcast_to(feature, seen.shape) for feature in features]
    usable = at & np.isfinite(seen) & (seen != 0) & np.all([np.isfinite(column) for column in columns], axis=0)
    if usable.sum() < len(features) + EVIDENCE:
        return None
    matrix = np.stack([column[usable] / seen[usable] for column in columns], axis=1)
    scale = np.abs(matrix).max(axis=0)
    if not np.all(scale > 0):
        return None
    found, *_ = np.linalg.lstsq(matrix / scale, np.ones(len(matrix)), rcond=None)
    return [float(value) for value in found / scale]


def rounder(value: float) -> list[float]:
    """Return numbers of few digits beside a value, the fewest first, and the value itself."""
    if not np.isfinite(value) or value == 0:
        return [value]
    near = [float(f"{value:.{digits}g}") for digits in range(1, 8)]
    return [number for number in dict.fromkeys(near) if abs(number / value - 1) < 1e-2] + [value]
