"""A rule bound to arrays and their state: validate them, sort them into buckets, check a step, run it.

The one chain from arrays to engines. Optimizers and faces stand on this module; it stands on the backends.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any, Literal

import numpy as np

from . import backends
from .backends.engines import norms
from .backends.engines.program import TraceError
from .backends.generic import Array, Backend
from .backends.protocol import Bucket, Job
from .memory import Memory, check_gradient, check_params
from .rule import Rule
from .update import FusedUpdate

__all__ = ["Binding", "Plan", "Reduce", "run", "state_dtype_of"]

#: ``reduce(xp, table, rows)`` adds up tables of integers (`norms`) over processes that hold shards; `rows` says of
#: each row which plan it belongs to, and which of that plan's arrays.
Reduce = Callable[[Any, Any, list[tuple[int, int]]], Any]


@dataclass
class PlannedJob(Job):
    """What one step does to one bucket; `places` are the bucket's in the caller's list."""

    places: list[int]
    clip_norm: float | None


@dataclass
class Plan:
    """A step of one binding that has been checked, for `run`."""

    jobs: list[PlannedJob]

    def nonfinite(self) -> list[str]:
        """Names of the parameters whose gradient has an element that is infinite or NaN."""
        return [
            name
            for job in self.jobs
            for name, good in zip(job.bucket.names, job.bucket.engine.finite(job), strict=True)
            if not good
        ]


class Binding:
    """A rule bound to arrays and their state.

    Parameters
    ----------
    rule : Rule
        What will be computed.
    params : sequence of arrays
        What it updates: arrays of one library.
    names : sequence of str
        The parameters' names, for messages.
    state : sequence of mapping from slot to array, optional
        The state of each parameter; by default new state, filled as the rule says.
    state_dtype : str, optional
        Dtype of new state; by default the parameter's.
    grad_dtypes : sequence of str or "state", optional
        Dtype of each gradient, or that of the state; by default the parameter's.
    engine : str
        See `multiopt.Optimizer`.
    memory : Memory, optional
        Of the arrays that other bindings update; the attribute `memory` adds those of this one.
    backend : Backend, optional
        What the arrays must belong to.

    Attributes
    ----------
    backend : Backend
        Of the arrays.
    buckets : list of Bucket
        The arrays sorted by device and dtypes: each is updated by one call of an engine.
    places : list of list of int
        Where the arrays of each bucket stand in `params`.

    Raises
    ------
    TypeError
        If something is not an array, has another dtype than a floating or complex one, or is of another library.
    ValueError
        If an array is read-only, overlaps itself or shares memory with another, or the engine does not serve it.
    """

    def __init__(
        self,
        rule: Rule,
        params: Sequence[Array],
        names: Sequence[str],
        *,
        state: Sequence[Mapping[str, Array]] | None = None,
        state_dtype: str | None = None,
        grad_dtypes: Sequence[str] | Literal["state"] | None = None,
        engine: str = "auto",
        memory: Memory | None = None,
        backend: Backend | None = None,
    ) -> None:
        self.rule, self.names, self.engine = rule, list(names), engine
        self.backend = check_params(params, names, backend)
        self.memory = (memory or Memory()).plus(self.backend, params, names)
        self._params = list(params) if self.backend.mutable else []  # immutable ones are not kept alive
        self.buckets: list[Bucket] = []
        self.places: list[list[int]] = []
        by_kind: dict[tuple[Any, str, str, str], list[int]] = {}
        for i, array in enumerate(params):
            dtype = self.backend.dtype(array)
            held = state_dtype_of(dtype, state_dtype)
            if state and state[i]:
                held = self.backend.dtype(next(iter(state[i].values())))
            grad = dtype if grad_dtypes is None else held if grad_dtypes == "state" else grad_dtypes[i]
            by_kind.setdefault((self.backend.device(array), dtype, grad, held), []).append(i)
        for (device, dtype, grad, held), places in by_kind.items():
            chosen, _ = backends.engine_for(self.backend, device, (dtype, grad, held), engine)
            own, called = [params[i] for i in places], [names[i] for i in places]
            arrays = {
                slot: [state[i][slot] for i in places]
                if state and state[places[0]]
                else chosen.filled_like(self.backend, own, value, held)
                for slot, value in rule.slots.items()
            }
            self.buckets.append(Bucket(self.backend, chosen, device, dtype, grad, held, called, own, arrays, engine))
            self.places.append(places)

    # --- its arrays ---

    @property
    def params(self) -> list[Array]:
        """The parameters as they are now, in the caller's order."""
        return self._params if self.backend.mutable else self.column(0)

    @property
    def state(self) -> dict[str, list[Array]]:
        """For each slot, the parameters' state, in the caller's order."""
        return {slot: self.column(k) for k, slot in enumerate(self.rule.slots, start=1)}

    def column(self, k: int) -> list[Array]:
        """The parameters (0), or the arrays of the k-th slot, in the caller's order."""
        found: list[Any] = [None] * len(self.names)
        for bucket, places in zip(self.buckets, self.places, strict=True):
            for i, array in zip(places, bucket.arrays()[k], strict=True):
                found[i] = array
        return found

    def rename(self, prefix: str) -> None:
        """Put a prefix before every name."""
        self.names = [f"{prefix}{name}" for name in self.names]
        for bucket in self.buckets:
            bucket.names = [f"{prefix}{name}" for name in bucket.names]

    def replace(self, k: int, arrays: Sequence[Array]) -> None:
        """Take over other arrays, of the same shapes and dtypes, in the caller's order; see `column`."""
        for bucket, places in zip(self.buckets, self.places, strict=True):
            column, own = bucket.arrays()[k], [arrays[i] for i in places]
            if not all(map(is_, column, own)):
                column[:] = own
                bucket.cache.clear()  # it may hold addresses
        if k == 0 and self.backend.mutable:
            self._params[:] = arrays

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for bucket in self.buckets:
            bucket.engine, _ = backends.engine_for(self.backend, bucket.device, bucket.dtypes[:3], bucket.wanted)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out addresses, which are another process' own."""
        return {**self.__dict__, "memory": None}

    # --- a step ---

    def check(self, update: FusedUpdate) -> None:
        """Have the engines compile an update, and check that the parameters are what they were.

        A rule that an engine cannot compile gets the eager engine, with a warning.

        Raises
        ------
        TraceError
            If the engine was asked for by name, and cannot compile the rule.
        ValueError
            If a parameter has got another shape, dtype or device.
        """
        for bucket in self.buckets:
            if update not in bucket.prepared:
                _prepare(bucket, update)
            watch = self.backend.swappable and not bucket.watched
            if watch and self.backend.fingerprint(bucket.params) != bucket.fingerprint:
                now = self.backend.signature(bucket.params)
                for name, old, new in zip(bucket.names, bucket.signatures, now, strict=True):
                    if old != new:
                        raise ValueError(f"{name}: expected {old}, as when the optimizer was made, got {new}")

    def plan(
        self,
        update: FusedUpdate,
        grads: Sequence[Array | None],
        values: Mapping[str, Any],
        *,
        clip_norm: float | None = None,
        names: Sequence[str] | None = None,
    ) -> Plan:
        """Check a step; nothing is written.

        Parameters
        ----------
        update : FusedUpdate
            What is computed: the binding's rule, and the options that are on.
        grads : sequence of arrays or None
            A gradient for each parameter; None leaves its parameter and state as they are.
        values : mapping of str to number
            Every number that the update reads.
        clip_norm : float or None
            Threshold for the norm of each gradient, if the update is `normed`.
        names : sequence of str, optional
            The gradients' names, for messages.

        Raises
        ------
        TypeError, ValueError
            If a gradient's library, shape, dtype or device is not its parameter's; see also `check`.
        """
        self.check(update)
        jobs = []
        for bucket, places in zip(self.buckets, self.places, strict=True):
            own = self.backend.described(grads if len(places) == len(grads) else [grads[i] for i in places])
            _check_gradients(bucket, own, names and [names[i] for i in places])
            jobs.append(PlannedJob(bucket, update.program, own, values, places, clip_norm))
        return Plan(jobs)


def state_dtype_of(dtype: str, wanted: str | None) -> str:
    """The dtype of state for parameters of `dtype`: as wide as wanted, complex for complex ones."""
    if wanted is None:
        return dtype
    if dtype.startswith("complex"):
        return "complex128" if wanted in ("float64", "complex128") else "complex64"
    return wanted


def _prepare(bucket: Bucket, update: FusedUpdate) -> None:
    try:
        bucket.engine.prepare(update.program, bucket.dtypes)
    except TraceError as error:
        if bucket.wanted != "auto":
            raise
        warnings.warn(f"{error}; the eager engine runs it instead, slower", RuntimeWarning, stacklevel=5)
        bucket.engine = backends.engine("eager")
        bucket.cache.clear()
    bucket.prepared.add(update)


def _check_gradients(bucket: Bucket, grads: Sequence[Array | None], names: Sequence[str] | None) -> None:
    backend, kinds = bucket.backend, set(map(type, grads))
    live: Sequence[Array] = grads
    params: Sequence[Array] = bucket.params
    if type(None) in kinds:
        pairs = [(g, p) for g, p in zip(grads, params, strict=True) if g is not None]
        live, params = [g for g, _ in pairs], [p for _, p in pairs]
        kinds.discard(type(None))
    expected = bucket.accepted
    if params is not bucket.params:
        expected = backend.fingerprint(params) if bucket.dtype == bucket.grad_dtype else None
    if expected is not None and bucket.kinds >= kinds and backend.fingerprint(live) == expected:
        return
    for i, g in enumerate(grads):
        if g is not None:
            name = names[i] if names else bucket.names[i].replace("params", "grads", 1)
            check_gradient(name, backend, g, bucket.params[i], bucket.grad_dtype)
    bucket.kinds |= kinds
    if params is bucket.params:
        bucket.accepted = backend.fingerprint(grads)


def run(plans: Sequence[Plan], clip_global_norm: float | None = None, reduce: Reduce | None = None) -> Any:
    """Run plans that have been checked, one after another.

    Parameters
    ----------
    plans : sequence of Plan
        Updates that are `normed` get the factors that clipping asks for.
    clip_global_norm : float or None
        The threshold for the norm of all gradients together.
    reduce : callable or None
        See `Reduce`.

    Returns
    -------
    array of float64, shape (1,), or None
        The global norm before it was clipped, where clipping by norm is on; on the gradients' device.
    """
    jobs = [job for plan in plans for job in plan.jobs]
    _copy_aliased_grads(jobs)
    scales: list[Any] = [None] * len(jobs)
    norm = None
    if any(job.program.per_tensor for job in jobs):
        rows = [(k, i) for k, plan in enumerate(plans) for job in plan.jobs for i in job.places]
        scales, norm = _norm_scales(jobs, clip_global_norm, reduce, rows)
    for job, scale in zip(jobs, scales, strict=True):
        job.bucket.engine.update(job, scale)
    if jobs and not jobs[0].bucket.backend.mutable:
        columns = [column for job in jobs for column in job.bucket.arrays()]
        settled = iter(jobs[0].bucket.backend.settle([array for column in columns for array in column]))
        for column in columns:
            column[:] = [next(settled) for _ in column]
    return norm


def _copy_aliased_grads(jobs: Sequence[PlannedJob]) -> None:
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
    jobs: Sequence[PlannedJob], clip_global_norm: float | None, reduce: Reduce | None, rows: list[tuple[int, int]]
) -> tuple[list[Any], Any]:
    tables = [job.bucket.engine.norm_table(job) for job in jobs]
    xp, table = tables[0].xp, tables[0].table
    if len(tables) > 1:
        if len({(id(t.xp), str(t.table.device)) for t in tables}) > 1:
            # Several devices: their norms meet in this machine's memory.
            xp = np
            parts = [job.bucket.backend.table_to_host(t.table) for job, t in zip(jobs, tables, strict=True)]
        else:
            parts = [t.table for t in tables]
        if len({part.shape[1] for part in parts}) > 1:
            parts = [norms.widened(xp, part) for part in parts]
        table = xp.concat(parts, axis=0)
    if reduce is not None:
        table = reduce(xp, table, rows)
    own = None
    if any(job.clip_norm is not None for job in jobs):
        limits = [t for job in jobs for t in [np.inf if job.clip_norm is None else job.clip_norm] * len(job.grads)]
        own = xp.asarray(limits, dtype=xp.float64, device=table.device)
    with np.errstate(all="ignore"):  # infinite norms are no more a warning here than on a device
        factors, norm = norms.clip_factors(xp, table, own, clip_global_norm)
    scales, start = [], 0
    for job, held in zip(jobs, tables, strict=True):
        part = factors[start : start + len(job.grads)]
        scales.append(part if held.xp is xp else held.xp.asarray(part, device=held.table.device))
        start += len(job.grads)
    return scales, norm
