"""A neutral `Config` as the keyword arguments that all Keras generations share."""

from __future__ import annotations

from typing import Any

from ..data.specification import Config, Schedule


def make_schedule(schedule: Schedule, namespace: Any, clock: list[int]) -> Any:
    """Return ``schedule`` as one of Keras' classes in ``namespace``, or as a function of ``clock[0]``."""
    p = schedule.parameters
    match schedule.kind:
        case "exponential":
            return namespace.ExponentialDecay(p["initial"], p["decay_steps"], p["decay_rate"])
        case "inverse-time":
            return namespace.InverseTimeDecay(p["initial"], p["decay_steps"], p["decay_rate"])
        case "polynomial":
            return namespace.PolynomialDecay(p["initial"], p["decay_steps"], p["end"], p["power"])
        case "cosine":
            return namespace.CosineDecay(p["initial"], p["decay_steps"], p["alpha"])
        case "piecewise":
            return namespace.PiecewiseConstantDecay(p["boundaries"], p["values"])
        case "callable":
            return lambda: p["values"][clock[0]]
    raise ValueError(f"schedule: unknown kind {schedule.kind!r}")


def arguments(config: Config, namespace: Any, clock: list[int], *, legacy: bool = False) -> dict[str, Any]:
    """Return ``config`` as keyword arguments of a Keras Adadelta; what is off is not passed."""
    given: dict[str, Any] = {}
    if not config.defaults:
        given.update(learning_rate=config.lr, rho=config.rho, epsilon=config.eps)
    if config.schedule is not None:
        given["learning_rate"] = make_schedule(config.schedule, namespace, clock)
    for name in ("clipvalue", "clipnorm", "global_clipnorm"):
        if getattr(config, name) is not None:
            given[name] = getattr(config, name)
    if config.weight_decay:
        given["weight_decay"] = config.weight_decay
    if legacy and config.legacy_decay:
        given["decay"] = config.legacy_decay
    if config.ema_momentum is not None:
        given.update(use_ema=True, ema_momentum=config.ema_momentum, ema_overwrite_frequency=config.ema_every)
    return given
