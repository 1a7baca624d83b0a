"""multiopt's optimizers for a case: the core, its functional form (jitted or not) and the Keras face.

And what each of them does not support, and what it must reject.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from multiopt import ADADELTA, Optimizer, Rule, functional, schedules

from ..data.case import Case
from .arrays import Arrays
from .keras_arguments import arguments
from .optimizers import SLOTS, Core, Keras, Steps
from .protocol import TargetOptimizer
from .target import Target

#: Options that `multiopt.functional.update` takes.
FUNCTIONAL = ("lr", "rho", "eps", "weight_decay", "decoupled", "maximize", "clip_value")


def unsupported(target: Target, case: Case) -> str | None:
    """Say why `target` has no words for a case, or return None."""
    c = case.config
    if lacking := target.lacks(case.dtype):
        return lacking
    if target.engine == "keras":
        if not _keras():
            return "multiopt.keras is not complete here"
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
    """Say why ours must refuse a case, or return None."""
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


def learning_rate(case: Case) -> float | Callable[[int], float]:
    """Return the learning rate as multiopt takes it: a number, one of its schedules, or a function."""
    if case.rates is not None:
        return case.rates.__getitem__
    config = case.config
    rate: float | Callable[[int], float] = 1.0 if config.lr is None else config.lr
    if config.schedule is not None:
        rate = _schedule(config.schedule.kind, config.schedule.parameters)
    if config.legacy_decay:
        decay = schedules.InverseTime(1.0, 1.0, config.legacy_decay)
        base = rate
        rate = lambda step: (base(step) if callable(base) else base) * decay(step)  # noqa: E731
    if config.first_iteration and callable(rate):
        late = rate
        return lambda step: late(step + config.first_iteration)
    return rate


def _schedule(kind: str, p: Mapping[str, Any]) -> Callable[[int], float]:
    match kind:
        case "exponential":
            return schedules.Exponential(p["initial"], p["decay_steps"], p["decay_rate"])
        case "inverse-time":
            return schedules.InverseTime(p["initial"], p["decay_steps"], p["decay_rate"])
        case "polynomial":
            return schedules.Polynomial(p["initial"], p["decay_steps"], p["end"], p["power"])
        case "cosine":
            return schedules.Cosine(p["initial"], p["decay_steps"], p["alpha"])
        case "piecewise":
            return schedules.Piecewise(p["boundaries"], p["values"])
        case "callable":
            return lambda step: p["values"][step]
    raise ValueError(f"Schedule.kind: unknown: {kind!r}")


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


def core_options(case: Case) -> dict[str, Any]:
    """Return a case's options in the words of `multiopt.Adadelta`."""
    c = case.config
    return {
        "lr": learning_rate(case),
        "rho": c.rho,
        "eps": c.eps,
        "weight_decay": c.weight_decay,
        "decoupled": c.decay_kind == "decoupled",
        "maximize": c.maximize,
        "clip_value": c.clipvalue,
        "clip_norm": c.clipnorm,
        "clip_global_norm": c.global_clipnorm,
        "accumulate": c.accumulate,
        "ema": c.ema_momentum,
    }


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


class _KerasFace(Keras):
    """`multiopt.keras`, with a clock that a learning rate without arguments reads."""

    skip_empty = True
    clock: list[int]

    def update(self, number: int, gradients: list[Any]) -> float | None:
        """See `Steps`."""
        self.clock[0] = number
        return super().update(number, gradients)


def keras_optimizer(arrays: Arrays, case: Case) -> Keras:
    """Return `multiopt.keras.Adadelta` for a case, with averages, constraints and sparse gradients."""
    keras, c, clock, rates = _keras(), case.config, [0], case.rates
    constraint = (lambda x: np.maximum(x, 0)) if c.constraint else None
    variables = [
        keras.Variable(arrays.make(values, case.dtype), constraint=None if i else constraint)
        for i, values in enumerate(case.start)
    ]
    given = {"learning_rate": 1.0, **arguments(c, keras.schedules, clock)}
    if given["learning_rate"] is None:
        given["learning_rate"] = 1.0
    if rates is not None:
        given["learning_rate"] = lambda: rates[clock[0] // c.accumulate]
    optimizer = keras.Adadelta(**given, gradient_accumulation_steps=c.accumulate if c.accumulate > 1 else None)
    optimizer.build(variables)
    if c.first_iteration:
        optimizer.iterations.assign(c.first_iteration)
    made = _KerasFace(optimizer, variables, keras, case.dtype)
    made.clock = clock
    return made


def _keras() -> Any:
    """Return `multiopt.keras`, or None where it has no optimizer."""
    module = importlib.import_module("multiopt.keras")
    return module if hasattr(module, "Adadelta") else None
