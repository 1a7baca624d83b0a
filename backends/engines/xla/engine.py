"""The engine for JAX arrays on the CPU: for each bucket a compiled program of XLA's, which calls the host's kernel.

Arrays are immutable there. Those that nobody else holds are donated: XLA writes the new ones into their memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import chain
from operator import setitem
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ...generic import Array, Backend
from ...protocol import Bucket, Engine, Job, NormTable
from ...registry import engine, get
from ..host.threads import thread_count
from ..locate import mixes
from ..program import KEPT, Program
from .calls import calls, raw, unknown, words

__all__ = ["XlaEngine"]


class XlaEngine(Engine):
    """Runs programs within XLA's, on arrays that JAX holds in this machine's memory, on one device or several."""

    name = "xla"
    donates = True

    def rejects(self, backend: Backend, device: Any, dtypes: Sequence[str]) -> str | None:
        if not backend.calls(device):
            return f"it serves JAX arrays on the CPU, not {backend.name} on {device}"
        return unknown() or mixes(dtypes)

    def prepare(self, program: Program, dtypes: tuple[str, ...]) -> None:
        from .handler import handler

        handler(program, dtypes)

    def locate(self, job: Job) -> None:
        """Refuse arrays that were deleted; of the others it is not known where they lie until XLA runs."""
        bucket = job.bucket
        called = ["", *(f"{slot} of " for slot in bucket.state)]
        for what, column in zip(["gradient of ", *called], [job.grads, *bucket.arrays()], strict=True):
            for name, array in zip(bucket.names, column, strict=True):
                if array is not None and array.is_deleted():
                    raise ValueError(f"{what}{name}: expected memory, got an array that was deleted (donated, say)")

    def update(self, job: Job, norm_scales: Array | None) -> None:
        bucket, program, columns = job.bucket, job.program, job.bucket.arrays()
        live = [i for i, g in enumerate(job.grads) if g is not None]
        given = [[column[i] for i in live] for column in columns]
        donated, copy = set[int](), bucket.backend.copy
        for column in (given[k] for k in bucket.owned):
            for k, array in enumerate(column):  # one that is donated cannot be donated again, or be read beside
                column[k] = copy(array) if id(array) in donated else array
                donated.add(id(array))
        grads = [copy(g) if id(g) in donated else g for g in job.grads if g is not None]
        numbers = {name: raw(job.values[0][name]) for name in program.scalars if name != "norm_scale"}
        scales = keys = None
        if norm_scales is not None:
            scales = np.ascontiguousarray(norm_scales[live], np.float64).view(np.uint32)
        parameters = tuple(job.draws(i).elements.parameter for i in live) if program.stochastic else ()
        if job.rounding is not None and program.stochastic:
            keys = words(job.rounding)
        run = _compiled(program, bucket.dtypes, parameters, bucket.owned, thread_count(bucket.backend.threads()))
        kept = [None if k in bucket.owned else column for k, column in enumerate(given)]
        gone = [column if k in bucket.owned else None for k, column in enumerate(given)]
        # The new arrays are in their places before a signal's handler can raise, because the old ones may be gone: it
        # runs between operations of Python's, and there are none within these two calls.
        order, made = _order(bucket.owned, len(columns)), list[list[list[Array]]]()
        new = chain.from_iterable(chain.from_iterable(made))
        places = [columns[k] for k in order for _ in live], live * len(order), new
        call = partial(made.extend, map(run, [gone], [kept], [grads], [numbers], [scales], [keys]))
        rest: deque[None] = deque(maxlen=0)
        store = partial(rest.extend, map(setitem, *places))
        try:
            call()
        finally:
            store()

    def norm_table(self, job: Job) -> NormTable:
        rows, mirrored = _mirrored(job)
        found = engine("host").norm_table(mirrored)
        assert found.watched is not None  # by the host engine
        return NormTable(np, _summed(job, rows, found.table), _summed(job, rows, found.watched))

    def finite(self, job: Job) -> list[bool]:
        rows, mirrored = _mirrored(job)
        bad = [[not good] for good in engine("host").finite(mirrored)]
        return [not count for count in _summed(job, rows, np.array(bad, np.int64).reshape(-1, 1))[:, 0].tolist()]


def _mirrored(job: Job) -> tuple[np.ndarray, Job]:
    """The gradients as arrays of NumPy's in the same memory, for reading; and which parameter's each is.

    Of one that lies on several devices, each part once.
    """
    bucket, rows, parts = job.bucket, list[int](), list[np.ndarray]()
    for i, g in enumerate(job.grads):
        for shard in g.addressable_shards if g is not None else ():
            if shard.replica_id == 0:
                rows.append(i)
                parts.append(np.asarray(shard.data))
    names, dtype = [bucket.names[i] for i in rows], bucket.grad_dtype
    mirror = Bucket(get("numpy"), engine("host"), "cpu", dtype, dtype, dtype, names, list(parts), {})
    mirrored = Job(mirror, job.program, parts, job.values)
    mirrored.location = mirror.engine.locate(mirrored)
    return np.array(rows, np.int64), mirrored


def _summed(job: Job, rows: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Rows of integers for each gradient: the sums of those of its parts, in all processes that hold some."""
    table = np.zeros((len(job.grads), parts.shape[1]), np.int64)
    np.add.at(table, rows, parts)
    shared = [i for i, g in enumerate(job.grads) if g is not None and not g.is_fully_addressable]
    if shared:
        # As words of 32 bits, because JAX may have no others.
        gathered = multihost_utils.process_allgather(table[shared].view(np.uint32))
        table[shared] = np.asarray(gathered).view(np.int64).sum(axis=0)
    return table


def _order(owned: tuple[int, ...], width: int) -> list[int]:
    """Columns as they are returned: JAX gives the first array of a shape the memory of the first that is donated."""
    return [*owned, *(k for k in range(width) if k not in owned)]


@lru_cache(KEPT)
def _compiled(
    program: Program, dtypes: tuple[str, ...], parameters: tuple[int, ...], owned: tuple[int, ...], threads: int
) -> Callable[..., Any]:
    """What is run on a bucket: ``(donated, kept, grads, numbers, scales, keys)``, to new columns in their `_order`."""

    def compute(
        gone: Sequence[Any], kept: Sequence[Any], grads: Any, numbers: Mapping[str, Any], scales: Any, keys: Any
    ) -> Any:
        x, *state = (a if b is None else b for a, b in zip(gone, kept, strict=True))
        in_place = [k + (k > 0) for k in owned]  # the gradients are the second column
        more = {"keys": keys, "parameters": parameters, "threads": threads}
        made = calls(program, dtypes, [x, grads, *state], numbers, scales=scales, in_place=in_place, **more)
        return [made[k] for k in _order(owned, len(made))]

    return jax.jit(compute, donate_argnums=0)
