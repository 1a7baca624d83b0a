"""A case's options in the words of `multiopt.Adadelta`, and of all generations of Keras."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from multiopt import schedules

from ..data.case import Case
from ..data.specification import Config, Schedule

#: Options that `multiopt.functional.update` takes.
FUNCTIONAL = ("lr", "rho", "eps", "weight_decay", "decoupled", "maximize", "clip_value")
#: Schedules by kind: our class, Keras' class, and their arguments in turn.
_SCHEDULES = {
    "exponential": ("Exponential", "ExponentialDecay", ("initial", "decay_steps", "decay_rate")),
    "inverse-time": ("InverseTime", "InverseTimeDecay", ("initial", "decay_steps", "decay_rate")),
    "polynomial": ("Polynomial", "PolynomialDecay", ("initial", "decay_steps", "end", "power")),
    "cosine": ("Cosine", "CosineDecay", ("initial", "decay_steps", "alpha")),
    "piecewise": ("Piecewise", "PiecewiseConstantDecay", ("boundaries", "values")),
}


def _schedule(schedule: Schedule, namespace: Any, which: int) -> Any:
    if schedule.kind not in _SCHEDULES:
        raise ValueError(f"Schedule.kind: expected one of {', '.join(_SCHEDULES)}, got {schedule.kind!r}")
    *classes, names = _SCHEDULES[schedule.kind]
    return getattr(namespace, str(classes[which]))(*(schedule.parameters[name] for name in names))


def learning_rate(case: Case) -> float | Callable[[int], float]:
    """Return the learning rate as multiopt takes it: a number, one of its schedules, or a function."""
    c = case.config
    if case.rates is not None:
        return case.rates.__getitem__
    if c.schedule is None:
        rate: Any = 1.0 if c.lr is None else c.lr
    elif c.schedule.kind == "callable":
        rate = c.schedule.parameters["values"].__getitem__
    else:
        rate = _schedule(c.schedule, schedules, 0)
    if not c.legacy_decay and not (c.first_iteration and callable(rate)):
        return rate  # type: ignore[no-any-return]
    decay = schedules.InverseTime(1.0, 1.0, c.legacy_decay)

    def late(step: int) -> float:
        count = step + c.first_iteration
        value: float = rate(count) if callable(rate) else rate
        return value * decay(count) if c.legacy_decay else value

    return late


def core_options(case: Case) -> dict[str, Any]:
    """Return a case's options as arguments of `multiopt.Adadelta`."""
    c = case.config
    return {
        "lr": learning_rate(case), "rho": c.rho, "eps": c.eps, "maximize": c.maximize,
        "weight_decay": c.weight_decay, "decoupled": c.decay_kind == "decoupled",
        "clip_value": c.clipvalue, "clip_norm": c.clipnorm, "clip_global_norm": c.global_clipnorm,
        "accumulate": c.accumulate, "ema": c.ema_momentum,
    }  # fmt: skip


def keras_options(config: Config, namespace: Any, clock: Sequence[int], *, legacy: bool = False) -> dict[str, Any]:
    """Return options as arguments of a Keras Adadelta whose schedules are in `namespace`; what is off is not passed.

    ``clock[0]``, the number of the step, decides what a learning rate that is a function returns.
    """
    given: dict[str, Any] = {}
    if not config.defaults:
        given.update(learning_rate=config.lr, rho=config.rho, epsilon=config.eps)
    if config.schedule is not None and config.schedule.kind == "callable":
        values = config.schedule.parameters["values"]
        given["learning_rate"] = lambda: values[clock[0]]
    elif config.schedule is not None:
        given["learning_rate"] = _schedule(config.schedule, namespace, 1)
    if config.ema_momentum is not None:
        given.update(use_ema=True, ema_momentum=config.ema_momentum, ema_overwrite_frequency=config.ema_every)
    others = {
        "clipvalue": config.clipvalue, "clipnorm": config.clipnorm, "global_clipnorm": config.global_clipnorm,
        "weight_decay": config.weight_decay or None, "decay": (config.legacy_decay or None) if legacy else None,
    }  # fmt: skip
    return given | {name: value for name, value in others.items() if value is not None}
