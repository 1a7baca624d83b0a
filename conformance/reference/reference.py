"""The published rule and the options around it once more, in plain NumPy, in parts that can be done wrongly.

It shares no code with the library but the schedules. Mutants are made of it, by replacing one part (`mutants`), and
`parity` tries its guesses with it. As it stands it is right, and has the library's bits where no norm is clipped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.case import Case, Gradient, Sparse
from ..data.floats import REAL, parts, rounded
from ..data.specification import HOLDERS

Array = NDArray[Any]
#: Gradients of one update: one flat array a tensor, or None.
Given = list[Array | None]


class Reference:
    """An optimizer at work (`targets.Stage`). Tensors are held flat, complex ones as pairs of reals.

    Parameters
    ----------
    case : Case
        Options, initial parameters.
    """

    name = "reference"
    #: What accumulators are filled with at first.
    first_square_avg = 0.0
    first_acc_delta = 0.0

    def __init__(self, case: Case) -> None:
        self.case, self.c, self.dtype = case, case.config, case.dtype
        real = np.dtype(HOLDERS[REAL.get(self.dtype, self.dtype)])
        #: The data type of computing: 16 bits are computed in 32.
        self.wide = np.dtype(np.float32) if real == np.float16 else real
        self.x = [self._flat(values) for values in case.start]
        self.v = [self.keep(np.full_like(x, self.first_square_avg)) for x in self.x]
        self.u = [self.keep(np.full_like(x, self.first_acc_delta)) for x in self.x]
        self.averages = [x.copy() for x in self.x] if self.c.ema_momentum is not None else None
        self.updates = 0
        self.waiting: list[Given] = []
        self.rho, self.eps, self.decay = self.c.rho, self.c.eps, self.c.weight_decay
        self.rest = self.one_minus_rho()

    # --- arrays ---

    def _flat(self, values: Array) -> Array:
        return np.array(parts(np.asarray(values)).ravel())

    def keep(self, values: Array) -> Array:
        """Round to what is held in memory."""
        return rounded(np.asarray(values).astype(HOLDERS[REAL.get(self.dtype, self.dtype)]), self.dtype)

    def number(self, value: float) -> Any:
        """Round a number to the data type of computing."""
        return self.wide.type(value)

    # --- the parts ---

    def one_minus_rho(self) -> float:
        """1 − ρ, in double precision."""
        return 1.0 - self.rho

    def rate(self, update: int) -> float:
        """The learning rate of an update, counted from 0."""
        return self.case.rate(update)

    def gathered(self, waiting: list[Given]) -> Given:
        """One gradient of several: their sum, kept as state is."""
        if len(waiting) == 1:
            return waiting[0]
        sums: Given = []
        for column in zip(*waiting, strict=True):
            given = [g for g in column if g is not None]
            total = np.zeros_like(given[0]) if given else None
            for g in given:
                total = self.keep(total + g)
            sums.append(total)
        return sums

    def scale(self) -> float:
        """What gradients are multiplied by first: the mean over accumulated ones, and the sign."""
        return (-1.0 if self.c.maximize else 1.0) / self.c.accumulate

    def prepared(self, given: Given) -> Given:
        """Scale and clip."""
        if (scale := self.scale()) != 1.0:
            given = [None if g is None else g * self.number(scale) for g in given]
        return self.clipped(given)

    def clipped(self, given: Given) -> Given:
        """Clip: by value, then by each tensor's norm, then by the norm of all."""
        if self.c.clipvalue is not None:
            given = self.clip_value(given)
        if self.c.clipnorm is None and self.c.global_clipnorm is None:
            return given
        factors = [1.0] * len(given)
        squares = [self.squares(g) for g in given]
        if self.c.clipnorm is not None:
            factors = [self.factor(self.c.clipnorm, math.sqrt(square)) for square in squares]
            squares = [square * (f * f) for square, f in zip(squares, factors, strict=True)]
        if self.c.global_clipnorm is not None:
            common = self.factor(self.c.global_clipnorm, math.sqrt(math.fsum(squares)))
            factors = [f * common for f in factors]
        return [None if g is None else g * self.number(f) for g, f in zip(given, factors, strict=True)]

    def clip_value(self, given: Given) -> Given:
        """Clip each element."""
        assert self.c.clipvalue is not None
        bound = self.number(self.c.clipvalue)
        return [None if g is None else np.clip(g, -bound, bound) for g in given]

    def squares(self, g: Array | None) -> float:
        """The sum of a gradient's squares; as in the library, huge ones count as infinite."""
        with np.errstate(over="ignore"):
            each = np.square(np.asarray([] if g is None else g, dtype=np.float64))
        return math.fsum(np.where(each >= 2.0**930, np.inf, each))

    def factor(self, limit: float, norm: float) -> float:
        """What brings a norm down to the limit."""
        return limit / norm if norm > limit else norm if math.isnan(norm) else 1.0

    def tensor(self, i: int, g: Array | None, lr: float) -> None:
        """Update one tensor."""
        if g is None:
            return
        x, v, u = (a.astype(self.wide) for a in (self.x[i], self.v[i], self.u[i]))
        x, g = self.decayed(x, g, lr)
        x, v, u = self.rule(x, g, v, u, self.number(lr))
        self.x[i], self.v[i], self.u[i] = self.keep(x), self.keep(v), self.keep(u)

    def decayed(self, x: Array, g: Array, lr: float) -> tuple[Array, Array]:
        """Weight decay of either kind."""
        if self.c.decay_kind == "coupled":
            return x, g + self.number(self.decay) * x
        if self.c.decay_kind == "decoupled":
            return x - self.number(lr * self.decay) * x, g
        return x, g

    def rule(self, x: Array, g: Array, v: Array, u: Array, lr: Any) -> tuple[Array, Array, Array]:
        """The rule itself: new x, v, u."""
        v = self.decaying(v, g)
        d = self.delta(g, v, u)
        return self.moved(x, d, lr), v, self.decaying(u, d)

    def decaying(self, average: Array, new: Array) -> Array:
        """ρ a + (1 − ρ) n²."""
        return self.number(self.rho) * average + self.number(self.rest) * (new * new)

    def delta(self, g: Array, v: Array, u: Array) -> Array:
        """√(u + ε) / √(v + ε) · g."""
        eps = self.number(self.eps)
        return np.sqrt(u + eps) / np.sqrt(v + eps) * g

    def moved(self, x: Array, d: Array, lr: Any) -> Array:
        """X − lr d."""
        return x - lr * d

    def averaged(self, average: Array, x: Array) -> Array:
        """One step of the moving average of the parameters."""
        momentum = self.c.ema_momentum or 0.0
        return self.number(momentum) * average + self.number(1.0 - momentum) * x

    # --- the step ---

    def step(self, number: int, gradients: Sequence[Gradient]) -> None:
        """Take one step."""
        self.waiting.append([self._given(g) for g in gradients])
        if len(self.waiting) < self.c.accumulate:
            return
        with np.errstate(all="ignore"):
            self.update(self.gathered(self.waiting))
        self.waiting = []
        self.updates += 1

    def _given(self, g: Gradient) -> Array | None:
        if isinstance(g, Sparse):
            raise ValueError("sparse gradients are a matter of the Keras face")
        return None if g is None else self._flat(g).astype(self.wide)

    def update(self, given: Given) -> None:
        """Update every tensor, then the averages."""
        lr = self.rate(self.updates)
        for i, g in enumerate(self.prepared(given)):
            self.tensor(i, g, lr)
        self.follow()

    def follow(self) -> None:
        """Move the averages towards the parameters."""
        if self.averages is not None:
            pairs = zip(self.averages, self.x, strict=True)
            self.averages = [self.keep(self.averaged(a.astype(self.wide), x.astype(self.wide))) for a, x in pairs]

    def states(self) -> Mapping[str, Sequence[Array]]:
        """Return every state."""
        columns = {"x": self.x, "square_avg": self.v, "acc_delta": self.u}
        if self.averages is not None:
            columns["average"] = self.averages
        return {kind: [self._shaped(a, s) for a, s in zip(c, self.case.shapes, strict=True)]
                for kind, c in columns.items()}  # fmt: skip

    def _shaped(self, values: Array, shape: tuple[int, ...]) -> Array:
        values = np.ascontiguousarray(values)
        if self.dtype in REAL:
            values = values.view(self.dtype)
        return values.reshape(shape).copy()
