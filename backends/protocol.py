"""What an engine must do, and what it works on.

An *engine* computes on the arrays of a bucket: it runs a `Program`, whatever that means. Every engine gives the same
bits in float32 and float64. It asks the arrays' backend whether it can serve them (`Backend.host_memory`,
`Backend.cuda_memory`), never for its name.

A *bucket* is the arrays of one backend, device and dtype that one pass over memory updates together, so that a
thousand small tensors cost one call. It owns the parameters and their state; where arrays are immutable, an engine
puts the new ones into the bucket's lists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from .engines.program import Program
from .generic import Array, Backend

__all__ = ["Bucket", "Engine", "Job", "NormTable"]


@dataclass
class Bucket:
    """Arrays of one backend, device and dtype, with their state."""

    backend: Backend
    engine: Engine
    #: As `Backend.device` says.
    device: Any
    #: The dtypes of the parameters, of their gradients and of each state array.
    dtype: str
    grad_dtype: str
    state_dtype: str
    #: The parameters' names, for messages.
    names: list[str]
    params: list[Array]
    #: One list a slot, as long as `params`.
    state: dict[str, list[Array]]
    #: The engine that was asked for.
    wanted: str = "auto"
    #: The engine's own; it holds nothing that cannot be made again.
    cache: dict[Any, Any] = field(default_factory=dict, repr=False)
    #: Updates that the engine has compiled, by whoever had it compile them.
    prepared: set[Any] = field(default_factory=set, repr=False)
    #: Types of gradients that have been found good.
    kinds: set[type] = field(default_factory=set, repr=False)
    #: The parameters' `Backend.signature` when the bucket was made; immutable arrays change, but not in this.
    signatures: list[Any] = field(init=False, repr=False)
    #: The same as one value: `Backend.fingerprint`.
    fingerprint: Any = field(init=False, repr=False)
    #: The `Backend.fingerprint` of gradients that have been found good, if there is one for each parameter.
    accepted: Any = field(init=False, repr=False)
    #: Whether whoever made the bucket sees to it that its arrays stay where they are in memory, and makes another one
    #: if they do not.
    watched: bool = False

    def __post_init__(self) -> None:
        self.signatures = self.backend.signature(self.params)
        self.fingerprint = self.backend.fingerprint(self.params)
        self.accepted = self.fingerprint if self.grad_dtype == self.dtype else None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what can be made again; the engine too, because another machine may have another one."""
        fresh: dict[str, Any] = {"engine": None, "cache": {}, "prepared": set(), "kinds": set()}
        # A library's own objects, such as devices, need not pickle.
        return {**self.__dict__, **fresh, "signatures": [], "fingerprint": None, "accepted": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__post_init__()

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The dtypes of x, g and each state array."""
        return self.dtype, self.grad_dtype, *[self.state_dtype] * len(self.state)

    def arrays(self) -> list[list[Array]]:
        """The parameters and each slot's arrays, in the rule's order."""
        return [self.params, *self.state.values()]


@dataclass
class Job:
    """One step of one bucket."""

    bucket: Bucket
    program: Program
    #: A gradient for each parameter; None skips its parameter.
    grads: Sequence[Array | None]
    #: Every scalar that the program reads.
    values: Mapping[str, Any]


@dataclass
class NormTable:
    """Exact sums of squares of a bucket's gradients: see `engines.norms`.

    `table` is int64 of shape (tensors, columns of the dtype), a NumPy array or one on the bucket's device, and `xp` its namespace.
    """

    xp: Any
    table: Array


class Engine(Protocol):
    """Computes on buckets."""

    name: str

    def rejects(self, backend: Backend, device: Any, dtypes: Sequence[str]) -> str | None:
        """Say why this engine cannot serve such arrays, or return None. `dtypes` are those of x, g and state arrays."""

    def filled_like(self, backend: Backend, arrays: Sequence[Array], value: float, dtype: str) -> list[Array]:
        """Make arrays like others in shape and place, filled with a value; their memory is first touched here."""
        return [backend.full_like(array, value, dtype) for array in arrays]

    def prepare(self, program: Program, dtypes: tuple[str, ...]) -> None:
        """Compile what `update` needs: a `TraceError` comes before anything is written."""

    def update(self, job: Job, norm_scales: Array | None) -> None:
        """Do one step on the bucket's parameters and state.

        `norm_scales` holds one factor a tensor, in the namespace of `norm_table`, if the program has any `per_tensor`.
        """

    def norm_table(self, job: Job) -> NormTable:
        """Sum the squares of the gradients, scaled and clipped by value; rows of skipped ones are zero."""

    def finite(self, job: Job) -> list[bool]:
        """Say of each gradient whether all its elements are finite; True for a skipped one."""
