"""CuPy arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import cupy
import numpy as np

from .generic import Array, Backend, dense, strides_overlap
from .registry import get

__all__ = ["CupyBackend"]


class CupyBackend(Backend):
    """Arrays of exact type `cupy.ndarray`, each on the device it was made on."""

    swappable: bool = False  # CuPy has no way to give an array other memory

    def rejects(self, array: Array) -> str | None:
        if type(array) is not cupy.ndarray:
            return f"expected a cupy.ndarray, got its subclass {type(array).__name__}"
        return None

    def writable(self, array: Array) -> bool:
        return True

    def device(self, array: Array) -> str:
        return f"cuda:{array.device.id}"

    def signature(self, arrays: Any) -> list[Any]:
        return [(a.dtype, a.shape, a.device.id) for a in arrays]

    def extent(self, array: Array) -> tuple[int, int]:
        return cupy.byte_bounds(array) if array.size else (0, 0)

    def overlaps_itself(self, array: Array) -> bool:
        return strides_overlap(array.shape, array.strides, array.itemsize)

    def native(self, dtype: str) -> Any:
        return get("numpy").native(dtype)

    def full_like(self, array: Array, value: float, dtype: str) -> Array:
        with array.device:
            return cupy.full_like(array, value, dtype=self.native(dtype))

    def write(self, array: Array, new: Array) -> None:
        with array.device:
            array[...] = new

    def filled(self, array: Array, value: float) -> Array:
        with array.device:
            array.fill(value)
        return array

    def cast(self, array: Array, dtype: str) -> Array:
        return array.astype(self.native(dtype), copy=False)

    def take(self, array: Array, rows: np.ndarray) -> Array:
        with array.device:
            return array.take(cupy.asarray(rows), axis=0)

    def put(self, array: Array, rows: np.ndarray, values: Array) -> Array:
        with array.device:
            array[cupy.asarray(rows)] = values
        return array

    def copy(self, array: Array) -> Array:
        with array.device:
            return array.copy(order="K")

    def join(self, parts: list[Array], dtype: str) -> Array:
        if len(parts) == 1:
            return parts[0]
        with parts[0].device:
            whole = cupy.empty(parts[0].shape, dtype)
            whole.real, whole.imag = parts
            return whole

    def to_host(self, array: Array) -> np.ndarray:
        host = np.ascontiguousarray(cupy.asnumpy(array)).reshape(array.shape)
        return host.view(np.uint16) if array.dtype.name == "bfloat16" else host

    def from_host(self, array: np.ndarray, dtype: str, like: Array | None = None) -> Array:
        with nullcontext() if like is None else like.device:
            return cupy.asarray(array.view(self.native(dtype)))

    def indices(self, n: int, like: Array) -> Array:
        with like.device:
            return super().indices(n, like)

    def elementwise(self, function: Any, arrays: Any) -> tuple[Array, ...]:
        with arrays[0].device:
            return tuple(function(self.xp, *arrays))

    def finite(self, array: Array) -> bool:
        with array.device:
            return super().finite(array)

    # --- raw memory ---

    def cuda_memory(self, device: str) -> CupyBackend:
        return self

    def layout(self, array: Array) -> Any:
        """``"C"`` for a contiguous array, its strides for another dense one (Fortran's order, say), else None."""
        if array.flags.c_contiguous:
            return "C"
        strides = _strides(array)
        return strides if dense(array.shape, strides) else None

    def addresses(self, arrays: Sequence[Array], layouts: Sequence[Any], out: np.ndarray) -> int:
        odd = 0
        for i, (array, layout) in enumerate(zip(arrays, layouts, strict=True)):
            if array.flags.c_contiguous if layout == "C" else _strides(array) == layout:
                out[i] = array.data.ptr
            else:
                out[i], odd = -1, odd + 1
        return odd

    def contiguous(self, array: Array) -> Array:
        with array.device:
            return array.copy(order="C")

    def touched(self, arrays: Iterable[Array]) -> None:
        """CuPy keeps no account of writing."""

    def ordinal(self, device: str) -> int:
        return int(device.partition(":")[2])

    def on(self, device: str) -> Any:
        return cupy.cuda.Device(self.ordinal(device))

    def is_current(self, device: str) -> bool:
        return cupy.cuda.runtime.getDevice() == self.ordinal(device)

    def stream(self, device: str) -> int:
        return cupy.cuda.get_current_stream(self.ordinal(device)).ptr


def _strides(array: Array) -> tuple[float, ...]:
    """Strides in elements (whole or not), so that arrays of different dtypes can be compared."""
    return tuple(stride / array.itemsize for stride in array.strides)
