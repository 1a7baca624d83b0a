"""Keras 3 on PyTorch and on JAX, each used as Keras' own training loop uses it."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np

from ..harness.contender import Running
from ..harness.workload import Workload
from .jax import jitted
from .numpy import HYPERS

__all__ = ["keras_jax", "keras_torch"]


def keras_torch(workload: Workload) -> Running:
    """`keras.optimizers.Adadelta` with ``KERAS_BACKEND=torch`` in the environment."""
    import keras

    keras.config.set_floatx(workload.dtype)
    variables = [keras.Variable(x) for x in workload.params()]
    grads = [keras.ops.convert_to_tensor(g) for g in workload.grads()]
    began = perf_counter()
    optimizer = _optimizer(variables)
    return Running(lambda: optimizer.apply(grads, variables), lambda: [np.asarray(v.numpy()) for v in variables], began)


def keras_jax(workload: Workload, ours: bool = False) -> Running:
    """The same with ``KERAS_BACKEND=jax``, jitted; or `multiopt.keras.for_keras`, likewise."""
    import keras

    keras.config.set_floatx(workload.dtype)
    optimizer: Any = None

    def init(params: list[Any]) -> list[Any]:
        nonlocal optimizer
        optimizer = _optimizer([keras.Variable(x) for x in params], ours)
        return [v.value for v in optimizer.variables]

    return jitted(workload, init, lambda params, grads, state: optimizer.stateless_apply(state, grads, params))


def _optimizer(variables: list[Any], ours: bool = False) -> Any:
    import keras

    from multiopt.keras import for_keras

    make = for_keras if ours else keras.optimizers.Adadelta
    optimizer = make(learning_rate=HYPERS["lr"], rho=HYPERS["rho"], epsilon=HYPERS["eps"])
    optimizer.build(variables)
    return optimizer
