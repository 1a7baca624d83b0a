"""Dask arrays. They are immutable and lazy: a step is one task per chunk, computed at its end.

On a cluster the workers hold the new chunks, and the scheduler how each was made, back to what Dask can make again, so
that it can replace a lost worker's. Steps would make that history ever longer. So after a number of steps the arrays
are fetched and handed to the scheduler as values: history begins anew with them.
"""

from __future__ import annotations

import pickle
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache, partial
from itertools import product
from operator import getitem
from typing import Any
from uuid import uuid4

import cloudpickle
import dask
import dask.array as da
import numpy as np
from dask.array.core import slices_from_chunks
from dask.highlevelgraph import HighLevelGraph

from .engines.program import KEPT, Program, TraceError
from .generic import Array, Backend
from .registry import engine_for, get

__all__ = ["DaskBackend"]

#: Steps after which history begins anew: at most so many are done again when a worker is lost, and remembered.
HISTORY = 16


class _Sent:
    """A program that may go to other processes, each of which makes it once, as often as it comes.

    Engines keep what they compile by the program's identity. What says that two are the same is what their updates
    pickle to: a rule that is written in `__main__` goes by value, and is another function whenever it arrives.
    """

    def __init__(self, program: Program, data: bytes | None = None) -> None:
        self.program, self.data = program, data

    def __reduce__(self) -> Any:
        return _received, (self.data or _pickled(self.program),)


@lru_cache(KEPT)
def _pickled(program: Program) -> bytes:
    return cloudpickle.dumps(program.function)


@lru_cache(KEPT)
def _received(data: bytes) -> _Sent:
    return _Sent(pickle.loads(data).program, data)


def _chunk(sent: _Sent, function: Any, *arrays: np.ndarray) -> list[np.ndarray]:
    """New arrays of one chunk, by the compiled engine where there is one, on the thread that the task has."""
    numpy, numbers = get("numpy"), dict(function.scalars)
    plain = numpy.plain(arrays) and all(isinstance(number, (int, float)) for number in numbers.values())
    function = replace(function, program=sent.program)
    if plain and not sent.program.stochastic:
        engine, _ = engine_for(numpy, "cpu", [numpy.dtype(array) for array in arrays])
        columns = [[array] for array in arrays]
        with suppress(TraceError):
            if made := engine.compute(numpy, sent.program, columns, numbers, ["a chunk"], alone=True):
                return [array for (array,) in made]
    return list(numpy.elementwise(function, arrays))


def _row(prepare: Any, computing: str, g: np.ndarray) -> list[int]:
    return get("numpy").square_sums(prepare, g, computing)


class DaskBackend(Backend):
    """Arrays whose chunks are NumPy arrays of known shapes."""

    mutable: bool = False

    def rejects(self, array: Array) -> str | None:
        if any(n != n for n in array.shape):
            return "expected chunks of known sizes; call compute_chunk_sizes() first"
        if type(array._meta) is not np.ndarray:
            return f"expected chunks that are NumPy arrays, got {type(array._meta).__name__}"
        return None

    def device(self, array: Array) -> str:
        return "cpu"

    def signature(self, arrays: Sequence[Array]) -> list[Any]:
        return [(a.dtype, a.shape) for a in arrays]

    def native(self, dtype: str) -> Any:
        return get("numpy").native(dtype)

    def full_like(self, array: Array, value: float, dtype: str) -> Array:
        return da.full(array.shape, value, dtype=self.native(dtype), chunks=array.chunks)

    def cast(self, array: Array, dtype: str) -> Array:
        return array.astype(self.native(dtype))

    def take(self, array: Array, rows: np.ndarray) -> Array:
        return array[rows]

    def put(self, array: Array, rows: np.ndarray, values: Array) -> Array:
        places, among = np.zeros(len(array), np.int64), np.zeros((len(array), *[1] * (array.ndim - 1)), bool)
        places[rows], among[rows] = np.arange(len(rows)), True
        return _aged(da.where(among, values[places], array).rechunk(array.chunks))

    def join(self, parts: list[Array], dtype: str) -> Array:
        return parts[0] if len(parts) == 1 else _whole(parts, dtype)

    def to_host(self, array: Array) -> np.ndarray:
        return get("numpy").to_host(np.asarray(array.compute()))

    def from_host(self, array: np.ndarray, dtype: str, like: Array | None = None) -> Array:
        return da.from_array(get("numpy").from_host(array, dtype), chunks="auto" if like is None else like.chunks)

    def elementwise(self, function: Any, arrays: Sequence[Array]) -> tuple[Array, ...]:
        first, outputs = arrays[0], (arrays[0], *arrays[2:])
        arrays = [a.rechunk(first.chunks) for a in arrays]
        # The graph is made of the arrays' own, as they are. Optimized one by one (as `to_delayed` does by default) and
        # then merged, graphs have different tasks under one key, and a cluster loses some.
        made, positions = f"multiopt-chunk-{uuid4().hex}", list(product(*map(range, first.numblocks)))
        sent, function = _Sent(function.program), replace(function, program=None)
        tasks: dict[Any, Any] = {
            (made, *at): (partial(_chunk, sent, function.within(box)), *((a.name, *at) for a in arrays))
            for at, box in zip(positions, slices_from_chunks(first.chunks), strict=True)
        }
        graph = HighLevelGraph.from_collections(made, tasks, dependencies=arrays)
        new = []
        for j, old in enumerate(outputs):
            name = _name(max(map(_age, arrays)) + 1)
            own: dict[Any, Any] = {(name, *at): (getitem, (made, *at), j) for at in positions}
            whole = HighLevelGraph({**graph.layers, name: own}, {**graph.dependencies, name: {made}})
            new.append(da.Array(whole, name, first.chunks, dtype=old.dtype))
        return tuple(new)

    def square_rows(self, prepare: Any, arrays: Iterable[Array], computing: str) -> list[list[int]]:
        row = dask.delayed(partial(_row, prepare, computing), pure=False)
        # As they are: see `elementwise`.
        tasks = [[row(chunk) for chunk in g.to_delayed(optimize_graph=False).ravel()] for g in arrays]
        return [[sum(column) for column in zip(*rows, strict=True)] for rows in dask.compute(*tasks)]

    def finite(self, array: Array) -> bool:
        return bool(da.isfinite(array).all().compute())

    def hold(self, arrays: Sequence[Array | None]) -> Sequence[Array | None]:
        return dask.persist(*(None if g is None else _aged(g) for g in arrays))

    def settle(self, arrays: list[Array]) -> list[Array]:
        # Otherwise the graph would grow with every step, and each look at a value would start from the first.
        age = max(map(_age, arrays))
        arrays = list(dask.persist(*arrays))
        if not _wait(arrays) or age < HISTORY:
            return arrays
        # All of them: what is left of one array's history would hold the others' through gradients.
        pairs = zip(dask.compute(*arrays), arrays, strict=True)
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 PB"}):  # it is meant to hold them
            arrays = list(dask.persist(*(da.from_array(np.asarray(v), a.chunks, name=_name(0)) for v, a in pairs)))
        _wait(arrays)
        return arrays


def _name(age: int) -> str:
    """A name for a new array, which says how many steps its history has."""
    return f"multiopt-{age}-{uuid4().hex}"


def _age(array: Array) -> int:
    """The steps in the history of an array and of what it is made from, as far as its graph tells."""
    found = (re.fullmatch(r"multiopt-(\d+)-[0-9a-f]{32}", layer) for layer in array.dask.layers)
    return max((int(name[1]) for name in found if name), default=0)


def _wait(arrays: Sequence[Array]) -> bool:
    """Wait for chunks that a cluster computes, and raise what went wrong; False if they are in this process.

    On a cluster `persist` returns at once; until the new chunks are there, nobody may let go of the old ones.
    """
    if "distributed" not in sys.modules:
        return False
    from distributed import CancelledError, futures_of, wait

    futures = futures_of(arrays)
    try:
        if futures:
            wait(futures)
        for future in futures:
            if future.status in ("error", "cancelled"):
                future.result()  # raises
    except CancelledError as error:
        raise RuntimeError(f"Dask's cluster has lost a step, and its arrays are as before: {error}") from error
    return bool(futures)


def _same(chunk: np.ndarray) -> np.ndarray:
    return chunk


def _aged(array: Array) -> Array:
    """The same under a name that says its age, which it keeps when it is computed."""
    return da.map_blocks(_same, array, dtype=array.dtype, meta=array._meta, name=_name(_age(array)))


def _whole(parts: list[Array], dtype: str) -> Array:
    return da.map_blocks(_complex, *parts, dtype=dtype, name=_name(max(map(_age, parts))))


def _complex(real: np.ndarray, imaginary: np.ndarray) -> np.ndarray:
    return get("numpy").join([real, imaginary], np.result_type(real, np.complex64).name)
