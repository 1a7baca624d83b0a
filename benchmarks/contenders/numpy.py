"""multiopt on NumPy arrays, its functional form and Dask's chunks, and the rule in plain NumPy."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

from multiopt import ADADELTA, Adadelta, functional

from ..harness.contender import Running
from ..harness.workload import Workload

__all__ = [
    "HYPERS",
    "core_step",
    "functional_numpy",
    "functional_step",
    "multiopt_dask",
    "multiopt_numpy",
    "plain_numpy",
    "plain_step",
]

#: The same for every contender.
HYPERS: dict[str, Any] = {"lr": 1.0, "rho": 0.9, "eps": 1e-6}


def multiopt_numpy(workload: Workload, **options: Any) -> Running:
    """`multiopt.Adadelta` on NumPy arrays."""
    params, grads = workload.params(), workload.grads()
    began = perf_counter()
    return Running(core_step(workload, params, grads, **options), lambda: params, began)


def core_step(workload: Workload, params: list[Any], grads: list[Any], **options: Any) -> Callable[[], Any]:
    """Make a step of `multiopt.Adadelta` on arrays of any library."""
    groups, grads = [{"params": own} for own in workload.grouped(params)], workload.grouped(grads)
    given: Any = groups if workload.groups > 1 else params
    optimizer = Adadelta(given, **HYPERS, state_dtype=workload.state, **options)
    if workload.groups > 1:
        return lambda: optimizer.step(grads)
    own = grads[0]
    return lambda: optimizer.step(own)


def functional_step(workload: Workload, params: list[Any], grads: list[Any]) -> Callable[[], Any]:
    """Make a step of `multiopt.functional.update`, not traced, that puts the new arrays into `params`."""
    state = functional.init(params, state_dtype=workload.state)

    def step() -> None:
        nonlocal state
        params[:], state = functional.update(params, grads, state, **HYPERS)

    return step


def functional_numpy(workload: Workload) -> Running:
    """`multiopt.functional.update` on NumPy arrays."""
    params, grads = workload.params(), workload.grads()
    began = perf_counter()
    return Running(functional_step(workload, params, grads), lambda: params, began)


def multiopt_dask(workload: Workload, chunks: int = 4) -> Running:
    """`multiopt.Adadelta` on Dask arrays, whose chunks NumPy's arrays are, on this machine's threads."""
    import dask.array as da

    def chunked(arrays: list[Any]) -> list[Any]:
        cut = [(*(-(-n // chunks) for n in a.shape[:1]), *a.shape[1:]) for a in arrays]
        return [da.from_array(a, chunks=sizes).persist() for a, sizes in zip(arrays, cut, strict=True)]

    params, grads = chunked(workload.params()), chunked(workload.grads())
    began = perf_counter()
    optimizer = Adadelta(params, **HYPERS)
    return Running(lambda: optimizer.step(grads), lambda: [x.compute() for x in optimizer.params], began)


def plain_numpy(workload: Workload) -> Running:
    """Call the rule on whole arrays: what one writes without an optimizer."""
    params, grads = workload.params(), workload.grads()
    began = perf_counter()
    return Running(plain_step(np, params, grads), lambda: params, began)


def plain_step(xp: Any, params: list[Any], grads: list[Any]) -> Callable[[], None]:
    """Make a step that calls the rule on the arrays of `xp` and puts the new ones into `params`."""
    state = [(xp.zeros_like(x), xp.zeros_like(x)) for x in params]

    def step() -> None:
        for i, g in enumerate(grads):
            params[i], *new = ADADELTA.function(xp, params[i], g, *state[i], **HYPERS)
            state[i] = tuple(new)

    return step
