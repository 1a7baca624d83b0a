"""What one step does: plans that have been checked, and how they are run, one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any

import numpy as np

from .backends.engines import norms
from .backends.engines.control import with_default_control
from .backends.generic import Array
from .backends.protocol import Job, NormTable, Ranges

__all__ = ["Plan", "PlannedJob", "Reduce", "chained", "norm_of", "run"]

#: ``reduce(xp, table, rows)`` adds up tables of integers (`norms`) over processes that hold shards; `rows` says of
#: each row which plan it belongs to, and which of that plan's arrays.
Reduce = Callable[[Any, Any, list[tuple[int, int]]], Any]


@dataclass(kw_only=True)
class PlannedJob(Job):
    """What one step does to one bucket.

    `places` are the bucket's in the caller's list. Among the `values` may be ``clip_norm``, the threshold for the norm
    of each gradient, or None.
    """

    places: list[int]
    #: The squares' sums, if they were needed before the step runs.
    norms: NormTable | None = None

    @property
    def thresholds(self) -> list[float | None]:
        """For each gradient the one for its norm."""
        groups = [values.get("clip_norm") for values in self.values]
        return groups * len(self.grads) if self.which is None else [groups[i] for i in self.which.tolist()]


@dataclass
class Plan:
    """A step of one binding that has been checked, for `run`."""

    jobs: list[PlannedJob]

    def take(self, grads: Sequence[Array | None]) -> None:
        """Take other gradients, where arrays are immutable: those that another plan of this step has made anew."""
        for job in self.jobs:
            if not job.bucket.backend.mutable:
                job.grads, job.norms = [grads[i] for i in job.places], None

    def nonfinite(self) -> list[str]:
        """Names of the parameters whose gradient has an element that is infinite or NaN."""
        _check_measurable(self.jobs)
        return [
            name for job in self.jobs for name, good in zip(job.bucket.names, _finite(job), strict=True) if not good
        ]


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
    if not jobs:
        return None
    _copy_aliased_grads(jobs)
    _copy_donated(jobs)
    scales: list[Any] = [None] * len(jobs)
    norm = None
    if any(job.program.per_tensor for job in jobs):
        scales, norm = _norm_scales(plans, clip_global_norm, reduce)
    for job, scale in zip(jobs, scales, strict=True):
        job.bucket.engine.update(job, scale)
    if not jobs[0].bucket.backend.mutable:
        columns = [column for job in jobs for column in job.bucket.arrays()]
        settled = iter(jobs[0].bucket.backend.settle([array for column in columns for array in column]))
        for column in columns:
            column[:] = [next(settled) for _ in column]
    return norm


def chained(plans: list[Plan], others: list[Plan]) -> list[Plan]:
    """Have others done along with plans, each job on what another one has just updated, while that is in the cache.

    Returns those that are still to be run: none, or all, where an engine does not do that, or memory is shared in a way
    that makes the order matter.
    """
    jobs, after = ([job for plan in some for job in plan.jobs] for some in (plans, others))
    if len(jobs) != len(after) or not all(job.bucket.engine.chains for job in jobs):
        return others
    for job, then in zip(jobs, after, strict=True):
        if job.bucket.engine is not then.bucket.engine or len(then.grads) != len(job.bucket.params):
            return others
        if not all(map(is_, then.grads, job.bucket.params)):
            return others
    if Ranges.union([job.location.written for job in jobs]).meets(Ranges.union([t.location.written for t in after])):
        return others
    for job, then in zip(jobs, after, strict=True):
        job.then = then
    return []


def norm_of(plans: Sequence[Plan], reduce: Reduce | None = None) -> Any:
    """The norm of all gradients of plans that have been checked, as `run` returns it; nothing is written."""
    return _norm_scales(plans, None, reduce)[1]


def _copy_aliased_grads(jobs: Sequence[PlannedJob]) -> None:
    """Copy gradients that lie in memory which the step writes to: they would change before they are read."""
    located = [job for job in jobs if job.location is not None]
    if not located:
        return
    written = Ranges.union([own.location.written for job in located for own in (job, job.then) if own is not None])
    for job in located:
        aliases = written.aliases(job.location.read, job.location.upon)
        if aliases:
            grads = list(job.grads)
            for i in aliases:
                grads[i] = job.bucket.backend.copy(grads[i])
            job.grads = grads
            job.location = job.bucket.engine.locate(job)


def _copy_donated(jobs: Sequence[PlannedJob]) -> None:
    """Copy immutable arrays that a job reads although an earlier one will have used their memory."""
    gone = set[int]()
    for job in jobs if len(jobs) > 1 else ():
        bucket, columns = job.bucket, job.bucket.arrays()
        if not bucket.engine.donates:
            continue
        if gone:
            copy = bucket.backend.copy
            job.grads = [copy(g) if id(g) in gone else g for g in job.grads]
            for column in columns:
                column[:] = [copy(array) if id(array) in gone else array for array in column]
        gone.update(id(array) for k in bucket.owned for array in columns[k])


def _finite(job: PlannedJob) -> list[bool]:
    """Whether each gradient is; where its norm is wanted too, its squares are summed now, and it is read once."""
    bucket = job.bucket
    if job.program.per_tensor:
        job.norms = bucket.engine.norm_table(job)
        if job.norms.watched is not None:
            return [not any(row) for row in bucket.backend.table_to_host(job.norms.watched).tolist()]
    return bucket.engine.finite(job)


def _check_measurable(jobs: Sequence[PlannedJob]) -> None:
    """Refuse gradients of rows, which engines do not measure."""
    for job in jobs:
        if job.bucket.rows is not None:
            raise ValueError(
                f"gradient of {job.bucket.names[0]}: expected no question of its norm, got rows of a table"
            )


def _norm_scales(plans: Sequence[Plan], clip_global_norm: float | None, reduce: Reduce | None) -> tuple[list[Any], Any]:
    rows = [(k, i) for k, plan in enumerate(plans) for job in plan.jobs for i in job.places]
    jobs = [job for plan in plans for job in plan.jobs]
    _check_measurable(jobs)
    tables = [job.norms or job.bucket.engine.norm_table(job) for job in jobs]
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
    own, thresholds = None, [threshold for job in jobs for threshold in job.thresholds]
    if any(threshold is not None for threshold in thresholds):
        limits = [np.inf if threshold is None else threshold for threshold in thresholds]
        own = xp.asarray(limits, dtype=xp.float64, device=table.device)
    factors, norm = with_default_control(norms.clip_factors, xp, table, own, clip_global_norm)
    scales, start = [], 0
    for job, held in zip(jobs, tables, strict=True):
        part = factors[start : start + len(job.grads)]
        scales.append(part if held.xp is xp else held.xp.asarray(part, device=held.table.device))
        start += len(job.grads)
    return scales, norm
