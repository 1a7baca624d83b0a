"""One step over buckets: everything is checked, then gradients are measured, then one pass a bucket is made.

Optimizers and faces stand on this module; it stands on the backends.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import backends
from .backends.base import FLOATING, Array, Backend, Bucket
from .backends.engines import norms
from .backends.engines.onepass import Pass
from .backends.engines.trace import TraceError
from .rule import Rule

__all__ = [
    "Job",
    "Pass",
    "check_gradients",
    "check_params",
    "check_unswapped",
    "make_buckets",
    "nonfinite",
    "prepare",
    "run",
    "state_dtype_of",
]


@dataclass
class Job:
    """What one step does to one bucket.

    `values` holds every number that `one_pass` reads; `clip_norm` is the threshold for each tensor's norm, or None.
    `indices` are the bucket's places in the caller's list.
    """

    bucket: Bucket
    indices: list[int]
    one_pass: Pass
    grads: list[Array | None]
    values: Mapping[str, Any]
    clip_norm: float | None = None


# --- parameters ---


def check_params(params: Sequence[Array], names: Sequence[str]) -> Backend:
    """Check arrays that shall be updated, and return the one backend that they belong to.

    Raises
    ------
    TypeError
        If one is not an array, its dtype is not floating or complex, or the arrays are of two libraries.
    ValueError
        If one is read-only, overlaps itself, or shares memory with another.
    """
    found: Backend | None = None
    for array, name in zip(params, names, strict=True):
        try:
            backend = backends.of(array)
        except TypeError as error:
            raise TypeError(f"{name}: {error}") from None
        if found is not None and backend is not found:
            raise TypeError(f"{name}: expected a {found.name} array, as {names[0]} is, got a {backend.name} array")
        found = backend
        if refusal := backend.admit(array):
            raise TypeError(f"{name}: {refusal}")
        if backend.dtype(array) not in FLOATING:
            raise TypeError(f"{name}: expected one of the dtypes {', '.join(FLOATING)}, got {backend.dtype(array)}")
        if backend.mutable and not backend.writable(array):
            raise ValueError(f"{name}: expected an array that can be written to, got a read-only one")
    if found is None:
        raise ValueError("params: expected at least one array, got none")
    if found.mutable:
        _check_overlap(found, params, names)
    return found


def _check_overlap(backend: Backend, params: Sequence[Array], names: Sequence[str]) -> None:
    extents = []
    for i, array in enumerate(params):
        if backend.overlaps_itself(array):
            raise ValueError(f"{names[i]}: expected elements with memory of their own, got a view that repeats some")
        extent = backend.extent(array)
        # Where memory cannot be seen, at least the same object twice is.
        extents.append((*(extent or (id(array), id(array) + 1)), i))
    extents.sort()
    open_: list[tuple[int, int]] = []  # those that may reach beyond the start of the next
    for start, end, i in extents:
        open_ = [(until, j) for until, j in open_ if until > start]
        for _, j in open_ if start < end else []:
            if backend.share_memory(params[j], params[i]):
                first, second = sorted((i, j))
                raise ValueError(
                    f"{names[second]}: expected memory of its own, got an array that overlaps {names[first]}"
                )
        open_.append((end, i))


def make_buckets(
    rule: Rule,
    params: Sequence[Array],
    names: Sequence[str],
    *,
    state: Sequence[Mapping[str, Array]] | None = None,
    state_dtype: str | None = None,
    grad_dtype: str | None = None,
    engine: str = "auto",
) -> list[tuple[Bucket, list[int]]]:
    """Sort checked arrays into buckets by device and dtype, with new state or the state given.

    Returns
    -------
    list of (Bucket, list of int)
        The integers say where the bucket's arrays stand in `params`.
    """
    backend = backends.of(params[0])
    sorted_: dict[tuple[Any, str, str], list[int]] = {}
    for i, array in enumerate(params):
        dtype = backend.dtype(array)
        held = (
            backend.dtype(next(iter(state[i].values()))) if state and state[i] else state_dtype_of(dtype, state_dtype)
        )
        sorted_.setdefault((backend.device(array), dtype, held), []).append(i)
    made = []
    for (device, dtype, held), indices in sorted_.items():
        grad = state_dtype_of(dtype, grad_dtype)
        chosen, _ = backends.engine_for(backend, device, (dtype, grad, held), engine)
        arrays = {
            slot: [state[i][slot] if state and state[i] else backend.full_like(params[i], value, held) for i in indices]
            for slot, value in rule.slots.items()
        }
        chosen_names, chosen_params = [names[i] for i in indices], [params[i] for i in indices]
        bucket = Bucket(backend, chosen, device, dtype, grad, held, chosen_names, chosen_params, arrays, engine)
        made.append((bucket, indices))
    return made


def state_dtype_of(dtype: str, wanted: str | None) -> str:
    """The dtype of state for parameters of `dtype`: as wide as wanted, complex for complex ones."""
    if wanted is None:
        return dtype
    if dtype.startswith("complex"):
        return "complex128" if wanted in ("float64", "complex128") else "complex64"
    return wanted


def prepare(bucket: Bucket, one_pass: Pass) -> None:
    """Have the engine compile the pass; a rule that it cannot compile gets the eager engine, with a warning.

    Raises
    ------
    TraceError
        If the engine was asked for by name.
    """
    if one_pass in bucket.prepared:
        return
    try:
        bucket.engine.prepare(one_pass, bucket.dtypes)
    except TraceError as error:
        if bucket.wanted != "auto":
            raise
        warnings.warn(f"{error}; the eager engine runs it instead, slower", RuntimeWarning, stacklevel=4)
        bucket.engine = backends.engine("eager")
        bucket.cache.clear()
    bucket.prepared.add(one_pass)


# --- gradients ---


def check_gradients(bucket: Bucket, grads: Sequence[Array | None], names: Sequence[str] | None = None) -> None:
    """Check that each gradient agrees with its parameter.

    Raises
    ------
    TypeError
        If one is not an array of the parameters' library, or has another dtype.
    ValueError
        If one has another shape or is on another device.
    """
    backend, kinds = bucket.backend, set(map(type, grads))
    live: Sequence[Array] = grads
    params: Sequence[Array] = bucket.params
    if type(None) in kinds:
        pairs = [(g, p) for g, p in zip(grads, params, strict=True) if g is not None]
        live, params = [g for g, _ in pairs], [p for _, p in pairs]
        kinds.discard(type(None))
    expected = bucket.fingerprint if params is bucket.params else backend.fingerprint(params)
    if bucket.kinds >= kinds and backend.fingerprint(live) == expected:
        return
    for i, g in enumerate(grads):
        if g is not None:
            name = names[i] if names else bucket.names[i].replace("params", "grads", 1)
            _check_gradient(backend, name, g, bucket.params[i], bucket.grad_dtype)
    bucket.kinds |= kinds


def check_unswapped(bucket: Bucket) -> None:
    """Check that the parameters are what they were, where a library can swap what an array stands for.

    Raises
    ------
    ValueError
        If one has got another shape, dtype or device.
    """
    if bucket.backend.swappable and bucket.backend.fingerprint(bucket.params) != bucket.fingerprint:
        for name, old, new in _changes(bucket.names, bucket.signatures, bucket.backend.signature(bucket.params)):
            raise ValueError(f"{name}: expected {old}, as when the optimizer was made, got {new}")


def _changes(names: Sequence[str], before: list[Any], now: list[Any]) -> Iterable[tuple[str, Any, Any]]:
    return [] if before == now else [(n, b, a) for n, b, a in zip(names, before, now, strict=True) if a != b]


def _check_gradient(backend: Backend, name: str, g: Array, param: Array, expected: str) -> None:
    try:
        found = backends.of(g)
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None
    if found is not backend:
        raise TypeError(f"{name}: expected a {backend.name} array, as its parameter is, got a {found.name} array")
    if refusal := backend.admit(g):
        raise TypeError(f"{name}: {refusal}")
    if tuple(g.shape) != tuple(param.shape):
        raise ValueError(f"{name}: expected shape {tuple(param.shape)}, as its parameter's, got {tuple(g.shape)}")
    if backend.dtype(g) != expected:
        raise TypeError(f"{name}: expected dtype {expected}, as its parameter's, got {backend.dtype(g)}")
    if backend.device(g) != backend.device(param):
        raise ValueError(f"{name}: expected device {backend.device(param)}, got {backend.device(g)}")


def nonfinite(arrivals: Iterable[tuple[Bucket, Job]]) -> list[str]:
    """Names of the parameters whose gradient has an element that is infinite or NaN.

    Each job comes with the bucket for which its gradients are meant.
    """
    return [
        name
        for bucket, job in arrivals
        for name, good in zip(bucket.names, bucket.engine.finite(bucket, job.grads), strict=True)
        if not good
    ]


# --- the step ---


def run(
    jobs: Sequence[Job],
    clip_global_norm: float | None = None,
    reduce: Callable[[Any, Any], Any] | None = None,
) -> Any:
    """Do the jobs, which have been checked.

    Parameters
    ----------
    jobs : sequence of Job
        Passes that are `normed` get the factors that clipping asks for.
    clip_global_norm : float or None
        The threshold for the norm of all gradients together.
    reduce : callable or None
        ``reduce(xp, table)`` adds up tables of integers (`norms`) over processes that hold shards.

    Returns
    -------
    array of float64, shape (1,), or None
        The global norm before it was clipped, where clipping by norm is on; on the gradients' device.
    """
    _apart(jobs)
    scales: list[Any] = [None] * len(jobs)
    norm = None
    if any(job.one_pass.normed for job in jobs):
        scales, norm = _norm_scales(jobs, clip_global_norm, reduce)
    for job, scale in zip(jobs, scales, strict=True):
        job.bucket.engine.update(job.bucket, job.one_pass, job.grads, job.values, scale)
    _settle([job.bucket for job in jobs])
    return norm


def _apart(jobs: Sequence[Job]) -> None:
    """Copy gradients that lie in memory which an earlier job writes to. Within a job, its engine sees to that."""
    written: dict[int, list[Array]] = {}
    for job in jobs if len(jobs) > 1 and jobs[0].bucket.backend.mutable else []:
        backend = job.bucket.backend
        for i, g in enumerate(job.grads):
            near = written.get(backend.owner(g), []) if g is not None and written else []
            if any(g is p or backend.share_memory(g, p) for p in near):
                job.grads = [*job.grads[:i], backend.copy(g), *job.grads[i + 1 :]]
        for p in job.bucket.params:
            written.setdefault(backend.owner(p), []).append(p)


def _norm_scales(
    jobs: Sequence[Job], clip_global_norm: float | None, reduce: Callable[[Any, Any], Any] | None
) -> tuple[list[Any], Any]:
    thresholds = [job.clip_norm for job in jobs if job.clip_norm is not None]
    lowest = norms.lowest_exponent(min([*thresholds, *([clip_global_norm] if clip_global_norm else [])]))
    tables = [job.bucket.engine.norm_table(job.bucket, job.one_pass, job.grads, job.values, lowest) for job in jobs]
    xp, table = tables[0].xp, tables[0].table
    if len(tables) > 1:
        if len({(id(t.xp), str(t.table.device)) for t in tables}) > 1:
            # Several devices: their norms meet in this machine's memory.
            xp, parts = (
                np,
                [job.bucket.backend.table_to_host(t.table) for job, t in zip(jobs, tables, strict=True)],
            )
        else:
            parts = [t.table for t in tables]
        table = xp.concat(parts, axis=0)
    if reduce is not None:
        table = reduce(xp, table)
    own = None
    if thresholds:
        limits = [t for job in jobs for t in [np.inf if job.clip_norm is None else job.clip_norm] * len(job.grads)]
        own = xp.asarray(limits, dtype=xp.float64, device=table.device)
    with np.errstate(all="ignore"):  # infinite norms are no more a warning here than on a device
        factors, norm = norms.clip_factors(xp, table, lowest, own, clip_global_norm)
    scales, start = [], 0
    for job, held in zip(jobs, tables, strict=True):
        part = factors[start : start + len(job.grads)]
        scales.append(part if held.xp is xp else held.xp.asarray(part, device=held.table.device))
        start += len(job.grads)
    return scales, norm


def _settle(buckets: Sequence[Bucket]) -> None:
    if buckets and not buckets[0].backend.mutable:
        columns = [column for bucket in buckets for column in bucket.arrays()]
        settled = iter(buckets[0].backend.settle([array for column in columns for array in column]))
        for column in columns:
            column[:] = [next(settled) for _ in column]
