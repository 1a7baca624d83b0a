"""The CUDA engine: one launch over the memory of many tensors, without copies.

Nothing here waits for the device or, in a step like the one before, allocates. Tables of addresses stay on the
device and are rewritten only where something moved, by a kernel whose arguments are the new words: they need no
memory of the host's that would have to stay alive, are ordered with everything else on the stream, and go into a
CUDA graph as they are.

Numbers (the rate, the decay, ...) are arguments of the kernel too. Those that depend on a hyperparameter held in a
tensor on the device are computed there, in float64, and read by the kernel from the device, so that a CUDA graph
sees the tensor's value at each replay.

A captured launch gets a table of addresses of its own, which the graph fills, so that later steps do not disturb it.
Clipping by norm makes small temporary arrays in the library; when CuPy captures, do it with a memory pool of its own
(``cupy.cuda.using_allocator``), because CuPy would hand their memory to others between replays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from ...generic import FLOATING, Array, Backend, wider
from ...protocol import Bucket, Engine, Job, Location, NormTable
from .. import norms
from ..locate import mixes, real_dtypes
from ..program import Program
from . import source
from .driver import Driver
from .tables import Tables

__all__ = ["CudaEngine"]


class CudaEngine(Engine):
    """Runs programs compiled by NVRTC."""

    name = "cuda"

    def __init__(self, driver: Driver | None = None) -> None:
        self.driver = driver or Driver()

    def rejects(self, backend: Backend, device: Any, dtypes: Sequence[str]) -> str | None:
        memory = backend.cuda_memory(device)
        if memory is None:
            return f"it serves arrays on CUDA devices, not {backend.name} on {device}"
        return mixes(dtypes) or self.driver.rejects(memory.ordinal(device))

    def prepare(self, program: Program, dtypes: tuple[str, ...]) -> None:
        """Compile the program, about a tenth of a second the first time."""
        self.driver.compile(source.update_source(program, real_dtypes(dtypes)))

    def locate(self, job: Job) -> Location:
        tables = self._tables(job.bucket)
        if job.program.stochastic and tables.capturing():
            raise RuntimeError(
                "state_rounding: a CUDA graph would repeat the random numbers of one step; use 'nearest'"
            )
        return tables.locations.find(job)

    def update(self, job: Job, norm_scales: Array | None) -> None:
        """See `Engine.update`. Under graph capture, the bucket must have been updated once before."""
        tables = self._tables(job.bucket)
        numbers = tables.numbers(source.code_of(job.program), *job.values)
        scales = 0 if norm_scales is None else tables.scales(norm_scales)
        kernel = source.update_source(job.program, real_dtypes(job.bucket.dtypes))
        rounding = tables.rounding(job) if job.program.stochastic else []
        tables.run(kernel, "update", job, [scales, *numbers, *rounding], own=True)
        tables.memory.touched(job.updated)

    def norm_table(self, job: Job) -> NormTable:
        """See `Engine.norm_table`; the table is on the device, and is the bucket's to use again in the next step."""
        bucket, program = job.bucket, job.program
        tables = self._tables(bucket)
        (values,) = job.values
        numbers = tables.numbers(source.code_of(program), {**dict.fromkeys(program.scalars, 0.0), **values})
        columns = norms.columns(wider([bucket.grad_dtype]))
        sums = tables.zeros("sums", columns)
        kernel = source.square_source(program, FLOATING[bucket.grad_dtype])
        tables.run(kernel, "squares", job, [tables.address(sums), *numbers])
        table = sums.reshape((len(job.grads), columns))
        if not tables.memory.is_current(bucket.device):
            # The library would do what follows on the current device's stream.
            return NormTable(np, bucket.backend.to_host(table))
        # What is measured is the gradient itself: then the table's own counts say. A graph cannot ask.
        own = source.code_of(program).measured == "g" and not tables.capturing()
        return NormTable(_namespace(bucket.backend), table, table[:, -2:] if own else None)

    def finite(self, job: Job) -> list[bool]:
        """See `Engine.finite`: the one question whose answer the host must wait for, so that a graph cannot ask it."""
        tables = self._tables(job.bucket)
        if tables.capturing():
            raise RuntimeError("nonfinite: a CUDA graph cannot ask whether gradients are finite; use 'propagate'")
        bad = tables.zeros("bad", 1)
        kernel = source.finite_source(FLOATING[job.bucket.grad_dtype])
        tables.run(kernel, "nonfinite", job, [tables.address(bad)])
        return [not b for b in job.bucket.backend.to_host(bad)]

    def _tables(self, bucket: Bucket) -> Tables:
        if "tables" not in bucket.cache:
            bucket.cache["tables"] = Tables(bucket, self.driver)
        return bucket.cache["tables"]


class _Namespace:
    """A library's namespace that uploads a constant list once: no later step copies it, nor waits for that."""

    def __init__(self, xp: Any) -> None:
        self._xp = xp
        self._constants: dict[tuple[Any, ...], Array] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._xp, name)

    def asarray(self, values: Any, *, dtype: Any = None, device: Any = None) -> Array:
        """As in the array API; a list of numbers gives the same array each time."""
        make: Callable[..., Array] = self._xp.asarray
        if not isinstance(values, list):
            return make(values, dtype=dtype, device=device)
        key = tuple(values), str(dtype), str(device)
        constant = self._constants.get(key)
        if constant is None:
            if len(self._constants) >= 32:  # thresholds that change with every step must not pile up
                self._constants.clear()
            constant = self._constants[key] = make(values, dtype=dtype, device=device)
        return constant


@cache
def _namespace(backend: Backend) -> _Namespace:
    """The same object each time, by which tables of one library are known."""
    return _Namespace(backend.xp)
