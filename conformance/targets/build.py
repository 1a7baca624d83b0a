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
from .optimizers import SLOTS, Core, Keras, Steps
from .protocol import TargetOptimizer
from .target import Target


def unsupported(target: Target, case: Case) -> str | None:
    """Say why `target` does not support a case, or return None."""
    c = case.config
    accumulates, averages = c.accumulate > 1, c.ema_momentum is not None
    norms = (c.clipnorm is not None) + (c.global_clipnorm is not None)
    if target.engine == "keras":
        reasons = {
            "Keras' weight decay is decoupled": c.decay_kind == "coupled",
            "Keras has no maximize": c.maximize,
            "Keras has no decay in its later optimizers": c.legacy_decay != 0,
            "Keras clips one kind of norm at a time": norms > 1,
            "under accumulation, Keras' schedules and averages count gradients, not updates":
                accumulates and (c.schedule is not None or averages) and case.rates is None,
        }  # fmt: skip
    else:
        pure = target.engine in ("functional", "jit")
        reasons = {
            "sparse gradients are a matter of the Keras face": case.is_sparse,
            "constraints are a matter of the Keras face": c.constraint is not None,
            "averages that replace the parameters are a matter of the Keras face": c.ema_every is not None,
            "multiopt.functional leaves clipping by norm to a function of its own": pure and norms > 0,
            "multiopt.functional leaves accumulation and averages to the caller": pure and (accumulates or averages),
        }
    return target.lacks(case.dtype) or next((reason for reason, holds in reasons.items() if holds), None)


def rejection(target: Target, case: Case) -> str | None:
    """Say why ours must reject a case, or return None."""
    c = case.config
    if c.clipvalue is not None and c.clipvalue <= 0:
        return "a bound of 0 or less would make every gradient 0, or turn its sign"
    if target.engine == "keras":
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
    if target.engine == "keras":
        return keras_optimizer(arrays, case)
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
            self.call = _compiled.setdefault(tuple(options.values()), importlib.import_module("jax").jit(self.call))

    def update(self, number: int, gradients: list[Any]) -> None:
        self.params, self.state = self.call(self.params, gradients, self.state, lr=float(self.rate(number)))

    def columns(self) -> Mapping[str, Sequence[Any]]:
        return {"x": self.params, **{slot: self.state.slots[slot] for slot in SLOTS}}


def keras_optimizer(arrays: Arrays, case: Case) -> Keras:
    """Return `multiopt.keras.Adadelta` for a case, with averages, constraints and sparse gradients."""
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
    optimizer = keras.Adadelta(**given, gradient_accumulation_steps=c.accumulate if c.accumulate > 1 else None)
    optimizer.build(variables)
    if c.first_iteration:
        optimizer.iterations.assign(c.first_iteration)
    made = Keras(optimizer, variables, keras, case.dtype, clock)
    made.skip_empty = True
    return made
