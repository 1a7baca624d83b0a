"""Clipping by exact norms without an `Optimizer`: for the faces, and for step functions of your own.

Norms are sums of integers (`backends.engines.norms`): the same bits whatever the order, the threads, the split into
arrays and the sharding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import backends
from .backends.generic import Array
from .backends.protocol import Bucket
from .binding import Binding
from .memory import backend_of, check_floating
from .plan import Plan, PlannedJob, Reduce, norm_of, run
from .update import PRODUCT, REPLACE, FusedUpdate

__all__ = ["clip", "multiply", "total_norm"]


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
    kinds: dict[tuple[Any, Any, str], list[int]] = {}
    for i, (name, array) in enumerate(zip(names, arrays, strict=True)):
        backend = backend_of(name, array)
        if reason := backend.rejects(array):
            raise TypeError(f"{name}: {reason}")
        kinds.setdefault((backend, backend.device(array), check_floating(name, backend, array)), []).append(i)
    jobs, measured = [], FusedUpdate(REPLACE, normed=True).program
    for (backend, device, dtype), places in kinds.items():
        engine, _ = backends.engine_for(backend, device, (dtype,) * 3, "auto")
        own, called = backend.described([arrays[i] for i in places]), [names[i] for i in places]
        bucket = Bucket(backend, engine, device, dtype, dtype, dtype, called, list(own), {})
        job = PlannedJob(bucket, measured, own, [{}], places=places)
        job.location = engine.locate(job)
        jobs.append(job)
    return norm_of([Plan(jobs)], reduce)


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
    run([Binding(PRODUCT.rule, arrays, names).plan(PRODUCT, arrays, {"factor": factor}, names=names)])
