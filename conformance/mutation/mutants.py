"""Wrong optimizers: each is the `Reference` with one small mistake, most of them made somewhere before.

A suite that lets one of them pass is worth nothing (`hunt` proves that none passes); and who finds two optimizers
apart wants to know which of these mistakes it looks like (`parity`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from ..data.case import Array, Case
from ..data.floats import parts
from ..reference.reference import Given, Reference
from ..targets.build import rejection, unsupported
from ..targets.target import Target

#: Whom the reference is judged as: it answers what the core answers.
JUDGED_AS = Target(
    "reference", "the rule in plain NumPy", "numpy", engine="eager", optimizer=lambda case: asked(Reference, case)
)


def asked(reference: type[Reference], case: Case) -> Reference:
    """Return a reference for a case, or raise ValueError where the core would."""
    if reason := unsupported(JUDGED_AS, case) or rejection(JUDGED_AS, case):
        raise ValueError(reason)
    return reference(case)


@dataclass(frozen=True)
class Mutant:
    """One mistake: a name, what it is in a few words, and the reference that makes it."""

    name: str
    about: str
    reference: type[Reference]

    def target(self) -> Target:
        """Return it as one who can be judged."""
        return dataclasses.replace(
            JUDGED_AS, name=self.name, about=self.about, optimizer=lambda case: asked(self.reference, case)
        )


MUTANTS: dict[str, Mutant] = {}


def mutant(name: str) -> Callable[[type[Reference]], type[Reference]]:
    """Enter a reference into the table; its docstring says what it does."""

    def enter(reference: type[Reference]) -> type[Reference]:
        MUTANTS[name] = Mutant(name, (reference.__doc__ or "").strip().rstrip(".").replace("\n    ", " "), reference)
        return reference

    return enter


# --- where eps and the roots stand ---


@mutant("eps-outside-root")
class _EpsOutside(Reference):
    """ε is added outside the square roots."""

    def delta(self, g: Array, v: Array, u: Array) -> Array:
        eps = self.number(self.eps)
        return (np.sqrt(u) + eps) / (np.sqrt(v) + eps) * g


@mutant("eps-outside-lower-root")
class _EpsOutsideLower(Reference):
    """ε is added outside the lower square root."""

    def delta(self, g: Array, v: Array, u: Array) -> Array:
        eps = self.number(self.eps)
        return np.sqrt(u + eps) / (np.sqrt(v) + eps) * g


@mutant("eps-twice")
class _EpsTwice(Reference):
    """ε is added within the lower root and outside it again."""

    def delta(self, g: Array, v: Array, u: Array) -> Array:
        eps = self.number(self.eps)
        return np.sqrt(u + eps) / (np.sqrt(v + eps) + eps) * g


@mutant("no-eps-above")
class _NoEpsAbove(Reference):
    """ε is missing in the upper root: nothing ever starts to move."""

    def delta(self, g: Array, v: Array, u: Array) -> Array:
        return np.sqrt(u) / np.sqrt(v + self.number(self.eps)) * g


@mutant("no-eps-below")
class _NoEpsBelow(Reference):
    """ε is missing in the lower root."""

    def delta(self, g: Array, v: Array, u: Array) -> Array:
        return np.where(g == 0, g, np.sqrt(u + self.number(self.eps)) / np.sqrt(v) * g)


@mutant("root-missing")
class _RootMissing(Reference):
    """The square roots are missing."""

    def delta(self, g: Array, v: Array, u: Array) -> Array:
        eps = self.number(self.eps)
        return (u + eps) / (v + eps) * g


@mutant("upper-root-missing")
class _UpperRootMissing(Reference):
    """The upper square root is missing."""

    def delta(self, g: Array, v: Array, u: Array) -> Array:
        eps = self.number(self.eps)
        return (u + eps) / np.sqrt(v + eps) * g


# --- what the accumulators take in, and when ---


@mutant("lr-inside-u")
class _LrInside(Reference):
    """The learning rate is within the update that u takes in."""

    def rule(self, x: Array, g: Array, v: Array, u: Array, lr: Any) -> tuple[Array, Array, Array]:
        v = self.decaying(v, g)
        d = self.delta(g, v, u) * lr
        return x - d, v, self.decaying(u, d)


@mutant("u-updated-before-it-is-read")
class _Early(Reference):
    """u is updated before the step is made with it (TensorFlow's first version)."""

    def rule(self, x: Array, g: Array, v: Array, u: Array, lr: Any) -> tuple[Array, Array, Array]:
        v = self.decaying(v, g)
        u = self.decaying(u, self.delta(g, v, u))
        return self.moved(x, self.delta(g, v, u), lr), v, u


@mutant("v-read-before-it-is-updated")
class _Late(Reference):
    """The step is made with v as it was before."""

    def rule(self, x: Array, g: Array, v: Array, u: Array, lr: Any) -> tuple[Array, Array, Array]:
        d = self.delta(g, v, u)
        return self.moved(x, d, lr), self.decaying(v, g), self.decaying(u, d)


@mutant("u-of-gradients")
class _UOfGradients(Reference):
    """u takes in the gradient, not the update."""

    def rule(self, x: Array, g: Array, v: Array, u: Array, lr: Any) -> tuple[Array, Array, Array]:
        v = self.decaying(v, g)
        return self.moved(x, self.delta(g, v, u), lr), v, self.decaying(u, g)


@mutant("one-minus-rho-dropped")
class _Dropped(Reference):
    """1 − ρ is dropped: squares are added whole."""

    def one_minus_rho(self) -> float:
        return 1.0


@mutant("rho-swapped")
class _Swapped(Reference):
    """ρ and 1 − ρ are swapped."""

    def decaying(self, average: Array, new: Array) -> Array:
        return self.number(self.rest) * average + self.number(self.rho) * (new * new)


@mutant("one-minus-rho-in-float32")
class _RestSingle(Reference):
    """1 − ρ is formed in float32, of ρ already rounded."""

    def one_minus_rho(self) -> float:
        return float(np.float32(1.0) - np.float32(self.rho))


@mutant("bias-corrected")
class _BiasCorrected(Reference):
    """v is divided by 1 − ρ^t when it is read, as in Adam."""

    def delta(self, g: Array, v: Array, u: Array) -> Array:
        return super().delta(g, v / self.number(1.0 - self.rho ** (self.updates + 1)), u)


@mutant("accumulators-start-at-eps")
class _StartAtEps(Reference):
    """Accumulators start at ε, not at 0."""

    def __init__(self, case: Any) -> None:
        self.first_square_avg = self.first_acc_delta = case.config.eps
        super().__init__(case)


@mutant("one-v-per-tensor")
class _Shared(Reference):
    """v takes in the mean of a tensor's squares."""

    def rule(self, x: Array, g: Array, v: Array, u: Array, lr: Any) -> tuple[Array, Array, Array]:
        v = self.decaying(v, np.sqrt(np.full_like(g, np.mean(g * g) if g.size else 0.0)))
        d = self.delta(g, v, u)
        return self.moved(x, d, lr), v, self.decaying(u, d)


@mutant("v-of-magnitudes")
class _Magnitudes(Reference):
    """v takes in |g| and no square."""

    def rule(self, x: Array, g: Array, v: Array, u: Array, lr: Any) -> tuple[Array, Array, Array]:
        v = self.number(self.rho) * v + self.number(self.rest) * np.abs(g)
        d = self.delta(g, v, u)
        return self.moved(x, d, lr), v, self.decaying(u, d)


@mutant("ascends")
class _Ascends(Reference):
    """The update is added, not subtracted."""

    def moved(self, x: Array, d: Array, lr: Any) -> Array:
        return x + lr * d


# --- rounding: right on paper, other bits ---


@mutant("fused-multiply-add")
class _Fused(Reference):
    """ρ a + (1 − ρ) n² is one multiply-add, rounded once (emulated exactly)."""

    def decaying(self, average: Array, new: Array) -> Array:
        return fma(self.number(self.rho), average, self.number(self.rest) * (new * new))


@mutant("reciprocal-root")
class _Reciprocal(Reference):
    """The lower root is inverted first, then multiplied with."""

    def delta(self, g: Array, v: Array, u: Array) -> Array:
        eps = self.number(self.eps)
        return np.sqrt(u + eps) * (self.number(1.0) / np.sqrt(v + eps)) * g


@mutant("one-root-of-the-quotient")
class _OneRoot(Reference):
    """One root of the quotient, in place of a quotient of roots."""

    def delta(self, g: Array, v: Array, u: Array) -> Array:
        eps = self.number(self.eps)
        return np.sqrt((u + eps) / (v + eps)) * g


@mutant("squares-scaled-first")
class _ScaledFirst(Reference):
    """(1 − ρ) n is formed before it is multiplied by n."""

    def decaying(self, average: Array, new: Array) -> Array:
        return self.number(self.rho) * average + (self.number(self.rest) * new) * new


@mutant("lr-through-float32")
class _LrSingle(Reference):
    """The learning rate passes through float32."""

    def rate(self, update: int) -> float:
        return float(np.float32(super().rate(update)))


@mutant("hyperparameters-through-float32")
class _AllSingle(Reference):
    """ρ and ε pass through float32."""

    def __init__(self, case: Any) -> None:
        single = {name: float(np.float32(getattr(case.config, name))) for name in ("rho", "eps")}
        super().__init__(dataclasses.replace(case, config=dataclasses.replace(case.config, **single)))


@mutant("state-through-float32")
class _StateSingle(Reference):
    """Accumulators are kept in float32, whatever the parameters are."""

    def tensor(self, i: int, g: Array | None, lr: float) -> None:
        super().tensor(i, g, lr)
        for column in (self.v, self.u):
            with np.errstate(all="ignore"):
                column[i] = self.keep(column[i].astype(np.float32))


@mutant("subnormals-flushed")
class _Flushed(Reference):
    """Numbers below the smallest normal one become 0."""

    def keep(self, values: Array) -> Array:
        kept = super().keep(values)
        return np.where(np.abs(kept) < np.finfo(kept.dtype).tiny, kept * 0, kept)


@mutant("complex-squares")
class _Complex(Reference):
    """A complex gradient is squared as a complex number."""

    def rule(self, x: Array, g: Array, v: Array, u: Array, lr: Any) -> tuple[Array, Array, Array]:
        if not self.dtype.startswith("complex"):
            return super().rule(x, g, v, u, lr)
        x, g, v, u = (np.ascontiguousarray(a).view(self.dtype) for a in (x, g, v, u))
        x, v, u = super().rule(x, g, v, u, lr)
        return parts(x).ravel(), parts(v).ravel(), parts(u).ravel()


# --- weight decay, sign, clipping ---


@mutant("coupled-for-decoupled")
class _Coupled(Reference):
    """Decoupled weight decay is coupled: added to the gradient."""

    def decayed(self, x: Array, g: Array, lr: float) -> tuple[Array, Array]:
        return x, g + self.number(self.decay) * x if self.c.decay_kind == "decoupled" else super().decayed(x, g, lr)[1]


@mutant("decoupled-for-coupled")
class _Decoupled(Reference):
    """Coupled weight decay is decoupled: taken from the parameter first."""

    def decayed(self, x: Array, g: Array, lr: float) -> tuple[Array, Array]:
        return (x - self.number(lr * self.decay) * x, g) if self.c.decay_kind else (x, g)


@mutant("decay-without-lr")
class _DecayWithoutLr(Reference):
    """Decoupled weight decay is not multiplied by the learning rate."""

    def decayed(self, x: Array, g: Array, lr: float) -> tuple[Array, Array]:
        return super().decayed(x, g, 1.0)


@mutant("decay-ignored")
class _NoDecay(Reference):
    """Weight decay is ignored."""

    def decayed(self, x: Array, g: Array, lr: float) -> tuple[Array, Array]:
        return x, g


@mutant("decay-before-maximize")
class _DecayFirst(Reference):
    """Weight decay is added before the sign is turned."""

    def decayed(self, x: Array, g: Array, lr: float) -> tuple[Array, Array]:
        sign = -1.0 if self.c.maximize else 1.0
        return (x, g + self.number(sign * self.decay) * x) if self.c.decay_kind == "coupled" else (x, g)


@mutant("maximize-ignored")
class _NoMaximize(Reference):
    """``maximize`` is ignored."""

    def scale(self) -> float:
        return 1.0 / self.c.accumulate


@mutant("clip-after-decay")
class _ClipAfter(Reference):
    """Clipping by value comes after coupled weight decay."""

    def decayed(self, x: Array, g: Array, lr: float) -> tuple[Array, Array]:
        x, g = super().decayed(x, g, lr)
        if self.c.clipvalue is None or self.c.decay_kind != "coupled":
            return x, g
        bound = self.number(self.c.clipvalue)
        return x, np.clip(g, -bound, bound)

    def clip_value(self, given: Given) -> Given:
        return given if self.c.decay_kind == "coupled" else super().clip_value(given)


@mutant("clip-ignored")
class _NoClip(Reference):
    """Clipping is ignored."""

    def clipped(self, given: Given) -> Given:
        return given


@mutant("norm-clipped-before-value")
class _NormFirst(Reference):
    """Norms are clipped before values."""

    def clipped(self, given: Given) -> Given:
        value, self.c = self.c.clipvalue, dataclasses.replace(self.c, clipvalue=None)
        given = super().clipped(given)
        self.c = dataclasses.replace(self.c, clipvalue=value)
        return given if value is None else self.clip_value(given)


@mutant("norm-of-each-for-norm-of-all")
class _EachNorm(Reference):
    """Each tensor's norm is clipped in place of the norm of all."""

    def clipped(self, given: Given) -> Given:
        limit = self.c.global_clipnorm
        if limit is None:
            return super().clipped(given)
        self.c = dataclasses.replace(self.c, clipnorm=limit, global_clipnorm=None)
        given = super().clipped(given)
        self.c = self.case.config
        return given


@mutant("small-norms-raised")
class _Raised(Reference):
    """Gradients are brought to the norm's bound even from below."""

    def factor(self, limit: float, norm: float) -> float:
        return limit / norm if norm > 0 else 1.0


@mutant("norm-plus-1e-6")
class _NormPlus(Reference):
    """1e-6 is added to the norm of all (torch.nn.utils.clip_grad_norm_)."""

    def factor(self, limit: float, norm: float) -> float:
        return super().factor(limit, norm + 1e-6)


# --- schedules, accumulation, averages, gradients that are missing ---


@mutant("schedule-one-late")
class _OneLate(Reference):
    """The schedule is asked for the step before."""

    def rate(self, update: int) -> float:
        return super().rate(max(0, update - 1))


@mutant("schedule-one-early")
class _OneEarly(Reference):
    """The schedule is asked for the next step: counting starts at 1."""

    def rate(self, update: int) -> float:
        rates = self.case.rates
        return super().rate(update + 1 if rates is None or update + 1 < len(rates) else update)


@mutant("schedule-frozen")
class _Frozen(Reference):
    """The schedule is asked once."""

    def rate(self, update: int) -> float:
        return super().rate(0)


@mutant("sum-for-mean")
class _Sum(Reference):
    """Accumulated gradients are summed, not averaged."""

    def scale(self) -> float:
        return super().scale() * self.c.accumulate


@mutant("clip-before-accumulation")
class _ClipFirst(Reference):
    """Each accumulated gradient is clipped, not their mean."""

    def gathered(self, waiting: list[Given]) -> Given:
        return super().gathered(waiting if len(waiting) == 1 else [self.clipped(given) for given in waiting])


@mutant("last-gradient-only")
class _Last(Reference):
    """Only the last accumulated gradient counts."""

    def gathered(self, waiting: list[Given]) -> Given:
        return [None if g is None else g * self.number(self.c.accumulate) for g in waiting[-1]]


@mutant("average-before-update")
class _AverageFirst(Reference):
    """The moving average takes in the parameters before they are updated."""

    def update(self, given: Given) -> None:
        self.follow()
        averages, self.averages = self.averages, None
        super().update(given)
        self.averages = averages


@mutant("average-momentum-swapped")
class _MomentumSwapped(Reference):
    """The moving average's momentum and its complement are swapped."""

    def averaged(self, average: Array, x: Array) -> Array:
        return super().averaged(x, average)


@mutant("missing-gradient-is-zero")
class _MissingIsZero(Reference):
    """A gradient that is missing counts as 0, so that the accumulators decay."""

    def update(self, given: Given) -> None:
        super().update([np.zeros(x.shape, self.wide) if g is None else g for g, x in zip(given, self.x, strict=True)])


def fma(a: Any, b: Array, c: Array) -> Array:
    """``a * b + c``, rounded once: in exact fractions, element by element."""
    with np.errstate(all="ignore"):
        result = a * b + c
    for i in np.flatnonzero(np.isfinite(result)):
        exact = Fraction(float(a)) * Fraction(float(b[i])) + Fraction(float(c[i]))
        if exact:
            result[i] = _rounded(exact, result.dtype)
    return result


def _rounded(exact: Fraction, dtype: Any) -> Any:
    nearest = float(exact)
    if dtype == np.float64 or Fraction(nearest) == exact:
        return dtype.type(nearest)
    # Round to odd in float64 first: then rounding again cannot round twice.
    if np.float64(nearest).view(np.int64) % 2 == 0:
        nearest = float(np.nextafter(nearest, np.inf if exact > Fraction(nearest) else -np.inf))
    return dtype.type(nearest)


TRUE: Mapping[str, Mutant] = {"true": Mutant("true", "the rule as it should be", Reference)}
