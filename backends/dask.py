"""Dask arrays. They are immutable and lazy: a step is one task per chunk, computed at its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask
import dask.array as da
import numpy as np

from .generic import Array, Backend
from .registry import get

__all__ = ["DaskBackend"]


def _chunk(function: Any, *arrays: np.ndarray) -> list[np.ndarray]:
    return list(get("numpy").elementwise(function, arrays))


def _row(prepare: Any, computing: str, g: np.ndarray) -> list[int]:
    return get("numpy").square_sums(prepare, g, computing)


class DaskBackend(Backend):
    """Arrays whose chunks are NumPy arrays of known shapes."""

    mutable: bool = False

    def rejects(self, array: Array) -> str | None:
        if any(n != n for n in array.shape):
            return "expected chunks of known sizes; call compute_chunk_sizes() first"
        if type(array._meta) is not np.ndarray:
            return f"expected chunks that are NumPy arrays, got {type(array._meta).__name__}"
        return None

    def device(self, array: Array) -> str:
        return "cpu"

    def signature(self, arrays: Sequence[Array]) -> list[Any]:
        return [(a.dtype, a.shape) for a in arrays]

    def native(self, dtype: str) -> Any:
        return get("numpy").native(dtype)

    def full_like(self, array: Array, value: float, dtype: str) -> Array:
        return da.full(array.shape, value, dtype=self.native(dtype), chunks=array.chunks)

    def cast(self, array: Array, dtype: str) -> Array:
        return array.astype(self.native(dtype))

    def take(self, array: Array, rows: np.ndarray) -> Array:
        return array[rows]

    def put(self, array: Array, rows: np.ndarray, values: Array) -> Array:
        places, among = np.zeros(len(array), np.int64), np.zeros((len(array), *[1] * (array.ndim - 1)), bool)
        places[rows], among[rows] = np.arange(len(rows)), True
        return da.where(among, values[places], array).rechunk(array.chunks)

    def join(self, parts: list[Array], dtype: str) -> Array:
        return parts[0] if len(parts) == 1 else da.map_blocks(_complex, *parts, dtype=dtype)

    def to_host(self, array: Array) -> np.ndarray:
        return get("numpy").to_host(np.asarray(array.compute()))

    def from_host(self, array: np.ndarray, dtype: str, like: Array | None = None) -> Array:
        return da.from_array(get("numpy").from_host(array, dtype), chunks="auto" if like is None else like.chunks)

    def elementwise(self, function: Any, arrays: Sequence[Array]) -> tuple[Array, ...]:
        first = arrays[0]
        outputs = (first, *arrays[2:])
        chunks = zip(*(a.rechunk(first.chunks).to_delayed().ravel() for a in arrays), strict=True)
        grids = [np.empty(first.numblocks, dtype=object) for _ in outputs]
        for position, chunk in zip(np.ndindex(first.numblocks), chunks, strict=True):
            task = dask.delayed(_chunk, pure=False)(function, *chunk)
            size = tuple(first.chunks[axis][k] for axis, k in enumerate(position))
            for j, (grid, old) in enumerate(zip(grids, outputs, strict=True)):
                grid[position] = da.from_delayed(task[j], size, dtype=old.dtype)
        return tuple(da.block(grid.tolist()) for grid in grids)

    def square_sums(self, prepare: Any, g: Array, computing: str) -> list[int]:
        tasks = [dask.delayed(_row)(prepare, computing, chunk) for chunk in g.to_delayed().ravel()]
        return [sum(column) for column in zip(*dask.compute(*tasks), strict=True)]

    def finite(self, array: Array) -> bool:
        return bool(da.isfinite(array).all().compute())

    def settle(self, arrays: list[Array]) -> list[Array]:
        # Otherwise the graph would grow with every step, and each look at a value would start from the first.
        return list(dask.persist(*arrays))


def _complex(real: np.ndarray, imaginary: np.ndarray) -> np.ndarray:
    return get("numpy").join([real, imaginary], np.result_type(real, np.complex64).name)
