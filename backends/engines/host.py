"""The host engine: one compiled loop over the memory of many tensors, NumPy's or PyTorch's, without copies."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

try:
    from . import numba_kernels as kernels
except ImportError as error:
    raise ImportError(f'the host engine needs Numba: pip install "multiopt[numba]" ({error})') from error
from ..base import FLOATING, Array, Backend, Bucket, NormTable
from . import norms, threads
from .eager import blocks
from .onepass import Pass

__all__ = ["HostEngine"]

#: Elements that one thread takes at a time. Long enough that Python's part does not count, short enough that a
#: thread which is held up does not hold up the step.
PIECE = 1 << 19
#: Below this many elements a second thread costs more than it saves (about 20 µs to wake it).
SERIAL = 1 << 17
#: Elements of a box that is copied because its memory cannot be walked: at most 2 MiB an array.
BOX = 1 << 18


class HostEngine:
    """Runs passes compiled by Numba."""

    name = "host"

    def refuses(self, backend: Backend, device: Any, dtypes: Sequence[str]) -> str | None:
        """Serve NumPy arrays and PyTorch CPU tensors."""
        if backend.name not in ("numpy", "torch") or str(device) != "cpu":
            return f"it serves arrays in this machine's memory, from NumPy or PyTorch, not {backend.name} on {device}"
        if len(set(map(FLOATING.__getitem__, dtypes))) > 1 and "float64" in dtypes and dtypes[0] in ("float16", "bfloat16"):
            return f"it does not compute {dtypes[0]} parameters with float64 state"
        return None

    def prepare(self, one_pass: Pass, dtypes: Sequence[str]) -> None:
        """Compile the pass, about a fifth of a second the first time."""
        kernels.update_kernel(one_pass, _real(dtypes[0], dtypes[1], len(one_pass.slots)))

    def update(
        self,
        bucket: Bucket,
        one_pass: Pass,
        grads: Sequence[Array | None],
        values: Mapping[str, Any],
        norm_scales: Array | None,
    ) -> None:
        """See `Engine.update`."""
        kernel = kernels.update_kernel(one_pass, _real(bucket.dtype, bucket.state_dtype, len(bucket.state)))
        numbers = np.array(kernels.traced(one_pass).values(values), np.float64)
        walk = _Walk.of(bucket)
        odd = walk.fill(bucket, grads)
        scales = walk.ones if norm_scales is None else np.ascontiguousarray(norm_scales)
        walk.run(partial(kernel, walk.table, scales, numbers))
        for i in odd:
            for view, table in _boxes(bucket, i, grads[i], bucket.arrays()):
                kernel(table, scales[i : i + 1], numbers, 0, 0, int(table[0, 0]))
                view()
        if bucket.backend.name == "torch":
            live = [p for p, g in zip(bucket.params, grads, strict=True) if g is not None]
            bucket.backend.touched(live)  # type: ignore[attr-defined]

    def norm_table(
        self, bucket: Bucket, one_pass: Pass, grads: Sequence[Array | None], values: Mapping[str, Any], lowest: int
    ) -> NormTable:
        """See `Engine.norm_table`; the table is a NumPy array."""
        kernel = kernels.square_kernel(one_pass, FLOATING[bucket.dtype])
        numbers = np.array(kernels.traced(one_pass).values({**dict.fromkeys(one_pass.scalars, 0.0), **values}))
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
        for i in odd:
            for _, table in _boxes(bucket, i, grads[i], []):
                work(table, i, 0, 0, int(table[0, 0]))
        return NormTable(np, out)

    def finite(self, bucket: Bucket, grads: Sequence[Array | None]) -> list[bool]:
        """See `Engine.finite`."""
        kernel = kernels.finite_kernel(FLOATING[bucket.dtype])
        walk, bad = _Walk.of(bucket), np.zeros(len(grads), np.uint8)
        odd = walk.fill(bucket, grads)
        walk.run(partial(kernel, walk.table, bad))
        for i in odd:
            for _, table in _boxes(bucket, i, grads[i], []):
                kernel(table, bad[i : i + 1], 0, 0, int(table[0, 0]))
        return [not b for b in bad]


def _real(dtype: str, state_dtype: str, slots: int) -> tuple[str, ...]:
    return (FLOATING[dtype],) * 2 + (FLOATING[state_dtype],) * slots


class _Walk:
    """The table of a bucket: a row a tensor, with its size and the addresses of x, g and the state."""

    def __init__(self, bucket: Bucket) -> None:
        backend: Any = bucket.backend
        parts = 2 if bucket.dtype.startswith("complex") else 1
        sizes = [parts * int(np.prod(p.shape, dtype=np.int64)) for p in bucket.params]
        self.layouts = [backend.layout(p) for p in bucket.params]
        self.table = np.zeros((len(sizes), 3 + len(bucket.state)), np.int64)
        self.table[:, 0] = sizes
        self.sizes = self.table[:, 0].copy()
        self.ones = np.ones(len(sizes))
        self.grad_addresses = np.zeros(len(sizes), np.int64)
        # Only PyTorch lets the memory of a tensor be swapped under it.
        self.fixed = backend.name == "numpy"
        self.odd = self.fill_own(bucket) if self.fixed else set()
        ends = np.cumsum(self.sizes)
        total = int(ends[-1]) if len(ends) else 0
        starts = np.arange(0, total, PIECE if total > SERIAL else max(total, 1))
        first = np.searchsorted(ends, starts, side="right")
        begins = starts - (ends - self.sizes)[first]
        self.pieces = [
            (int(f), int(b), int(min(starts[1] if len(starts) > 1 else total, total - s)))
            for f, b, s in zip(first, begins, starts, strict=True)
        ]

    @classmethod
    def of(cls, bucket: Bucket) -> _Walk:
        """The walk of a bucket, made once."""
        if "walk" not in bucket.cache:
            bucket.cache["walk"] = cls(bucket)
        return bucket.cache["walk"]

    def fill_own(self, bucket: Bucket) -> set[int]:
        """Write the addresses of the parameters and the state; return the tensors that cannot be walked."""
        backend: Any = bucket.backend
        odd: set[int] = set()
        for column, arrays in zip([1, *range(3, self.table.shape[1])], bucket.arrays(), strict=True):
            addresses = np.zeros(len(arrays), np.int64)
            if backend.addresses(arrays, self.layouts, addresses):
                odd.update(np.flatnonzero(addresses < 0).tolist())
            self.table[:, column] = addresses
        return odd

    def fill(self, bucket: Bucket, grads: Sequence[Array | None]) -> list[int]:
        """Write the addresses of the gradients; return the tensors to be done by boxes."""
        backend: Any = bucket.backend
        odd = set(self.odd) if self.fixed else self.fill_own(bucket)
        live = [i for i, g in enumerate(grads) if g is not None]
        addresses = self.grad_addresses
        if len(live) == len(grads):
            bad = backend.addresses(grads, self.layouts, addresses)
        else:
            some = np.zeros(len(live), np.int64)
            bad = backend.addresses([grads[i] for i in live], [self.layouts[i] for i in live], some)
            addresses[:] = 0
            addresses[live] = some
        if bad:
            odd.update(np.flatnonzero(addresses < 0).tolist())
        self.table[:, 2] = addresses
        if odd:
            self.table[list(odd), 2] = 0
        return [i for i in sorted(odd) if grads[i] is not None]

    def run(self, kernel: Callable[..., None]) -> None:
        """Call the kernel on every piece of the table."""
        threads.run(lambda piece: kernel(*piece), self.pieces)


def _boxes(bucket: Bucket, i: int, g: Array, arrays: list[list[Array]]) -> Any:
    """Walk a tensor whose memory cannot be walked as one run, by copies of boxes.

    Yields a function that writes the copies back, and a table of one row for them.
    """
    backend: Any = bucket.backend
    parts = 2 if bucket.dtype.startswith("complex") else 1
    own = [column[i] for column in arrays]
    for box in blocks(tuple(g.shape), BOX):
        views = [a[box] if a.ndim else a for a in own]
        copies = [backend.contiguous(a) for a in views]
        gradient = backend.contiguous(g[box] if g.ndim else g)
        row = np.zeros((1, 3 + max(len(own) - 1, 0)), np.int64)
        address = np.zeros(len(own) + 1, np.int64)
        backend.addresses([gradient, *copies], ["C"] * (len(own) + 1), address)
        row[0, 0] = parts * int(np.prod(gradient.shape, dtype=np.int64))
        row[0, 2] = address[0]
        if own:
            row[0, 1], row[0, 3:] = address[1], address[2:]

        def back(views: list[Array] = views, copies: list[Array] = copies) -> None:
            for view, copy in zip(views, copies, strict=True):
                backend.write(view, copy)

        yield back, row
