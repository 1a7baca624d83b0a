"""Keras 3 on PyTorch and on JAX, each used as Keras' own training loop uses it."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np

from .contender import Running, wall
from .host_rows import HYPERS
from .workload import Workload

__all__ = ["keras_adadelta"]


def keras_adadelta(workload: Workload, options: dict[str, Any]) -> Running:
    """`keras.optimizers.Adadelta`; the process' environment says on which backend."""
    import keras

    keras.config.set_floatx(workload.dtype)
    variables = [keras.Variable(x) for x in workload.params()]
    grads = [keras.ops.convert_to_tensor(g) for g in workload.grads()]
    began = perf_counter()
    optimizer = keras.optimizers.Adadelta(learning_rate=HYPERS["lr"], rho=HYPERS["rho"], epsilon=HYPERS["eps"])
    optimizer.build(variables)
    if keras.backend.backend() == "torch":

        def apply() -> None:
            optimizer.apply(grads, variables)

        return Running(wall(apply), apply, lambda: [np.asarray(v.numpy()) for v in variables], began)
    import jax

    step_function = jax.jit(optimizer.stateless_apply, donate_argnums=(0, 2))
    now: list[Any] = [[v.value for v in variables], [v.value for v in optimizer.variables]]

    def step() -> None:
        now[:] = step_function(now[1], grads, now[0])

    sample = wall(step, lambda: jax.block_until_ready(now))
    return Running(sample, step, lambda: [np.asarray(x) for x in now[0]], began)
