"""multiopt on NumPy arrays, and the rule in plain NumPy."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np

from multiopt.rule import adadelta

from .contender import Running, wall
from .workload import Workload

__all__ = ["HYPERS", "multiopt_numpy", "plain_numpy"]

#: The same for every contender.
HYPERS: dict[str, Any] = {"lr": 1.0, "rho": 0.9, "eps": 1e-6}


def multiopt_numpy(workload: Workload, options: dict[str, Any]) -> Running:
    """`multiopt.Adadelta` on NumPy arrays."""
    from multiopt import Adadelta

    params, grads = workload.params(), workload.grads()
    began = perf_counter()
    optimizer = Adadelta(params, **HYPERS, **options)

    def step() -> None:
        optimizer.step(grads)

    return Running(wall(step), step, lambda: params, began)


def plain_numpy(workload: Workload, options: dict[str, Any]) -> Running:
    """Call the rule on whole arrays: what one writes without an optimizer."""
    params, grads = workload.params(), workload.grads()
    began = perf_counter()
    state = [(np.zeros_like(x), np.zeros_like(x)) for x in params]

    def step() -> None:
        for i, g in enumerate(grads):
            params[i], *new = adadelta(np, params[i], g, *state[i], **HYPERS)
            state[i] = tuple(new)

    return Running(wall(step), step, lambda: params, began)
