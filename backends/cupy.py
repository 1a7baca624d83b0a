"""CuPy arrays."""

from __future__ import annotations

from typing import Any, ClassVar

import cupy
import numpy as np

from .base import Array, Backend

__all__ = ["CupyBackend"]


class CupyBackend(Backend):
    """Arrays of exact type `cupy.ndarray`, each on the device it was made on."""

    name: str = "cupy"
    extra: ClassVar[str | None] = "cupy"

    def admit(self, array: Array) -> str | None:
        if type(array) is not cupy.ndarray:
            return f"expected a cupy.ndarray, got its subclass {type(array).__name__}"
        return None

    def dtype(self, array: Array) -> str:
        return array.dtype.name

    def device(self, array: Array) -> str:
        return f"cuda:{array.device.id}"

    def signature(self, arrays: Any) -> list[Any]:
        return [(a.dtype, a.shape, a.device.id) for a in arrays]

    def extent(self, array: Array) -> tuple[int, int]:
        return cupy.byte_bounds(array) if array.size else (0, 0)

    def native(self, dtype: str) -> Any:
        if dtype != "bfloat16":
            return np.dtype(dtype)
        from ml_dtypes import bfloat16

        return np.dtype(bfloat16)

    def full_like(self, array: Array, value: float, dtype: str) -> Array:
        with array.device:
            return cupy.full_like(array, value, dtype=self.native(dtype))

    def cast(self, array: Array, dtype: str) -> Array:
        return array.astype(self.native(dtype), copy=False)

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

    def from_host(self, array: np.ndarray, like: Array, dtype: str) -> Array:
        with like.device:
            return cupy.asarray(array.view(self.native(dtype)))

    def elementwise(self, function: Any, arrays: Any) -> tuple[Array, ...]:
        with arrays[0].device:
            return tuple(function(self.xp, *arrays))
