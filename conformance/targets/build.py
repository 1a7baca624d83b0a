"""multiopt's optimizers for a case: the core, its functional form (jitted or not) and the Keras face.

And what each of them does not support, and what it must reject.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from multiopt import ADADELTA, Optimizer, Rule, functional

from ..data.case import Case
from .arguments import FUNCTIONAL, core_options, keras_options
from .arrays import Arrays
from .optimizers import SLOTS, Core, Keras, Steps, TorchOptim
from .protocol import TargetOptimizer
from .target import Target

#: Engines that are `multiopt.keras`: as it is, and with an `update_step` of one's own.
KERAS = ("keras", "keras-own")


def unsupported(target: Target, case: Case) -> str | None:
    """Say why `target` does not support a case, or return None."""
    c = case.config
    accumulates, averages = c.accumulate > 1, c.ema_momentum is not None
    norms = (c.clipnorm is not None) + (c.global_clipnorm is not None)
    if target.engine in KERAS:
        reasons = {
            "Keras' weight decay is decoupled": c.decay_kind == "coupled",
            "Keras has no maximize": c.maximize,
            "Keras has no decay in its later optimizers": c.legacy_decay != 0,
            "Keras clips one kind of norm at a time": norms > 1,
            "under accumulation, Keras' schedules and averages count gradients, not updates":
                accumulates and (c.schedule is not None or averages) and case.rates is None,
        }  # fmt: skip
    else:
        pure, face = target.engine in ("functional", "jit"), target.engine == "torch-face"
        reasons = {
            "sparse gradients are a matter of the Keras face": case.is_sparse,
            "constraints are a matter of the Keras face": c.constraint is not None,
            "averages that replace the parameters are a matter of the Keras face": c.ema_every is not None,
            "multiopt.functional leaves clipping by norm to a function of its own": pure and norms > 0,
            "multiopt.functional leaves accumulation and averages to the caller": pure and (accumulates or averages),
            "PyTorch's optimizer has coupled decay, clipping by the global norm, and no more": face
                and (c.decay_kind == "decoupled" or c.clipvalue is not None or c.clipnorm is not None),
            "PyTorch's optimizer leaves accumulation and averages to the caller": face and (accumulates or averages),
        }  # fmt: skip
    return target.lacks(case.dtype) or next((reason for reason, holds in reasons.items() if holds), None)


def rejection(target: Target, case: Case) -> str | None:
    """Say why ours must reject a case, or return None."""
    c = case.config
    if c.clipvalue is not None and c.clipvalue <= 0:
        return "a bound of 0 or less would make every gradient 0, or turn its sign"
    if target.engine in (*KERAS, "torch-face"):
        return None
    if c.eps == 0:
        return "with eps 0 a gradient of 0 gives NaN"
    if target.engine not in ("functional", "jit") and any(all(g is None for g in row) for row in case.gradients):
        return "a step without any gradient is a mistake"
    return None


def optimizer_of(target: Target, arrays: Arrays, case: Case) -> TargetOptimizer:
    """Return an optimizer of the target's kind, ready for the case; it may reject the options with a `ValueError`."""
    if target.optimizer is not None:
        return target.optimizer(case)
    if target.engine in KERAS:
        return keras_optimizer(arrays, case, own=target.engine == "keras-own")
    if target.engine == "torch-face":
        return TorchFace(arrays, case)
    if target.engine in ("functional", "jit"):
        return Functional(arrays, case, jit=target.engine == "jit")
    return core_optimizer(arrays, case, target.engine)


def core_optimizer(arrays: Arrays, case: Case, engine: str, rule: Rule = ADADELTA) -> Core:
    """Return `multiopt.Optimizer` for a case, with Adadelta or another rule of the same options."""
    start = [arrays.make(values, case.dtype) for values in case.start]
    return Core(Optimizer(rule, start, engine=engine, **core_options(case)))


#: Compiled steps, by all that is fixed in them: most cases differ in their numbers only.
_compiled: dict[Any, Callable[..., Any]] = {}


class Functional(Steps):
    """`multiopt.functional`, as it is or under `jax.jit`."""

    def __init__(self, arrays: Arrays, case: Case, *, jit: bool) -> None:
        super().__init__("multiopt.functional", case.dtype, arrays)
        self.params = [arrays.make(values, case.dtype) for values in case.start]
        self.state = functional.init(self.params)
        given = core_options(case)
        rate = given["lr"]
        self.rate = rate if callable(rate) else lambda step: rate
        options = {name: given[name] for name in FUNCTIONAL if name != "lr"}
        self.call: Callable[..., Any] = partial(functional.update, **options)
        if jit:
            self.call = _compiled.setdefault(tuple(options.values()), _jitted(self.call))

    def update(self, number: int, gradients: list[Any]) -> None:
        self.params, self.state = self.call(self.params, gradients, self.state, lr=float(self.rate(number)))

    def columns(self) -> Mapping[str, Sequence[Any]]:
        return {"x": self.params, **{slot: self.state.slots[slot] for slot in SLOTS}}


def _jitted(call: Callable[..., Any]) -> Callable[..., Any]:
    """The update compiled by XLA, in place: what it is handed of parameters and state is gone afterwards."""
    return importlib.import_module("jax").jit(call, donate_argnums=(0, 2))


class TorchFace(TorchOptim):
    """`multiopt.torch`: its optimizer, and its clipping by the global norm."""

    def __init__(self, arrays: Arrays, case: Case) -> None:
        torch, face = importlib.import_module("torch"), importlib.import_module("multiopt.torch")
        given = core_options(case)
        rate, limit = given["lr"], case.config.global_clipnorm
        self.rate = rate if callable(rate) else lambda step: rate
        params = [torch.nn.Parameter(arrays.make(values, case.dtype)) for values in case.start]
        super().__init__(
            face.Adadelta(params, **{name: given[name] for name in ("rho", "eps", "weight_decay", "maximize")})
        )
        if limit is not None:
            self.before_step = lambda number: face.clip_grad_norm_(params, limit)

    def update(self, number: int, gradients: list[Any]) -> float | None:
        self.opt.param_groups[0]["lr"] = float(self.rate(number))
        return super().update(number, gradients)


def keras_optimizer(arrays: Arrays, case: Case, *, own: bool = False) -> Keras:
    """Return `multiopt.keras.Adadelta` for a case, with averages, constraints and sparse gradients.

    With an `update_step` of its `own`, it is called for each variable, and nothing is fused.
    """
    keras, c, clock, rates = importlib.import_module("multiopt.keras"), case.config, [0], case.rates
    constraint = (lambda x: np.maximum(x, 0)) if c.constraint else None
    variables = [
        keras.Variable(arrays.make(values, case.dtype), constraint=None if i else constraint)
        for i, values in enumerate(case.start)
    ]
    given = keras_options(c, keras.schedules, clock)
    if rates is not None:
        given["learning_rate"] = lambda: rates[clock[0] // c.accumulate]
    elif given.get("learning_rate") is None:
        given["learning_rate"] = 1.0
    kind = keras.Adadelta
    if own:
        kind = type("Own", (kind,), {"update_step": lambda self, *given: keras.Adadelta.update_step(self, *given)})
    optimizer = kind(**given, gradient_accumulation_steps=c.accumulate if c.accumulate > 1 else None)
    optimizer.build(variables)
    if c.first_iteration:
        optimizer.iterations.assign(c.first_iteration)
    made = Keras(optimizer, variables, keras, case.dtype, clock)
    made.skip_empty = True
    return made
