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

__all__ = ["FLOATING", "Array", "Backend", "Bucket", "Engine", "NormTable", "wider"]

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

    name: ClassVar[str] = "generic"
    #: The distribution to install, for `multiopt info`.
    extra: ClassVar[str | None] = None
    #: Whether arrays can be written in place.
    mutable: ClassVar[bool] = True
    #: Whether eager work is done in cache-sized blocks: it pays where each operation runs at once, on a CPU.
    blocked: ClassVar[bool] = False

    def __init__(self, namespace: Any) -> None:
        #: The array API namespace of the library, with float64 and int64 where the library has them.
        self.xp = namespace

    def __repr__(self) -> str:
        return f"<{self.name} backend>"

    # --- what an array is ---

    def admit(self, array: Array) -> str | None:
        """Say why this array cannot be a parameter or a gradient, or return None."""
        return None

    def writable(self, array: Array) -> bool:
        """Whether the array may be written to."""
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
        return [(a.dtype, a.shape) for a in arrays]

    def extent(self, array: Array) -> tuple[int, int] | None:
        """First and one-past-last byte that the array can reach, or None where that cannot be known."""
        return None

    # --- making and moving arrays ---

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

    def copy(self, array: Array) -> Array:
        """A copy that shares no memory."""
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
        return np.ascontiguousarray(np.asarray(array))

    def from_host(self, array: np.ndarray, like: Array, dtype: str) -> Array:
        """The inverse of `to_host`: an array of `dtype`, on the device of `like`, shaped as `array`."""
        return self.xp.asarray(array, dtype=self.native(dtype), device=like.device)

    # --- computing ---

    def elementwise(self, function: Any, arrays: Sequence[Array]) -> tuple[Array, ...]:
        """Call ``function(xp, *arrays)``, which returns a tuple of arrays of the same shape."""
        return tuple(function(self.xp, *arrays))

    def square_sums(self, prepare: Any, g: Array, lowest: int) -> list[int]:
        """A row of `norms.square_sums` for ``prepare(xp, g)``; exact, so it may be computed by chunks or elsewhere."""
        from .engines.norms import square_sums

        return square_sums(self.xp, self.xp.astype(prepare(self.xp, g), self.xp.float64), lowest)

    def finite(self, array: Array) -> bool:
        """Whether every element is finite."""
        return bool(self.xp.all(self.xp.isfinite(array)))

    def settle(self, arrays: list[Array]) -> list[Array]:
        """Called with all new arrays of a step: a lazy library computes them here, in one go."""
        return arrays


@dataclass
class Bucket:
    """Arrays of one backend, device and dtype, with their state.

    Attributes
    ----------
    backend : Backend
    engine : Engine
    device : object
        As `Backend.device` says.
    dtype, state_dtype : str
    names : list of str
        The parameters' names, for messages.
    params : list of arrays
    state : dict of str to list of arrays
        One list a slot, as long as `params`.
    cache : dict
        The engine's own; it holds nothing that cannot be made again.
    """

    backend: Backend
    engine: Engine
    device: Any
    dtype: str
    state_dtype: str
    names: list[str]
    params: list[Array]
    state: dict[str, list[Array]]
    cache: dict[Any, Any] = field(default_factory=dict, repr=False)

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
        """Say why this engine cannot serve such arrays, or return None. `dtypes`: parameter, state."""

    def prepare(self, one_pass: Pass, dtypes: Sequence[str]) -> None:
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
        self, bucket: Bucket, one_pass: Pass, grads: Sequence[Array | None], values: Mapping[str, Any], lowest: int
    ) -> NormTable:
        """Sum the squares of the gradients, scaled and clipped by value; rows of skipped ones are zero."""

    def finite(self, bucket: Bucket, grads: Sequence[Array | None]) -> list[bool]:
        """Say of each gradient whether all its elements are finite; True for a skipped one."""
