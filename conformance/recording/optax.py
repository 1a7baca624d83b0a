"""Recorder of optax.adadelta, step by step outside `jax.jit`, with optax' own clips, schedules and MultiSteps."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from ..data.case import Case, Gradient
from ..data.specification import Schedule
from ..targets.optimizers import Optax


def _schedule(schedule: Schedule) -> Callable[[Any], Any]:
    p = schedule.parameters
    if schedule.kind == "exponential":
        return optax.exponential_decay(p["initial"], p["decay_steps"], p["decay_rate"])
    if schedule.kind == "polynomial":
        return optax.polynomial_schedule(p["initial"], p["end"], p["power"], p["decay_steps"])
    if schedule.kind == "cosine":
        return optax.cosine_decay_schedule(p["initial"], p["decay_steps"], p["alpha"])
    if schedule.kind == "piecewise":
        values = p["values"]
        scales = {b: values[i + 1] / values[i] for i, b in enumerate(p["boundaries"])}
        return optax.piecewise_constant_schedule(values[0], scales)
    raise ValueError(f"schedule: optax has no {schedule.kind!r} schedule")


class RecordedOptax(Optax):
    """A chain of optax transformations that ends with adadelta."""

    def __init__(self, system: str, case: Case) -> None:
        self.config = c = case.config
        self.rate: Any = _schedule(c.schedule) if c.schedule is not None else c.lr
        if c.defaults:
            self.rate = None
            adadelta = optax.adadelta()
        else:
            decay = {"weight_decay": c.weight_decay} if c.weight_decay else {}
            adadelta = optax.adadelta(self.rate, rho=c.rho, eps=c.eps, **decay)
        clips = ((optax.clip, c.clipvalue), (optax.clip_by_global_norm, c.global_clipnorm))
        optimizer: Any = optax.chain(*(clip(limit) for clip, limit in clips if limit is not None), adadelta)
        if c.accumulate > 1:
            optimizer = optax.MultiSteps(optimizer, every_k_schedule=c.accumulate)
        super().__init__(optimizer, case.start, case.dtype)

    def hyperparameters(self) -> dict[str, float | None]:
        # An optax optimizer keeps them in closures.
        defaults = {name: p.default for name, p in inspect.signature(optax.adadelta).parameters.items()}
        return {"lr": defaults["learning_rate"], "rho": defaults["rho"], "eps": defaults["eps"]}

    def gradient(self, g: Gradient, i: int) -> Any:
        # None is refused by optax itself.
        return None if g is None else super().gradient(g, i)

    def update(self, number: int, gradients: list[Any]) -> float | None:
        # The type of the counter decides in which precision a schedule computes.
        count = jnp.asarray(number // self.config.accumulate, dtype=jnp.int32)
        super().update(number, gradients)
        return float(self.rate(count)) if callable(self.rate) else self.rate


make = RecordedOptax
