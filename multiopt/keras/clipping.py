"""Interim: exact clipping on today's core."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .. import backends
from ..backends.base import Array
from ..rule import Rule
from ..stepping import Job, Pass, check_params, make_buckets, prepare, run

__all__ = ["clip"]


def _replace(xp: Any, x: Any, g: Any) -> tuple[Any]:
    return (g,)


REPLACE = Rule("replace", _replace, slots={}, hypers={})


def clip(
    arrays: Sequence[Array],
    names: Sequence[str],
    *,
    value: float | None = None,
    norm: float | None = None,
    global_norm: float | None = None,
    reduce: Callable[[Any, Any], Any] | None = None,
) -> tuple[list[Any], Any]:
    """As the core's, to come."""
    backend = backends.of(arrays[0])
    made = [backend.full_like(a, 0.0, backend.dtype(a)) if backends.of(a) is backend else a for a in arrays]
    check_params(made, names)
    one_pass = Pass(REPLACE, clipped=value is not None, normed=norm is not None or global_norm is not None)
    jobs = []
    for bucket, indices in make_buckets(REPLACE, made, names):
        prepare(bucket, one_pass)
        jobs.append(Job(bucket, indices, one_pass, [arrays[i] for i in indices], {"clip_value": value}, norm))
    total = run(jobs, global_norm, reduce)
    for job in jobs:
        for i, array in zip(job.indices, job.bucket.params, strict=True):
            made[i] = array
    return made, total
