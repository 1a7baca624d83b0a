"""Where a bucket's arrays lie: tables of addresses for the compiled engines, aliases, and copies of odd layouts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from operator import is_

import numpy as np

from ..generic import FLOATING, Array, Backend, HostMemory
from ..protocol import Bucket

__all__ = [
    "ITEMSIZES",
    "Copies",
    "Locations",
    "Ranges",
    "blocks",
    "copy_blocks",
    "extents",
    "mixes",
    "parts_of",
    "real_dtypes",
]

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


def extents(backend: Backend, arrays: Sequence[Array | None]) -> tuple[np.ndarray, np.ndarray]:
    """First and one-past-last byte of each array; 0 and 0 where there is none, or it cannot be known."""
    found = [(None if a is None else backend.extent(a)) or (0, 0) for a in arrays]
    begins, ends = np.array(found, np.int64).reshape(-1, 2).T
    return begins, ends


class Ranges:
    """The memory of arrays that are written to, of which no two share an element."""

    def __init__(self, begins: np.ndarray, ends: np.ndarray) -> None:
        some = begins < ends
        # Each sorted for itself: one view may lie within the gaps of another.
        self.begins, self.ends = np.sort(begins[some]), np.sort(ends[some])

    def aliases(self, begins: np.ndarray, ends: np.ndarray, upon: np.ndarray) -> list[int]:
        """Find gradients in this memory: they would change while they are read.

        A gradient that lies upon its own parameter, element upon element, is none: each is read before it is written.
        """
        meets = np.searchsorted(self.begins, ends) - np.searchsorted(self.ends, begins, side="right")
        return np.flatnonzero((meets > upon) & (begins < ends)).tolist()


class Locations:
    """Where a bucket's parameters, gradients and state lie.

    Parameters
    ----------
    bucket : Bucket
    memory : HostMemory
        What tells the arrays' addresses.

    Attributes
    ----------
    table : array of int64, shape (tensors, 3 + slots)
        A row a tensor: its real elements, and the addresses of x, g and the state. The address of g is 0 where the
        tensor is skipped.
    """

    def __init__(self, bucket: Bucket, memory: HostMemory) -> None:
        self.bucket, self.memory = bucket, memory
        self.layouts = [memory.layout(p) for p in bucket.params]
        self.table = np.zeros((len(bucket.params), 3 + len(bucket.state)), np.int64)
        self.table[:, 0] = [math.prod(p.shape) for p in bucket.params]
        self.table[:, 0] *= parts_of(bucket.dtype)
        self.sizes = self.table[:, 0].copy()
        self.param_bytes, self.grad_bytes = (
            self.sizes * ITEMSIZES[FLOATING[dtype]] for dtype in (bucket.dtype, bucket.grad_dtype)
        )
        self.fixed = not bucket.backend.swappable or bucket.watched
        #: Whether the last gradients were all there.
        self.complete = False
        self._find_own()

    def _find_own(self) -> None:
        #: Tensors whose parameter or state cannot be walked as one run.
        self.odd: set[int] = set()
        for column, arrays in zip([1, *range(3, self.table.shape[1])], self.bucket.arrays(), strict=True):
            found = np.zeros(len(arrays), np.int64)
            self.memory.addresses(arrays, self.layouts, found)
            self._check(found, arrays)
            self.odd.update(np.flatnonzero(found < 0).tolist())
            self.table[:, column] = found
        self.begins, self.ends = self._extents(self.bucket.params, self.table[:, 1], self.param_bytes)
        self.ranges = Ranges(self.begins, self.ends)

    def find(self, grads: Sequence[Array | None]) -> tuple[Sequence[Array | None], list[int]]:
        """Bring the table up to date.

        Returns
        -------
        sequence of arrays or None
            The gradients that the table points at: those in the memory of parameters are copied.
        list of int
            Tensors that cannot be walked as one run; the table skips them.
        """
        if not self.fixed:
            self._find_own()
        found, self.complete = self.table[:, 2], not any(map(is_, grads, repeat(None)))
        self.find_gradients(grads, range(len(grads)))
        self._check(found, grads)
        begins, ends = self._extents(grads, found, self.grad_bytes)
        upon = (found == self.table[:, 1]) & (found >= 0) & (ends == self.ends)
        aliases = self.ranges.aliases(begins, ends, upon)
        if aliases:
            grads = list(grads)
            for i in aliases:
                grads[i] = self.bucket.backend.copy(grads[i])
            self.find_gradients(grads, aliases)
        odd = self.odd.union(np.flatnonzero(found < 0).tolist())
        for i in odd:
            found[i] = 0
        return grads, [i for i in sorted(odd) if grads[i] is not None]

    def find_gradients(self, grads: Sequence[Array | None], which: Sequence[int]) -> None:
        """Write the addresses of some gradients: 0 for None, −1 where the layout is not the parameter's."""
        if self.complete and len(which) == len(grads):
            found = np.empty(len(grads), np.int64)
            self.memory.addresses(grads, self.layouts, found)
            self.table[:, 2] = found
            return
        live = [i for i in which if grads[i] is not None]
        found = np.zeros(len(live), np.int64)
        self.memory.addresses([grads[i] for i in live], [self.layouts[i] for i in live], found)
        self.table[list(which), 2] = 0
        self.table[live, 2] = found

    def _extents(
        self, arrays: Sequence[Array | None], found: np.ndarray, lengths: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        begins, ends = found.copy(), found + lengths
        odd = np.flatnonzero(found < 0).tolist()
        if odd:
            begins[odd], ends[odd] = extents(self.bucket.backend, [arrays[i] for i in odd])
        return begins, ends

    def _check(self, found: np.ndarray, arrays: Sequence[Array | None]) -> None:
        """Reject arrays whose memory was freed: their address is 0, which stands for no gradient."""
        for i in np.flatnonzero((found == 0) & (self.sizes > 0)).tolist():
            if arrays[i] is not None:
                raise ValueError(f"{self.bucket.names[i]}: expected memory, got a tensor whose memory was freed")


@dataclass
class Copies:
    """One tensor's arrays, or a block of them, copied in C order.

    Attributes
    ----------
    table : array of int64, shape (1, 3 + slots)
        A row of a table such as `Locations` has.
    gradient : array
        The copy of the gradient.
    pairs : list of (array, array)
        Parts of the parameter and the state, and their copies.
    """

    table: np.ndarray
    gradient: Array
    pairs: list[tuple[Array, Array]]

    def write_back(self, backend: Backend) -> None:
        """Put the copies' values into the parameter and the state."""
        for array, copy in self.pairs:
            backend.write(array, copy)


def copy_blocks(
    bucket: Bucket, memory: HostMemory, i: int, g: Array, *, own: bool, size: int | None = None
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
        table[0, 0] = math.prod(gradient.shape) * parts_of(bucket.dtype)
        table[0, 2] = found[0]
        if own:
            table[0, 1], table[0, 3:] = found[1], found[2:]
        yield Copies(table, gradient, list(zip(views[1:], copies, strict=True)))
