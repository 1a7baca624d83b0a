"""multiopt on NumPy arrays, and the rule in plain NumPy."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

from multiopt import ADADELTA, Adadelta

from ..harness.contender import Running
from ..harness.workload import Workload

__all__ = ["HYPERS", "multiopt_numpy", "plain_numpy", "plain_step"]

#: The same for every contender.
HYPERS: dict[str, Any] = {"lr": 1.0, "rho": 0.9, "eps": 1e-6}


def multiopt_numpy(workload: Workload, **options: Any) -> Running:
    """`multiopt.Adadelta` on NumPy arrays."""
    params, grads = workload.params(), workload.grads()
    began = perf_counter()
    optimizer = Adadelta(params, **HYPERS, **options)
    return Running(lambda: optimizer.step(grads), lambda: params, began)


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
