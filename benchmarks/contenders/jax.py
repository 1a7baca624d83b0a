"""optax, jitted with donated arguments, and multiopt's functional form likewise."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

from multiopt import functional

from ..harness.contender import Running
from ..harness.workload import Workload
from .numpy import HYPERS

__all__ = ["jitted", "multiopt_jax", "optax_adadelta"]


def jitted(workload: Workload, init: Callable[[Any], Any], update: Callable[..., Any]) -> Running:
    """Jit ``update(params, grads, state)``, with parameters and state donated, and run it."""
    import jax

    params = [jax.numpy.asarray(x) for x in workload.params()]
    grads = [jax.numpy.asarray(g) for g in workload.grads()]
    began = perf_counter()
    step_function = jax.jit(update, donate_argnums=(0, 2))
    now = [params, init(params)]

    def step() -> None:
        now[:] = step_function(now[0], grads, now[1])

    return Running(step, lambda: [np.asarray(x) for x in now[0]], began, lambda: jax.block_until_ready(now))


def optax_adadelta(workload: Workload) -> Running:
    """`optax.adadelta`."""
    import optax

    optimizer = optax.adadelta(HYPERS["lr"], rho=HYPERS["rho"], eps=HYPERS["eps"])

    def update(params: Any, grads: Any, state: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jitted(workload, optimizer.init, update)


def multiopt_jax(workload: Workload) -> Running:
    """`multiopt.functional.update`."""
    return jitted(workload, functional.init, lambda p, g, state: functional.update(p, g, state, **HYPERS))
