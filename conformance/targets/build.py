"""multiopt's optimizers for a case: the core, its functional form (jitted or not) and the Keras face.

And what each of them does not support, and what it must reject.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
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
    if lacking := target.lacks(case.dtype):
        return lacking
    if target.engine == "keras":
        if c.decay_kind == "coupled":
            return "Keras' weight decay is decoupled"
        if c.maximize or c.legacy_decay:
            return "Keras has no " + ("maximize" if c.maximize else "decay in its later optimizers")
        if c.clipnorm is not None and c.global_clipnorm is not None:
            return "Keras clips one kind of norm at a time"
        if c.accumulate > 1 and (c.schedule is not None or c.ema_momentum is not None) and case.rates is None:
            return "under accumulation, Keras' schedules and averages count gradients, not updates"
        return None
    if case.is_sparse:
        return "sparse gradients are a matter of the Keras face"
    if c.constraint is not None:
        return "constraints are a matter of the Keras face"
    if c.ema_every is not None:
        return "averages that replace the parameters are a matter of the Keras face"
    if target.engine in ("functional", "jit"):
        if c.clipnorm is not None or c.global_clipnorm is not None:
            return "multiopt.functional leaves clipping by norm to a function of its own"
        if c.accumulate > 1 or c.ema_momentum is not None:
            return "multiopt.functional leaves accumulation and averages to the caller"
    return None


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
    """Return an optimizer of the target's kind, ready for the case.

    Raises
    ------
    ValueError
        If it rejects the options.
    """
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

        def update(params: Any, grads: Any, state: Any, lr: Any) -> Any:
            return functional.update(params, grads, state, lr=lr, **options)

        if jit:
            self.call = _compiled.setdefault(tuple(options.values()), importlib.import_module("jax").jit(update))
        else:
            self.call = update

    def update(self, number: int, gradients: list[Any]) -> None:
        """See `Steps`."""
        self.params, self.state = self.call(self.params, gradients, self.state, float(self.rate(number)))

    def columns(self) -> Mapping[str, Sequence[Any]]:
        """See `Steps`."""
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
    return Keras(optimizer, variables, keras, case.dtype, clock=clock, skip_empty=True)
