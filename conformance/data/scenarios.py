"""The table of scenarios: what every system is recorded doing, and what everybody is judged by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .specification import Config, Draw, Scenario, Schedule
from .systems import EVERY, KERAS, LEGACY, NEW, OPTAX, RAW, TORCH, V1


def _listed(*values: complex) -> Draw:
    return Draw("listed", values=values)


_TF_FAMILY = (*LEGACY, *NEW, *KERAS)
_MOST = (*TORCH, *_TF_FAMILY, *OPTAX)
_LATER = (*NEW, *KERAS)
_ACCUMULATING = (*KERAS, *OPTAX)
_KERAS_REFUSES = dict.fromkeys(KERAS, "ValueError")

_PAPER = Config(lr=1.0, rho=0.95, eps=1e-6)
_COARSE = Config(lr=1.0, rho=0.9, eps=1e-3)
_HALF: dict[str, Any] = {"lr": 0.5, "rho": 0.0, "eps": 1.0}
_COUPLED: dict[str, Any] = {"weight_decay": 0.1, "decay_kind": "coupled"}
_DECOUPLED: dict[str, Any] = {"weight_decay": 0.1, "decay_kind": "decoupled"}
_EXPONENTIAL = Schedule("exponential", {"initial": 0.5, "decay_steps": 1, "decay_rate": 0.9})
_PIECEWISE = Schedule("piecewise", {"boundaries": [3, 7], "values": [1.0, 0.5, 0.25]})
_POLYNOMIAL = Schedule("polynomial", {"initial": 1.0, "decay_steps": 7, "end": 0.125, "power": 2.0})

_ONE_STEP: dict[str, Any] = {"shapes": ((),), "steps": 1, "start": _listed(2.0), "gradients": _listed(1.0)}
_SEVERAL = ((7,), (3, 2), (), (0,), (2, 1, 3), (1,), (2, 0))
_MISSING = ((0, 1), (2, 0), (3, 0), (3, 1), (5, 2))
_ROWS = ((0, 2), (3, 3), (1, 0, 1), (2,), (4, 4, 4, 0))
_NAN, _INF = float("nan"), float("inf")
_INFINITE = _listed(1.0, _INF, -2.0, 0.5, 0.25, 1.0, -_INF, 0.0, 3.0)
_ONE_INFINITE = _listed(1.0, _INF, -2.0, 0.5, 0.25, 1.0, 1.0)
_WIDE = Draw("decades", low=-20, high=20)

_TABLE = (
    # One step of one number: results that anybody can check on paper.
    Scenario("by-hand", "x=0, g=1, lr=1, rho=0, eps=1: x becomes -0.7071", EVERY, Config(lr=1.0, rho=0.0, eps=1.0),
        shapes=((),), steps=2, start=_listed(0.0), gradients=_listed(1.0)),
    Scenario("by-hand-coupled", "x=2, g=1, coupled weight decay .1: 1.615889", (*TORCH, *OPTAX),
        Config(**_HALF, **_COUPLED), **_ONE_STEP),
    Scenario("by-hand-decoupled", "x=2, g=1, decoupled weight decay .1: 1.546447", _LATER,
        Config(**_HALF, **_DECOUPLED), **_ONE_STEP),
    Scenario("by-hand-maximize", "x=2, g=1, maximized with coupled weight decay .1: 2.312348", TORCH,
        Config(**_HALF, **_COUPLED, maximize=True), **_ONE_STEP),
    Scenario("by-hand-complex", "g=1+2j, x=1+1j: torch takes the parts apart, the others square 1+2j",
        (*TORCH, *_TF_FAMILY, *V1, *RAW, *OPTAX), Config(lr=1.0, rho=0.5, eps=0.25), dtype="complex128", shapes=((),),
        steps=2, start=_listed(1 + 1j), gradients=_listed(1 + 2j)),
    # Settings.
    Scenario("defaults", "what each framework does when told nothing", (*_MOST, *V1), Config(defaults=True),
        dtype="float32"),
    Scenario("paper", "the paper's settings: no learning rate, rho .95, eps 1e-6", EVERY, _PAPER),
    Scenario("several-shapes", "seven tensors: vectors, matrices, 0-d, 3-d and empty ones", EVERY, shapes=_SEVERAL),
    Scenario("learning-rate", "lr .3, which float32 cannot hold", EVERY, Config(lr=0.3)),
    Scenario("dyadic", "lr, rho and eps that float16 can hold: no rounding of them anywhere", EVERY,
        Config(lr=0.5, rho=0.9375, eps=2.0**-10)),
    Scenario("large-eps", "eps .1, which shows where eps stands", EVERY, Config(lr=1.0, rho=0.5, eps=0.1)),
    Scenario("zero-eps", "eps 0: nothing moves, and a zero gradient gives NaN", EVERY,
        Config(lr=1.0, rho=0.5, eps=0.0), shapes=((4,),), steps=4, gradients=_listed(1.0, 0.0, -2.0, 3.0)),
    Scenario("floatx-float64", "Keras with its global float type set to float64: lr is exact", ("tf-keras", *KERAS),
        Config(lr=0.3, floatx="float64"), refusals={"tf-keras-dtensor": "ValueError"}),
    Scenario("without-lr", "optax.adadelta(learning_rate=None) ascends", OPTAX, Config(lr=None)),
    Scenario("sharded", "a matrix split over both mesh dimensions", EVERY, shapes=((4, 6), (6,))),
    # What is done with gradients and parameters besides.
    Scenario("coupled-decay", "weight decay added to the gradient", (*TORCH, *OPTAX), Config(**_COUPLED)),
    Scenario("decoupled-decay", "weight decay taken from the parameters first", _LATER, Config(**_DECOUPLED)),
    Scenario("decoupled-decay-schedule", "decoupled decay follows the schedule", _LATER,
        Config(schedule=_EXPONENTIAL, **_DECOUPLED)),
    Scenario("maximize", "ascent", TORCH, Config(maximize=True)),
    Scenario("maximize-coupled-decay", "the gradient is negated before the decay is added", TORCH,
        Config(maximize=True, **_COUPLED)),
    Scenario("clipvalue", "each element clipped", _MOST, Config(clipvalue=0.5)),
    Scenario("clipnorm", "each tensor's norm clipped, some of them", _TF_FAMILY, Config(clipnorm=1.5)),
    Scenario("global-clipnorm", "the norm of all gradients clipped", _MOST, Config(global_clipnorm=2.0)),
    Scenario("global-clipnorm-idle", "a global norm that is never reached", _MOST, Config(global_clipnorm=100.0)),
    Scenario("clipvalue-clipnorm", "two clips: legacy applies both, tf_keras the norm, Keras 3 refuses",
        (*LEGACY, *NEW), Config(clipvalue=1.0, clipnorm=1.5), refusals=_KERAS_REFUSES),
    Scenario("clipvalue-global-clipnorm", "two clips: value, then global norm", (*TORCH, *LEGACY, *NEW, *OPTAX),
        Config(clipvalue=1.0, global_clipnorm=2.0), refusals=_KERAS_REFUSES),
    Scenario("clipnorm-global-clipnorm", "two norms: refused by all", (), Config(clipnorm=1.5, global_clipnorm=2.0),
        steps=1, refusals=dict.fromkeys(_TF_FAMILY, "ValueError")),
    Scenario("clipvalue-zero", "a bound of 0", _TF_FAMILY, Config(clipvalue=0.0), steps=3),
    Scenario("clipvalue-negative", "a bound below 0", _LATER, Config(clipvalue=-1.0), steps=3,
        refusals=dict.fromkeys(LEGACY, "ValueError")),
    Scenario("clipvalue-coupled-decay", "clipping comes before the decay", (*TORCH, *OPTAX),
        Config(clipvalue=0.5, **_COUPLED)),
    Scenario("clipvalue-decoupled-decay", "clipping leaves the decay alone", _LATER,
        Config(clipvalue=0.5, **_DECOUPLED)),
    Scenario("legacy-weight-decay", "the legacy optimizer has no weight decay", (), Config(**_DECOUPLED), steps=1,
        refusals=dict.fromkeys(LEGACY, "TypeError")),
    # Schedules.
    Scenario("schedule-exponential", "lr falls by a tenth each step", _MOST, Config(schedule=_EXPONENTIAL)),
    Scenario("schedule-piecewise", "lr halves twice; frameworks differ by one step", _MOST,
        Config(schedule=_PIECEWISE)),
    Scenario("schedule-polynomial", "lr falls quadratically, then rests", (*_TF_FAMILY, *OPTAX),
        Config(schedule=_POLYNOMIAL)),
    Scenario("schedule-inverse-time", "lr / (1 + .5 t)", _TF_FAMILY,
        Config(schedule=Schedule("inverse-time", {"initial": 1.0, "decay_steps": 1, "decay_rate": 0.5}))),
    Scenario("schedule-cosine", "lr falls along a cosine to a twentieth", (*_TF_FAMILY, *OPTAX),
        Config(schedule=Schedule("cosine", {"initial": 1.0, "decay_steps": 8, "alpha": 0.05}))),
    Scenario("legacy-decay", "the old argument decay=.5: lr / (1 + .5 t)", LEGACY, Config(lr=1.0, legacy_decay=0.5)),
    Scenario("legacy-decay-schedule", "decay multiplies on top of a schedule", LEGACY,
        Config(legacy_decay=0.5, schedule=_EXPONENTIAL)),
    Scenario("callable-lr", "a function without arguments as lr", (*LEGACY, "tf-keras", *KERAS),
        Config(schedule=Schedule("callable", {"values": [1.0, 0.5, 0.25, 2.0, 0.125]})), steps=5,
        refusals={"tf-keras-dtensor": "ValueError"}),
    Scenario("schedule-late-float16", "step numbers beyond 2048 in float16", _TF_FAMILY,
        Config(schedule=Schedule("piecewise", {"boundaries": [2048], "values": [1.0, 0.25]}), first_iteration=2046),
        dtype="float16", steps=6, shapes=((3,),)),
    # Accumulation, averages, constraints.
    Scenario("accumulation", "one update for two gradients: their mean", _ACCUMULATING, Config(accumulate=2)),
    Scenario("accumulation-clipvalue", "clipping comes after averaging", _ACCUMULATING,
        Config(accumulate=3, clipvalue=0.25), steps=9, gradients=Draw(low=0.0, high=0.5)),
    Scenario("accumulation-schedule", "what the schedule counts", _ACCUMULATING,
        Config(accumulate=2, schedule=_EXPONENTIAL)),
    Scenario("accumulation-ema", "what the average counts", KERAS, Config(accumulate=2, ema_momentum=0.5)),
    Scenario("ema", "exponential moving average of the parameters", (*TORCH, *NEW, *KERAS), Config(ema_momentum=0.5)),
    Scenario("ema-long", "an average with a longer memory: momentum and its complement are not the same",
        (*TORCH, *NEW, *KERAS), Config(ema_momentum=0.875)),
    Scenario("ema-overwrite", "the average replaces the parameters every third step", _LATER,
        Config(ema_momentum=0.5, ema_every=3)),
    Scenario("constraint", "parameters kept non-negative", (*LEGACY, "tf-keras", *KERAS),
        Config(constraint="nonnegative"), dtype="float32", gradients=Draw(low=-2.0, high=3.0),
        start=Draw(low=0.0, high=0.002)),
    Scenario("constraint-ema", "the average sees parameters before the constraint", ("tf-keras", *KERAS),
        Config(constraint="nonnegative", ema_momentum=0.5), dtype="float32", gradients=Draw(low=-2.0, high=3.0),
        start=Draw(low=0.0, high=0.002)),
    # Missing and sparse gradients.
    Scenario("none-gradients", "tensors without a gradient at some steps are left alone", (*TORCH, *_TF_FAMILY, *V1),
        missing=_MISSING, refusals=dict.fromkeys(OPTAX, "ValueError")),
    Scenario("none-gradients-coupled-decay", "no gradient, no decay", TORCH, Config(**_COUPLED), missing=_MISSING),
    Scenario("none-gradients-decoupled-decay", "no gradient, no decay", _LATER, Config(**_DECOUPLED),
        missing=_MISSING),
    Scenario("none-at-all", "no gradient for any tensor", TORCH, missing=((0, -1),), steps=2,
        refusals=dict.fromkeys((*_TF_FAMILY, *V1), "ValueError")),
    Scenario("sparse", "rows of a matrix, some twice, some absent",
        (*LEGACY, "tf-keras", "keras-tensorflow", *V1, *RAW), shapes=((5, 2), (3,)), rows=_ROWS,
        refusals=dict.fromkeys(TORCH, "RuntimeError")),
    Scenario("sparse-clipvalue", "clipping of rows that occur twice", (*LEGACY, "tf-keras", "keras-tensorflow"),
        Config(clipvalue=0.5), shapes=((5, 2), (3,)), rows=_ROWS),
    # Values.
    Scenario("magnitudes-float64", "gradients from 1e-20 to 1e20", EVERY, gradients=_WIDE),
    Scenario("magnitudes-float32", "gradients from 1e-20 to 1e20: squares underflow and overflow", EVERY,
        dtype="float32", gradients=_WIDE),
    Scenario("squares-overflow-float32", "squares that overflow unless (1 − ρ) is multiplied in first", EVERY,
        dtype="float32", gradients=_listed(3e19, 1.8e19, -2e19, 1.0, 4e19), shapes=((7,),), steps=4),
    Scenario("zeros", "gradients that are +0 and -0", EVERY, gradients=_listed(0.0, 1.5, -0.0, 0.0, -0.25, 0.0, -0.0)),
    Scenario("zeros-throughout", "no gradient is ever anything but 0", EVERY, gradients=_listed(0.0), steps=3),
    Scenario("subnormals-float64", "subnormal gradients", EVERY, gradients=Draw("decades", low=-320, high=-309),
        steps=4, shapes=((5,),)),
    Scenario("subnormals-float32", "gradients whose squares are subnormal, and subnormal ones", EVERY,
        dtype="float32", gradients=Draw("decades", low=-42, high=-19), shapes=((9,),)),
    Scenario("subnormals-dyadic-float32", "squares that are subnormal, with eps 0", EVERY,
        Config(lr=0.5, rho=0.5, eps=0.0), dtype="float32", gradients=Draw("decades", low=-20, high=-19),
        shapes=((5,),), steps=4),
    Scenario("infinities", "gradients that are infinite", EVERY, shapes=((5,),), steps=4, gradients=_INFINITE),
    Scenario("nans", "gradients that are NaN", EVERY, shapes=((5,),), steps=4,
        gradients=_listed(1.0, _NAN, -2.0, 0.5, 0.25, 1.0, -1.0, 0.0, 3.0)),
    Scenario("infinities-clipvalue", "a bound on infinite gradients", _MOST, Config(clipvalue=0.5),
        shapes=((5,), (2,)), steps=4, gradients=_INFINITE),
    Scenario("infinities-clipnorm", "a norm that is infinite", _TF_FAMILY, Config(clipnorm=0.5), shapes=((5,), (2,)),
        steps=2, gradients=_ONE_INFINITE),
    Scenario("infinities-global-clipnorm", "a global norm that is infinite", _MOST, Config(global_clipnorm=0.5),
        shapes=((5,), (2,)), steps=2, gradients=_ONE_INFINITE),
    # Data types, and a thousand steps.
    Scenario("float32", "float32", EVERY, _PAPER, dtype="float32"),
    Scenario("float32-wide", "as many elements as fill vector registers and leave a rest", EVERY, _PAPER,
        dtype="float32", shapes=((67,),), steps=8),
    Scenario("float16", "float16", EVERY, _COARSE, dtype="float16"),
    Scenario("bfloat16", "bfloat16", EVERY, _COARSE, dtype="bfloat16"),
    Scenario("float16-small-eps", "eps 1e-8 is 0 in float16: a zero gradient gives NaN", EVERY,
        Config(lr=1.0, rho=0.9, eps=1e-8), dtype="float16", gradients=_listed(0.0, 1.0), shapes=((4,),), steps=3),
    Scenario("complex64", "complex64", EVERY, dtype="complex64", shapes=((4,), ())),
    Scenario("complex128", "complex128", EVERY, dtype="complex128", shapes=((4,), ())),
    Scenario("long-float64", "a thousand steps", EVERY, _PAPER, shapes=((2,),), steps=1000),
    Scenario("long-float32", "a thousand steps", EVERY, _PAPER, dtype="float32", shapes=((2,),), steps=1000),
)  # fmt: skip
SCENARIOS: Mapping[str, Scenario] = {scenario.name: scenario for scenario in _TABLE}


def scenarios_of(system: str) -> tuple[Scenario, ...]:
    """Return the scenarios that ``system`` must have a trace of."""
    return tuple(s for s in SCENARIOS.values() if system in s.everyone)
