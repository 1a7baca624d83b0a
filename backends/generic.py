"""What a backend must do, and the backend that serves any array API namespace.

A *backend* knows the arrays of one library: how they are recognised, described, made, read and written. It alone
imports that library, and only when its arrays are seen. It does no arithmetic. A backend for a library of your own
is a class derived from `Backend`, which says where the library differs from the standard; see
``docs/backends.md``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np

from .engines.control import with_default_control
from .engines.norms import square_sums

__all__ = [
    "FLOATING", "Array", "Backend", "CudaMemory", "Described", "HostMemory", "Place", "RawMemory", "dense",
    "strides_overlap", "wider",
]  # fmt: skip

Array = Any
#: The dtypes a parameter may have, and the real dtype of each one's parts.
FLOATING = {
    "float16": "float16",
    "bfloat16": "bfloat16",
    "float32": "float32",
    "float64": "float64",
    "complex64": "float32",
    "complex128": "float64",
}


def wider(dtypes: Sequence[str]) -> str:
    """The real dtype in which a pass over arrays of these dtypes is computed: at least float32."""
    return "float64" if any(FLOATING[dtype] == "float64" for dtype in dtypes) else "float32"


class Described(list[Array]):
    """Arrays with what was found out about all of them in one call; it holds for the step in which it was asked."""

    #: See `backends.engines.host.exchange`.
    description: Any

    @cached_property
    def kinds(self) -> set[type]:
        """The arrays' types."""
        return set(map(type, self))


class Place(NamedTuple):
    """Where an array's elements lie, whatever their order."""

    #: Of the first element.
    address: int
    #: From one element to the next along each axis, in real numbers.
    steps: tuple[int, ...]


class RawMemory(Protocol):
    """Arrays that a compiled engine reads and writes by their addresses: what a backend offers to get one."""

    def layout(self, array: Array) -> Any:
        """How the elements lie in memory, or None where they cannot be walked as one run.

        ``"C"`` for C order. Two arrays of one shape and the same layout have the same elements at the same places.
        """

    def addresses(self, arrays: Sequence[Array], layouts: Sequence[Any], out: np.ndarray) -> int:
        """Write each array's address to `out` (int64), or −1 where its layout is another; count those."""

    def contiguous(self, array: Array) -> Array:
        """A copy in C order, aligned and in native bytes."""

    def touched(self, arrays: Iterable[Array]) -> None:
        """Take note that the arrays were written to, past the library's knowledge."""


class HostMemory(RawMemory, Protocol):
    """The same in this machine's memory."""

    def place(self, array: Array) -> Place | None:
        """Where the elements lie; None if what lies there is not aligned, or is not the elements as they are."""


class CudaMemory(RawMemory, Protocol):
    """The same on CUDA devices."""

    def ordinal(self, device: Any) -> int:
        """The device's number, as the CUDA driver counts."""

    def on(self, device: Any) -> AbstractContextManager[Any]:
        """A context manager that makes a device the current one."""

    def is_current(self, device: Any) -> bool:
        """Whether the library, left to itself, works on this device."""

    def stream(self, device: Any) -> int:
        """The handle of the current stream on a device."""


class Backend:
    """The arrays of one library. This class serves any array API namespace; the others say where they differ."""

    #: Whether arrays can be written in place.
    mutable: bool = True
    #: Whether the memory of an immutable array that nobody else holds can be used for a new one.
    donates: bool = False
    #: Whether an array may get other memory, another shape or dtype after an optimizer has got it.
    swappable: bool = True
    #: Types of arrays that are no more than what `describe` says.
    kinds: Set[type] = frozenset()

    def __init__(self, name: str, namespace: Any) -> None:
        #: What `multiopt.backends.get` finds this backend by: the library's name.
        self.name = name
        #: The array API namespace of the library.
        self.xp = namespace
        if type(self) is Backend:
            self.mutable = _is_mutable(namespace)
            self.swappable = False  # nothing but the library's own operations reads or writes these

    def __repr__(self) -> str:
        return f"<{self.name} backend>"

    # --- what an array is ---

    def rejects(self, array: Array) -> str | None:
        """Say why this array cannot be a parameter or a gradient, or return None."""
        return None

    def writable(self, array: Array) -> bool:
        """Whether the array may be written to."""
        if 0 not in array.shape:
            first = (0,) * array.ndim
            try:
                array[first] = array[first]  # the standard has no flag for this either
            except (TypeError, ValueError, RuntimeError):
                return False
        return True

    def dtype(self, array: Array) -> str:
        """The dtype's name, such as ``"float32"`` or ``"bfloat16"``."""
        if isinstance(name := getattr(array.dtype, "name", None), str):
            return name
        for name in FLOATING:
            dtype = getattr(self.xp, name, None)
            if dtype is not None and array.dtype == dtype:
                return name
        return str(array.dtype).rpartition(".")[2]

    def device(self, array: Array) -> Any:
        """The device, as something hashable with a readable ``str``."""
        return str(array.device)

    def signature(self, arrays: Sequence[Array]) -> list[Any]:
        """What must agree between a parameter and its gradient, one value an array, quick to make and to compare."""
        return [(a.dtype, a.shape, a.device) for a in arrays]

    def describe(self, arrays: list[Array]) -> Any:
        """What can be found out about many arrays in one call (`Described.description`), or None."""
        return None

    def described(self, arrays: Sequence[Array]) -> Sequence[Array]:
        """The arrays of one step, with what can be said of all of them at once, so that it is asked once."""
        if isinstance(arrays, Described):
            return arrays
        made = Described(arrays)
        made.description = self.describe(made)
        return arrays if made.description is None else made

    def alike(self, arrays: Sequence[Array]) -> bool:
        """Whether it is known that arrays are of this library's own types, of one device and dtype."""
        known = self.described(arrays)
        return isinstance(known, Described) and len(known) > 0 and known.description.alike and known.kinds <= self.kinds

    def fingerprint(self, arrays: Sequence[Array]) -> Any:
        """The signatures of all arrays as one value; a library may have a quicker way than asking one by one."""
        known = self.described(arrays)
        return known.description.signature if isinstance(known, Described) else self.signature(arrays)

    def memory_fingerprint(self, arrays: Sequence[Array]) -> Any:
        """What differs if one was swapped, has moved, has another shape or was locked; None if that takes long."""
        known = self.described(arrays)
        return known.description.memory if isinstance(known, Described) else None

    def freed(self, array: Array) -> bool:
        """Whether the array's memory is gone, although the array is still there."""
        return False

    def extent(self, array: Array) -> tuple[int, int] | None:
        """First and one-past-last byte that the array can reach, or None where that cannot be known."""
        return None

    def share_memory(self, a: Array, b: Array) -> bool:
        """Whether two arrays whose extents overlap share an element; True where that cannot be known."""
        return True

    def overlaps_itself(self, array: Array) -> bool:
        """Whether two of the array's elements may lie at the same address."""
        return False

    # --- raw memory, for compiled engines ---

    def plain(self, arrays: Sequence[Array]) -> bool:
        """Whether arrays are no more than this machine's memory, and nobody follows what is done to them."""
        return False

    def place(self, array: Array) -> Place | None:
        """See `HostMemory`."""
        return None

    def host_memory(self, device: Any) -> HostMemory | None:
        """How to read and write arrays on this device by their addresses in this machine's memory; None if not."""
        return None

    def cuda_memory(self, device: Any) -> CudaMemory | None:
        """How to read and write arrays on this device by their addresses on a CUDA device; None if not."""
        return None

    def calls(self, device: Any) -> bool:
        """Whether XLA computes on arrays on this device, and can call functions on their memory."""
        return False

    def threads(self) -> int | None:
        """On how many threads the library works in this machine's memory, if it can be told; a step takes no more."""
        return None

    # --- making and moving arrays ---

    def table_to_host(self, table: Array) -> np.ndarray:
        """A NumPy copy of a table that an engine has made; most make them in NumPy."""
        return table if isinstance(table, np.ndarray) else self.to_host(table)

    def native(self, dtype: str) -> Any:
        """The library's dtype object of this name."""
        return getattr(self.xp, dtype)

    def full_like(self, array: Array, value: float, dtype: str) -> Array:
        """A new array shaped and placed like `array`."""
        return self.xp.full_like(array, value, dtype=self.native(dtype))

    def empty_like(self, array: Array, dtype: str) -> Array:
        """A new array shaped and placed like `array`, whatever it holds; its memory need not have been touched."""
        return self.xp.empty_like(array, dtype=self.native(dtype))

    def cast(self, array: Array, dtype: str) -> Array:
        """The array in another dtype; itself if it has that dtype."""
        return self.xp.astype(array, self.native(dtype), copy=False)

    def write(self, array: Array, new: Array) -> None:
        """Put the values of `new` into `array`."""
        array[...] = new

    def filled(self, array: Array, value: float) -> Array:
        """The array with every element set to `value`; itself where it is mutable."""
        if not self.mutable:
            return self.full_like(array, value, self.dtype(array))
        array[...] = value
        return array

    def take(self, array: Array, rows: np.ndarray) -> Array:
        """A copy of some rows."""
        return self.xp.take(array, self.from_host(rows, "int64", array), axis=0)

    def put(self, array: Array, rows: np.ndarray, values: Array) -> Array:
        """The array with some rows replaced, each once: itself where it is mutable."""
        # The standard knows no assignment to rows.
        places, among = np.zeros(array.shape[0], np.int64), np.zeros((array.shape[0], *[1] * (array.ndim - 1)), bool)
        places[rows], among[rows] = np.arange(len(rows)), True
        new = self.xp.where(self.from_host(among, "bool", array), self.take(values, places), array)
        if not self.mutable:
            return new
        self.write(array, new)
        return array

    def copy(self, array: Array) -> Array:
        """A copy that shares no memory; the array itself where it is immutable, and stays."""
        return self.xp.asarray(array, copy=True) if self.mutable or self.donates else array

    def parts(self, array: Array) -> list[Array]:
        """Real arrays that make up the array: itself, or its real and imaginary part."""
        return [array] if not self.dtype(array).startswith("complex") else [self.xp.real(array), self.xp.imag(array)]

    def join(self, parts: list[Array], dtype: str) -> Array:
        """The inverse of `parts`, in `dtype`."""
        if len(parts) == 1:
            return parts[0]
        real, imaginary = (self.xp.astype(part, self.native(dtype)) for part in parts)
        return real + imaginary * 1j

    def to_host(self, array: Array) -> np.ndarray:
        """A NumPy array of the values, a copy in C order and native bytes; bfloat16 as its bits, in uint16."""
        return np.array(array, order="C", copy=True)

    def from_host(self, array: np.ndarray, dtype: str, like: Array | None = None) -> Array:
        """The inverse of `to_host`: an array of `dtype`, shaped as `array`, on the device of `like`, if given."""
        return self.xp.asarray(array, dtype=self.native(dtype), device=None if like is None else like.device)

    def indices(self, n: int, like: Array) -> Array:
        """The numbers from 0 to n − 1 in int32, placed like an array, which may be traced."""
        return self.xp.arange(n, dtype=self.xp.int32)

    # --- computing ---

    def blocked(self, device: Any) -> bool:
        """Whether eager work is done in cache-sized blocks: it pays where each operation runs at once, on a CPU."""
        return False

    def elementwise(self, function: Any, arrays: Sequence[Array]) -> tuple[Array, ...]:
        """Call ``function(xp, *arrays)``, which returns a tuple of arrays of the same shape.

        ``function.numbers`` are those that it reads besides, of Python or, where a library traces, of that.
        """
        # Many a namespace stands on NumPy; overflow is no more a warning here than in the compiled engines.
        with np.errstate(all="ignore"):
            return tuple(with_default_control(function, self.xp, *arrays))

    def lower(
        self,
        program: Any,
        columns: Sequence[Sequence[Array]],
        scalars: Mapping[str, Any],
        rounding: Any,
        parameters: Sequence[int],
    ) -> list[list[Array]] | None:
        """Have the library's compiler run a `Program` on arrays that it may be tracing; None: operation by operation.

        `columns` are the parameters, their gradients and each slot's arrays, shaped alike; those of a column have one
        dtype. `scalars` are numbers of Python or 0-d arrays, `rounding` is a `Rounding` where the program rounds
        stochastically, and `parameters` are the parameters' numbers. Returns the columns of parameters and state.
        """
        return None

    def square_sums(self, prepare: Any, g: Array, computing: str) -> list[int]:
        """A row of `norms.square_sums` for ``prepare(xp, g)``; exact, so it may be computed by chunks or elsewhere."""
        with np.errstate(all="ignore"):
            return with_default_control(
                lambda: square_sums(self.xp, self.xp.astype(prepare(self.xp, g), self.xp.float64), computing)
            )

    def square_rows(self, prepare: Any, arrays: Iterable[Array], computing: str) -> Iterable[list[int]]:
        """The `square_sums` of many arrays: a lazy library computes them in one go."""
        return (self.square_sums(prepare, array, computing) for array in arrays)

    def finite(self, array: Array) -> bool:
        """Whether every element is finite."""
        return bool(self.xp.all(self.xp.isfinite(array)))

    def hold(self, arrays: Sequence[Array | None]) -> Sequence[Array | None]:
        """Called with gradients that a step reads more than once: a lazy library sees to it that it makes them once."""
        return arrays

    def settle(self, arrays: list[Array]) -> list[Array]:
        """Called with all new arrays of a step: a lazy library computes them here, in one go."""
        return arrays


def strides_overlap(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> bool:
    """Whether an array of these strides may have two elements at one address."""
    if 0 in shape:
        return False
    reach = itemsize
    for stride, n in sorted((abs(s), n) for s, n in zip(strides, shape, strict=True) if n > 1):
        if stride < reach:
            return True
        reach = stride * (n - 1) + reach
    return False


def dense(shape: Sequence[int], strides: Sequence[float]) -> bool:
    """Whether elements at these strides, in elements, fill one run of memory: C order or any other order of axes."""
    step = 1
    for stride, n in sorted(zip(strides, shape, strict=True)):
        if n != 1 and stride != step:
            return False
        step *= n
    return True


def _is_mutable(xp: Any) -> bool:
    """Whether a namespace's arrays can be written to; the standard has no flag for it."""
    probe = xp.zeros(1)
    try:
        probe[...] = 1.0
    except (TypeError, ValueError, AttributeError, NotImplementedError):
        return False
    return True
