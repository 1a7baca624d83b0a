"""The gradient of some rows of a variable: repeated rows are added up, rows are taken out and put back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ... import backends
from ...backends.generic import Array
from .variable import Variable, as_array

__all__ = ["IndexedSlices", "as_gradient", "dense", "put", "summed", "take"]


class IndexedSlices:
    """The gradient of some rows of a variable: row ``indices[i]`` has the gradient ``values[i]``.

    A row may occur more than once; its gradients are added up.

    Parameters
    ----------
    values : array, shape (n, ...)
        Of the variable's library and dtype; each entry is shaped like a row of the variable.
    indices : array or sequence of int, shape (n,)
        Of any library.
    dense_shape : tuple of int or None
        The variable's shape, if it is known.

    Raises
    ------
    TypeError
        If `indices` are not integers.
    ValueError
        If the two do not agree, or an index is negative or outside `dense_shape`.
    """

    def __init__(self, values: Any, indices: Any, dense_shape: Iterable[int] | None = None) -> None:
        self.values: Array = as_array(values)
        self.indices: np.ndarray = _integers(indices)
        self.dense_shape = None if dense_shape is None else tuple(int(n) for n in dense_shape)
        shape = tuple(self.values.shape)
        if self.indices.ndim != 1 or not shape or shape[0] != len(self.indices):
            raise ValueError(
                f"indices: expected one for each of the rows of values, which has shape {shape}, "
                f"got shape {self.indices.shape}"
            )
        if self.dense_shape is not None:
            self.check(self.dense_shape, "dense_shape")

    def check(self, shape: tuple[int, ...], what: str) -> None:
        """Raise ValueError unless these are rows of an array of this shape."""
        if not shape or tuple(self.values.shape)[1:] != shape[1:]:
            raise ValueError(f"{what}: expected rows of shape {shape[1:]}, got {tuple(self.values.shape)[1:]}")
        if len(self.indices) and not (self.indices.min() >= 0 and self.indices.max() < shape[0]):
            raise ValueError(f"{what}: expected indices in [0, {shape[0]}), got {self.indices}")

    def __repr__(self) -> str:
        return f"IndexedSlices(values={self.values!r}, indices={self.indices!r}, dense_shape={self.dense_shape})"


def _integers(indices: Any) -> np.ndarray:
    if not isinstance(indices, (list, tuple)):
        array = as_array(indices)
        host = backends.of(array).to_host(array).reshape(tuple(array.shape))
    else:
        host = np.asarray(indices, dtype=None if len(indices) else np.int64)
    if host.dtype.kind not in "iu":
        raise TypeError(f"indices: expected integers, got {host.dtype}")
    return host.astype(np.int64)


def as_gradient(gradient: Any) -> Any:
    """A gradient as an array, or as `IndexedSlices` if it is a sparse PyTorch tensor; None stays None."""
    if isinstance(gradient, Variable):
        return gradient.value
    if getattr(gradient, "is_sparse", False) and type(gradient).__module__.partition(".")[0] == "torch":
        if gradient.sparse_dim() != 1:
            raise TypeError(
                f"gradient: expected rows, a sparse tensor of 1 sparse dimension, got {gradient.sparse_dim()}"
            )
        # Not coalesced here: as in TensorFlow, values are clipped before repeated rows are added up.
        return IndexedSlices(gradient._values(), gradient._indices()[0], tuple(gradient.shape))
    # NumPy's own arithmetic turns 0-d arrays into scalars.
    return np.asarray(gradient) if isinstance(gradient, np.generic) else gradient


def take(array: Array, rows: np.ndarray) -> Array:
    """A copy of some rows."""
    return backends.of(array).take(array, rows)


def put(array: Array, rows: np.ndarray, values: Array) -> Array:
    """The array with some rows replaced: itself, written in place, or a new one where arrays are immutable."""
    return backends.of(array).put(array, rows, values)


def summed(slices: IndexedSlices) -> IndexedSlices:
    """The same gradient with each row once: repeated rows are added up, in pairs, the same way on every library.

    The error grows with the logarithm of the number of repetitions, and the result does not depend on the order in
    which a device's threads run.
    """
    order = np.argsort(slices.indices, kind="stable")
    rows = slices.indices[order]
    again = rows[1:] == rows[:-1]
    if not again.any():
        return slices
    starts = np.flatnonzero(np.append(True, ~again))
    lengths = np.diff(starts, append=len(rows))
    values = take(slices.values, order)
    within = np.arange(len(rows)) - np.repeat(starts, lengths)
    after = np.repeat(lengths, lengths) - within
    step = 1
    while step < lengths.max():
        # Each sum of `step` neighbours takes the next one; the last of a row may have none, and stays.
        left = np.flatnonzero((within % (2 * step) == 0) & (after > step))
        values = put(values, left, take(values, left) + take(values, left + step))
        step *= 2
    return IndexedSlices(take(values, starts), rows[starts], slices.dense_shape)


def dense(slices: IndexedSlices, variable: Variable) -> Array:
    """The gradient with zeros for the rows that it does not have."""
    single = summed(slices)
    zeros = variable.backend.full_like(variable.detached(), 0.0, variable.dtype)
    return put(zeros, single.indices, single.values)
