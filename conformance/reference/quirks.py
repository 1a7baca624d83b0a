"""Habits by which the systems leave the published rule, each with a name.

A trace carries the names of those that show in it. The oracle follows most of them, so that a trace can be
checked tightly in spite of them, and reports both numbers: the distance from the published rule and from the rule
with the habit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..data.specification import Scenario
from ..data.systems import EVERY, KERAS, LEGACY, NEW, OPTAX, RAW, TORCH, V1
from .floats import REAL


@dataclass(frozen=True)
class Quirk:
    """One habit: who has it, and in which scenarios it shows."""

    name: str
    about: str
    systems: tuple[str, ...]
    shows: Callable[[str, Scenario], bool]


def _double(s: Scenario) -> bool:
    return REAL.get(s.dtype, s.dtype) == "float64"


def _half(s: Scenario) -> bool:
    return s.dtype in ("float16", "bfloat16")


def _rounds(value: float | None) -> bool:
    return value is not None and float(np.float32(value)) != value


def _lr_rounds(system: str, s: Scenario) -> bool:
    if not _double(s) or s.config.floatx is not None:
        return False
    if s.config.schedule is not None:
        # Under JAX with 64-bit numbers, Keras 3 computes schedules in float64.
        return system != "keras-jax" and s.config.schedule.kind not in ("piecewise", "callable")
    return _rounds(s.config.lr)


_FLUSHING = (*LEGACY, *NEW, "keras-tensorflow", "keras-jax", *V1, *RAW, *OPTAX)

QUIRKS: tuple[Quirk, ...] = (
    Quirk(
        "lr-through-float32",
        "the learning rate passes through float32 on its way to float64 parameters",
        (*LEGACY, *NEW, *KERAS, *V1),
        _lr_rounds,
    ),
    Quirk(
        "rho-through-float32",
        "rho passes through float32 on its way to float64 parameters",
        (*LEGACY, *V1),
        lambda _, s: _double(s) and _rounds(s.config.rho),
    ),
    Quirk(
        "eps-through-float32",
        "eps passes through float32 on its way to float64 parameters",
        V1,
        lambda _, s: _double(s) and _rounds(s.config.eps),
    ),
    Quirk(
        "weight-decay-through-float32",
        "weight decay passes through float32 on its way to float64 parameters",
        (*NEW, "keras-tensorflow"),
        lambda _, s: _double(s) and _rounds(s.config.weight_decay),
    ),
    Quirk(
        "decay-factor-through-float32",
        "1 − lr · weight_decay is formed in float32, whatever the parameters' data type",
        ("keras-torch",),
        lambda _, s: _double(s) and s.config.decay_kind == "decoupled",
    ),
    Quirk(
        "norm-through-float32",
        "the norm, or the factor made of it, is rounded to float32, whatever the parameters' data type",
        ("keras-torch",),
        lambda _, s: _double(s) and (s.config.clipnorm or s.config.global_clipnorm) is not None,
    ),
    Quirk(
        "accumulates-in-float32",
        "optax.MultiSteps keeps its running mean in float32 unless told otherwise",
        OPTAX,
        lambda _, s: _double(s) and s.config.accumulate > 1,
    ),
    Quirk(
        "squares-scaled-first",
        "(1 − ρ) g is formed before it is multiplied by g, so that squares overflow and underflow later",
        (*TORCH, *NEW),
        lambda _, s: s.name.startswith(("magnitudes-float32", "subnormals")),
    ),
    Quirk(
        "one-minus-rho-in-parameter-dtype",
        "1 − rho is formed from rho as already rounded to the parameters' data type",
        (*LEGACY, *V1, *RAW),
        lambda _, s: not _double(s),
    ),
    Quirk(
        "flushes-subnormals",
        "numbers below the smallest normal one become 0",
        _FLUSHING,
        lambda _, s: s.name.startswith(("magnitudes-float32", "subnormals")),
    ),
    Quirk(
        "infinite-norm-gives-nan",
        "an infinite global norm makes every gradient NaN, not only the infinite ones",
        (*LEGACY, *NEW, *KERAS),
        lambda _, s: s.name == "infinities-global-clipnorm",
    ),
    Quirk(
        "complex128-in-complex64",
        "Keras' promotion rules take complex128 to complex64 in most operations",
        ("keras-tensorflow",),
        lambda _, s: s.dtype == "complex128",
    ),
    Quirk(
        "half-arithmetic",
        "every operation is rounded to the 16-bit type, not only the results",
        EVERY,
        lambda _, s: _half(s),
    ),
    Quirk(
        "complex-arithmetic",
        "a complex gradient is squared as a complex number, where torch takes real and imaginary parts apart",
        (*LEGACY, *NEW, *KERAS, *V1, *RAW, *OPTAX),
        lambda _, s: s.dtype.startswith("complex"),
    ),
    Quirk(
        "ascends-without-lr",
        "optax.adadelta() has no learning rate by default and then adds the update instead of subtracting it",
        OPTAX,
        lambda _, s: s.config.lr is None or s.config.defaults,
    ),
    Quirk(
        "eps-zero-becomes-1e-7",
        "epsilon=0 is silently replaced by 1e-7",
        LEGACY,
        lambda _, s: s.config.eps == 0.0,
    ),
    Quirk(
        "nonpositive-clip-ignored",
        "clipvalue=0 or less means no clipping, where the legacy optimizer makes every gradient 0",
        (*NEW, *KERAS),
        lambda _, s: s.config.clipvalue is not None and s.config.clipvalue <= 0,
    ),
    Quirk(
        "norm-clip-wins",
        "with clipvalue and a norm clip both set, only the norm clip is applied",
        NEW,
        lambda _, s: s.config.clipvalue is not None and (s.config.clipnorm or s.config.global_clipnorm) is not None,
    ),
    Quirk(
        "norm-plus-1e-6",
        "torch.nn.utils.clip_grad_norm_ divides by norm + 1e-6",
        TORCH,
        lambda _, s: s.config.global_clipnorm is not None,
    ),
    Quirk(
        "boundary-belongs-to-next",
        "a piecewise schedule takes the next value at its boundary; Keras takes it one step later",
        (*TORCH, *OPTAX),
        lambda _, s: s.config.schedule is not None and s.config.schedule.kind == "piecewise",
    ),
    Quirk(
        "callable-lr-frozen",
        "a callable learning rate is called once, when the optimizer is made",
        ("tf-keras",),
        lambda _, s: s.config.schedule is not None and s.config.schedule.kind == "callable",
    ),
    Quirk(
        "step-in-parameter-dtype",
        "the schedule sees the step number rounded to the parameters' data type",
        LEGACY,
        lambda _, s: (s.config.schedule is not None or s.config.legacy_decay > 0) and s.config.first_iteration > 0,
    ),
    Quirk(
        "schedule-counts-micro-steps",
        "under gradient accumulation the schedule counts gradients, not updates",
        KERAS,
        lambda _, s: s.config.accumulate > 1 and s.config.schedule is not None,
    ),
    Quirk(
        "ema-never-updates",
        "the average stays at the initial values, and finalize_variable_values puts those back",
        ("tf-keras-dtensor",),
        lambda _, s: s.config.ema_momentum is not None,
    ),
    Quirk(
        "ema-starts-after-first-step",
        "the average starts at the parameters after the first step, not before it",
        (*KERAS, *TORCH),
        lambda _, s: s.config.ema_momentum is not None,
    ),
    Quirk(
        "ema-every-micro-step",
        "under gradient accumulation the average moves with every gradient, not with every update",
        KERAS,
        lambda _, s: s.config.ema_momentum is not None and s.config.accumulate > 1,
    ),
    Quirk(
        "sparse-untouched-rows-kept",
        "rows that are absent from a sparse gradient keep their accumulators as they are",
        (*LEGACY, *V1, *RAW),
        lambda _, s: bool(s.rows),
    ),
    Quirk(
        "sparse-duplicates-in-turn",
        "a row that occurs twice is stepped twice, one after the other",
        RAW,
        lambda _, s: bool(s.rows),
    ),
    Quirk(
        "sparse-duplicates-squared-apart",
        "a row that occurs twice adds the sum of squares to the accumulator, not the square of the sum",
        ("keras-tensorflow",),
        lambda _, s: bool(s.rows),
    ),
    Quirk(
        "sparse-clipped-before-summed",
        "clipping comes before the occurrences of a row are summed",
        (*LEGACY, "tf-keras", "keras-tensorflow"),
        lambda _, s: bool(s.rows) and s.config.clipvalue is not None,
    ),
)


def quirks_of(system: str, scenario: Scenario) -> tuple[str, ...]:
    """Return the names of the quirks of ``system`` that show in ``scenario``."""
    return tuple(q.name for q in QUIRKS if system in q.systems and q.shows(system, scenario))
