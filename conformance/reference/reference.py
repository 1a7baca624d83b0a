"""The published rule and the options around it once more. It shares no code with the library.

Per element, with gradient g, accumulators v and u, parameter x (Zeiler 2012, with the learning rate that every
framework adds, outside u)::

    v ← ρ v + (1 − ρ) g²
    d ← √(u + ε) / √(v + ε) · g
    u ← ρ u + (1 − ρ) d²
    x ← x − lr d

Around it: clipping by value, by each tensor's norm and by the global norm, coupled or decoupled weight decay, ascent,
accumulation, moving averages, constraints, sparse rows as their dense equal. One implementation serves two arithmetics:
in floating point it has the library's bits where no norm is clipped; in 50 digits it says what is exact.

It knows deviations by name and follows those that it is told to (`data.deviations`), but complex arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.case import Array, Case, Gradient, Sparse
from ..data.deviations import acted_on, single
from ..data.floats import REAL
from .arithmetic import Arithmetic, Floats, Number, through


@dataclass(frozen=True)
class Rows:
    """A sparse gradient: values, and the flat elements that they belong to; an element may occur more than once."""

    places: Array
    values: Array

    def summed(self) -> Rows:
        """Return each element once."""
        places = np.unique(self.places)
        return Rows(places, np.array([sum(self.values[self.places == place]) for place in places]))

    def layers(self, count: int) -> list[Rows]:
        """Return first occurrences, second ones, and so on; of `count` elements, those that never occur are nowhere."""
        seen = np.zeros(count, dtype=int)
        turns = np.zeros(len(self.places), dtype=int)
        for i, place in enumerate(self.places):
            turns[i] = seen[place]
            seen[place] += 1
        return [Rows(self.places[turns == t], self.values[turns == t]) for t in range(seen.max(initial=0))]

    def dense(self, count: int) -> Array:
        """Return `count` elements, zeros where none occurs; each may occur once."""
        found = np.zeros(count, dtype=self.values.dtype)
        found[self.places] = self.values
        return found


#: Gradients of one update: one flat array a tensor, or `Rows`, or None.
Given = list[Any]


class Reference:
    """An optimizer in parts that can be replaced. Tensors are held flat, complex ones as pairs of reals.

    Parameters
    ----------
    case : Case
        Options, initial parameters.
    arithmetic : Arithmetic, optional
        By default that of the case's data type.
    deviations : collection of str
        Names of deviations to follow.
    """

    name = "reference"
    #: What accumulators are filled with at first.
    first_square_avg = 0.0
    first_acc_delta = 0.0

    def __init__(self, case: Case, arithmetic: Arithmetic | None = None, *, deviations: Collection[str] = ()) -> None:
        self.case, self.dtype, self.deviations = case, case.dtype, frozenset(deviations)
        self.c = acted_on(case.config, self.deviations)
        self.arithmetic: Arithmetic = Floats(case.dtype) if arithmetic is None else arithmetic
        self.wide = self.arithmetic.wide
        self.hold, self.number = self.arithmetic.hold, self.arithmetic.number
        self.rho, self.eps, self.decay, self.rest = (
            self.arithmetic.option(value)
            for value in (self.c.rho, self.c.eps, self.c.weight_decay, self.one_minus_rho())
        )
        self.x = [self.keep(self.arithmetic.array(values)) for values in case.start]
        self.v = [self._filled(x, self.first_square_avg) for x in self.x]
        self.u = [self._filled(x, self.first_acc_delta) for x in self.x]
        self.averages = [x.copy() for x in self.x] if self.c.ema_momentum is not None else None
        self.steps = self.updates = 0
        self.waiting: list[Given] = []

    def _filled(self, like: Array, value: float) -> Array:
        return self.keep(np.full(like.shape, self.number(self.arithmetic.exact(value)), dtype=self.wide))

    def keep(self, values: Array) -> Array:
        """Round to what is held in memory."""
        return self.arithmetic.keep(values)

    # --- the parts ---

    def one_minus_rho(self) -> float:
        """1 − ρ, in double precision."""
        held = "one-minus-rho-in-parameter-dtype" in self.deviations
        return 1.0 - (through(self.c.rho, self.dtype) if held else self.c.rho)

    def rate(self, update: int) -> Number:
        """The learning rate of an update, counted from 0."""
        return self.arithmetic.option(self.case.rate(update))

    def gathered(self, waiting: list[Given]) -> Given:
        """One gradient of several: their sum, kept as state is; or their running mean, which is scaled no more."""
        if len(waiting) == 1:
            return waiting[0]
        sums: Given = []
        for column in zip(*waiting, strict=True):
            given = [g for g in column if g is not None]
            total = np.zeros_like(given[0]) if given else None
            for n, g in enumerate(given, start=1):
                if "accumulates-in-float32" in self.deviations:
                    total = self.arithmetic.array(np.asarray(total).astype(np.float32))
                    total = total + (g - total) / n
                else:
                    total = self.keep(total + g)
            sums.append(total)
        return sums

    def scale(self) -> Number:
        """What gradients are multiplied by first: the mean over accumulated ones, and the sign."""
        count = 1 if "accumulates-in-float32" in self.deviations else self.c.accumulate
        return self.arithmetic.exact(-1.0 if self.c.maximize else 1.0) / count

    def prepared(self, given: Given) -> Given:
        """Scale and clip."""
        if (scale := self.scale()) != 1:
            given = each(given, lambda g: g * self.number(scale))
        return self.clipped(given)

    def clipped(self, given: Given) -> Given:
        """Clip: by value, then by each tensor's norm, then by the norm of all."""
        if (self.c.clipvalue, self.c.clipnorm, self.c.global_clipnorm) == (None, None, None):
            return given
        if "sparse-clipped-before-summed" not in self.deviations:
            given = [g.summed() if isinstance(g, Rows) else g for g in given]
        if self.c.clipvalue is not None:
            given = self.clip_value(given)
        if self.c.clipnorm is None and self.c.global_clipnorm is None:
            return given
        factors = [self.arithmetic.exact(1.0)] * len(given)
        squares = [self.squares(g) for g in given]
        if self.c.clipnorm is not None:
            limit = self.arithmetic.exact(self.c.clipnorm)
            factors = [self.factor(limit, self._norm_of_one(limit, [square])) for square in squares]
            squares = [square * (f * f) for square, f in zip(squares, factors, strict=True)]
        if self.c.global_clipnorm is not None:
            limit = self.arithmetic.exact(self.c.global_clipnorm)
            common = self._common_factor(limit, self.arithmetic.norm(squares))
            factors = [f * common for f in factors]
        pairs = zip(given, factors, strict=True)
        return [each([g], lambda values, f=f: values * self.number(f))[0] for g, f in pairs]

    def clip_value(self, given: Given) -> Given:
        """Clip each element."""
        assert self.c.clipvalue is not None
        bound = self.number(self.arithmetic.exact(self.c.clipvalue))
        # Comparisons with NaN are false: NaN stays.
        return each(given, lambda g: np.where(g > bound, bound, np.where(g < -bound, -bound, g)))

    def squares(self, g: Any) -> Number:
        """The sum of a gradient's squares."""
        values = g.values if isinstance(g, Rows) else g
        return self.arithmetic.squares(np.zeros(0, dtype=self.wide) if g is None else values)

    def factor(self, limit: Number, norm: Number) -> Number:
        """What brings a norm down to the limit."""
        return limit / norm if norm > limit else norm if math.isnan(norm) else self.arithmetic.exact(1.0)

    def _norm_of_one(self, limit: Number, squares: list[Number]) -> Number:
        norm = self.arithmetic.norm(squares)
        if "norm-through-float32" in self.deviations and norm > limit:
            return self.arithmetic.exact(single(float(norm)))
        return norm

    def _common_factor(self, limit: Number, norm: Number) -> Number:
        exact = self.arithmetic.exact
        if "infinite-norm-gives-nan" in self.deviations and not math.isfinite(norm):
            return exact(math.nan)
        if "norm-plus-1e-6" in self.deviations:
            return min(limit / (norm + exact(1e-6)), exact(1.0))
        if "norm-through-float32" in self.deviations and math.isfinite(norm):
            inverse = exact(single(float(1 / max(norm, limit))))
            return exact(single(float(limit * inverse)))
        return self.factor(limit, norm)

    def tensor(self, i: int, g: Any, lr: Number) -> None:
        """Update one tensor."""
        if g is None:
            return
        x, v, u = (a.astype(self.wide) for a in (self.x[i], self.v[i], self.u[i]))
        v, u = self.hold(v), self.hold(u)
        x, g = self.decayed(x, g, lr)
        update = self.by_rows if isinstance(g, Rows) else self.rule
        x, v, u = update(x, g, v, u, self.number(lr))
        self.x[i], self.v[i], self.u[i] = self.keep(x), self.keep(v), self.keep(u)

    def decayed(self, x: Array, g: Any, lr: Number) -> tuple[Array, Any]:
        """Weight decay of either kind."""
        if self.c.decay_kind == "coupled":
            return x, g + self.number(self.decay) * x
        if self.c.decay_kind == "decoupled":
            lost = lr * self.decay
            if "decay-factor-through-float32" in self.deviations:
                product = np.float32(float(lr)) * np.float32(float(self.decay))
                lost = 1 - self.arithmetic.exact(float(np.float32(1) - product))
            return x - self.number(lost) * x, g
        return x, g

    def by_rows(self, x: Array, g: Rows, v: Array, u: Array, lr: Any) -> tuple[Array, Array, Array]:
        """Apply the rule to a sparse gradient, by default to the dense sum that it stands for."""
        layers = g.layers(len(x))
        if "sparse-duplicates-squared-apart" in self.deviations:
            return self.rule(x, np.stack([layer.dense(len(x)) for layer in layers]), v, u, lr)
        if "sparse-untouched-rows-kept" not in self.deviations:
            return self.rule(x, g.summed().dense(len(x)), v, u, lr)
        for turn in layers if "sparse-duplicates-in-turn" in self.deviations else [g.summed()]:
            at = turn.places
            x[at], v[at], u[at] = self.rule(x[at], turn.values, v[at], u[at], lr)
        return x, v, u

    def rule(self, x: Array, g: Array, v: Array, u: Array, lr: Any) -> tuple[Array, Array, Array]:
        """The rule itself: new x, v, u. Rows of a matrix `g` are squared, and moved by, apart."""
        v = self.decaying(v, g)
        d = self.delta(g, v, u)
        return self.moved(x, d, lr), v, self.decaying(u, d)

    def decaying(self, average: Array, new: Array) -> Array:
        """ρ a + (1 − ρ) n²."""
        hold, rest = self.hold, self.number(self.rest)
        first = "squares-scaled-first" in self.deviations
        squares = hold(hold(rest * new) * new) if first else hold(rest * hold(new * new))
        return hold(hold(self.number(self.rho) * average) + _total(squares))

    def delta(self, g: Array, v: Array, u: Array) -> Array:
        """√(u + ε) / √(v + ε) · g."""
        eps, sqrt = self.number(self.eps), self.arithmetic.sqrt
        return self.hold(sqrt(u + eps) / sqrt(v + eps) * g)

    def moved(self, x: Array, d: Array, lr: Any) -> Array:
        """X − lr d."""
        return self.hold(x - lr * _total(d))

    def averaged(self, average: Array, x: Array) -> Array:
        """One step of the moving average of the parameters."""
        starts = "ema-starts-after-first-step" in self.deviations and self.steps < self.c.accumulate
        momentum = self.arithmetic.exact(0.0 if starts else self.c.ema_momentum or 0.0)
        return self.number(momentum) * average + self.number(1 - momentum) * x

    # --- the step ---

    def step(self, number: int, gradients: Sequence[Gradient]) -> None:
        """Take one step."""
        self.steps = number
        with self.arithmetic.working():
            self.waiting.append([self._given(g) for g in gradients])
            if len(self.waiting) == self.c.accumulate:
                self.update(self.gathered(self.waiting))
                self.waiting = []
                self.updates += 1
            elif "ema-every-micro-step" in self.deviations:
                self.follow()
            if self.c.constraint == "nonnegative":
                self.x[0] = np.where(self.x[0] < 0, self._filled(self.x[0], 0.0), self.x[0])

    def _given(self, g: Gradient) -> Any:
        if g is None:
            return None
        if not isinstance(g, Sparse):
            return self.hold(self.arithmetic.array(g))
        width = np.asarray(g.values)[0].size
        places = (np.asarray(g.indices)[:, np.newaxis] * width + np.arange(width)).ravel()
        return Rows(places, self.hold(self.arithmetic.array(g.values)))

    def update(self, given: Given) -> None:
        """Update every tensor, then the averages."""
        lr = self.rate(self.updates)
        for i, g in enumerate(self.prepared(given)):
            self.tensor(i, g, lr)
        self.follow()

    def follow(self) -> None:
        """Move the averages towards the parameters."""
        if self.averages is None or "ema-never-updates" in self.deviations:
            return
        pairs = zip(self.averages, self.x, strict=True)
        self.averages = [self.keep(self.averaged(a.astype(self.wide), x.astype(self.wide))) for a, x in pairs]
        if self.c.ema_every is not None and (self.steps + 1) % self.c.ema_every == 0:
            self.x = [average.copy() for average in self.averages]

    def begin_at(self, states: Mapping[str, Sequence[Any]]) -> None:
        """Go on from other states, such as recorded ones."""
        found = {kind: [self.arithmetic.array(a) for a in column] for kind, column in states.items()}
        self.x, self.v, self.u = found["x"], found["square_avg"], found["acc_delta"]
        self.averages = found.get("average")

    def columns(self) -> dict[str, list[Array]]:
        """Return every state, flat."""
        columns = {"x": self.x, "square_avg": self.v, "acc_delta": self.u}
        return columns if self.averages is None else {**columns, "average": self.averages}

    def states(self) -> Mapping[str, Sequence[Array]]:
        """See `TargetOptimizer`."""
        shapes = self.case.shapes
        return {kind: [self._shaped(a, shape) for a, shape in zip(column, shapes, strict=True)]
                for kind, column in self.columns().items()}  # fmt: skip

    def _shaped(self, values: Array, shape: tuple[int, ...]) -> Array:
        values = np.ascontiguousarray(values)
        if self.dtype in REAL:
            values = values.view(self.dtype)
        return values.reshape(shape).copy()


def each(given: Given, change: Callable[[Array], Array]) -> Given:
    """Return gradients with their values changed, those that are None left out of it."""
    return [
        None if g is None else Rows(g.places, change(g.values)) if isinstance(g, Rows) else change(g) for g in given
    ]


def _total(values: Array) -> Array:
    """Return one array: itself, or the sum of a matrix's rows."""
    return np.asarray(values.sum(axis=0)) if values.ndim == 2 else values
