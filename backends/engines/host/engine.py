"""The host engine: one compiled loop over the memory of many tensors, without copies."""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

try:
    from . import kernels
except ImportError as error:
    raise ImportError(f'the host engine needs Numba: pip install "multiopt[numba]" ({error})') from error
from ...generic import FLOATING, Array, Backend, HostMemory
from ...protocol import Bucket, NormTable
from .. import norms
from ..eager import blocks
from ..program import Program
from . import threads

__all__ = ["HostEngine"]

#: Elements that one thread takes at a time. Long enough that Python's part does not count, short enough that a
#: thread which is held up does not hold up the step.
PIECE = 1 << 19
#: Below this many elements a second thread costs more than it saves (about 20 µs to wake it).
SERIAL = 1 << 17
#: Elements of a box that is copied because its memory cannot be walked: at most 2 MiB an array.
BOX = 1 << 18
#: Bytes of new memory that one thread touches at a time.
TOUCHED = 4 << 20


class HostEngine:
    """Runs programs compiled by Numba, on arrays in this machine's memory."""

    name = "host"

    def rejects(self, backend: Backend, device: Any, dtypes: Sequence[str]) -> str | None:
        """Serve arrays whose backend tells their addresses in this machine's memory."""
        if backend.host_memory(device) is None:
            return f"it serves arrays in this machine's memory, not {backend.name} on {device}"
        real = _real(dtypes)
        if "float64" in real and not set(real) <= {"float32", "float64"}:
            return "it does not mix float64 with half precision"
        return None

    def filled_like(self, backend: Backend, arrays: Sequence[Array], value: float, dtype: str) -> list[Array]:
        """See `Engine.filled_like`."""
        made = [backend.empty_like(array, dtype) for array in arrays]
        memory = backend.host_memory(backend.device(made[0]))
        assert memory is not None  # or the engine would not serve the arrays
        addresses, sizes = np.zeros(len(made), np.int64), [math.prod(a.shape) for a in made]
        memory.addresses(made, [memory.layout(array) for array in made], addresses)
        width = kernels.STORAGE[FLOATING[dtype]][0] * _parts(dtype)
        pieces = [
            (int(address) + start, min(TOUCHED, size * width - start))
            for address, size in zip(addresses, sizes, strict=True)
            for start in range(0, size * width if address > 0 else 0, TOUCHED)
        ]
        threads.run(lambda piece: ctypes.memset(piece[0], 0, piece[1]), pieces)
        plain = value == 0 and math.copysign(1.0, value) > 0
        return [
            array if plain and address > 0 else backend.filled(array, value)
            for array, address in zip(made, addresses, strict=True)
        ]

    def prepare(self, program: Program, dtypes: tuple[str, ...]) -> None:
        """Compile the program, about a fifth of a second the first time."""
        kernels.update_kernel(program, _real(dtypes))

    def update(
        self,
        bucket: Bucket,
        program: Program,
        grads: Sequence[Array | None],
        values: Mapping[str, Any],
        norm_scales: Array | None,
    ) -> None:
        """See `Engine.update`."""
        kernel = kernels.update_kernel(program, _real(bucket.dtypes))
        numbers = np.array(program.code.values(values), np.float64)
        walk = _Walk.of(bucket)
        odd = walk.fill(bucket, grads)
        scales = walk.ones if norm_scales is None else np.ascontiguousarray(norm_scales)
        walk.run(partial(kernel, walk.table, scales, numbers))
        for i, g in odd:
            for back, table in _boxes(bucket, walk.memory, i, g, bucket.arrays()):
                kernel(table, scales[i : i + 1], numbers, 0, 0, int(table[0, 0]))
                back()
        walk.memory.touched([p for p, g in zip(bucket.params, grads, strict=True) if g is not None])

    def norm_table(
        self,
        bucket: Bucket,
        program: Program,
        grads: Sequence[Array | None],
        values: Mapping[str, Any],
        lowest: int,
    ) -> NormTable:
        """See `Engine.norm_table`; the table is a NumPy array."""
        kernel = kernels.square_kernel(program, FLOATING[bucket.grad_dtype])
        numbers = np.array(program.code.values({**dict.fromkeys(program.scalars, 0.0), **values}))
        walk, units = _Walk.of(bucket), np.array(norms.units(lowest))
        out, lock = np.zeros((len(grads), norms.COLUMNS), np.int64), threading.Lock()

        def work(table: np.ndarray, row: int, first: int, start: int, count: int) -> None:
            last = int(np.searchsorted(np.cumsum(table[first:, 0]), start + count)) + 1
            sums = np.zeros((last, norms.COLUMNS), np.int64)
            kernel(table, numbers, units, sums, first, start, count)
            with lock:
                out[row + first : row + first + last] += sums

        odd = walk.fill(bucket, grads)
        walk.run(partial(work, walk.table, 0))
        for i, g in odd:
            for _, table in _boxes(bucket, walk.memory, i, g, []):
                work(table, i, 0, 0, int(table[0, 0]))
        return NormTable(np, out)

    def finite(self, bucket: Bucket, grads: Sequence[Array | None]) -> list[bool]:
        """See `Engine.finite`."""
        kernel = kernels.finite_kernel(FLOATING[bucket.grad_dtype])
        walk, bad = _Walk.of(bucket), np.zeros(len(grads), np.uint8)
        odd = walk.fill(bucket, grads)
        walk.run(partial(kernel, walk.table, bad))
        for i, g in odd:
            for _, table in _boxes(bucket, walk.memory, i, g, []):
                kernel(table, bad[i : i + 1], 0, 0, int(table[0, 0]))
        return [not b for b in bad]


def _real(dtypes: Sequence[str]) -> tuple[str, ...]:
    return tuple(FLOATING[dtype] for dtype in dtypes)


def _parts(dtype: str) -> int:
    """Real numbers that make up an element."""
    return 2 if dtype.startswith("complex") else 1


class _Walk:
    """The table of a bucket: a row a tensor, with its size and the addresses of x, g and the state."""

    def __init__(self, bucket: Bucket) -> None:
        memory = bucket.backend.host_memory(bucket.device)
        assert memory is not None  # or the engine would not serve the bucket
        self.memory: HostMemory = memory
        self.layouts = [memory.layout(p) for p in bucket.params]
        self.sizes = np.array([math.prod(p.shape) for p in bucket.params], np.int64) * _parts(bucket.dtype)
        self.ones = np.ones(len(self.sizes))
        self.table = np.zeros((len(self.sizes), 3 + len(bucket.state)), np.int64)
        self.table[:, 0] = self.sizes
        self.fixed = not bucket.backend.swappable or bucket.watched
        self.fill_own(bucket)
        ends = np.cumsum(self.sizes)
        total = int(ends[-1])
        length = PIECE if total > SERIAL else max(total, 1)
        starts = np.arange(0, total, length)
        first = np.searchsorted(ends, starts, side="right")
        self.pieces = [
            (int(f), int(s - ends[f] + self.sizes[f]), min(length, total - int(s)))
            for f, s in zip(first, starts, strict=True)
        ]

    @classmethod
    def of(cls, bucket: Bucket) -> _Walk:
        """The walk of a bucket, made once."""
        if "walk" not in bucket.cache:
            bucket.cache["walk"] = cls(bucket)
        return bucket.cache["walk"]

    def fill_own(self, bucket: Bucket) -> None:
        """Write the addresses of the parameters and the state, and note where they lie."""
        self.odd: set[int] = set()
        for column, arrays in zip([1, *range(3, self.table.shape[1])], bucket.arrays(), strict=True):
            addresses = np.zeros(len(arrays), np.int64)
            self.memory.addresses(arrays, self.layouts, addresses)
            self._check_memory(bucket, addresses, arrays)
            self.odd.update(np.flatnonzero(addresses < 0).tolist())
            self.table[:, column] = addresses
        begins, ends = self._extents(bucket.backend, bucket.params, self.table[:, 1], bucket.dtype)
        # Each sorted for itself: one view may lie within the gaps of another.
        self.begins, self.ends = np.sort(begins[self.sizes > 0]), np.sort(ends[self.sizes > 0])

    def _extents(
        self, backend: Backend, arrays: Sequence[Array | None], addresses: np.ndarray, dtype: str
    ) -> tuple[np.ndarray, np.ndarray]:
        begins, ends = addresses.copy(), addresses + self.sizes * kernels.STORAGE[FLOATING[dtype]][0]
        for i in np.flatnonzero(addresses < 0).tolist():
            begins[i], ends[i] = backend.extent(arrays[i]) or (0, 0)
        return begins, ends

    def _check_memory(self, bucket: Bucket, addresses: np.ndarray, arrays: Sequence[Array | None]) -> None:
        """Reject arrays whose memory was freed: their address is 0, which stands for no gradient."""
        for i in np.flatnonzero((addresses == 0) & (self.sizes > 0)).tolist():
            if arrays[i] is not None:
                raise ValueError(f"{bucket.names[i]}: expected memory, got a tensor whose memory was freed")

    def fill(self, bucket: Bucket, grads: Sequence[Array | None]) -> list[tuple[int, Array]]:
        """Write the addresses of the gradients; return the tensors to be done by boxes, with their gradients."""
        if not self.fixed:
            self.fill_own(bucket)
        addresses, grads = self.table[:, 2], list(grads)
        self._locate(grads, range(len(grads)), addresses)
        self._check_memory(bucket, addresses, grads)
        # A gradient in the memory of parameters would change while it is read, except element upon element.
        begins, ends = self._extents(bucket.backend, grads, addresses, bucket.grad_dtype)
        meets = np.searchsorted(self.begins, ends) - np.searchsorted(self.ends, begins, side="right")
        upon = addresses == np.where(addresses < 0, 0, self.table[:, 1])
        aliases = np.flatnonzero((meets > upon) & (addresses != 0) & (self.sizes > 0)).tolist()
        if aliases:
            for i in aliases:
                grads[i] = bucket.backend.copy(grads[i])
            self._locate(grads, aliases, addresses)
        odd = self.odd.union(np.flatnonzero(addresses < 0).tolist())
        for i in odd:
            addresses[i] = 0
        return [(i, grads[i]) for i in sorted(odd) if grads[i] is not None]

    def _locate(self, grads: list[Array | None], which: Sequence[int], addresses: np.ndarray) -> None:
        """Write the addresses of some gradients: 0 for None, −1 where the layout is not the parameter's."""
        live = [i for i in which if grads[i] is not None]
        if len(live) == len(grads):
            found = addresses if addresses.flags.c_contiguous else np.empty(len(live), np.int64)
            self.memory.addresses(grads, self.layouts, found)
            addresses[:] = found
            return
        found = np.zeros(len(live), np.int64)
        self.memory.addresses([grads[i] for i in live], [self.layouts[i] for i in live], found)
        addresses[list(which)] = 0
        addresses[live] = found

    def run(self, kernel: Callable[..., None]) -> None:
        """Call the kernel on every piece of the table."""
        threads.run(lambda piece: kernel(*piece), self.pieces)


def _boxes(
    bucket: Bucket, memory: HostMemory, i: int, g: Array, arrays: list[list[Array]]
) -> Iterator[tuple[Callable[[], None], np.ndarray]]:
    """Walk a tensor whose memory cannot be walked as one run, by copies of boxes.

    Yields a function that writes the copies back, and a table of one row for them.
    """
    own = [column[i] for column in arrays]
    for box in blocks(tuple(g.shape), BOX):
        views = [a[box] if a.ndim else a for a in own]
        copies = [memory.contiguous(a) for a in views]
        gradient = memory.contiguous(g[box] if g.ndim else g)
        row = np.zeros((1, 3 + max(len(own) - 1, 0)), np.int64)
        address = np.zeros(len(own) + 1, np.int64)
        memory.addresses([gradient, *copies], ["C"] * (len(own) + 1), address)
        row[0, 0] = math.prod(gradient.shape) * _parts(bucket.dtype)
        row[0, 2] = address[0]
        if own:
            row[0, 1], row[0, 3:] = address[1], address[2:]

        def back(views: list[Array] = views, copies: list[Array] = copies) -> None:
            for view, copy in zip(views, copies, strict=True):
                bucket.backend.write(view, copy)

        yield back, row
