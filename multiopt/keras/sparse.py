"""Gradients of some rows: from what libraries give, with repeated rows added up; rows taken out and put back."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import backends
from ..backends.protocol import Array
from .variable import IndexedSlices, Variable

__all__ = ["as_gradient", "dense", "put", "summed", "take"]


def as_gradient(gradient: Any) -> Any:
    """A gradient as it is, out of its box; PyTorch's sparse tensors as `IndexedSlices`.

    Raises
    ------
    TypeError
        If a sparse tensor has more than one sparse dimension.
    """
    if isinstance(gradient, Variable):
        return gradient.value
    if getattr(gradient, "is_sparse", False) and type(gradient).__module__.partition(".")[0] == "torch":
        if gradient.sparse_dim() != 1:
            raise TypeError(
                f"gradient: expected rows, a sparse tensor of 1 sparse dimension, got {gradient.sparse_dim()}"
            )
        # Not coalesced here: clipping by value sees repeated rows apart, as TensorFlow does.
        return IndexedSlices(gradient._values(), gradient._indices()[0], tuple(gradient.shape))
    return gradient


def take(array: Array, rows: np.ndarray) -> Array:
    """A copy of some rows."""
    backend = backends.of(array)
    if backend.name == "torch":
        array = array.detach()
    return array[_index(rows, array)]


def put(array: Array, rows: np.ndarray, values: Array) -> Array:
    """The array with some rows replaced: itself, written in place, or a new one where arrays are immutable."""
    backend = backends.of(array)
    if not backend.mutable:
        return array.at[_index(rows, array)].set(values)
    # A detached tensor shares memory and version counter: autograd knows of the writing.
    target = array.detach() if backend.name == "torch" else array
    target[_index(rows, array)] = values
    return array


def _index(host: np.ndarray, like: Array) -> Array:
    """Row numbers, or a mask, for use with arrays like this one."""
    backend = backends.of(like)
    # JAX takes NumPy's, wherever its own arrays lie.
    return host if backend.name in ("numpy", "jax") else backend.from_host(host, host.dtype.name, like)


def summed(slices: IndexedSlices) -> IndexedSlices:
    """The same gradient with each row once: repeated rows are added up, in pairs, the same way on every library.

    The number of additions in a row grows with the logarithm of the repetitions; nothing depends on the order in which
    a device's threads come.
    """
    rows, lengths = np.unique(slices.indices, return_counts=True)
    order = np.argsort(slices.indices, kind="stable")
    if len(rows) == len(order):
        return slices
    values = take(slices.values, order)
    xp = backends.of(values).xp
    while len(lengths) and lengths.max() > 1:
        # Neighbours of a run become one; the last of an odd run stays.
        starts = np.cumsum(lengths) - lengths
        halves = (lengths + 1) // 2
        within = np.arange(halves.sum()) - np.repeat(np.cumsum(halves) - halves, halves)
        left = np.repeat(starts, halves) + 2 * within
        paired = 2 * within + 1 < np.repeat(lengths, halves)
        first = take(values, left)
        both = first + take(values, np.where(paired, left + 1, left))
        shape = (len(paired), *[1] * (len(values.shape) - 1))
        values, lengths = xp.where(_index(paired.reshape(shape), values), both, first), halves
    return IndexedSlices(values, rows, slices.dense_shape)


def dense(slices: IndexedSlices, variable: Variable) -> Array:
    """The gradient with zeros for the rows that it does not have."""
    single = summed(slices)
    array = variable.value.detach() if variable.backend.name == "torch" else variable.value
    return put(variable.backend.full_like(array, 0.0, variable.dtype), single.indices, single.values)
