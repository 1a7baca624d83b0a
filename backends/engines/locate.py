"""Where a bucket's arrays lie: tables of addresses for the compiled engines, aliases, and copies of odd layouts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..generic import FLOATING, Array, Backend, Described, RawMemory
from ..protocol import Bucket, Extents, Job, Location, Ranges

__all__ = [
    "ITEMSIZES", "LOWEST", "Copies", "Locations", "RowLocations", "blocks", "check_memory", "copy_blocks", "extents",
    "locations_of", "mixes", "parts_of", "real_dtypes", "walks_rows",
]  # fmt: skip

#: No array lies below. The address of a view of memory that was freed is the view's offset.
LOWEST = 1 << 32
#: Bytes of a real element of each dtype.
ITEMSIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


def real_dtypes(dtypes: Sequence[str]) -> tuple[str, ...]:
    """The dtypes of the real numbers that the elements are made of."""
    return tuple(FLOATING[dtype] for dtype in dtypes)


def parts_of(dtype: str) -> int:
    """Real numbers that make up an element."""
    return 2 if dtype.startswith("complex") else 1


def mixes(dtypes: Sequence[str]) -> str | None:
    """Say why no kernel is made for arrays of these dtypes, or return None."""
    real = real_dtypes(dtypes)
    if "float64" in real and not set(real) <= {"float32", "float64"}:
        return "it does not mix float64 with half precision"
    return None


def blocks(shape: tuple[int, ...], size: int) -> Iterator[tuple[slice, ...]]:
    """Cut a shape into blocks of at most `size` elements, the last axes whole where they fit."""
    if math.prod(shape) <= size:
        yield tuple(slice(0, n) for n in shape)
        return
    inner, axis = 1, len(shape)
    while inner * shape[axis - 1] <= size:
        axis -= 1
        inner *= shape[axis]
    # `axis - 1` is the first axis that does not fit whole: cut it, and visit the outer ones one by one.
    step = max(1, size // inner)
    for outer in np.ndindex(shape[: axis - 1]):
        for start in range(0, shape[axis - 1], step):
            block = [slice(i, i + 1) for i in outer]
            block.append(slice(start, min(start + step, shape[axis - 1])))
            yield tuple(block + [slice(0, n) for n in shape[axis:]])


def _start(shape: tuple[int, ...], block: tuple[slice, ...]) -> int:
    """The number of a block's first element, in C order."""
    number = 0
    for n, part in zip(shape, block, strict=True):
        number = number * n + part.start
    return number


def extents(backend: Backend, arrays: Sequence[Array | None]) -> Extents:
    """First and one-past-last byte of each array; where they cannot be known, numbers that no other array has."""
    found = [(0, 0) if a is None else backend.extent(a) or (id(a), id(a) + 1) for a in arrays]
    begins, ends = np.array(found, np.int64).reshape(-1, 2).T
    return begins, ends


class Locations:
    """Where a bucket's parameters, gradients and state lie."""

    def __init__(self, bucket: Bucket, memory: RawMemory) -> None:
        self.bucket, self.memory = bucket, memory
        self.sizes = np.array([math.prod(p.shape) for p in bucket.params], np.int64) * parts_of(bucket.dtype)
        #: A row a tensor: its real elements, and the addresses of x, g and the state. The address of g is 0 where the
        #: tensor is skipped.
        self.table = np.zeros((len(bucket.params), 3 + len(bucket.state)), np.int64)
        self.table[:, 0] = self.sizes
        own = [bucket.dtype, *[bucket.state_dtype] * len(bucket.state)]
        *self.own_bytes, self.grad_bytes = (self.sizes * ITEMSIZES[FLOATING[d]] for d in (*own, bucket.grad_dtype))
        #: The bucket's `good` that the table's columns of the parameters and the state were found from.
        self.known: Any = None
        self.layouts: list[Any] = []
        #: Tensors whose parameter or state cannot be walked as one run.
        self.odd: set[int] = set()
        self.extents: list[Extents] = [(self.sizes, self.sizes)] * len(own)
        self.written = Ranges(self.sizes, self.sizes)

    def find(self, job: Job) -> Location:
        """Bring the table up to date.

        Raises
        ------
        ValueError
            If a gradient's memory was freed.
        """
        good, movable = self.bucket.good, self.bucket.backend.swappable
        if self.known is None or (movable and (good is True or good != self.known)):
            self._find_own()
            self.known = good
        grads, found = job.grads, self.table[:, 2]
        if job.complete:
            self.memory.addresses(grads, self.layouts, found)
        else:
            found[:] = 0
            self.find_gradients(grads, [i for i, g in enumerate(grads) if g is not None])
        if strange := np.count_nonzero(found < LOWEST) > 0:
            self._check_gradients(grads)
        read = self._extents(grads, found, self.grad_bytes)
        upon = (found == self.table[:, 1]) & (read[1] == self.extents[0][1])
        odd = list[int]()
        if strange or self.odd:
            upon &= found >= 0
            odd = sorted(self.odd.union(np.flatnonzero(found < 0).tolist()))
            found[odd] = 0
        return Location(self.written, read, upon, [i for i in odd if grads[i] is not None])

    def find_gradients(self, grads: Sequence[Array | None], which: Sequence[int]) -> None:
        """Write the addresses of some gradients: −1 where the layout is not the parameter's."""
        found = np.zeros(len(which), np.int64)
        self.memory.addresses([grads[i] for i in which], [self.layouts[i] for i in which], found)
        self.table[which, 2] = found

    def _find_own(self) -> None:
        self.layouts = [self.memory.layout(p) for p in self.bucket.params]
        if self.bucket.elements is not None:  # their numbers are those of C order
            self.layouts = [layout if layout == "C" else None for layout in self.layouts]
        self.odd, columns = set(), [1, *range(3, self.table.shape[1])]
        for k, (arrays, column) in enumerate(zip(self.bucket.arrays(), columns, strict=True)):
            found = np.zeros(len(arrays), np.int64)
            self.memory.addresses(arrays, self.layouts, found)
            self.table[:, column] = found
            self.odd.update(np.flatnonzero(found < 0).tolist())
            self.extents[k] = self._extents(arrays, found, self.own_bytes[k])
        begins, ends = zip(*self.extents, strict=True)
        self.written = Ranges(np.concatenate(begins), np.concatenate(ends))

    def _extents(self, arrays: Sequence[Array | None], found: np.ndarray, lengths: np.ndarray) -> Extents:
        begins, ends = found.copy(), found + lengths
        if np.count_nonzero(strange := found <= 0):
            which = np.flatnonzero(strange).tolist()
            begins[which], ends[which] = extents(self.bucket.backend, [arrays[i] for i in which])
        return begins, ends

    def _check_gradients(self, grads: Sequence[Array | None]) -> None:
        """Refuse gradients whose memory was freed; what never had any, such as a zero tensor, is walked as a copy."""
        found = self.table[:, 2]
        for i in np.flatnonzero((found < LOWEST) & (self.sizes > 0)).tolist():
            if (g := grads[i]) is not None:
                check_memory(self.bucket, i, g)
                found[i] = found[i] or -1


class OwnLocations(Locations):
    """Where arrays without gaps lie that are parameters and gradients alike, and have no state."""

    def __init__(self, bucket: Bucket, memory: RawMemory) -> None:
        self.bucket, self.memory = bucket, memory
        self.sizes = np.array([math.prod(p.shape) for p in bucket.params], np.int64) * parts_of(bucket.dtype)
        self.table = np.zeros((len(self.sizes), 3), np.int64)
        self.table[:, 0] = self.sizes
        self.odd = set()

    def find(self, job: Job) -> Location:
        """Fill the table; see `Locations.find`."""
        found, grads = self.table[:, 2], job.grads
        self.memory.addresses(grads, ["C"] * len(grads), found)
        odd = list[int]()
        if np.count_nonzero(found < LOWEST):
            self._check_gradients(grads)
            odd = np.flatnonzero(found < 0).tolist()
        begins, ends = self._extents(grads, found, self.sizes * ITEMSIZES[FLOATING[self.bucket.dtype]])
        found[odd] = 0
        self.table[:, 1] = found
        return Location(Ranges(begins, ends), (begins, ends), np.ones(len(found), bool), odd)


class RowLocations(Locations):
    """Where the rows of a bucket's parameter, of its gradient and its state lie: each row is a tensor of the table."""

    def __init__(self, bucket: Bucket, memory: RawMemory) -> None:
        assert bucket.rows is not None
        self.bucket, self.memory, self.rows = bucket, memory, bucket.rows
        size = math.prod(bucket.params[0].shape[1:]) * parts_of(bucket.dtype)
        self.sizes = np.full(len(self.rows), size, np.int64)
        self.table = np.zeros((len(self.rows), 3 + len(bucket.state)), np.int64)
        self.odd = set()

    def find(self, job: Job) -> Location:
        """Fill the table; see `Locations.find`."""
        bucket, g = self.bucket, job.grads[0]
        found = np.zeros(self.table.shape[1] - 1, np.int64)
        arrays, layouts = [bucket.params[0], g, *(column[0] for column in bucket.state.values())], ["C"] * len(found)
        self.memory.addresses(arrays, layouts, found)
        if found[1] < LOWEST:  # another layout, or no memory
            check_memory(bucket, 0, g)
            job.grads = [self.memory.contiguous(g)]
            arrays[1] = job.grads[0]
            self.memory.addresses(arrays, layouts, found)
        steps = self.sizes[:1] * [ITEMSIZES[FLOATING[dtype]] for dtype in bucket.dtypes]
        places = np.repeat(self.rows[:, None], len(found), axis=1)
        places[:, 1] = np.arange(len(self.rows))
        self.table[:, 0], self.table[:, 1:] = self.sizes, found + places * steps
        ends = found + steps * [len(array) for array in arrays]
        own = np.arange(len(found)) != 1
        return Location(Ranges(found[own], ends[own]), (found[1:2], ends[1:2]), np.zeros(1, bool))


def locations_of(bucket: Bucket, memory: RawMemory) -> Locations:
    """Where a bucket's arrays lie, whole or by rows."""
    if bucket.rows is not None:
        return RowLocations(bucket, memory)
    described = isinstance(bucket.params, Described) and bucket.params.description.contiguous
    return OwnLocations(bucket, memory) if described else Locations(bucket, memory)


def walks_rows(backend: Backend, device: Any, arrays: Sequence[Array]) -> bool:
    """Whether each row of these arrays is one run of memory that a compiled engine can walk."""
    memory = backend.host_memory(device) or backend.cuda_memory(device)
    return memory is not None and all(memory.layout(array) == "C" for array in arrays)


def check_memory(bucket: Bucket, i: int, g: Array) -> None:
    """Refuse a gradient whose memory was freed."""
    if bucket.backend.freed(g):
        raise ValueError(f"gradient of {bucket.names[i]}: expected memory, got an array whose memory was freed")


@dataclass
class Copies:
    """One tensor's arrays, or a block of them, copied in C order."""

    #: A row of a table such as `Locations` has, as if the whole tensor were where the copies are.
    table: np.ndarray
    #: The element, in C order, with which the block begins.
    start: int
    gradient: Array
    #: Parts of the parameter and the state, and their copies.
    pairs: list[tuple[Array, Array]]

    def write_back(self, backend: Backend) -> None:
        """Put the copies' values into the parameter and the state."""
        for array, copy in self.pairs:
            backend.write(array, copy)


def copy_blocks(
    bucket: Bucket, memory: RawMemory, i: int, g: Array, *, own: bool, size: int | None = None
) -> Iterator[Copies]:
    """Copy a tensor whose memory cannot be walked as one run, in blocks of at most `size` elements.

    `own` says whether the parameter and the state are walked too, and not the gradient alone.
    """
    arrays = [column[i] for column in bucket.arrays()] if own else []
    for block in blocks(tuple(g.shape), math.prod(g.shape) if size is None else size):
        views = [a[block] if a.ndim else a for a in (g, *arrays)]
        gradient, *copies = [memory.contiguous(view) for view in views]
        found = np.zeros(len(views), np.int64)
        memory.addresses([gradient, *copies], ["C"] * len(views), found)
        table = np.zeros((1, 3 + len(bucket.state)), np.int64)
        start = _start(tuple(g.shape), block) * parts_of(bucket.dtype)
        table[0, 0] = start + math.prod(gradient.shape) * parts_of(bucket.dtype)
        before = [start * ITEMSIZES[FLOATING[dtype]] for dtype in bucket.dtypes]
        table[0, 2] = found[0] - before[1]
        if own:
            table[0, 1], table[0, 3:] = found[1] - before[0], found[2:] - before[2:]
        yield Copies(table, start, gradient, list(zip(views[1:], copies, strict=True)))
