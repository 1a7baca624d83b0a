"""Checks of the arrays to be updated: their library and dtype, and that no two of them share memory."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from . import backends
from .backends.generic import FLOATING, Array, Backend

__all__ = ["Memory", "backend_of", "check_floating", "check_gradient", "check_params", "check_state"]


def backend_of(name: str, array: Array) -> Backend:
    """The backend of an array that messages call `name`; `TypeError` if it is not an array."""
    try:
        return backends.of(array)
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None


def check_floating(name: str, backend: Backend, array: Array) -> str:
    """The dtype of an array, which must be floating or complex."""
    if (dtype := backend.dtype(array)) not in FLOATING:
        raise TypeError(f"{name}: expected one of the dtypes {', '.join(FLOATING)}, got {dtype}")
    return dtype


def check_gradient(
    name: str, backend: Backend, g: Array, param: Array, dtype: str, may_be_traced: bool = False
) -> None:
    """Check a gradient; of one that may be traced, which has no device, only the library, shape and dtype."""
    found = backend_of(name, g)
    if found is not backend:
        raise TypeError(f"{name}: expected a {backend.name} array, as its parameter is, got a {found.name} array")
    if not may_be_traced and (reason := backend.rejects(g)):
        raise TypeError(f"{name}: {reason}")
    if tuple(g.shape) != tuple(param.shape):
        raise ValueError(f"{name}: expected shape {tuple(param.shape)}, as its parameter's, got {tuple(g.shape)}")
    if backend.dtype(g) != dtype:
        raise TypeError(f"{name}: expected dtype {dtype}, as its parameter's, got {backend.dtype(g)}")
    if not may_be_traced and backend.device(g) != backend.device(param):
        raise ValueError(f"{name}: expected device {backend.device(param)}, got {backend.device(g)}")


def check_state(
    name: str, backend: Backend, array: Array, param: Array, dtype: str, may_be_traced: bool = False
) -> None:
    """Check an array of state, which is to have a `dtype`: an engine writes as much to it as to its parameter."""
    if backend_of(name, array) is not backend:
        raise TypeError(f"{name}: expected a {backend.name} array, as its parameter is, got {type(array).__name__}")
    if not may_be_traced and (reason := backend.rejects(array)):
        raise TypeError(f"{name}: {reason}")
    if tuple(array.shape) != tuple(param.shape):
        raise ValueError(f"{name}: expected shape {tuple(param.shape)}, as its parameter's, got {tuple(array.shape)}")
    if check_floating(name, backend, array) != dtype:
        raise TypeError(f"{name}: expected dtype {dtype}, got {backend.dtype(array)}")
    own = backend.dtype(param)
    if own.startswith("complex") != dtype.startswith("complex"):
        raise TypeError(f"{name}: expected complex state for a complex parameter and no other, got {dtype} for {own}")
    if not may_be_traced and backend.device(array) != backend.device(param):
        raise ValueError(f"{name}: expected device {backend.device(param)}, got {backend.device(array)}")


def check_rounded(name: str, dtype: str) -> None:
    """Check that state is to have the dtype that there is stochastic rounding to."""
    if dtype != "bfloat16":
        raise ValueError(
            f"state_rounding: expected state in bfloat16 for 'stochastic' (state_dtype='bfloat16', and no complex "
            f"parameters), got {dtype} for {name}"
        )


def check_params(params: Sequence[Array], names: Sequence[str], expected: Backend | None = None) -> Backend:
    """Check the arrays to be updated, and return the one backend that they belong to.

    Raises
    ------
    TypeError
        If one is not an array, its dtype is not floating or complex, or the arrays are of two libraries.
    ValueError
        If there is none, or one is read-only.
    """
    for array, name in zip(params, names, strict=True):
        backend = backend_of(name, array)
        if expected is not None and backend is not expected:
            others = "the parameters before are" if name == names[0] else f"{names[0]} is"
            raise TypeError(f"{name}: expected a {expected.name} array, as {others}, got a {backend.name} array")
        expected = backend
        if reason := backend.rejects(array):
            raise TypeError(f"{name}: {reason}")
        check_floating(name, backend, array)
        if backend.mutable and not backend.writable(array):
            raise ValueError(f"{name}: expected an array that can be written to, got a read-only one")
    if expected is None:
        raise ValueError("params: expected at least one array, got none")
    return expected


class Memory:
    """The memory of arrays that are updated, so that none is updated under two names.

    It is kept as ranges that do not meet, each with the arrays within it: what is added is compared with its
    neighbours only. It is never changed; `plus` makes another.
    """

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ranges: list[tuple[int, list[tuple[int, int, int, Array, str]]]] = []  # the end, and the arrays within
        self._count = 0

    def plus(self, backend: Backend, arrays: Sequence[Array], names: Sequence[str]) -> Memory:
        """Add arrays.

        Raises
        ------
        ValueError
            If one overlaps itself, or shares memory with another.
        """
        if not backend.mutable:
            return self
        made = Memory()
        made._starts, made._ranges = self._starts.copy(), self._ranges.copy()
        made._count = self._count + len(arrays)
        entries = []
        for i, (array, name) in enumerate(zip(arrays, names, strict=True), start=self._count):
            if backend.overlaps_itself(array):
                raise ValueError(f"{name}: expected elements with memory of their own, got a view that repeats some")
            # Where addresses are unknown, at least the same object given twice is found.
            start, end = backend.extent(array) or (id(array), id(array) + 1)
            if start < end:
                entries.append((start, end, i, array, name))
        for entry in sorted(entries, key=lambda e: e[:3]):
            made._insert(backend, entry)
        return made

    def _insert(self, backend: Backend, entry: tuple[int, int, int, Array, str]) -> None:
        start, end, i, array, name = entry
        first, last = bisect_right(self._starts, start), bisect_left(self._starts, end)
        if first and self._ranges[first - 1][0] > start:
            first -= 1
        within = [entry]
        for range_end, others in self._ranges[first:last]:
            for other in others:
                if other[0] < end and start < other[1] and backend.share_memory(other[3], array):
                    (_, one), (_, two) = sorted([(other[2], other[4]), (i, name)])
                    raise ValueError(f"{two}: expected memory of its own, got an array that overlaps {one}")
            within += others
            end = max(end, range_end)
        lowest = min(start, self._starts[first]) if first < last else start
        self._starts[first:last], self._ranges[first:last] = [lowest], [(end, within)]
