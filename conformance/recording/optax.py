"""Recorder of optax.adadelta, step by step outside `jax.jit`, with optax' own clips, schedules and MultiSteps."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from ..data.inputs import Gradient
from ..data.specification import Scenario, Schedule


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


def _to_numpy(values: Any) -> NDArray[Any]:
    return np.asarray(values.astype(jnp.float32) if values.dtype == jnp.bfloat16 else values)


class OptaxDriver:
    """A chain of optax transformations that ends with adadelta."""

    def __init__(self, system: str, scenario: Scenario, start: Sequence[NDArray[Any]]) -> None:
        self.config = c = scenario.config
        self.dtype = scenario.dtype
        self.params = [jnp.asarray(x, dtype=self.dtype) for x in start]
        self.rate: Any = _schedule(c.schedule) if c.schedule is not None else c.lr
        if c.defaults:
            self.rate = None
            adadelta = optax.adadelta()
        else:
            decay = {"weight_decay": c.weight_decay} if c.weight_decay else {}
            adadelta = optax.adadelta(self.rate, rho=c.rho, eps=c.eps, **decay)
        chain = []
        if c.clipvalue is not None:
            chain.append(optax.clip(c.clipvalue))
        if c.global_clipnorm is not None:
            chain.append(optax.clip_by_global_norm(c.global_clipnorm))
        self.optimizer: Any = optax.chain(*chain, adadelta)
        if c.accumulate > 1:
            self.optimizer = optax.MultiSteps(self.optimizer, every_k_schedule=c.accumulate)
        self.state = self.optimizer.init(self.params)

    def hyperparameters(self) -> dict[str, float | None]:
        """Return the defaults of the function; an optax optimizer keeps them in closures."""
        defaults = {name: p.default for name, p in inspect.signature(optax.adadelta).parameters.items()}
        return {"lr": defaults["learning_rate"], "rho": defaults["rho"], "eps": defaults["eps"]}

    def step(self, step: int, gradients: Sequence[Gradient]) -> float | None:
        """Update, then apply."""
        given = [None if g is None else jnp.asarray(g, dtype=self.dtype) for g in gradients]
        # The type of the counter decides in which precision a schedule computes.
        count = jnp.asarray(step // self.config.accumulate, dtype=jnp.int32)
        used = float(self.rate(count)) if callable(self.rate) else self.rate
        updates, self.state = self.optimizer.update(given, self.state, self.params)
        self.params = optax.apply_updates(self.params, updates)
        return used

    def snapshot(self) -> Mapping[str, Sequence[Any]]:
        """Return parameters and both accumulators."""
        return {
            "x": [_to_numpy(p) for p in self.params],
            "square_avg": [_to_numpy(v) for v in optax.tree.get(self.state, "e_g")],
            "acc_delta": [_to_numpy(u) for u in optax.tree.get(self.state, "e_x")],
        }

    def iterations(self) -> list[int]:
        """Return nothing: adadelta itself keeps no counter."""
        return []

    def finalize(self) -> None:
        """Do nothing: optax has no such thing."""


driver = OptaxDriver
