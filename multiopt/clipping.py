"""Clipping by exact norms without an `Optimizer`: for the faces, and for step functions of your own.

Norms are sums of integers (`backends.engines.norms`): the same bits whatever the order, the threads, the split into
arrays and the sharding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from . import backends
from .backends.generic import Array, Described
from .backends.protocol import Bucket, Ranges
from .binding import Binding
from .memory import Memory, backend_of, check_floating
from .plan import Plan, PlannedJob, Reduce, norm_of, run
from .update import PRODUCT, REPLACE, FusedUpdate

__all__ = ["Gradients", "clip", "multiply", "total_norm"]

#: What has the norm taken of the gradient as it is.
MEASURED = FusedUpdate(REPLACE, normed=True).program


def clip(
    arrays: Sequence[Array],
    names: Sequence[str],
    *,
    value: float | None = None,
    norm: float | None = None,
    global_norm: float | None = None,
    reduce: Reduce | None = None,
) -> tuple[list[Array], Any]:
    """Clip gradients by value, then each by its own norm, then all by the norm of all.

    Parameters
    ----------
    arrays : sequence of arrays
        Of one library, floating or complex; traced arrays are not supported.
    names : sequence of str
        What to call them in messages.
    value, norm, global_norm : float or None
        The bounds, above 0; None where that clipping is off.
    reduce : callable or None
        Sums over the processes that hold shards; see `multiopt.plan.Reduce`.

    Returns
    -------
    arrays : list of arrays
        New ones, clipped.
    norm : array of float64, shape (1,), or None
        The norm of all before it was clipped, if any clipping by norm is on.

    Raises
    ------
    TypeError, ValueError
        If an array is not supported.
    """
    made = []
    for name, array in zip(names, arrays, strict=True):
        backend = backend_of(name, array)
        made.append(backend.full_like(array, 0.0, backend.dtype(array)))
    binding = Binding(REPLACE, made, names)
    update = FusedUpdate(REPLACE, clipped=value is not None, normed=norm is not None or global_norm is not None)
    plan = binding.plan(update, arrays, {"clip_value": value, "clip_norm": norm}, names=names)
    total = run([plan], global_norm, reduce)
    return binding.params, total


def total_norm(arrays: Sequence[Array], names: Sequence[str], *, reduce: Reduce | None = None) -> Array:
    """The norm of all arrays together; they are only read, and may overlap.

    Parameters
    ----------
    arrays : sequence of arrays
        At least one; of one library, floating or complex; traced arrays are not supported.
    names : sequence of str
        What to call them in messages.
    reduce : callable or None
        Sums over the processes that hold shards; see `multiopt.plan.Reduce`.

    Returns
    -------
    array of float64, shape (1,)
        On the arrays' device, or in NumPy.

    Raises
    ------
    TypeError, ValueError
        If an array is not supported.
    """
    return Gradients(arrays, names).norm(reduce)


def multiply(arrays: Sequence[Array], names: Sequence[str], factor: Any) -> None:
    """Multiply arrays by a number, in place: as clipping does, where the number is what it makes of a norm.

    Parameters
    ----------
    arrays : sequence of arrays
        Of one library, floating or complex, mutable.
    names : sequence of str
        What to call them in messages.
    factor : float or 0-d array
        The number, which may be on the arrays' device.

    Raises
    ------
    TypeError, ValueError
        If an array is not supported, or two overlap. None has been changed then.
    """
    Gradients(arrays, names).multiply(factor)


class Gradients:
    """Arrays that are looked at once to be measured and multiplied in one step.

    Parameters
    ----------
    arrays : sequence of arrays
        At least one; of one library, floating or complex; traced arrays are not supported.
    names : sequence of str
        What to call them in messages.

    Raises
    ------
    TypeError, ValueError
        If an array is not supported.
    """

    def __init__(self, arrays: Sequence[Array], names: Sequence[str]) -> None:
        if not arrays:
            raise ValueError("arrays: expected at least one, got none")
        self.backend, self.names = backend_of(names[0], arrays[0]), names
        arrays = arrays if isinstance(arrays, Described) else list(arrays)
        self.arrays = arrays = cast(list[Array], self.backend.described(arrays))
        kinds: dict[tuple[Any, str], list[int]] = {}
        for i in (0,) if self.backend.alike(arrays) else range(len(arrays)):
            if (backend := backend_of(names[i], arrays[i])) is not self.backend:
                expected = f"a {self.backend.name} array, as {names[0]} is"
                raise TypeError(f"{names[i]}: expected {expected}, got a {backend.name} array")
            if reason := backend.rejects(arrays[i]):
                raise TypeError(f"{names[i]}: {reason}")
            kind = backend.device(arrays[i]), check_floating(names[i], backend, arrays[i])
            kinds.setdefault(kind, []).append(i)
        self.jobs = []
        for (device, dtype), places in kinds.items():
            own, called = arrays, list(names)
            if len(kinds) > 1:
                own, called = [arrays[i] for i in places], [names[i] for i in places]
            engine, _ = backends.engine_for(self.backend, device, (dtype,) * 3, "auto")
            bucket = Bucket(self.backend, engine, device, dtype, dtype, dtype, called, own, {})
            places = places if len(kinds) > 1 else list(range(len(arrays)))
            job = PlannedJob(bucket, MEASURED, own, [{}], places=places)
            job.location = engine.locate(job)
            self.jobs.append(job)

    def norm(self, reduce: Reduce | None = None) -> Array:
        """See `total_norm`."""
        return norm_of([Plan(self.jobs)], reduce)

    def multiply(self, factor: Any) -> None:
        """See `multiply`; the arrays are not what they were found to be any more."""
        for job in self.jobs:
            job.program, job.values = PRODUCT.program, [{"factor": factor}]
            job.bucket.engine.prepare(job.program, job.bucket.dtypes)
        for name, array in zip(self.names, self.arrays, strict=True):
            if self.backend.mutable and not self.backend.writable(array):
                raise ValueError(f"{name}: expected an array that can be written to, got a read-only one")
        # What overlaps nothing as a run of memory needs no closer look.
        located = [job.location for job in self.jobs if job.location is not None]
        if any(own.odd for own in located) or (located and Ranges.union([own.written for own in located]).overlap):
            Memory().plus(self.backend, self.arrays, self.names)
        run([Plan(self.jobs)])
