"""Deviations: the ways in which the recorded systems depart from the published rule, each with a name.

A trace carries the names of those that show in it. Some are a matter of options, and ours follows them when it is given
the options that the framework acted on. The others are arithmetic of the framework's own: the reference follows most of
them, so that a trace can be checked tightly in spite of them, and both numbers are reported: the distance from the
published rule, and from the rule with the deviation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from .case import Case
from .floats import REAL
from .rates import rates_of
from .specification import Config, Scenario
from .systems import EVERY, KERAS, LEGACY, NEW, OPTAX, RAW, TORCH, V1
from .trajectory import Trajectory


@dataclass(frozen=True)
class Deviation:
    """A deviation that these systems have; ``shows(system, scenario)`` tells whether it shows there."""

    name: str
    about: str
    systems: tuple[str, ...]
    shows: Callable[[str, Scenario], bool]
    #: Changes the options that were asked for into those that the framework acted on.
    options: Callable[[Config], Config] | None = None
    #: Whether it is a matter of the learning rates, which a trace holds.
    of_rate: bool = False
    #: Whether the reference can follow it.
    followed: bool = True


def single(value: float) -> float:
    """Return a number rounded to float32."""
    return float(np.float32(value))


def _double(s: Scenario) -> bool:
    return REAL.get(s.dtype, s.dtype) == "float64"


def _rounds(value: float | None) -> bool:
    return value is not None and single(value) != value


def _clips_norm(s: Scenario) -> bool:
    return (s.config.clipnorm or s.config.global_clipnorm) is not None


def _follows(s: Scenario, kind: str) -> bool:
    return s.config.schedule is not None and s.config.schedule.kind == kind


def _lr_rounds(system: str, s: Scenario) -> bool:
    if not _double(s) or s.config.floatx is not None:
        return False
    if s.config.schedule is not None:
        # Under JAX with 64-bit numbers, Keras 3 computes schedules in float64.
        return system != "keras-jax" and s.config.schedule.kind not in ("piecewise", "callable")
    return _rounds(s.config.lr)


_TABLE = (
    Deviation("lr-through-float32", "the learning rate passes through float32 on its way to float64 parameters",
        (*LEGACY, *NEW, *KERAS, *V1), _lr_rounds, of_rate=True),
    Deviation("rho-through-float32", "rho passes through float32 on its way to float64 parameters", (*LEGACY, *V1),
        lambda _, s: _double(s) and _rounds(s.config.rho), lambda c: replace(c, rho=single(c.rho))),
    Deviation("eps-through-float32", "eps passes through float32 on its way to float64 parameters", V1,
        lambda _, s: _double(s) and _rounds(s.config.eps), lambda c: replace(c, eps=single(c.eps))),
    Deviation("weight-decay-through-float32", "weight decay passes through float32 on its way to float64 parameters",
        (*NEW, "keras-tensorflow"), lambda _, s: _double(s) and _rounds(s.config.weight_decay),
        lambda c: replace(c, weight_decay=single(c.weight_decay))),
    Deviation("decay-factor-through-float32",
        "1 − lr · weight_decay is formed in float32, whatever the parameters' data type", ("keras-torch",),
        lambda _, s: _double(s) and s.config.decay_kind == "decoupled"),
    Deviation("norm-through-float32",
        "the norm, or the factor made of it, is rounded to float32, whatever the parameters' data type",
        ("keras-torch",), lambda _, s: _double(s) and _clips_norm(s)),
    Deviation("accumulates-in-float32", "optax.MultiSteps keeps its running mean in float32 unless told otherwise",
        OPTAX, lambda _, s: _double(s) and s.config.accumulate > 1),
    Deviation("squares-scaled-first",
        "(1 − ρ) g is formed before it is multiplied by g, so that squares overflow and underflow later: with ρ = 0.9 "
        "from 5.8e19 on in float32, not from 1.8e19, where square_avg becomes inf and the parameter stays for good",
        (*TORCH, *NEW),
        lambda _, s: s.name.startswith(("magnitudes-float32", "subnormals", "squares-overflow"))),
    Deviation("one-minus-rho-in-parameter-dtype",
        "1 − rho is formed from rho as already rounded to the parameters' data type", (*LEGACY, *V1, *RAW),
        lambda _, s: not _double(s)),
    Deviation("flushes-subnormals", "numbers below the smallest normal one become 0",
        (*LEGACY, *NEW, "keras-tensorflow", "keras-jax", *V1, *RAW, *OPTAX),
        lambda _, s: s.name.startswith(("magnitudes-float32", "subnormals"))),
    Deviation("infinite-norm-gives-nan",
        "an infinite global norm makes every gradient NaN, not only the infinite ones", (*LEGACY, *NEW, *KERAS),
        lambda _, s: s.name == "infinities-global-clipnorm"),
    Deviation("complex128-in-complex64", "Keras' promotion rules take complex128 to complex64 in most operations",
        ("keras-tensorflow",), lambda _, s: s.dtype == "complex128", followed=False),
    Deviation("half-arithmetic", "every operation is rounded to the 16-bit type, not only the results", EVERY,
        lambda _, s: s.dtype in ("float16", "bfloat16")),
    Deviation("complex-arithmetic",
        "a complex gradient is squared as a complex number, where torch takes real and imaginary parts apart",
        (*LEGACY, *NEW, *KERAS, *V1, *RAW, *OPTAX), lambda _, s: s.dtype.startswith("complex"), followed=False),
    Deviation("ascends-without-lr",
        "optax.adadelta() has no learning rate by default and then adds the update instead of subtracting it", OPTAX,
        lambda _, s: s.config.lr is None or s.config.defaults, lambda c: replace(c, maximize=True)),
    Deviation("eps-zero-becomes-1e-7", "epsilon=0 is silently replaced by 1e-7", LEGACY,
        lambda _, s: s.config.eps == 0.0, lambda c: replace(c, eps=1e-7)),
    Deviation("nonpositive-clip-ignored",
        "clipvalue=0 or less means no clipping, where the legacy optimizer makes every gradient 0", (*NEW, *KERAS),
        lambda _, s: s.config.clipvalue is not None and s.config.clipvalue <= 0, lambda c: replace(c, clipvalue=None)),
    Deviation("norm-clip-wins", "with clipvalue and a norm clip both set, only the norm clip is applied", NEW,
        lambda _, s: s.config.clipvalue is not None and _clips_norm(s), lambda c: replace(c, clipvalue=None)),
    Deviation("norm-plus-1e-6", "torch.nn.utils.clip_grad_norm_ divides by norm + 1e-6", TORCH,
        lambda _, s: s.config.global_clipnorm is not None),
    Deviation("boundary-belongs-to-next",
        "a piecewise schedule takes the next value at its boundary; Keras takes it one step later", (*TORCH, *OPTAX),
        lambda _, s: _follows(s, "piecewise"), of_rate=True),
    Deviation("callable-lr-frozen", "a callable learning rate is called once, when the optimizer is made",
        ("tf-keras",), lambda _, s: _follows(s, "callable"), of_rate=True),
    Deviation("step-in-parameter-dtype", "the schedule sees the step number rounded to the parameters' data type",
        LEGACY,
        lambda _, s: (s.config.schedule is not None or s.config.legacy_decay > 0) and s.config.first_iteration > 0,
        of_rate=True),
    Deviation("schedule-counts-micro-steps", "under gradient accumulation the schedule counts gradients, not updates",
        KERAS, lambda _, s: s.config.accumulate > 1 and s.config.schedule is not None, of_rate=True),
    Deviation("ema-never-updates",
        "the average stays at the initial values, and finalize_variable_values puts those back", ("tf-keras-dtensor",),
        lambda _, s: s.config.ema_momentum is not None),
    Deviation("ema-starts-after-first-step",
        "the average starts at the parameters after the first step, not before it", (*KERAS, *TORCH),
        lambda _, s: s.config.ema_momentum is not None),
    Deviation("ema-every-micro-step",
        "under gradient accumulation the average moves with every gradient, not with every update", KERAS,
        lambda _, s: s.config.ema_momentum is not None and s.config.accumulate > 1),
    Deviation("sparse-untouched-rows-kept",
        "rows that are absent from a sparse gradient keep their accumulators as they are", (*LEGACY, *V1, *RAW),
        lambda _, s: bool(s.rows)),
    Deviation("sparse-duplicates-in-turn", "a row that occurs twice is stepped twice, one after the other", RAW,
        lambda _, s: bool(s.rows)),
    Deviation("sparse-duplicates-squared-apart",
        "a row that occurs twice adds the sum of squares to the accumulator, not the square of the sum",
        ("keras-tensorflow",), lambda _, s: bool(s.rows)),
    Deviation("sparse-clipped-before-summed", "clipping comes before the occurrences of a row are summed",
        (*LEGACY, "tf-keras", "keras-tensorflow"), lambda _, s: bool(s.rows) and s.config.clipvalue is not None),
)  # fmt: skip

#: A deviation that traces show in their learning rates only.
SCHEDULE = Deviation("schedule-in-float32", "the schedule is computed in float32", (), lambda *_: False, of_rate=True)
DEVIATIONS = {deviation.name: deviation for deviation in (*_TABLE, SCHEDULE)}
NOT_FOLLOWED = frozenset(name for name, deviation in DEVIATIONS.items() if not deviation.followed)


def deviations_of(system: str, scenario: Scenario) -> tuple[str, ...]:
    """Return the names of the deviations of ``system`` that show in ``scenario``."""
    return tuple(name for name, d in DEVIATIONS.items() if system in d.systems and d.shows(system, scenario))


def acted_on(config: Config, names: Iterable[str]) -> Config:
    """Return the options that a framework with these deviations acts on when it is given ``config``."""
    for name in names:
        if (change := DEVIATIONS[name].options) is not None:
            config = change(config)
    return config


def deviations_in(trace: Trajectory) -> tuple[str, ...]:
    """Return a trace's deviations, and `SCHEDULE` where its learning rates show that."""
    of_rate = any(DEVIATIONS[name].of_rate for name in trace.deviations)
    if trace.config.schedule is None or trace.lr is None or of_rate:
        return trace.deviations
    published = np.array(rates_of(trace.config, trace.steps), dtype=np.float64)
    error = np.max(np.abs(trace.lr - published) / published)
    shown = 4 * np.finfo(np.float64).eps < error <= 1e-6  # schedules in float32 are good to that
    return (*trace.deviations, SCHEDULE.name) if shown else trace.deviations


def followed(trace: Trajectory) -> tuple[Case, tuple[str, ...]]:
    """Return the case as the framework acted on it, as far as options go, and the deviations that are left."""
    names = deviations_in(trace)
    case = trace.case.published()
    rates = None
    if trace.lr is not None and any(DEVIATIONS[name].of_rate for name in names):
        # Under accumulation an update has the rate of its last gradient.
        rates = tuple(float(rate) for rate in trace.lr[case.config.accumulate - 1 :: case.config.accumulate])
    left = tuple(name for name in names if not (DEVIATIONS[name].of_rate or DEVIATIONS[name].options))
    return replace(case, config=acted_on(case.config, names), rates=rates), left
