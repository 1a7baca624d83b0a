"""Gradients clipped one by one or together, outside the fused pass: for optimizers that shall see the clipped ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import backends
from ..backends.protocol import Array
from ..binding import Job, Pass, check_params, make_buckets, prepare, run
from ..rule import Rule
from .variable import IndexedSlices

__all__ = ["clipped"]


def _replace(xp: Any, x: Any, g: Any) -> tuple[Any]:
    return (g,)


#: The rule that puts the gradient, as the pass has prepared it, into the parameter's place.
REPLACE = Rule("replace", _replace, slots={}, hypers={})


def clipped(
    gradients: Sequence[Array | IndexedSlices],
    *,
    value: float | None = None,
    norm: float | None = None,
    global_norm: float | None = None,
    names: Sequence[str] | None = None,
) -> list[Any]:
    """New gradients: each element clipped to ±value, then each one's norm, then the norm of all together.

    Of `IndexedSlices` the values are clipped, repeated rows apart.

    Raises
    ------
    TypeError, ValueError
        If something is not a floating array, or the arrays are of two libraries.
    """
    if not gradients or (value is None and norm is None and global_norm is None):
        return list(gradients)
    # A threshold of 0 leaves zeros; there is no factor that would do it for an infinite norm.
    if norm == 0 or global_norm == 0:
        value, norm, global_norm = 0.0, None, None
    arrays = [g.values if isinstance(g, IndexedSlices) else g for g in gradients]
    names = list(names) if names is not None else [f"gradients[{i}]" for i in range(len(arrays))]
    backend = backends.of(arrays[0])
    if backend.name == "torch":
        arrays = [a.detach() for a in arrays]
    made = [backend.full_like(a, 0.0, backend.dtype(a)) if backends.of(a) is backend else a for a in arrays]
    check_params(made, names)
    normed = norm is not None or global_norm is not None
    one_pass = Pass(REPLACE, clipped=value is not None, normed=normed)
    jobs = []
    for bucket, indices in make_buckets(REPLACE, made, names):
        prepare(bucket, one_pass)
        jobs.append(Job(bucket, indices, one_pass, [arrays[i] for i in indices], {"clip_value": value}, norm))
    run(jobs, global_norm)
    for job in jobs:
        for i, array in zip(job.indices, job.bucket.params, strict=True):
            made[i] = array
    return [
        IndexedSlices(new, g.indices, g.dense_shape) if isinstance(g, IndexedSlices) else new
        for g, new in zip(gradients, made, strict=True)
    ]
