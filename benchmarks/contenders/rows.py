"""Optimizers that take the gradient of some rows of a table: ours, on NumPy and PyTorch, tf_keras', and their floor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from time import perf_counter
from typing import Any

import numpy as np

from ..harness.contender import Running
from ..harness.workload import Table
from .numpy import HYPERS

__all__ = ["floor_of_rows", "legacy_numpy", "legacy_tensors", "tf_keras_legacy"]

NAMES = {"learning_rate": HYPERS["lr"], "rho": HYPERS["rho"], "epsilon": HYPERS["eps"]}


def floor_of_rows(workload: Table) -> Running:
    """Read and write these rows of three tables, and read the gradient, on one thread."""
    import numba

    @numba.njit(nogil=True)
    def move(x: Any, g: Any, v: Any, u: Any, rows: Any) -> None:
        for i in range(len(rows)):
            row = rows[i]
            for k in range(x.shape[1]):
                t = g[i, k]
                x[row, k] += t
                v[row, k] += t
                u[row, k] += t

    x, v, u = (np.full(workload.shapes[0], 0, workload.dtype) for _ in range(3))
    g = np.ones((workload.rows, workload.shapes[0][1]), workload.dtype)
    began = perf_counter()
    return _running([(x, g, v, u, rows) for rows in workload.turns()], lambda given: move(*given), lambda: x, began)


def legacy_numpy(workload: Table) -> Running:
    """`multiopt.keras.legacy.Adadelta` on a NumPy array."""
    return _ours(workload, lambda array: array, lambda x: x)


def legacy_tensors(workload: Table) -> Running:
    """`multiopt.keras.legacy.Adadelta` on a PyTorch tensor."""
    import torch

    return _ours(workload, torch.from_numpy, lambda x: x.detach().numpy())


def tf_keras_legacy(workload: Table) -> Running:
    """`tf_keras.optimizers.legacy.Adadelta`, called eagerly, as ours is."""
    import tensorflow as tf
    import tf_keras

    variable = tf.Variable(workload.params()[0])
    given = _slices(workload, tf.constant, tf.IndexedSlices)
    began = perf_counter()
    optimizer = tf_keras.optimizers.legacy.Adadelta(**NAMES)
    return _running(given, lambda g: optimizer.apply_gradients([(g, variable)]), variable.numpy, began)


def _ours(workload: Table, make: Callable[[np.ndarray], Any], back: Callable[[Any], np.ndarray]) -> Running:
    from multiopt.keras import IndexedSlices, Variable, legacy

    array = make(workload.params()[0])
    given, variable = _slices(workload, make, IndexedSlices), Variable(array, name="table")
    began = perf_counter()
    optimizer = legacy.Adadelta(**NAMES)
    return _running(given, lambda g: optimizer.apply_gradients([(g, variable)]), lambda: back(array), began)


def _slices(workload: Table, make: Callable[[np.ndarray], Any], kind: Any) -> list[Any]:
    """A gradient for each turn, in the library that `make` makes arrays of."""
    values = make(workload.grads()[0])
    return [kind(values, make(rows), workload.shapes[0]) for rows in workload.turns()]


def _running(given: Sequence[Any], step: Callable[[Any], Any], table: Callable[[], Any], began: float) -> Running:
    turns = cycle(given)
    return Running(lambda: step(next(turns)), lambda: [table()], began)
