"""The published formula in decimal arithmetic of 50 digits, step by step. It shares no code with the library.

Per element, with gradient g, accumulators v and u, parameter x (Zeiler 2012, with the learning rate that every
framework adds, outside u)::

    v ← ρ v + (1 − ρ) g²
    d ← √(u + ε) / √(v + ε) · g
    u ← ρ u + (1 − ρ) d²
    x ← x − lr d

Around it: clipping by value, by each tensor's norm and by the global norm, coupled or decoupled weight decay, ascent,
accumulation, moving averages, constraints, sparse rows as their dense equal. The oracle knows the habits in
`deviations` by name and follows those of the trace unless told otherwise; complex arithmetic it does not follow.

Numbers are exact but for 50-digit rounding; only overflow and, where a deviation says so, flushed subnormals are
taken from the data type.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext

import numpy as np
from numpy.typing import NDArray

from ..data.case import Sparse
from ..data.floats import format_of, parts, rounded
from ..data.rates import rates_of
from ..data.specification import HOLDERS
from ..data.trajectory import Trajectory

CONTEXT = Context(prec=50, Emin=-999_999, Emax=999_999, traps=[])
_ZERO, _ONE, _INF, _NAN = Decimal(0), Decimal(1), Decimal("Infinity"), Decimal("NaN")

Numbers = list[Decimal]
#: A gradient: pairs of flat element and number, where a sparse one may repeat and omit elements; or None.
Given = list[tuple[int, Decimal]] | None


@dataclass
class State:
    """Every number that a step changes: one flat list per tensor (a complex tensor's parts side by side)."""

    x: list[Numbers]
    square_avg: list[Numbers]
    acc_delta: list[Numbers]
    average: list[Numbers] | None


def numbers(values: NDArray[np.generic]) -> Numbers:
    """Return the exact values of an array, flat; complex numbers part by part."""
    return [Decimal(float(value)) for value in parts(np.asarray(values)).ravel()]


def _through(value: float, dtype: str) -> float:
    holder = np.dtype(HOLDERS[dtype])
    return float(parts(rounded(np.asarray(value, dtype=holder), dtype)).ravel()[0])


class Oracle:
    """The published rule with the options of one trace.

    Parameters
    ----------
    trace : Trajectory
        Whose configuration, gradients and data type are taken; its states are not looked at.
    deviations : collection of str, optional
        Habits to follow; by default those of the trace. Empty: the published rule alone.
    as_held : bool
        Round lr, rho, eps and 1 − rho to the trace's data type first, as every framework must, and take the learning
        rates that the framework reported. False: the configuration's own doubles, and the published schedules.
    """

    def __init__(self, trace: Trajectory, *, deviations: Collection[str] | None = None, as_held: bool = True) -> None:
        self.trace = trace
        self.config = c = trace.config
        self.deviations = frozenset(trace.deviations if deviations is None else deviations)
        precision, emin, emax = format_of(trace.dtype)
        with localcontext(CONTEXT):
            two = Decimal(2)
            # From here on, rounding to nearest gives infinity.
            self.overflow = two**emax * (two - two ** (-precision))
            self.tiny = two**emin
        self.flushes = "flushes-subnormals" in self.deviations
        self.scales_first = "squares-scaled-first" in self.deviations
        rho, eps, decay = c.rho, c.eps, c.weight_decay
        if "rho-through-float32" in self.deviations:
            rho = _through(rho, "float32")
        if "eps-through-float32" in self.deviations:
            eps = _through(eps, "float32")
        if "weight-decay-through-float32" in self.deviations:
            decay = _through(decay, "float32")
        if "eps-zero-becomes-1e-7" in self.deviations:
            eps = 1e-7
        rest = 1.0 - rho
        if as_held:
            if "one-minus-rho-in-parameter-dtype" in self.deviations:
                rest = 1.0 - _through(rho, trace.dtype)
            rho, rest, eps, decay = (_through(value, trace.dtype) for value in (rho, rest, eps, decay))
        self.rho, self.rest, self.eps, self.decay = (Decimal(value) for value in (rho, rest, eps, decay))
        self.rates = self._rates(as_held)

    def _rates(self, as_held: bool) -> list[Decimal]:
        rates = rates_of(self.config, self.trace.steps)
        if as_held and self.trace.lr is not None:
            rates = [_through(float(rate), self.trace.dtype) for rate in self.trace.lr]
        # The paper has no learning rate: that is 1, or −1 where the framework forgets the sign.
        missing = -1.0 if "ascends-without-lr" in self.deviations else 1.0
        return [Decimal(missing if rate is None else rate) for rate in rates]

    def _hold(self, value: Decimal) -> Decimal:
        """Return ``value`` as the data type's range would have it."""
        if abs(value) >= self.overflow:
            return _INF.copy_sign(value)
        if self.flushes and abs(value) < self.tiny:
            return _ZERO.copy_sign(value)
        return value

    def _element(self, state: State, i: int, k: int, gradients: Sequence[Decimal], rate: Decimal) -> None:
        """Step element ``k`` of tensor ``i``. Several gradients: their squares, and their updates, are summed."""
        hold, rho, rest, eps = self._hold, self.rho, self.rest, self.eps
        v = hold(state.square_avg[i][k])
        u = hold(state.acc_delta[i][k])
        if self.scales_first:
            squares = [hold(hold(rest * g) * g) for g in gradients]
        else:
            squares = [hold(rest * hold(g * g)) for g in gradients]
        v = hold(hold(rho * v) + sum(squares, _ZERO))
        ratio = (u + eps).sqrt() / (v + eps).sqrt()
        moves = [hold(ratio * g) for g in gradients]
        if self.scales_first:
            squares = [hold(hold(rest * d) * d) for d in moves]
        else:
            squares = [hold(rest * hold(d * d)) for d in moves]
        u = hold(hold(rho * u) + sum(squares, _ZERO))
        state.square_avg[i][k], state.acc_delta[i][k] = v, u
        state.x[i][k] = hold(state.x[i][k] - rate * sum(moves, _ZERO))

    def _given(self, step: int) -> list[Given]:
        given: list[Given] = []
        for gradient in self.trace.case.gradients[step]:
            if gradient is None:
                given.append(None)
                continue
            if isinstance(gradient, Sparse):
                width = gradient.values[0].size
                places = [int(row) * width + k for row in gradient.indices for k in range(width)]
                values = numbers(gradient.values)
            else:
                values = numbers(gradient)
                places = list(range(len(values)))
            given.append([(k, self._hold(g)) for k, g in zip(places, values, strict=True)])
        return given

    def _mean(self, step: int) -> list[Given] | None:
        """Return the gradients that the update at ``step`` uses; None if it only gathers."""
        count = self.config.accumulate
        if (step + 1) % count:
            return None
        micro = [self._given(t) for t in range(step + 1 - count, step + 1)]
        if count == 1:
            return micro[0]
        columns = [[pairs for pairs in column if pairs is not None] for column in zip(*micro, strict=True)]
        return [
            [(same[0][0], self._mean_of([g for _, g in same])) for same in zip(*column, strict=True)]
            for column in columns
        ]

    def _mean_of(self, values: Numbers) -> Decimal:
        mean = _ZERO
        for n, value in enumerate(values):
            if "accumulates-in-float32" in self.deviations:
                mean = Decimal(_through(float(mean), "float32"))
            mean += (value - mean) / (n + 1)
        return mean

    def _clip(self, given: list[Given]) -> list[Given]:
        c = self.config
        bound = c.clipvalue
        if (bound, c.clipnorm, c.global_clipnorm) == (None, None, None):
            return given
        if self.trace.case.is_sparse and given[0] is not None and "sparse-clipped-before-summed" not in self.deviations:
            sums: dict[int, Decimal] = {}
            for k, g in given[0]:
                sums[k] = sums.get(k, _ZERO) + g
            given = [list(sums.items()), *given[1:]]
        if bound is not None and not self.deviations & {"norm-clip-wins", "nonpositive-clip-ignored"}:
            limit = Decimal(bound)
            # Comparisons with NaN are false: NaN stays.
            given = _each(given, lambda g: limit if g > limit else -limit if g < -limit else g)
        if c.clipnorm is not None:
            limit = Decimal(c.clipnorm)
            given = [_each([pairs], self._scaling(limit, _norm([pairs])))[0] for pairs in given]
        if c.global_clipnorm is not None:
            limit, size = Decimal(c.global_clipnorm), _norm(given)
            if "infinite-norm-gives-nan" in self.deviations and not size.is_finite():
                return _each(given, lambda g: _NAN)
            if "norm-plus-1e-6" in self.deviations:
                factor = min(limit / (size + Decimal.from_float(1e-6)), _ONE)
                return _each(given, lambda g: g * factor)
            if "norm-through-float32" in self.deviations and size.is_finite():
                inverse = Decimal(_through(float(1 / max(size, limit)), "float32"))
                factor = Decimal(_through(float(limit * inverse), "float32"))
                return _each(given, lambda g: g * factor)
            given = _each(given, self._scaling(limit, size))
        return given

    def _scaling(self, limit: Decimal, norm: Decimal) -> Callable[[Decimal], Decimal]:
        """Return what brings a vector of length ``norm`` to ``limit``, if it is longer."""
        if norm.is_nan():
            return lambda g: _NAN
        longest = max(norm, limit)
        if "norm-through-float32" in self.deviations:
            longest = Decimal(_through(float(longest), "float32"))
        return lambda g: g * limit / longest

    def advance(self, state: State, step: int) -> None:
        """Change ``state`` as step number ``step`` (from 0) does."""
        c, rate = self.config, self.rates[step]
        with localcontext(CONTEXT):
            given = self._mean(step)
            if given is not None:
                for i, gradient in enumerate(self._clip(given)):
                    self._tensor(state, i, gradient, rate)
            self._average(state, step)
            if c.constraint == "nonnegative":
                state.x[0] = [max(x, _ZERO) for x in state.x[0]]

    def _tensor(self, state: State, i: int, gradient: Given, rate: Decimal) -> None:
        c, x = self.config, state.x[i]
        if gradient is None:
            return
        if c.decay_kind == "decoupled":
            lost = rate * self.decay
            if "decay-factor-through-float32" in self.deviations:
                product = np.float32(rate) * np.float32(self.decay)
                lost = 1 - Decimal(float(np.float32(1) - product))
            x[:] = [value - lost * value for value in x]
        if not (i == 0 and self.trace.case.is_sparse):
            for k, g in gradient:
                g = -g if c.maximize else g
                if c.decay_kind == "coupled":
                    g += self.decay * x[k]
                self._element(state, i, k, [g], rate)
            return
        gathered: dict[int, Numbers] = {}
        for k, g in gradient:
            gathered.setdefault(k, []).append(g)
        kept = "sparse-untouched-rows-kept" in self.deviations
        for k in gathered if kept else range(len(x)):
            each = gathered.get(k, [_ZERO])
            if "sparse-duplicates-in-turn" in self.deviations:
                turns = [[g] for g in each]
            elif "sparse-duplicates-squared-apart" in self.deviations:
                turns = [each]
            else:
                turns = [[sum(each, _ZERO)]]
            for turn in turns:
                self._element(state, i, k, turn, rate)

    def _average(self, state: State, step: int) -> None:
        c = self.config
        if c.ema_momentum is None or state.average is None or "ema-never-updates" in self.deviations:
            return
        counts_all = c.accumulate == 1 or "ema-every-micro-step" in self.deviations
        if not counts_all and (step + 1) % c.accumulate:
            return
        momentum = Decimal(c.ema_momentum)
        if "ema-starts-after-first-step" in self.deviations and step // c.accumulate == 0:
            momentum = _ZERO
        for average, x in zip(state.average, state.x, strict=True):
            average[:] = [momentum * a + (1 - momentum) * b for a, b in zip(average, x, strict=True)]
        if c.ema_every is not None and (step + 1) % c.ema_every == 0:
            state.x = [list(average) for average in state.average]

    def start(self) -> State:
        """Return the state before the first step: the trace's initial parameters, accumulators of 0."""
        x = [numbers(values) for values in self.trace.at("x", 0)]
        zeros = [[_ZERO] * len(values) for values in x]
        average = None if self.config.ema_momentum is None else [list(values) for values in x]
        return State(x, [list(z) for z in zeros], [list(z) for z in zeros], average)

    def recorded(self, step: int) -> State:
        """Return what the trace recorded after ``step`` steps, as exact numbers."""
        kept = {kind: [numbers(values) for values in self.trace.at(kind, step)]
                for kind in ("x", "square_avg", "acc_delta", "average") if self.trace.has(kind)}  # fmt: skip
        return State(kept["x"], kept["square_avg"], kept["acc_delta"], kept.get("average"))


def _each(given: list[Given], change: Callable[[Decimal], Decimal]) -> list[Given]:
    return [None if pairs is None else [(k, change(g)) for k, g in pairs] for pairs in given]


def _norm(given: list[Given]) -> Decimal:
    return sum((g * g for pairs in given if pairs is not None for _, g in pairs), _ZERO).sqrt()
