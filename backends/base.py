"""What a backend and an engine must do.

A *backend* knows the arrays of one library: how they are recognised, described, made, read and written. It alone
imports that library, and only when its arrays are seen. It does no arithmetic.

An *engine* computes on the arrays of a bucket. Every engine gives the same bits in float32 and float64.

A *bucket* is the arrays of one backend, device and dtype that one pass updates together, so that a thousand small
tensors cost one call. It owns the parameters and their state; where arrays are immutable, an engine puts the new
ones into the bucket's lists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np

from .engines.onepass import Pass

__all__ = ["FLOATING", "Array", "Backend", "Bucket", "Engine", "NormTable", "strides_overlap", "wider"]

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


class Backend:
    """The arrays of one library. This class serves any array API namespace; the others say where they differ."""

    name: str = "generic"
    #: The distribution to install, for `multiopt info`.
    extra: ClassVar[str | None] = None
    #: Whether arrays can be written in place.
    mutable: bool = True
    #: Whether an array may get other memory, another shape or dtype after an optimizer has got it.
    swappable: ClassVar[bool] = False
    #: Whether eager work is done in cache-sized blocks: it pays where each operation runs at once, on a CPU.
    blocked: ClassVar[bool] = False

    def __init__(self, key: str, namespace: Any) -> None:
        #: What `multiopt.backends.get` finds this backend by.
        self.key = key
        #: The array API namespace of the library.
        self.xp = namespace
        if type(self) is Backend:
            self.name = key
            self.mutable = _is_mutable(namespace)

    def __repr__(self) -> str:
        return f"<{self.name} backend>"

    def __reduce__(self) -> Any:
        from . import get

        return get, (self.key,)

    # --- what an array is ---

    def admit(self, array: Array) -> str | None:
        """Say why this array cannot be a parameter or a gradient, or return None."""
        return None

    def writable(self, array: Array) -> bool:
        """Whether the array may be written to."""
        if type(self) is Backend and 0 not in array.shape:
            first = (0,) * array.ndim
            try:
                array[first] = array[first]  # the standard has no flag for this either
            except (TypeError, ValueError, RuntimeError):
                return False
        return True

    def dtype(self, array: Array) -> str:
        """The dtype's name, such as ``"float32"`` or ``"bfloat16"``."""
        for name in ("float32", "float64", "complex64", "complex128", "float16", "bfloat16"):
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

    def fingerprint(self, arrays: Sequence[Array]) -> Any:
        """The signatures of all arrays as one value; a library may have a quicker way than asking one by one."""
        return self.signature(arrays)

    def extent(self, array: Array) -> tuple[int, int] | None:
        """First and one-past-last byte that the array can reach, or None where that cannot be known."""
        return None

    def owner(self, array: Array) -> int:
        """What owns the array's memory: arrays with different owners share none. Quick to find."""
        return id(array)

    def share_memory(self, a: Array, b: Array) -> bool:
        """Whether two arrays whose extents overlap share an element; True where that cannot be known."""
        return True

    def overlaps_itself(self, array: Array) -> bool:
        """Whether two of the array's elements may lie at the same address."""
        return False

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

    def copy(self, array: Array) -> Array:
        """A copy that shares no memory; the array itself where it is immutable."""
        return self.xp.asarray(array, copy=True)

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
        """A NumPy array of the values, in C order and native bytes; bfloat16 as its bits, in uint16."""
        return np.asarray(array, order="C")

    def from_host(self, array: np.ndarray, like: Array, dtype: str) -> Array:
        """The inverse of `to_host`: an array of `dtype`, on the device of `like`, shaped as `array`."""
        return self.xp.asarray(array, dtype=self.native(dtype), device=like.device)

    # --- computing ---

    def elementwise(self, function: Any, arrays: Sequence[Array]) -> tuple[Array, ...]:
        """Call ``function(xp, *arrays)``, which returns a tuple of arrays of the same shape."""
        # Many a namespace stands on NumPy; overflow is no more a warning here than in the compiled engines.
        with np.errstate(all="ignore"):
            return tuple(function(self.xp, *arrays))

    def square_sums(self, prepare: Any, g: Array, lowest: int) -> list[int]:
        """A row of `norms.square_sums` for ``prepare(xp, g)``; exact, so it may be computed by chunks or elsewhere."""
        from .engines.norms import square_sums

        with np.errstate(all="ignore"):
            return square_sums(self.xp, self.xp.astype(prepare(self.xp, g), self.xp.float64), lowest)

    def finite(self, array: Array) -> bool:
        """Whether every element is finite."""
        return bool(self.xp.all(self.xp.isfinite(array)))

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


def _is_mutable(xp: Any) -> bool:
    """Whether a namespace's arrays can be written to; the standard has no flag for it."""
    probe = xp.zeros(1)
    try:
        probe[...] = 1.0
    except (TypeError, ValueError, AttributeError, NotImplementedError):
        return False
    return True


@dataclass
class Bucket:
    """Arrays of one backend, device and dtype, with their state.

    Attributes
    ----------
    backend : Backend
    engine : Engine
    device : object
        As `Backend.device` says.
    dtype, grad_dtype, state_dtype : str
        Of the parameters, of their gradients and of each state array.
    names : list of str
        The parameters' names, for messages.
    params : list of arrays
    state : dict of str to list of arrays
        One list a slot, as long as `params`.
    wanted : str
        The engine that was asked for.
    cache : dict
        The engine's own; it holds nothing that cannot be made again.
    prepared : set of Pass
        What the engine has compiled.
    kinds : set of type
        Types of gradients that have been found good.
    signatures : list
        What the gradients' `Backend.signature` must be; immutable arrays change, but not in this.
    fingerprint : object
        The same as one value: `Backend.fingerprint`.
    watched : bool
        Whether whoever made the bucket sees to it that its arrays stay where they are in memory, and makes another one
        if they do not.
    """

    backend: Backend
    engine: Engine
    device: Any
    dtype: str
    grad_dtype: str
    state_dtype: str
    names: list[str]
    params: list[Array]
    state: dict[str, list[Array]]
    wanted: str = "auto"
    cache: dict[Any, Any] = field(default_factory=dict, repr=False)
    prepared: set[Pass] = field(default_factory=set, repr=False)
    kinds: set[type] = field(default_factory=set, repr=False)
    signatures: list[Any] = field(init=False, repr=False)
    fingerprint: Any = field(init=False, repr=False)
    watched: bool = False

    def __post_init__(self) -> None:
        self.signatures = self.backend.signature(self.params)
        self.fingerprint = self.backend.fingerprint(self.params)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what can be made again, the engine too: another machine may have another one."""
        fresh: dict[str, Any] = {"engine": None, "cache": {}, "prepared": set(), "kinds": set()}
        fresh |= {"signatures": [], "fingerprint": None}  # a library's own objects, such as devices, need not pickle
        return {**self.__dict__, **fresh}

    def __setstate__(self, state: dict[str, Any]) -> None:
        from . import engine_for

        self.__dict__.update(state)
        self.engine, _ = engine_for(self.backend, self.device, self.dtypes[:3], self.wanted)
        self.__post_init__()

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The dtypes of x, g and each state array."""
        return self.dtype, self.grad_dtype, *[self.state_dtype] * len(self.state)

    def arrays(self) -> list[list[Array]]:
        """The parameters and each slot's arrays, in the rule's order."""
        return [self.params, *self.state.values()]


@dataclass
class NormTable:
    """Exact sums of squares of a bucket's gradients: see `engines.norms`.

    `table` is int64 of shape (tensors, COLUMNS), a NumPy array or one on the bucket's device, and `xp` its namespace.
    """

    xp: Any
    table: Array


class Engine(Protocol):
    """Computes on buckets. `values` holds every number that the pass reads, by name."""

    name: str

    def refuses(self, backend: Backend, device: Any, dtypes: Sequence[str]) -> str | None:
        """Say why this engine cannot serve such arrays, or return None. `dtypes` are those of x, g and state arrays."""

    def prepare(self, one_pass: Pass, dtypes: tuple[str, ...]) -> None:
        """Compile what `update` needs, so that a rule outside the subset is refused before anything is written.

        Raises
        ------
        TraceError
            If the rule cannot be compiled.
        """

    def update(
        self,
        bucket: Bucket,
        one_pass: Pass,
        grads: Sequence[Array | None],
        values: Mapping[str, Any],
        norm_scales: Array | None,
    ) -> None:
        """Do one step on the bucket's parameters and state; a gradient of None skips its parameter.

        `norm_scales` holds one factor a tensor, in the namespace of `norm_table`, if the pass is `normed`.
        """

    def norm_table(
        self,
        bucket: Bucket,
        one_pass: Pass,
        grads: Sequence[Array | None],
        values: Mapping[str, Any],
        lowest: int,
    ) -> NormTable:
        """Sum the squares of the gradients, scaled and clipped by value; rows of skipped ones are zero."""

    def finite(self, bucket: Bucket, grads: Sequence[Array | None]) -> list[bool]:
        """Say of each gradient whether all its elements are finite; True for a skipped one."""
