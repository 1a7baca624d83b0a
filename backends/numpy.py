"""NumPy arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np

from .generic import Array, Backend, Described, Place, strides_overlap

__all__ = ["NumpyBackend"]


class NumpyBackend(Backend):
    """Arrays of exact type `numpy.ndarray` or `numpy.memmap`, of any strides and byte order."""

    kinds = frozenset((np.ndarray, np.memmap))

    def rejects(self, array: Array) -> str | None:
        if isinstance(array, np.generic):
            return f"expected a numpy.ndarray, got a NumPy scalar of {array.dtype}; pass numpy.asarray(...) of it"
        if type(array) not in self.kinds:
            return f"expected a numpy.ndarray, got its subclass {type(array).__name__}; pass numpy.asarray(...) of it"
        return None

    def writable(self, array: Array) -> bool:
        return array.flags.writeable

    def dtype(self, array: Array) -> str:
        return _name(array.dtype)

    def signature(self, arrays: Sequence[Array]) -> list[Any]:
        return [(a.dtype, a.shape) for a in arrays]

    def describe(self, arrays: list[Array]) -> Any:
        fields = _fields()
        return None if fields is None else fields.describe(arrays)

    def extent(self, array: Array) -> tuple[int, int]:
        from numpy.lib.array_utils import byte_bounds

        return byte_bounds(array) if array.size else (0, 0)

    def share_memory(self, a: Array, b: Array) -> bool:
        try:
            return np.shares_memory(a, b, max_work=10_000)  # type: ignore[arg-type]
        except np.exceptions.TooHardError:
            return True

    def overlaps_itself(self, array: Array) -> bool:
        return strides_overlap(array.shape, array.strides, array.itemsize)

    def native(self, dtype: str) -> Any:
        if dtype != "bfloat16":
            return np.dtype(dtype)
        from ml_dtypes import bfloat16  # who has a bfloat16 array has ml_dtypes

        return np.dtype(bfloat16)

    def full_like(self, array: Array, value: float, dtype: str) -> Array:
        return np.full_like(array, value, dtype=self.native(dtype), subok=False)

    def empty_like(self, array: Array, dtype: str) -> Array:
        return np.empty_like(array, dtype=self.native(dtype), subok=False)

    def cast(self, array: Array, dtype: str) -> Array:
        return array.astype(self.native(dtype), copy=False)

    def take(self, array: Array, rows: np.ndarray) -> Array:
        return array.take(rows, axis=0)

    def put(self, array: Array, rows: np.ndarray, values: Array) -> Array:
        array[rows] = values
        return array

    def copy(self, array: Array) -> Array:
        return array.copy(order="K")

    def join(self, parts: list[Array], dtype: str) -> Array:
        if len(parts) == 1:
            return parts[0]
        whole = np.empty(parts[0].shape, dtype)
        whole.real, whole.imag = parts
        return whole

    def to_host(self, array: Array) -> np.ndarray:
        native = self.contiguous(array)
        return native.view(np.uint16) if array.dtype.name == "bfloat16" else native

    def from_host(self, array: np.ndarray, dtype: str, like: Array | None = None) -> Array:
        return array.view(self.native(dtype))

    def blocked(self, device: Any) -> bool:
        return True

    def elementwise(self, function: Any, arrays: Sequence[Array]) -> tuple[Array, ...]:
        # NumPy turns 0-d results into scalars, which are not arrays.
        new = super().elementwise(function, [np.atleast_1d(a) for a in arrays])
        return tuple(a.reshape(arrays[0].shape) for a in new)

    def square_sums(self, prepare: Any, g: Array, computing: str) -> list[int]:
        return super().square_sums(prepare, np.atleast_1d(g), computing)

    # --- raw memory ---

    def host_memory(self, device: str) -> NumpyBackend:
        return self

    def plain(self, arrays: Sequence[Array]) -> bool:
        return all(self.rejects(array) is None and array.dtype.isnative for array in arrays)

    def place(self, array: Array) -> Place | None:
        if not array.flags.aligned or not array.dtype.isnative:
            return None
        width = array.itemsize // (2 if array.dtype.kind == "c" else 1)
        return Place(array.__array_interface__["data"][0], tuple(stride // width for stride in array.strides))

    def layout(self, array: Array) -> Any:
        flags = array.flags
        if not flags.aligned or not array.dtype.isnative:
            return None
        return "C" if flags.c_contiguous else "F" if flags.f_contiguous else None

    def addresses(self, arrays: Sequence[Array], layouts: Sequence[Any], out: np.ndarray) -> int:
        known = self.described(arrays)
        if not isinstance(known, Described):
            pairs = zip(arrays, layouts, strict=True)
            out[:] = [a.__array_interface__["data"][0] if _lies(a, layout) else -1 for a, layout in pairs]
        elif known.description.contiguous and layouts.count("C") == len(arrays):
            out[:] = known.description.addresses
        else:
            need = np.fromiter((NEED[layout] for layout in layouts), np.int64, len(arrays))
            out[:] = np.where(known.description.flags & need == need, known.description.addresses, -1)
        return int(np.count_nonzero(out < 0))

    def contiguous(self, array: Array) -> Array:
        return np.array(array, dtype=array.dtype.newbyteorder("="), order="C", copy=True)

    def touched(self, arrays: Iterable[Array]) -> None:
        """NumPy keeps no account of writing."""


@cache
def _name(dtype: Any) -> str:
    return dtype.name  # which NumPy makes anew each time


#: Flags that an array of each layout must have (see `engines.host.exchange`): its order, aligned, native bytes. The
#: last row asks for a flag that does not exist.
NEED = {"C": 0x301, "F": 0x302, None: 1 << 30}


def _lies(array: Array, layout: Any) -> bool:
    flags = array.flags
    ordered = {"C": flags.c_contiguous, "F": flags.f_contiguous, None: False}[layout]
    return ordered and flags.aligned and array.dtype.isnative


@cache
def _fields() -> Any:
    """Many arrays' fingerprint and addresses in one call, where Numba is there to ask."""
    try:
        from .engines.host.exchange import Fields

        return Fields()
    except ImportError:
        return None
