"""Questions asked of many tensors in one call, through DLPack's C exchange API.

A library's array type may carry a table of C functions (``__dlpack_c_exchange_api__``, DLPack 1.2), one of which
describes an array in place: its address, shape, strides, dtype and device. Asked from Python, each of these costs
more than a small tensor's update.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
from numba import types

from .kernels import long_pointer

__all__ = ["Exchange"]

#: Where the function stands in the table, after the version, a pointer to an older table and three other functions.
FUNCTION = 40
#: A ``DLTensor`` in 8-byte words: data, device, ndim and dtype, shape, strides, byte offset.
WORDS = 6
#: Values that each array's part of a fingerprint starts with, beside the shape.
HEAD = 2
_forget_error = types.ExternalFunction("PyErr_Clear", types.void())


class Exchange:
    """The questions, for the arrays of one type.

    Parameters
    ----------
    kind : type
        With ``__dlpack_c_exchange_api__``. Arrays of types derived from it can be asked too, if they are no more
        than that inside.

    Raises
    ------
    ImportError
        If the type has no such table, or one of another layout.
    """

    def __init__(self, kind: type) -> None:
        capsule = getattr(kind, "__dlpack_c_exchange_api__", None)
        if capsule is None:
            raise ImportError(f"{kind.__name__} has no __dlpack_c_exchange_api__")
        get = ctypes.pythonapi.PyCapsule_GetPointer
        get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        table = get(capsule, b"dlpack_exchange_api")
        major, address = ctypes.c_uint32.from_address(table), ctypes.c_void_p.from_address(table + FUNCTION)
        if major.value != 1 or not address.value:
            raise ImportError(f"{kind.__name__}'s DLPack exchange API has version {major.value}, expected 1")
        describe = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(address.value)
        self._fingerprint, self._locate = _fingerprint_kernel(describe), _locate_kernel(describe)
        self._room = np.zeros(1024, np.int64)

    def fingerprint(self, arrays: Sequence[Any], where: bool = False) -> bytes | None:
        """Device, dtype and shape of all arrays, and with `where` also addresses and strides.

        None if one of them cannot be described.
        """
        objects = np.fromiter(map(id, arrays), np.int64, len(arrays))
        while (used := self._fingerprint(objects, self._room, where)) > len(self._room):
            self._room = np.zeros(2 * used, np.int64)
        return self._room[:used].tobytes() if used >= 0 else None

    def locate(self, arrays: Sequence[Any], out: np.ndarray) -> bool:
        """Write the addresses to `out`; whether all arrays lie in C order."""
        return self._locate(np.fromiter(map(id, arrays), np.int64, len(arrays)), out)


def _fingerprint_kernel(describe: Any) -> Callable[..., int]:
    @numba.njit("int64(int64[::1], int64[::1], boolean)")
    def fingerprint(objects: Any, out: Any, where: bool) -> int:
        """Return the words used, or needed if there are more than there is room for, or −1."""
        tensor, used = np.empty(WORDS, np.int64), 0
        for i in range(len(objects)):
            if describe(objects[i], tensor.ctypes.data) != 0:
                _forget_error()
                return -1
            ndim = tensor[2] & 0xFFFFFFFF
            if where:
                if used + 1 + ndim <= len(out):
                    out[used] = tensor[0] + tensor[5]
                    strides = numba.carray(long_pointer(tensor[4]), ndim)
                    for k in range(ndim):
                        out[used + 1 + k] = strides[k]
                used += 1 + ndim
            if used + HEAD + ndim <= len(out):
                out[used], out[used + 1] = tensor[1], tensor[2]
                shape = numba.carray(long_pointer(tensor[3]), ndim)
                for k in range(ndim):
                    out[used + HEAD + k] = shape[k]
            used += HEAD + ndim
        return used

    return fingerprint


def _locate_kernel(describe: Any) -> Callable[..., bool]:
    @numba.njit("boolean(int64[::1], int64[:])")
    def locate(objects: Any, out: Any) -> bool:
        tensor = np.empty(WORDS, np.int64)
        for i in range(len(objects)):
            if describe(objects[i], tensor.ctypes.data) != 0:
                _forget_error()
                return False
            out[i] = tensor[0] + tensor[5]
            ndim = tensor[2] & 0xFFFFFFFF
            shape, strides = numba.carray(long_pointer(tensor[3]), ndim), numba.carray(long_pointer(tensor[4]), ndim)
            count = 1
            for k in range(ndim):
                count *= shape[k]
            expected = 1
            for k in range(ndim - 1, -1, -1):
                if count != 0 and shape[k] != 1 and strides[k] != expected:
                    return False
                expected *= shape[k]
        return True

    return locate
