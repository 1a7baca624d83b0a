"""The host engine: one compiled loop over the memory of many tensors, without copies."""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

try:
    from . import kernels
    from .squares import ROOM, square_kernel
    from .tiles import described
except ImportError as error:
    raise ImportError(f'the host engine needs Numba: pip install "multiopt[numba]" ({error})') from error
from ...generic import FLOATING, Array, Backend, HostMemory, wider
from ...protocol import Bucket, Engine, Job, Location, NormTable
from ...rounding import tables
from .. import norms
from ..locate import ITEMSIZES, LOWEST, copy_blocks, locations_of, mixes, parts_of, real_dtypes
from ..program import Program
from . import threads

__all__ = ["HostEngine"]

#: Elements that one thread takes at a time. Long enough that Python's part does not count, short enough that a
#: thread which is held up does not hold up the step. What follows on a piece finds it in the last cache, if that has
#: 10 MiB a thread (float32); pieces that fit into a nearer one were slower, because Python is between them.
PIECE = 1 << 19
#: Below this many elements a second thread costs more than it saves (about 20 µs to wake it).
SERIAL = 1 << 17
#: Elements of a block that is copied because its memory cannot be walked: at most 2 MiB an array.
COPIED = 1 << 18
#: Bytes of new memory that one thread touches at a time.
TOUCHED = 4 << 20


class HostEngine(Engine):
    """Runs programs compiled by Numba, on arrays in this machine's memory."""

    name = "host"
    takes_groups = chains = True

    def rejects(self, backend: Backend, device: Any, dtypes: Sequence[str]) -> str | None:
        if backend.host_memory(device) is None:
            return f"it serves arrays in this machine's memory, not {backend.name} on {device}"
        return kernels.disabled() or mixes(dtypes)

    def filled_like(self, backend: Backend, arrays: Sequence[Array], value: float, dtype: str) -> list[Array]:
        made = [backend.empty_like(array, dtype) for array in arrays]
        memory = backend.host_memory(backend.device(made[0]))
        assert memory is not None  # or the engine would not serve the arrays
        addresses = np.zeros(len(made), np.int64)
        memory.addresses(made, [memory.layout(array) for array in made], addresses)
        width = ITEMSIZES[FLOATING[dtype]] * parts_of(dtype)
        pieces = [
            (int(address) + start, min(TOUCHED, math.prod(array.shape) * width - start))
            for address, array in zip(addresses, made, strict=True)
            for start in range(0, math.prod(array.shape) * width if address > 0 else 0, TOUCHED)
        ]
        # Which lets go of the GIL.
        threads.run(lambda piece: ctypes.memset(piece[0], 0, piece[1]), pieces, backend.threads())
        zero = value == 0 and math.copysign(1.0, value) > 0
        return [
            array if zero and address > 0 else backend.filled(array, value)
            for array, address in zip(made, addresses, strict=True)
        ]

    def prepare(self, program: Program, dtypes: tuple[str, ...]) -> None:
        """Compile the program, about half a second the first time."""
        kernels.update_kernel(program, real_dtypes(dtypes))

    def locate(self, job: Job) -> Location:
        walk = _Walk.of(job.bucket)
        location = walk.locations.find(job)
        if location.odd and not job.program.stochastic:  # which asks where each element stands, in C order
            walk.describe(job, location)
        return location

    def update(self, job: Job, norm_scales: Array | None) -> None:
        done = [(_Walk.of(job.bucket), job, _updating(job, norm_scales))]
        if job.then is not None:
            done.append((_Walk.of(job.then.bucket), job.then, _updating(job.then, None)))
        if job.then is None or job.location.odd or job.then.location.odd:  # tiles need not be pieces of each other
            for walk, own, work in done:
                walk.run(own, work, own=True)
        else:
            (walk, _, first), (after, _, second) = done

            def both(piece: tuple[int, int, int]) -> None:
                first(walk.locations.table, walk.every, *piece)
                second(after.locations.table, after.every, *piece)

            threads.run(both, walk.pieces, job.bucket.backend.threads())
        for walk, own, _ in done:
            walk.memory.touched(own.updated)

    def compute(
        self,
        backend: Backend,
        program: Program,
        columns: Sequence[Sequence[Array]],
        values: Mapping[str, Any],
        names: Sequence[str],
        *,
        alone: bool = False,
    ) -> list[list[Array]]:
        memory = backend.host_memory(backend.device(columns[0][0]))
        assert memory is not None  # or the engine would not serve the arrays
        dtypes = [backend.dtype(column[0]) for column in columns]
        real, parts = real_dtypes(dtypes), parts_of(dtypes[0])
        with kernels.compiling:  # many threads may ask at once for the first time: a worker's, say
            kernel = kernels.update_kernel(program, real, in_place=False)
        numbers, which = np.array([program.code.values(values)], np.float64), np.zeros(len(names), np.int64)
        scales = np.full(len(names), values.get("norm_scale", 1.0))
        new = [backend.empty_like(x, dtypes[0]) for x in columns[0]]
        layouts = [memory.layout(x) for x in new]
        for i in [i for i, layout in enumerate(layouts) if layout is None]:
            new[i] = memory.contiguous(columns[0][i])
            layouts[i] = memory.layout(new[i])
        made = [new, *([backend.empty_like(x, dtype) for x in new] for dtype in dtypes[2:])]
        sizes = np.array([math.prod(x.shape) for x in new], np.int64) * parts
        table, kept = np.zeros((len(names), 1 + len(columns) + len(made)), np.int64), list[Array]()
        table[:, 0] = sizes
        for c, column in enumerate((*columns, *made), 1):
            found = np.zeros(len(names), np.int64)
            memory.addresses(column, layouts, found)
            for i in np.flatnonzero((found < LOWEST) & (sizes > 0)).tolist():
                if backend.freed(column[i]):
                    raise ValueError(f"{names[i]}: expected memory, got an array whose memory was freed")
                # In another order, or not the elements as they are.
                kept.append(backend.empty_like(new[i], dtypes[c - 1]))
                backend.write(kept[-1], column[i])
                memory.addresses(kept[-1:], layouts[i : i + 1], found[i : i + 1])
            table[:, c] = found

        def work(piece: tuple[int, int, int]) -> None:
            kernel(table, scales, numbers, which, *piece)

        pieces = [(0, 0, int(sizes.sum()))] if alone else pieces_of(sizes)
        threads.run(work, pieces, backend.threads())
        return made

    def norm_table(self, job: Job) -> NormTable:
        program, dtype = job.program, job.bucket.grad_dtype
        kernel = square_kernel(program, FLOATING[dtype])
        walk, rest = _Walk.of(job.bucket), dict.fromkeys(program.scalars, 0.0)
        numbers = _numbers(job, [{**rest, **values} for values in job.values])
        which = walk.zeros if job.which is None else job.which
        columns = norms.columns(wider([dtype]))
        out, lock = np.zeros((len(job.grads), columns + 1), np.int64), threading.Lock()

        def work(table: np.ndarray, rows: slice, first: int, start: int, count: int) -> None:
            if len(walk.pieces) == 1:
                kernel(table, numbers, which[rows], np.empty(ROOM), out[rows][first:], first, start, count)
                return
            last = int(np.searchsorted(np.cumsum(table[first:, 0]), start + count)) + 1
            sums = np.zeros((last, columns + 1), np.int64)
            kernel(table, numbers, which[rows], np.empty(ROOM), sums, first, start, count)
            with lock:
                out[rows][first : first + last] += sums

        walk.run(job, work)
        # Where it is the gradient itself that is measured, the table's own counts say what is not finite.
        return NormTable(np, out[:, :columns], out[:, columns - 2 if program.code.measured == "g" else columns :])

    def finite(self, job: Job) -> list[bool]:
        kernel = kernels.finite_kernel(FLOATING[job.bucket.grad_dtype])
        bad, places = np.zeros(len(job.grads), np.uint8), np.arange(len(job.grads))

        def work(table: np.ndarray, rows: slice, first: int, start: int, count: int) -> None:
            found = np.zeros(len(table), np.uint8)
            kernel(table, found, first, start, count)
            bad[places[rows][found != 0]] = 1

        _Walk.of(job.bucket).run(job, work)
        return [not b for b in bad]


#: Does something to ``(table, rows, first, start, count)``; see `_Walk.run`.
Work = Callable[[np.ndarray, slice, int, int, int], None]


def _updating(job: Job, norm_scales: Array | None) -> Work:
    """What updates a piece of a job's bucket."""
    kernel = kernels.update_kernel(job.program, real_dtypes(job.bucket.dtypes))
    walk = _Walk.of(job.bucket)
    numbers, which = _numbers(job, job.values), walk.zeros if job.which is None else job.which
    scales = walk.ones if norm_scales is None else np.ascontiguousarray(norm_scales)

    if not job.program.stochastic:

        def work(table: np.ndarray, rows: slice, first: int, start: int, count: int) -> None:
            kernel(table, scales[rows], numbers, which[rows], first, start, count)

    else:
        tensors, runs = walk.runs
        keys = [np.uint32(key & 0xFFFFFFFF) for key in job.keys]

        def work(table: np.ndarray, rows: slice, first: int, start: int, count: int) -> None:
            kernel(table, scales[rows], numbers, which[rows], tensors[rows.start :], runs, *keys, first, start, count)

    return work


def pieces_of(sizes: np.ndarray) -> list[tuple[int, int, int]]:
    """Cut tensors of these sizes into pieces for threads: the first tensor, the element there, and the elements."""
    total, length = int(sizes.sum()), PIECE
    if total <= SERIAL:
        return [(0, 0, total)] if total else []
    ends = np.cumsum(sizes)
    starts = np.arange(0, total, length)
    first = np.searchsorted(ends, starts, side="right")
    return [
        (int(f), int(s - ends[f] + sizes[f]), min(length, total - int(s))) for f, s in zip(first, starts, strict=True)
    ]


def _numbers(job: Job, values: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The numbers that the job's code reads, a row for each group."""
    code = job.program.code
    return np.array([code.values(row) for row in values], np.float64)


class _Walk:
    """Where a bucket's arrays lie, and the pieces in which threads walk over them."""

    def __init__(self, bucket: Bucket) -> None:
        memory = bucket.backend.host_memory(bucket.device)
        assert memory is not None  # or the engine would not serve the bucket
        self.memory: HostMemory = memory
        self.locations = locations_of(bucket, memory)
        sizes = self.locations.sizes
        self.zeros = np.zeros(len(sizes), np.int64)
        self.pieces, self.every = pieces_of(sizes), slice(0, len(sizes))

    @cached_property
    def ones(self) -> np.ndarray:
        """Factors for gradients that are not clipped by norm."""
        return np.ones(len(self.zeros))

    @cached_property
    def runs(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the elements stand in their parameters: see `rounding.tables`."""
        elements = self.locations.bucket.elements
        assert elements is not None  # or nothing would be rounded by where it stands
        return tables(elements, self.locations.sizes)

    @classmethod
    def of(cls, bucket: Bucket) -> _Walk:
        """The walk of a bucket, made once."""
        if "walk" not in bucket.cache:
            bucket.cache["walk"] = cls(bucket)
        return bucket.cache["walk"]

    def describe(self, job: Job, location: Location) -> None:
        """Have those of the odd tensors that can be walked by their strides walked in tiles."""
        places = dict[int, Any]()
        for i in location.odd:
            x, *state = (column[i] for column in job.bucket.arrays())
            own = [place for array in (x, job.grads[i], *state) if (place := self.memory.place(array)) is not None]
            if len(own) == 2 + len(state) and all(place.address >= LOWEST for place in own):
                places[i] = tuple(x.shape), own
        if places:
            bucket = self.locations.bucket
            location.tiles, found = described(list(places.values()), real_dtypes(bucket.dtypes), parts_of(bucket.dtype))
            self.locations.table[list(places), 2], location.tiled = -np.array(found), places

    def run(self, job: Job, kernel: Work, *, own: bool = False) -> None:
        """Call ``kernel(table, rows, first, start, count)`` on every piece of the bucket.

        `rows` is a slice that says which tensors the rows of the `table` belong to. `own` says whether the kernel
        writes to the parameters and the state.
        """
        library = job.bucket.backend.threads()
        threads.run(lambda piece: kernel(self.locations.table, self.every, *piece), self.pieces, library)
        for i in [i for i in job.location.odd if i not in job.location.tiled]:  # what cannot be walked at all
            for copies in copy_blocks(job.bucket, self.memory, i, job.grads[i], own=own, size=COPIED):
                kernel(copies.table, slice(i, i + 1), 0, copies.start, int(copies.table[0, 0]) - copies.start)
                copies.write_back(job.bucket.backend)
