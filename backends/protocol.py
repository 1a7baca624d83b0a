"""What an engine must do, and what it works on.

An *engine* computes on the arrays of a bucket: it runs a `Program`, whatever that means. Every engine gives the same
bits in float32 and float64. It asks the arrays' backend whether it can serve them (`Backend.host_memory`,
`Backend.cuda_memory`), never for its name.

A *bucket* is the arrays of one backend, device and dtype that one pass over memory updates together, so that a
thousand small tensors cost one call. It owns the parameters and their state; where arrays are immutable, an engine
puts the new ones into the bucket's lists.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, repeat
from operator import is_
from typing import Any, Protocol

import numpy as np

from .engines.program import Program
from .generic import Array, Backend, Described
from .rounding import Draws, Elements, Keys, Rounding

__all__ = ["Bucket", "Engine", "Extents", "Job", "Location", "NormTable", "Ranges"]

#: The first and the one-past-last byte of some arrays, int64; 0 and 0 where there is none.
Extents = tuple[np.ndarray, np.ndarray]


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
    #: Rows of the one parameter, and of its state, that are updated, each once; the gradient has these rows only. None:
    #: parameters are updated whole. Gradients of rows are not measured.
    rows: np.ndarray | None = None
    #: Columns of `arrays` that nobody else holds: the memory of immutable ones may be used for the new ones.
    owned: tuple[int, ...] = ()
    #: Which elements the parameters hold, where updates round stochastically.
    elements: list[Elements] | None = None
    #: The engine's own; it holds nothing that cannot be made again.
    cache: dict[Any, Any] = field(default_factory=dict, repr=False)
    #: Programs that the engine has compiled, by whoever had it compile them.
    prepared: set[Any] = field(default_factory=set, repr=False)
    #: Types of gradients that have been found good.
    kinds: set[type] = field(default_factory=set, repr=False)
    #: For each list of `arrays`, the `Backend.signature` of its arrays when the bucket was made; immutable arrays are
    #: replaced, but not in this.
    signatures: list[list[Any]] = field(init=False, repr=False)
    #: The `memory_fingerprint` of all its `arrays` when they were last found good; True where there is none, and None
    #: before that.
    good: Any = field(init=False, repr=False)
    #: The same as it is now, if somebody has asked already in the coming step.
    asked: Any = field(default=None, repr=False)
    #: The `Backend.fingerprint` of gradients that have been found good, if there is one for each parameter.
    accepted: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.signatures = [self.backend.signature(column) for column in self.arrays()]
        self.good = None
        self.accepted = self.backend.fingerprint(self.params) if self.grad_dtype == self.dtype else None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what can be made again; the engine too, because another machine may have another one."""
        fresh: dict[str, Any] = {"engine": None, "cache": {}, "prepared": set(), "kinds": set(), "asked": None}
        # A library's own objects, such as devices, need not pickle.
        return {**self.__dict__, **fresh, "signatures": [], "good": None, "accepted": None}

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

    def memory_fingerprint(self) -> Any:
        """What differs if one of its arrays was swapped, has moved or was locked; True if that takes long to say."""
        return self.backend.memory_fingerprint(list(chain.from_iterable(self.arrays()))) or True


@dataclass
class Job:
    """One step of one bucket."""

    bucket: Bucket
    program: Program
    #: A gradient for each parameter; None skips its parameter.
    grads: Sequence[Array | None]
    #: Every scalar that the program reads: of all tensors, or of several groups of them.
    values: Sequence[Mapping[str, Any]]
    #: The place in `values` of each tensor's, int64; None: there is one for all.
    which: np.ndarray | None = None
    #: Where they lie; see `Engine.locate`.
    location: Any = None
    #: By what the outputs that the program says are rounded stochastically.
    rounding: Rounding | None = None
    #: What is done on the same elements right after, while they are in the cache: a job of the same engine, whose
    #: gradients are this one's parameters, and whose arrays share no memory with this one's.
    then: Job | None = None

    def group_of(self, i: int) -> int:
        """The place in `values` of the i-th tensor's."""
        return 0 if self.which is None else int(self.which[i])

    @property
    def complete(self) -> bool:
        """Whether every parameter has a gradient."""
        return isinstance(self.grads, Described) or not any(map(is_, self.grads, repeat(None)))

    @property
    def keys(self) -> Keys:
        """The step's keys for stochastic rounding."""
        assert self.rounding is not None  # `Binding.plan` has looked
        return self.rounding.keys

    def draws(self, i: int) -> Draws:
        """What the state of the i-th parameter is rounded by."""
        assert self.rounding is not None  # `Binding.plan` has looked
        assert self.bucket.elements is not None
        return Draws(self.rounding, self.bucket.elements[i], tuple(self.bucket.params[i].shape))

    @property
    def updated(self) -> Iterable[Array]:
        """The parameters that have a gradient, and their state."""
        columns = self.bucket.arrays()
        if not self.complete:
            live = [i for i, g in enumerate(self.grads) if g is not None]
            columns = [[column[i] for i in live] for column in columns]
        return chain.from_iterable(columns)


class Ranges:
    """Memory that is written to: the first bytes of its pieces, and their one-past-last bytes."""

    def __init__(self, begins: np.ndarray, ends: np.ndarray) -> None:
        self._given = begins, ends

    @cached_property
    def begins(self) -> np.ndarray:
        """Sorted, as the `ends` are, each for itself: one view may lie within the gaps of another."""
        begins, ends = self._given
        return np.sort(begins[begins < ends])

    @cached_property
    def ends(self) -> np.ndarray:
        """See `begins`."""
        begins, ends = self._given
        return np.sort(ends[begins < ends])

    @classmethod
    def union(cls, parts: Sequence[Ranges]) -> Ranges:
        """All that is in one of them."""
        if len(parts) == 1:
            return parts[0]
        return cls(np.concatenate([part.begins for part in parts]), np.concatenate([part.ends for part in parts]))

    @property
    def overlap(self) -> bool:
        """Whether one of the pieces meets another."""
        return bool((self.ends[:-1] > self.begins[1:]).any())

    def meets(self, other: Ranges) -> bool:
        """Whether some memory is in both."""
        return bool(self.aliases((other.begins, other.ends), np.zeros(len(other.begins), bool)))

    def aliases(self, read: Extents, upon: np.ndarray) -> list[int]:
        """Find gradients in this memory: they would change while they are read, but for those upon their parameters."""
        begins, ends = read
        meets = self.begins.searchsorted(ends) - self.ends.searchsorted(begins, side="right")
        if not np.count_nonzero(meets):  # as nearly always
            return []
        return ((meets > upon) & (begins < ends)).nonzero()[0].tolist()


@dataclass
class Location:
    """Where a job's arrays lie, found in this very step."""

    #: What it writes to.
    written: Ranges
    #: Of the gradients.
    read: Extents
    #: Whether a gradient lies upon its own parameter, element upon element: each is read before it is written.
    upon: np.ndarray
    #: Tensors that cannot be walked as one run of memory.
    odd: Sequence[int] = ()
    #: Those of them that an engine walks by their strides, and what it knows them by.
    tiled: Container[int] = ()
    tiles: Any = None


@dataclass
class NormTable:
    """Exact sums of squares of a bucket's gradients: see `engines.norms`.

    `table` is int64, with a row a tensor, a NumPy array or one on the bucket's device, and `xp` its namespace.
    `watched` is the like: something in a row is not 0 where an element of the gradient itself, before it is scaled and
    clipped, is infinite or NaN. None where nobody looked.
    """

    xp: Any
    table: Array
    watched: Array | None = None


class Engine(Protocol):
    """Computes on buckets."""

    name: str
    #: Whether the tensors of a job may have several groups' numbers.
    takes_groups: bool = False
    #: Whether it puts new arrays where a bucket's own lay that are immutable.
    donates: bool = False
    #: Whether it does what a job says is to be done `then`.
    chains: bool = False

    def rejects(self, backend: Backend, device: Any, dtypes: Sequence[str]) -> str | None:
        """Say why this engine cannot serve such arrays, or return None. `dtypes` are those of x, g and state arrays."""

    def filled_like(self, backend: Backend, arrays: Sequence[Array], value: float, dtype: str) -> list[Array]:
        """Make arrays like others in shape and place, filled with a value; their memory is first touched here."""
        return [backend.full_like(array, value, dtype) for array in arrays]

    def prepare(self, program: Program, dtypes: tuple[str, ...]) -> None:
        """Compile what `update` needs: a `TraceError` comes before anything is written."""

    def locate(self, job: Job) -> Location | None:
        """Find where a job's arrays lie, and refuse what cannot be read or written; nothing is written.

        The job keeps the answer for the methods below, which hold for this step and refuse nothing. None where arrays
        are immutable.
        """

    def update(self, job: Job, norm_scales: Array | None) -> None:
        """Do one step on the bucket's parameters and state.

        `norm_scales` holds one factor a tensor, in the namespace of `norm_table`, if the program has any `per_tensor`.
        """

    def compute(
        self,
        backend: Backend,
        program: Program,
        columns: Sequence[Sequence[Array]],
        values: Mapping[str, Any],
        names: Sequence[str],
        *,
        alone: bool = False,
    ) -> list[list[Array]] | None:
        """Compute new parameters and state, as new arrays; None if the engine updates in place only.

        `columns` are the parameters, their gradients and each slot's arrays, shaped alike and `Backend.plain`; those of
        a column have one dtype. The program rounds nothing stochastically. `names` are the parameters', for messages.
        `alone` says that no other thread is to help. Raises what `prepare` and `locate` do.
        """
        return None

    def norm_table(self, job: Job) -> NormTable:
        """Sum the squares of the gradients, scaled and clipped by value; rows of skipped ones are zero."""

    def finite(self, job: Job) -> list[bool]:
        """Say of each gradient whether all its elements are finite; True for a skipped one."""
