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

It follows deviations by their names (`data.deviations`), but complex arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np

from ..data.case import Array, Case, Gradient, Sparse
from ..data.deviations import acted_on, single
from ..data.floats import REAL
from .arithmetic import Floats, through


@dataclass(frozen=True)
class Rows:
    """A sparse gradient: values, and the flat elements that they belong to; an element may occur more than once."""

    places: Array
    values: Array

    def summed(self) -> Rows:
        """Return each element once."""
        places = np.unique(self.places)
        return Rows(places, np.array([sum(self.values[self.places == place]) for place in places]))

    def layers(self) -> list[Rows]:
        """Return first occurrences, second ones, and so on."""
        turns = np.array([np.sum(self.places[:i] == place) for i, place in enumerate(self.places)])
        return [Rows(self.places[turns == t], self.values[turns == t]) for t in range(turns.max() + 1)]

    def dense(self, count: int) -> Array:
        """Return `count` elements, zeros where none occurs; each may occur once."""
        found = np.zeros(count, dtype=self.values.dtype)
        found[self.places] = self.values
        return found


#: Gradients of one update: for each tensor a flat array, `Rows`, or None.
Given = list[Any]


class Reference:
    """An optimizer (`targets.protocol.TargetOptimizer`) for a case, by default in its data type's arithmetic.

    Tensors are held flat, complex ones as pairs of reals.
    """

    name = "reference"

    def __init__(self, case: Case, arithmetic: Floats | None = None, *, deviations: Collection[str] = ()) -> None:
        self.case, self.dtype, self.deviations = case, case.dtype, frozenset(deviations)
        self.c = c = acted_on(case.config, self.deviations)
        self.a = a = Floats(case.dtype) if arithmetic is None else arithmetic
        held = "one-minus-rho-in-parameter-dtype" in self.deviations
        rest = 1.0 - (through(c.rho, self.dtype) if held else c.rho)
        self.rho, self.rest, self.eps = (a.number(a.option(value)) for value in (c.rho, rest, c.eps))
        self.decay = a.option(c.weight_decay)
        self.x = [a.array(values) for values in case.start]
        self.v, self.u = ([self._zeros(x) for x in self.x] for _ in "vu")
        self.averages = [x.copy() for x in self.x] if c.ema_momentum is not None else None
        self.number = self.updates = 0
        self.waiting: list[Given] = []

    # --- a step ---

    def step(self, number: int, gradients: Sequence[Gradient]) -> None:
        self.number = number
        with self.a.working():
            self.waiting.append([self._given(g) for g in gradients])
            if len(self.waiting) == self.c.accumulate:
                self._update(self._clipped(self._mean()))
                self.waiting = []
                self.updates += 1
                self._follow()
            elif "ema-every-micro-step" in self.deviations:
                self._follow()
            if self.c.constraint == "nonnegative":
                self.x[0] = np.where(self.x[0] < 0, self._zeros(self.x[0]), self.x[0])

    def _zeros(self, like: Array) -> Array:
        return self.a.array(np.zeros(len(like)))

    def _given(self, g: Gradient) -> Any:
        if g is None:
            return None
        if not isinstance(g, Sparse):
            return self.a.hold(self.a.array(g))
        width = np.asarray(g.values)[0].size
        places = (np.asarray(g.indices)[:, np.newaxis] * width + np.arange(width)).ravel()
        return Rows(places, self.a.hold(self.a.array(g.values)))

    def _mean(self) -> Given:
        """Return one gradient of several: their sum, kept as state is, times a factor, which is the sign too."""
        sign, count = self.a.exact(-1.0 if self.c.maximize else 1.0), self.c.accumulate
        given = self.waiting[0]
        if count > 1 and "accumulates-in-float32" in self.deviations:
            given, count = [self._running_mean(column) for column in zip(*self.waiting, strict=True)], 1
        elif count > 1:
            given = [self._sum(column) for column in zip(*self.waiting, strict=True)]
        factor = self.a.number(sign / count)
        return given if factor == 1 else [changed(g, partial(np.multiply, factor)) for g in given]

    def _sum(self, column: Sequence[Any]) -> Any:
        given = [g for g in column if g is not None]
        return reduce(lambda total, g: self.a.keep(total + g), given, self._zeros(given[0])) if given else None

    def _running_mean(self, column: Sequence[Any]) -> Any:
        mean = self._zeros(column[0])
        for n, g in enumerate(column, start=1):
            mean = self.a.array(mean.astype(np.float32))
            mean = mean + (g - mean) / n
        return mean

    # --- clipping: by value, then by each tensor's norm, then by the norm of all ---

    def _clipped(self, given: Given) -> Given:
        c, exact = self.c, self.a.exact
        if (c.clipvalue, c.clipnorm, c.global_clipnorm) == (None, None, None):
            return given
        if "sparse-clipped-before-summed" not in self.deviations:
            given = [g.summed() if isinstance(g, Rows) else g for g in given]
        if c.clipvalue is not None:
            bound = self.a.number(exact(c.clipvalue))
            # Comparisons with NaN are false: NaN stays.
            clip = lambda g: np.where(g > bound, bound, np.where(g < -bound, -bound, g))  # noqa: E731
            given = [changed(g, clip) for g in given]
        if c.clipnorm is None and c.global_clipnorm is None:
            return given
        factors = [exact(1.0)] * len(given)
        squares = [exact(0.0) if g is None else self.a.squares(g.values if isinstance(g, Rows) else g) for g in given]
        if c.clipnorm is not None:
            factors = [self._factor(exact(c.clipnorm), self.a.norm([square])) for square in squares]
            squares = [square * (f * f) for square, f in zip(squares, factors, strict=True)]
        if c.global_clipnorm is not None:
            common = self._common_factor(exact(c.global_clipnorm), self.a.norm(squares))
            factors = [f * common for f in factors]
        pairs = zip(given, map(self.a.number, factors), strict=True)
        return [changed(g, partial(np.multiply, factor)) for g, factor in pairs]

    def _factor(self, limit: Any, norm: Any) -> Any:
        """Return what brings a norm down to the limit."""
        if norm > limit:
            return limit / (self._single(norm) if "norm-through-float32" in self.deviations else norm)
        return norm if math.isnan(norm) else self.a.exact(1.0)

    def _common_factor(self, limit: Any, norm: Any) -> Any:
        if "infinite-norm-gives-nan" in self.deviations and not math.isfinite(norm):
            return self.a.exact(math.nan)
        if "norm-plus-1e-6" in self.deviations:
            return min(limit / (norm + self.a.exact(1e-6)), self.a.exact(1.0))
        if "norm-through-float32" in self.deviations and math.isfinite(norm):
            return self._single(limit * self._single(1 / max(norm, limit)))
        return self._factor(limit, norm)

    def _single(self, value: Any) -> Any:
        return self.a.exact(single(float(value)))

    # --- the rule ---

    def _update(self, given: Given) -> None:
        lr = self.a.option(self.case.rate(self.updates))
        for i, g in enumerate(given):
            if g is None:
                continue
            x, g = self._decayed(self.x[i], g, lr)
            rule = self._by_rows if isinstance(g, Rows) else self._rule
            states = rule(x.copy(), g, self.a.hold(self.v[i]), self.a.hold(self.u[i]), self.a.number(lr))
            self.x[i], self.v[i], self.u[i] = map(self.a.keep, states)

    def _decayed(self, x: Array, g: Any, lr: Any) -> tuple[Array, Any]:
        if self.c.decay_kind == "coupled":
            return x, g + self.a.number(self.decay) * x
        if self.c.decay_kind == "decoupled":
            lost = lr * self.decay
            if "decay-factor-through-float32" in self.deviations:
                product = np.float32(float(lr)) * np.float32(float(self.decay))
                lost = 1 - self.a.exact(float(np.float32(1) - product))
            return x - self.a.number(lost) * x, g
        return x, g

    def _by_rows(self, x: Array, g: Rows, v: Array, u: Array, lr: Any) -> tuple[Array, Array, Array]:
        """Apply the rule to a sparse gradient, by default to the dense sum that it stands for."""
        if "sparse-duplicates-squared-apart" in self.deviations:
            return self._rule(x, np.stack([layer.dense(len(x)) for layer in g.layers()]), v, u, lr)
        if "sparse-untouched-rows-kept" not in self.deviations:
            return self._rule(x, g.summed().dense(len(x)), v, u, lr)
        for turn in g.layers() if "sparse-duplicates-in-turn" in self.deviations else [g.summed()]:
            at = turn.places
            x[at], v[at], u[at] = self._rule(x[at], turn.values, v[at], u[at], lr)
        return x, v, u

    def _rule(self, x: Array, g: Array, v: Array, u: Array, lr: Any) -> tuple[Array, Array, Array]:
        """Return new x, v, u. Rows of a matrix `g` are squared, and moved by, apart."""
        hold, sqrt = self.a.hold, self.a.sqrt
        v = self._decaying(v, g)
        d = hold(sqrt(u + self.eps) / sqrt(v + self.eps) * g)
        return hold(x - lr * _total(d)), v, self._decaying(u, d)

    def _decaying(self, average: Array, new: Array) -> Array:
        """ρ a + (1 − ρ) n²."""
        hold, rest = self.a.hold, self.rest
        first = "squares-scaled-first" in self.deviations
        squares = hold(hold(rest * new) * new) if first else hold(rest * hold(new * new))
        return hold(hold(self.rho * average) + _total(squares))

    # --- states ---

    def _follow(self) -> None:
        """Move the averages towards the parameters."""
        if self.averages is None or "ema-never-updates" in self.deviations:
            return
        starts = "ema-starts-after-first-step" in self.deviations and self.number < self.c.accumulate
        momentum = self.a.exact(0.0 if starts else self.c.ema_momentum or 0.0)
        old, new = self.a.number(momentum), self.a.number(1 - momentum)
        self.averages = [self.a.keep(old * a + new * x) for a, x in zip(self.averages, self.x, strict=True)]
        if self.c.ema_every is not None and (self.number + 1) % self.c.ema_every == 0:
            self.x = [average.copy() for average in self.averages]

    def begin_at(self, states: Mapping[str, Sequence[Any]]) -> None:
        """Go on from other states, such as recorded ones; flat, in the reference's arithmetic."""
        self.x, self.v, self.u = (list(states[kind]) for kind in ("x", "square_avg", "acc_delta"))
        self.averages = list(states["average"]) if "average" in states else None

    def columns(self) -> dict[str, list[Array]]:
        """Return every state, flat, in the reference's arithmetic."""
        columns = {"x": list(self.x), "square_avg": list(self.v), "acc_delta": list(self.u)}
        return columns if self.averages is None else {**columns, "average": list(self.averages)}

    def states(self) -> Mapping[str, Sequence[Array]]:
        return {kind: [self._shaped(a.astype(self.a.held), shape) for a, shape in zip(c, self.case.shapes, strict=True)]
                for kind, c in self.columns().items()}  # fmt: skip

    def _shaped(self, values: Array, shape: tuple[int, ...]) -> Array:
        return (values.view(self.dtype) if self.dtype in REAL else values).reshape(shape)


def changed(g: Any, change: Callable[[Array], Array]) -> Any:
    """Return a gradient with its values changed."""
    if g is None:
        return None
    return Rows(g.places, change(g.values)) if isinstance(g, Rows) else change(g)


def _total(values: Array) -> Array:
    """Return one array: itself, or the sum of a matrix's rows."""
    return np.asarray(values.sum(axis=0)) if values.ndim == 2 else values
