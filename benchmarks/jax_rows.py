"""optax, jitted with donated arguments, and multiopt's functional form likewise."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

from .contender import Running, wall
from .host_rows import HYPERS
from .workload import Workload

__all__ = ["multiopt_jit", "optax_adadelta"]


def running(workload: Workload, init: Callable[[Any], Any], update: Callable[..., Any]) -> Running:
    """Jit ``update(params, grads, state)``, with parameters and state donated, and run it."""
    import jax

    params = [jax.numpy.asarray(x) for x in workload.params()]
    grads = [jax.numpy.asarray(g) for g in workload.grads()]
    began = perf_counter()
    step_function = jax.jit(update, donate_argnums=(0, 2))
    now = [params, init(params)]

    def step() -> None:
        now[:] = step_function(now[0], grads, now[1])

    sample = wall(step, lambda: jax.block_until_ready(now))
    return Running(sample, step, lambda: [np.asarray(x) for x in now[0]], began)


def optax_adadelta(workload: Workload, options: dict[str, Any]) -> Running:
    """`optax.adadelta`."""
    import optax

    optimizer = optax.adadelta(HYPERS["lr"], rho=HYPERS["rho"], eps=HYPERS["eps"])

    def update(params: Any, grads: Any, state: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return running(workload, optimizer.init, update)


def multiopt_jit(workload: Workload, options: dict[str, Any]) -> Running:
    """`multiopt.functional.update`."""
    from multiopt import functional

    def update(params: Any, grads: Any, state: Any) -> Any:
        return functional.update(params, grads, state, **HYPERS)

    return running(workload, functional.init, update)
