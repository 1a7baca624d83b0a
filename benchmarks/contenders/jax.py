"""optax, jitted with donated arguments, and multiopt on JAX arrays: jitted likewise, and its class, as it is called."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

from multiopt import Adadelta, functional

from ..harness.contender import Running
from ..harness.workload import Workload
from .numpy import HYPERS

__all__ = ["jitted", "multiopt_arrays", "multiopt_jax", "multiopt_optax", "nothing", "optax_adadelta"]


def jitted(workload: Workload, init: Callable[[Any], Any], update: Callable[..., Any]) -> Running:
    """Jit ``update(params, grads, state)``, with parameters and state donated, and run it."""
    import jax

    params, grads = _arrays(workload)
    began = perf_counter()
    step_function = jax.jit(update, donate_argnums=(0, 2))
    now = [params, init(params)]

    def step() -> None:
        now[:] = step_function(now[0], grads, now[1])

    return Running(step, lambda: [np.asarray(x) for x in now[0]], began, lambda: jax.block_until_ready(now))


def optax_adadelta(workload: Workload) -> Running:
    """`optax.adadelta`."""
    import optax

    return _with_updates(workload, optax.adadelta(HYPERS["lr"], rho=HYPERS["rho"], eps=HYPERS["eps"]))


def multiopt_optax(workload: Workload, fused: bool = False) -> Running:
    """`multiopt.optax.adadelta` in its place; or its ``step``, which makes no updates that are added then."""
    from multiopt.optax import adadelta

    optimizer = adadelta(HYPERS["lr"], rho=HYPERS["rho"], eps=HYPERS["eps"])
    return jitted(workload, optimizer.init, optimizer.step) if fused else _with_updates(workload, optimizer)


def _with_updates(workload: Workload, optimizer: Any) -> Running:
    """An optimizer of optax, whose updates are added to the parameters."""
    import optax

    def update(params: Any, grads: Any, state: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jitted(workload, optimizer.init, update)


def multiopt_jax(workload: Workload) -> Running:
    """`multiopt.functional.update`."""
    return jitted(workload, functional.init, lambda p, g, state: functional.update(p, g, state, **HYPERS))


def nothing(workload: Workload) -> Running:
    """What a call of JAX takes with as many arrays, which it gives back as they are."""
    return jitted(workload, functional.init, lambda params, grads, state: (params, state))


def multiopt_arrays(workload: Workload, **options: Any) -> Running:
    """`multiopt.Adadelta` on JAX arrays, in nobody's `jit`."""
    import jax

    params, grads = _arrays(workload)
    began = perf_counter()
    optimizer = Adadelta(params, **HYPERS, **options)
    params.clear()  # as a user who goes on with `optimizer.params`

    def wait() -> None:
        jax.block_until_ready((optimizer.params, optimizer.state))

    return Running(lambda: optimizer.step(grads), lambda: [np.asarray(x) for x in optimizer.params], began, wait)


def _arrays(workload: Workload) -> tuple[list[Any], list[Any]]:
    """Parameters and gradients."""
    import jax

    return [jax.numpy.array(x) for x in workload.params()], [jax.numpy.array(g) for g in workload.grads()]
