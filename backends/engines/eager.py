"""The eager engine: the program itself, called on arrays, operation by operation. It serves every array library.

Where each operation runs at once on a CPU, the arrays are walked in blocks that stay in the cache; the rule is
elementwise, so the blocking does not change a bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..generic import Array, Backend, wider
from ..protocol import Bucket, Engine, Job, Location, NormTable, Ranges
from ..registry import of
from ..rounding import Draws, rounded
from . import norms
from .locate import blocks, check_memory, extents
from .program import Program

__all__ = ["EagerEngine", "Elementwise", "applied"]

#: Elements of a block. Measured on two machines: 32 Ki elements of float32 keep all arrays of a step in the L2 cache.
BLOCK = 32 * 1024


class EagerEngine(Engine):
    """Runs a program eagerly, in the library of the arrays."""

    name = "eager"
    takes_groups = True

    def rejects(self, backend: Backend, device: Any, dtypes: Sequence[str]) -> str | None:
        return None

    def locate(self, job: Job) -> Location | None:
        backend = job.bucket.backend
        if not backend.mutable:
            return None
        for i, g in enumerate(job.grads):
            if g is not None:
                check_memory(job.bucket, i, g)
        begins, ends = zip(*(extents(backend, column) for column in job.bucket.arrays()), strict=True)
        upon = np.array([g is p for g, p in zip(job.grads, job.bucket.params, strict=True)])
        return Location(Ranges(np.concatenate(begins), np.concatenate(ends)), extents(backend, job.grads), upon)

    def update(self, job: Job, norm_scales: Array | None) -> None:
        bucket, program = job.bucket, job.program
        groups = [{name: row[name] for name in program.scalars if name != "norm_scale"} for row in job.values]
        for i, g in enumerate(job.grads):
            if g is None:
                continue
            own = dict(groups[job.group_of(i)])  # each tensor's own: a lazy library reads them later
            if norm_scales is not None:
                # As a Python float, the factor is rounded to the computing dtype, as in the compiled engines.
                own["norm_scale"] = float(norm_scales[i])
            draws = job.draws(i) if program.stochastic else None
            _update_one(bucket, i, g, Elementwise(program, own, wider(bucket.dtypes), draws))

    def norm_table(self, job: Job) -> NormTable:
        backend, computing = job.bucket.backend, wider([job.bucket.grad_dtype])

        job.grads = backend.hold(job.grads)
        table = np.zeros((len(job.grads), norms.columns(computing)), np.int64)
        members: list[list[int]] = [[] for _ in job.values]
        for i in range(len(job.grads)):
            members[job.group_of(i)].append(i)
        for which, values in zip(members, job.values, strict=True):

            def prepare(xp: Any, g: Array, values: Mapping[str, Any] = values) -> Array:
                return job.program.measured(xp, xp.astype(g, getattr(xp, computing), copy=False), values)

            places: list[int] = []
            rows = backend.square_rows(prepare, _parts(backend, [job.grads[i] for i in which], places), computing)
            for at, row in enumerate(rows):
                table[which[places[at]]] += np.asarray(row)
        return NormTable(np, table)

    def finite(self, job: Job) -> list[bool]:
        backend = job.bucket.backend
        job.grads = backend.hold(job.grads)
        return [g is None or all(map(backend.finite, backend.parts(g))) for g in job.grads]


def _boxes(backend: Backend, array: Array) -> Iterable[Any]:
    """Indices of the blocks that an array is walked in; None where it is taken whole."""
    whole = math.prod(array.shape) <= BLOCK or not backend.blocked(backend.device(array))
    return [None] if whole else blocks(tuple(array.shape), BLOCK)


def _parts(backend: Backend, grads: Sequence[Array | None], places: list[int]) -> Iterator[Array]:
    """The real parts of all blocks of all gradients; where each gradient stands is added to `places`."""
    for i, g in enumerate(grads):
        if g is None:
            continue
        for box in _boxes(backend, g):
            for part in backend.parts(g if box is None else g[box]):
                places.append(i)
                yield part


def _update_one(bucket: Bucket, i: int, g: Array, whole: Elementwise) -> None:
    backend, rows, old = bucket.backend, bucket.rows, [arrays[i] for arrays in bucket.arrays()]
    if rows is not None:
        old = [backend.take(array, rows) for array in old]
    made = list(old)
    for box in _boxes(backend, g):
        function = whole if box is None else whole.within(box)
        x, *state = views = old if box is None else [a[box] for a in old]
        joined = applied(backend, function, (x, g if box is None else g[box], *state))
        for k, (view, array) in enumerate(zip(views, joined, strict=True)):
            if backend.mutable:
                backend.write(view, array)
            else:
                made[k] = array
    for arrays, new in zip(bucket.arrays(), made, strict=True):
        arrays[i] = new if rows is None else backend.put(arrays[i], rows, new)


def applied(backend: Backend, function: Elementwise, arrays: Sequence[Array]) -> list[Array]:
    """The new parameter and state of ``(x, g, *state)``, which may be complex and of several dtypes."""
    new = zip(
        *(backend.elementwise(function, part) for part in zip(*map(backend.parts, arrays), strict=True)), strict=True
    )
    kinds = [backend.dtype(array) for array in (arrays[0], *arrays[2:])]
    return [backend.join(list(pieces), kind) for pieces, kind in zip(new, kinds, strict=True)]


@dataclass(frozen=True)
class Elementwise:
    """The program on real arrays ``(x, g, *state)``: computed in `computing`, each output rounded once to its dtype.

    Outputs that are rounded stochastically, to bfloat16, are rounded from float32.
    """

    program: Program
    scalars: Mapping[str, Any]
    computing: str
    #: What the `stochastic` outputs are rounded by.
    draws: Draws | None = None

    @property
    def numbers(self) -> tuple[Any, ...]:
        """All numbers that it reads."""
        step = () if self.draws is None else self.draws.rounding.keys
        return (*self.scalars.values(), *step)

    def within(self, box: tuple[slice, ...]) -> Elementwise:
        """The same on a block of its arrays."""
        return self if self.draws is None else replace(self, draws=replace(self.draws, box=box))

    def __call__(self, xp: Any, *arrays: Array) -> tuple[Array, ...]:
        wide = [xp.astype(a, getattr(xp, self.computing), copy=False) for a in arrays]
        old = (arrays[0], *arrays[2:])
        made = self.program.function(xp, *wide, **self.scalars)
        if self.draws is not None:
            random = self.draws.random(
                of(wide[0]), wide[0], [slot for slot in self.program.stochastic if slot is not None]
            )
            made = [
                new if slot is None else rounded(xp, xp.astype(new, xp.float32, copy=False), random[slot])
                for new, slot in zip(made, self.program.stochastic, strict=True)
            ]
        return tuple(xp.astype(new, a.dtype, copy=False) for new, a in zip(made, old, strict=True))
