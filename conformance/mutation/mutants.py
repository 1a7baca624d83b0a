"""Wrong optimizers, each with one small mistake, most of them made somewhere before.

A suite that lets one of them pass is worth nothing (`testing` proves that none passes); and who finds two optimizers
apart wants to know which of these mistakes it looks like (`parity`). All of them are multiopt's own optimizer on its
own engines: with another formula (`formulas`), asked for something else than it should have been, given other
gradients, or with its state changed after each step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from multiopt import ADADELTA, Rule

from ..data.case import Array, Case, Gradient
from ..data.rates import rates_of
from ..data.specification import Config
from ..targets.build import core_optimizer
from ..targets.optimizers import Core
from ..targets.protocol import TargetOptimizer
from ..targets.target import Target, find
from .formulas import ELEMENTWISE, FORMULAS, rule_of

Row = Sequence[Any]


@dataclass(frozen=True)
class Mutant:
    """One mistake: a name, what it is in a few words, and ``build(case, engine)``, which returns who makes it."""

    name: str
    about: str
    build: Callable[[Case, str], TargetOptimizer]

    def target(self, engine: str = "host") -> Target:
        """Return it as a target: NumPy arrays, on the engine that most users have, or on another one."""
        build = lambda case: self.build(case, engine)  # noqa: E731
        return replace(find("numpy"), name=self.name, about=self.about, engine=engine, optimizer=build)


def build(case: Case, engine: str, rule: Rule = ADADELTA) -> Core:
    """Return multiopt's optimizer for a case, with this rule, on NumPy arrays."""
    return core_optimizer(find("numpy").arrays, case, engine, rule)


TRUE = Mutant("true", "the rule as it should be", build)


def _with_formula(case: Case, engine: str, *, name: str) -> Core:
    return build(case, engine if name in ELEMENTWISE else "eager", rule_of(name))


# --- asked for something else ---


def _early(case: Case) -> tuple[float, ...]:
    if case.rates is not None:
        return (*case.rates[1:], case.rates[-1])
    count = case.config.accumulate
    return tuple(1.0 if rate is None else rate for rate in rates_of(case.config, case.steps + count)[count::count])


_ASKED: Mapping[str, tuple[str, Callable[[Case], Case]]] = {
    "coupled-for-decoupled": ("Decoupled weight decay is coupled: added to the gradient",
        lambda case: case.with_options(decay_kind=case.config.decay_kind and "coupled")),
    "decoupled-for-coupled": ("Coupled weight decay is decoupled: taken from the parameter first",
        lambda case: case.with_options(decay_kind=case.config.decay_kind and "decoupled")),
    "decay-ignored": ("Weight decay is ignored", lambda case: case.with_options(weight_decay=0.0, decay_kind=None)),
    "maximize-ignored": ("``maximize`` is ignored", lambda case: case.with_options(maximize=False)),
    "clip-ignored": ("Clipping is ignored",
        lambda case: case.with_options(clipvalue=None, clipnorm=None, global_clipnorm=None)),
    "norm-of-each-for-norm-of-all": ("Each tensor's norm is clipped in place of the norm of all",
        lambda case: case.with_options(
            clipnorm=case.config.global_clipnorm or case.config.clipnorm, global_clipnorm=None)),
    "schedule-one-late": ("The schedule is asked for the step before",
        lambda case: replace(case, rates=(case.update_rates()[0], *case.update_rates()[:-1]))),
    "schedule-one-early": ("The schedule is asked for the next step: counting starts at 1",
        lambda case: replace(case, rates=_early(case))),
    "schedule-frozen": ("The schedule is asked once",
        lambda case: replace(case, rates=(case.update_rates()[0],) * len(case.update_rates()))),
    "average-momentum-swapped": ("The moving average's momentum and its complement are swapped",
        lambda case: case.with_options(ema_momentum=case.config.ema_momentum and 1.0 - case.config.ema_momentum)),
}  # fmt: skip


def _with_options(case: Case, engine: str, *, change: Callable[[Case], Case]) -> Core:
    return build(change(case), engine)


# --- given other gradients ---


class Wrapped:
    """An optimizer with something wrong around it.

    ``given(config, number, gradients, parameters)`` returns the gradients that it gets instead; the options
    ``without`` it does not get, because ``given`` does their work, wrongly. ``after(array, is_state)`` returns what is
    held after each step, in place of each accumulator and parameter.
    """

    def __init__(
        self,
        case: Case,
        engine: str,
        *,
        given: Callable[[Config, int, Row, Row], Row] | None = None,
        without: Sequence[str] = (),
        after: Callable[[Array, bool], Array] | None = None,
    ) -> None:
        self.config, self.given, self.after = case.config, given, after
        self.inner = build(case.with_options(**{name: getattr(Config(), name) for name in without}), engine)
        self.opt = self.inner.opt
        self.name, self.dtype = self.inner.name, self.inner.dtype

    def step(self, number: int, gradients: Sequence[Gradient]) -> float | None:
        """See `TargetOptimizer`."""
        if self.given is not None:
            gradients = self.given(self.config, number, gradients, self.inner.states()["x"])
        used = self.inner.step(number, gradients)
        if self.after is not None:
            for is_state, arrays in enumerate((self.opt.params, self.held())):
                for array in arrays:
                    array[...] = self.after(array, bool(is_state))
        return used

    def held(self) -> list[Array]:
        """Return the accumulators."""
        return [array for state in self.opt.state for array in state.values()]

    def states(self) -> Mapping[str, Sequence[Any]]:
        """See `TargetOptimizer`."""
        return self.inner.states()


def _each(gradients: Row, change: Callable[..., Array], *others: Row) -> list[Any]:
    """Change every gradient that is there; of complex ones, both parts."""

    def changed(g: Array, *rest: Any) -> Array:
        if g.dtype.kind != "c":
            return change(g, *rest)
        sides = [[getattr(a, part) if np.iscomplexobj(a) else a for a in (g, *rest)] for part in ("real", "imag")]
        real, imag = (change(*side) for side in sides)
        return (real + 1j * imag).astype(g.dtype)

    return [None if row[0] is None else changed(*row) for row in zip(gradients, *others, strict=True)]


def _clipped(gradients: Row, bound: float | None) -> Row:
    return gradients if bound is None else _each(gradients, lambda g: np.clip(g, -bound, bound))


def _scaled(gradients: Row, factors: Sequence[float]) -> Row:
    return _each(gradients, lambda g, factor: g * g.dtype.type(factor), factors)


def _by_norm(c: Config, gradients: Row, factor: Callable[[float, float], float]) -> Row:
    """Clip each norm and the norm of all, with the factors that bring a norm to its limit."""
    for limit, of_all in ((c.clipnorm, False), (c.global_clipnorm, True)):
        if limit is not None:
            norms = [0.0 if g is None else float(np.linalg.norm(np.ravel(g))) for g in gradients]
            norms = [float(np.linalg.norm(norms))] * len(norms) if of_all else norms
            gradients = _scaled(gradients, [factor(limit, norm) for norm in norms])
    return gradients


def _down(limit: float, norm: float) -> float:
    return limit / norm if norm > limit else 1.0


def _decayed(c: Config, gradients: Row, params: Row, decay: float) -> Row:
    if c.decay_kind != "coupled":
        return gradients
    return _each(gradients, lambda g, x: g + g.dtype.type(decay) * x, params)


_COUPLED = ("weight_decay", "decay_kind")
_NORMS = ("clipnorm", "global_clipnorm")
_GIVEN: Mapping[str, tuple[str, Callable[[Config, int, Row, Row], Row], tuple[str, ...]]] = {
    "decay-before-maximize": ("Weight decay is added before the sign is turned",
        lambda c, n, g, x: _decayed(c, g, x, c.weight_decay), _COUPLED),
    "clip-after-decay": ("Clipping by value comes after coupled weight decay",
        lambda c, n, g, x: _decayed(c, g, x, -c.weight_decay if c.maximize else c.weight_decay), _COUPLED),
    "norm-clipped-before-value": ("Norms are clipped before values",
        lambda c, n, g, x: _by_norm(c, g, _down), _NORMS),
    "small-norms-raised": ("Gradients are brought to the norm's bound even from below",
        lambda c, n, g, x: _by_norm(c, _clipped(g, c.clipvalue), lambda limit, norm: limit / norm if norm else 1.0),
        _NORMS),
    "norm-plus-1e-6": ("1e-6 is added to the norm of all (torch.nn.utils.clip_grad_norm_)",
        lambda c, n, g, x: _by_norm(c, _clipped(g, c.clipvalue), lambda limit, norm: _down(limit, norm + 1e-6)),
        _NORMS),
    "sum-for-mean": ("Accumulated gradients are summed, not averaged",
        lambda c, n, g, x: _scaled(g, [float(c.accumulate)] * len(g)), ()),
    "clip-before-accumulation": ("Each accumulated gradient is clipped, not their mean",
        lambda c, n, g, x: _clipped(g, c.clipvalue), ()),
    "last-gradient-only": ("Only the last accumulated gradient counts",
        lambda c, n, g, x: _scaled(g, [0.0 if (n + 1) % c.accumulate else float(c.accumulate)] * len(g)), ()),
    "missing-gradient-is-zero": ("A gradient that is missing counts as 0, so that the accumulators decay",
        lambda c, n, g, x: [np.zeros_like(b) if a is None else a for a, b in zip(g, x, strict=True)], ()),
}  # fmt: skip


# --- with its state changed ---


def _state_through_float32(array: Array, is_state: bool) -> Array:
    single = {"f": np.float32, "c": np.complex64} if is_state else {}
    return array.astype(single.get(array.dtype.kind, array.dtype))


def _flushed(array: Array, is_state: bool) -> Array:
    if array.dtype.kind not in "fc":
        return array
    tiny = np.finfo(array.dtype).tiny
    (changed,) = _each([array], lambda a: np.where(np.abs(a) < tiny, a * 0, a))
    return np.asarray(changed)


class _StartAtEps(Wrapped):
    def __init__(self, case: Case, engine: str) -> None:
        super().__init__(case, engine)
        for array in self.held():
            array[...] = self.config.eps * (1 + 1j) if array.dtype.kind == "c" else self.config.eps


class _DecayWithoutLr(Wrapped):
    def __init__(self, case: Case, engine: str) -> None:
        self.decoupled = case.config.decay_kind == "decoupled"
        super().__init__(case, engine, without=_COUPLED if self.decoupled else ())

    def step(self, number: int, gradients: Sequence[Gradient]) -> float | None:
        if self.decoupled and (number + 1) % self.config.accumulate == 0:
            for x, g in zip(self.opt.params, gradients, strict=True):
                if g is not None:
                    x -= x.dtype.type(self.config.weight_decay) * x
        return super().step(number, gradients)


class _AverageFirst(Wrapped):
    def __init__(self, case: Case, engine: str) -> None:
        super().__init__(case, engine)
        self.seen = [self.inner.states()]

    def step(self, number: int, gradients: Sequence[Gradient]) -> float | None:
        used = super().step(number, gradients)
        self.seen.append(self.inner.states())
        return used

    def states(self) -> Mapping[str, Sequence[Any]]:
        # The right average, of one update before.
        earlier = self.seen[max(0, len(self.seen) - 1 - self.config.accumulate)]
        return {kind: earlier[kind] if kind == "average" else held for kind, held in super().states().items()}


class _Complex(Wrapped):
    def __init__(self, case: Case, engine: str) -> None:
        super().__init__(case, engine)
        self.rates = case.update_rates()

    def step(self, number: int, gradients: Sequence[Gradient]) -> float | None:
        if not self.dtype.startswith("complex"):
            return super().step(number, gradients)
        c = self.config
        for x, g, state in zip(self.opt.params, gradients, self.opt.state, strict=True):
            if g is not None:
                lr = self.rates[number // c.accumulate]
                new = ADADELTA.function(np, x, g, *state.values(), lr=lr, rho=c.rho, eps=c.eps)
                for array, values in zip((x, *state.values()), new, strict=True):
                    array[...] = values
        return None


MUTANTS: Mapping[str, Mutant] = {
    mutant.name: mutant
    for mutant in (
        *(Mutant(name, about, partial(_with_formula, name=name)) for name, (about, _) in FORMULAS.items()),
        *(Mutant(name, about, partial(_with_options, change=change)) for name, (about, change) in _ASKED.items()),
        *(Mutant(n, about, partial(Wrapped, given=given, without=off)) for n, (about, given, off) in _GIVEN.items()),
        Mutant("accumulators-start-at-eps", "Accumulators start at ε, not at 0", _StartAtEps),
        Mutant("state-through-float32", "Accumulators are kept in float32, whatever the parameters are",
               partial(Wrapped, after=_state_through_float32)),
        Mutant("subnormals-flushed", "Numbers below the smallest normal one become 0",
               partial(Wrapped, after=_flushed)),
        Mutant("decay-without-lr", "Decoupled weight decay is not multiplied by the learning rate", _DecayWithoutLr),
        Mutant("average-before-update", "The moving average takes in the parameters before they are updated",
               _AverageFirst),
        Mutant("complex-squares", "A complex gradient is squared as a complex number", _Complex),
    )
}  # fmt: skip
