"""The eager engine: the program itself, called on arrays, operation by operation. It serves every array library.

Where each operation runs at once on a CPU, the arrays are walked in blocks that stay in the cache; the rule is
elementwise, so the blocking does not change a bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..generic import Array, Backend, wider
from ..protocol import Bucket, Job, NormTable
from . import norms
from .locate import Ranges, blocks, extents
from .program import Program

__all__ = ["EagerEngine", "elementwise"]

#: Elements of a block. Measured on two machines: 32 Ki elements of float32 keep all arrays of a step in the L2 cache.
BLOCK = 32 * 1024


class EagerEngine:
    """Runs a program eagerly, in the library of the arrays."""

    name = "eager"

    def rejects(self, backend: Backend, device: Any, dtypes: Sequence[str]) -> str | None:
        """Serve everything."""
        return None

    def filled_like(self, backend: Backend, arrays: Sequence[Array], value: float, dtype: str) -> list[Array]:
        """See `Engine.filled_like`."""
        return [backend.full_like(array, value, dtype) for array in arrays]

    def prepare(self, program: Program, dtypes: tuple[str, ...]) -> None:
        """Have nothing to compile."""

    def update(self, job: Job, norm_scales: Array | None) -> None:
        """See `Engine.update`."""
        bucket, program, grads, values = job.bucket, job.program, job.grads, job.values
        dtypes = [bucket.dtype] + [bucket.state_dtype] * len(bucket.state)
        scalars = {name: values[name] for name in program.scalars if name != "norm_scale"}
        for i, g in enumerate(_copy_aliased_grads(bucket, grads)):
            if g is None:
                continue
            own = dict(scalars)  # each tensor's own: a lazy library reads them later
            if norm_scales is not None:
                # As a Python float, the factor is rounded to the computing dtype, as in the compiled engines.
                own["norm_scale"] = float(norm_scales[i])
            self._update_one(bucket, i, g, elementwise(program, own, wider(bucket.dtypes)), dtypes)

    def _update_one(self, bucket: Bucket, i: int, g: Array, function: Any, dtypes: list[str]) -> None:
        backend, old = bucket.backend, [arrays[i] for arrays in bucket.arrays()]
        whole = not backend.blocked or g.ndim == 0
        for box in [None] if whole else blocks(tuple(g.shape), BLOCK):
            views = [a if box is None else a[box] for a in (old[0], g, *old[1:])]
            parts = zip(*(backend.parts(view) for view in views), strict=True)
            new = zip(*(backend.elementwise(function, part) for part in parts), strict=True)
            joined = [backend.join(list(pieces), dtype) for pieces, dtype in zip(new, dtypes, strict=True)]
            for j, (arrays, array) in enumerate(zip(bucket.arrays(), joined, strict=True)):
                if backend.mutable:
                    backend.write(views[j + (j > 0)], array)
                else:
                    arrays[i] = array

    def norm_table(self, job: Job, lowest: int) -> NormTable:
        """See `Engine.norm_table`; the table is a NumPy array."""
        bucket, program, grads, values = job.bucket, job.program, job.grads, job.values
        backend, computing = bucket.backend, wider([bucket.grad_dtype])

        def prepare(xp: Any, g: Array) -> Array:
            return program.measured(xp, xp.astype(g, getattr(xp, computing), copy=False), values)

        table = np.zeros((len(grads), norms.COLUMNS), np.int64)
        for i, g in enumerate(grads):
            for box in [None] if g is None or not backend.blocked or g.ndim == 0 else blocks(tuple(g.shape), BLOCK):
                for part in [] if g is None else backend.parts(g if box is None else g[box]):
                    table[i] += np.asarray(backend.square_sums(prepare, part, lowest))
        return NormTable(np, table)

    def finite(self, job: Job) -> list[bool]:
        """See `Engine.finite`."""
        bucket, grads = job.bucket, job.grads
        return [g is None or all(map(bucket.backend.finite, bucket.backend.parts(g))) for g in grads]


def _copy_aliased_grads(bucket: Bucket, grads: Sequence[Array | None]) -> list[Array | None]:
    """The gradients, copied where they lie in the memory of parameters: writing those would change them."""
    backend, grads = bucket.backend, list(grads)
    if backend.mutable:
        ranges = Ranges(*extents(backend, bucket.params))
        upon = np.array([g is p for g, p in zip(grads, bucket.params, strict=True)])
        for i in ranges.aliases(*extents(backend, grads), upon):
            grads[i] = backend.copy(grads[i])
    return grads


def elementwise(program: Program, scalars: Mapping[str, Any], computing: str) -> Any:
    """The program on real arrays ``(x, g, *state)``: computed in `computing`, each output rounded once to its dtype."""

    def function(xp: Any, *arrays: Array) -> tuple[Array, ...]:
        wide = [xp.astype(a, getattr(xp, computing), copy=False) for a in arrays]
        old = (arrays[0], *arrays[2:])
        return tuple(
            xp.astype(new, a.dtype, copy=False)
            for new, a in zip(program.function(xp, *wide, **scalars), old, strict=True)
        )

    return function
