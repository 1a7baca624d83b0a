"""Questions asked of many arrays in one call: where each lies, its shape, strides, dtype and device.

Asked from Python, each of these costs more than a small tensor's update. A library's array type may carry a table of
C functions (``__dlpack_c_exchange_api__``, DLPack 1.2), one of which describes an array in place. NumPy's arrays have
none, but their C structure is part of NumPy's binary interface: every compiled extension reads it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numba import types

from .kernels import disabled
from .storage import STORAGE, long_pointer

__all__ = ["ALIGNED", "C_ORDER", "F_ORDER", "NATIVE", "WRITABLE", "Description", "Exchange", "Fields"]

if reason := disabled():
    raise ImportError(reason)

#: Where the function stands in the table, after the version, a pointer to an older table and three other functions.
FUNCTION = 40
#: A ``DLTensor`` in 8-byte words: data, device, ndim and dtype, shape, strides, byte offset.
WORDS = 6
#: Words of a description that come before the shape (device, ndim and dtype) or the strides (object, address).
HEAD = 2
#: The ``DLDevice`` and the ``DLDataType`` of what `Exchange.increment` writes to.
CPU, FLOAT32, FLOAT64 = 1, 2 | 32 << 8 | 1 << 16, 2 | 64 << 8 | 1 << 16
#: Flags of a NumPy array, as its C structure has them, and one for native bytes.
C_ORDER, F_ORDER, ALIGNED, NATIVE, WRITABLE = 0x1, 0x2, 0x100, 0x200, 0x400
float_pointer, double_pointer = STORAGE["float32"][0], STORAGE["float64"][0]
_list_item: Any = types.ExternalFunction("PyList_GetItem", types.intp(types.intp, types.intp))
_forget_error: Any = types.ExternalFunction("PyErr_Clear", types.void())


@dataclass
class Description:
    """What was found out about a list of arrays."""

    #: Two rows: the device, dtype and shape of each; which object it is, its address and its strides.
    words: np.ndarray
    addresses: np.ndarray
    #: Whether all lie in C order, in native bytes, aligned; and whether they are of one device and dtype.
    contiguous: bool
    alike: bool
    #: The flags of each, for NumPy's arrays.
    flags: np.ndarray | None = None

    @property
    def signature(self) -> bytes:
        """The device, dtype and shape of each."""
        return self.words[0].tobytes()

    @property
    def memory(self) -> bytes:
        """The same, and which object each is, its address and its strides."""
        return self.words.tobytes()


class Exchange:
    """The questions, for the arrays of one type, and of types derived from it that are no more than that inside.

    `ImportError` if the type has no such table, or one of another layout.
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
        self._describe, self._increment = _describe_kernel(describe), _increment_kernel(describe)

    def describe(self, arrays: list[Any]) -> Description | None:
        """Describe arrays; None if one of them cannot be described."""
        addresses, words = np.empty(len(arrays), np.int64), 8 * len(arrays)
        while True:
            room = np.empty((2, words), np.int64)
            used, contiguous, alike = self._describe(id(arrays), addresses, room)
            if used < 0:
                return None
            if used <= words:
                return Description(room[:, :used], addresses, contiguous, alike)
            words = used

    def increment(self, arrays: list[Any]) -> bool:
        """Add 1 to arrays of one element. If not all are float32 or float64 on the CPU, nothing is written: False."""
        return self._increment(id(arrays), np.empty((2, len(arrays)), np.int64))


def _describe_kernel(describe: Any) -> Callable[..., tuple[int, bool, bool]]:
    none = id(None)  # asked for a description, it would raise an error, which takes long

    @numba.njit("Tuple((int64, boolean, boolean))(int64, int64[::1], int64[:, ::1])")
    def kernel(arrays: int, addresses: Any, out: Any) -> tuple[int, bool, bool]:
        """The words used, or needed if there is no room, or −1; whether all is in C order; and alike."""
        tensor, used, contiguous, alike = np.empty(WORDS, np.int64), 0, True, True
        for i in range(len(addresses)):
            array = _list_item(arrays, i)
            if array == none or describe(array, tensor.ctypes.data) != 0:
                _forget_error()
                return -1, False, False
            addresses[i] = tensor[0] + tensor[5]
            ndim = tensor[2] & 0xFFFFFFFF
            if i == 0:
                device, dtype = tensor[1], tensor[2] >> 32
            alike &= tensor[1] == device and tensor[2] >> 32 == dtype
            shape, strides = numba.carray(long_pointer(tensor[3]), ndim), numba.carray(long_pointer(tensor[4]), ndim)
            count, expected = shape.prod(), 1
            for k in range(ndim - 1, -1, -1):
                if count != 0 and shape[k] != 1 and strides[k] != expected:
                    contiguous = False
                expected *= shape[k]
            start, used = used, used + HEAD + ndim
            if used <= out.shape[1]:
                out[0, start], out[0, start + 1] = tensor[1], tensor[2]
                out[1, start], out[1, start + 1] = array, addresses[i]
                for k in range(ndim):
                    out[0, start + HEAD + k], out[1, start + HEAD + k] = shape[k], strides[k]
        return used, contiguous, alike

    return kernel


def _increment_kernel(describe: Any) -> Callable[..., bool]:
    @numba.njit("boolean(int64, int64[:, ::1])")
    def kernel(arrays: int, found: Any) -> bool:
        tensor = np.empty(WORDS, np.int64)
        for i in range(found.shape[1]):
            if describe(_list_item(arrays, i), tensor.ctypes.data) != 0:
                _forget_error()
                return False
            count = numba.carray(long_pointer(tensor[3]), tensor[2] & 0xFFFFFFFF).prod()
            found[0, i], found[1, i] = tensor[0] + tensor[5], tensor[2] >> 32
            if count != 1 or found[0, i] == 0 or tensor[1] & 0xFFFFFFFF != CPU:  # at 0 is memory that was freed
                return False
            if found[1, i] != FLOAT32 and found[1, i] != FLOAT64:
                return False
        for i in range(found.shape[1]):
            if found[1, i] == FLOAT32:
                single = numba.carray(float_pointer(found[0, i]), 1)
                single[0] += np.float32(1)
            else:
                double = numba.carray(double_pointer(found[0, i]), 1)
                double[0] += 1.0
        return True

    return kernel


class Fields:
    """The questions, for NumPy's arrays, read off their C structure.

    `ImportError` if the structure is not the one that is known.
    """

    def __init__(self) -> None:
        self._kernel = _fields_kernel()
        self._try()

    def describe(self, arrays: list[Any]) -> Description | None:
        """Describe arrays; None if one of them is not of exact type `numpy.ndarray` or `numpy.memmap`."""
        addresses, flags, words = np.empty(len(arrays), np.int64), np.empty(len(arrays), np.int64), 8 * len(arrays)
        while True:
            room = np.empty((2, words), np.int64)
            used, contiguous, alike = self._kernel(id(arrays), addresses, flags, room)
            if used < 0:
                return None
            if used <= words:
                return Description(room[:, :used], addresses, contiguous, alike, flags)
            words = used

    def _try(self) -> None:
        """Compare with what NumPy itself says of some arrays."""
        probes = [np.zeros((3, 4), np.float32)[1:, ::2], np.zeros((2, 3), ">f8"), np.zeros(5).T, np.zeros((4, 2)).T]
        probes += [np.zeros((), np.float16), np.frombuffer(bytes(9), np.uint8)[1:].view(np.float64)]
        found = self.describe(probes)
        words = [word for a in probes for word in (a.dtype.num, a.dtype.isnative, a.ndim, *a.shape)]
        places = [word for a in probes for word in (id(a), *_flagged(a), *a.strides)]
        if (
            found is None
            or found.flags is None
            or found.signature != np.array(words, np.int64).tobytes()
            or found.memory != np.array(words + places, np.int64).tobytes()
        ):
            raise ImportError(f"NumPy {np.__version__} lays its arrays out in another way than is known")


def _flagged(array: np.ndarray) -> tuple[int, int]:
    flags = array.flags
    known = {C_ORDER: flags.c_contiguous, F_ORDER: flags.f_contiguous, ALIGNED: flags.aligned}
    known |= {NATIVE: array.dtype.isnative, WRITABLE: flags.writeable}
    return array.__array_interface__["data"][0], sum(flag for flag, on in known.items() if on)


def _fields_kernel() -> Callable[..., tuple[int, bool, bool]]:
    # struct PyArrayObject_fields: the object's head, whose last word is its type; then char *data; int nd;
    # npy_intp *dimensions, *strides; PyObject *base; PyArray_Descr *descr; int flags.
    # struct PyArray_Descr: the head; PyTypeObject *typeobj; char kind, type, byteorder, flags; int type_num.
    head, plain, mapped = object.__basicsize__, id(np.ndarray), id(np.memmap)
    native = (ord("="), ord("|"))
    stored, straight = C_ORDER | F_ORDER | ALIGNED | WRITABLE, C_ORDER | ALIGNED | NATIVE

    @numba.njit("Tuple((int64, boolean, boolean))(int64, int64[::1], int64[::1], int64[:, ::1])")
    def kernel(arrays: int, addresses: Any, flags: Any, out: Any) -> tuple[int, bool, bool]:
        """The words used, or needed if there is no room, or -1; whether all is in C order, and alike."""
        used, contiguous, alike, first = 0, True, True, np.int64(0)
        for i in range(len(addresses)):
            array = _list_item(arrays, i)
            kind = numba.carray(long_pointer(array + head - 8), 1)[0]
            if kind != plain and kind != mapped:
                return -1, False, False
            fields = numba.carray(long_pointer(array + head), 7)
            ndim = fields[1] & 0xFFFFFFFF
            shape, strides = numba.carray(long_pointer(fields[2]), ndim), numba.carray(long_pointer(fields[3]), ndim)
            about = numba.carray(long_pointer(fields[5] + head + 8), 1)[0]
            order = (about >> 16) & 0xFF
            is_native = order == native[0] or order == native[1]
            addresses[i], flags[i] = fields[0], (fields[6] & stored) | (NATIVE if is_native else 0)
            contiguous &= flags[i] & straight == straight
            if i == 0:
                first = about >> 32
            alike &= about >> 32 == first and is_native
            start, used = used, used + HEAD + 1 + ndim
            if used <= out.shape[1]:
                out[0, start], out[0, start + 1], out[0, start + 2] = about >> 32, is_native, ndim
                out[1, start], out[1, start + 1], out[1, start + 2] = array, addresses[i], flags[i]
                for k in range(ndim):
                    out[0, start + HEAD + 1 + k], out[1, start + HEAD + 1 + k] = shape[k], strides[k]
        return used, contiguous, alike

    return kernel
