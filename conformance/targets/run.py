"""The loop that steps an optimizer and records every state."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np

from ..data.case import Array, Case
from ..data.floats import without_nan_payload
from ..data.specification import HOLDERS
from ..data.trajectory import Trajectory
from .build import optimizer_of
from .protocol import TargetOptimizer
from .target import Target


def record(optimizer: TargetOptimizer, case: Case) -> Trajectory:
    """Step an optimizer through a case's gradients, and return every state after every step."""
    rates = []
    seen = [optimizer.states()]
    for number, row in enumerate(case.gradients):
        rates.append(optimizer.step(number, row))
        seen.append(optimizer.states())
    holder = HOLDERS[case.dtype]
    states: dict[str, list[Array]] = {}
    for kind in seen[-1]:
        if kind == "iterations" or not all(kind in shown for shown in seen):
            continue
        states[kind] = []
        for i, shape in enumerate(case.shapes):
            values = np.stack([np.asarray(shown[kind][i]) for shown in seen]).reshape(len(seen), *shape)
            if values.dtype.name not in (case.dtype, holder):
                raise RuntimeError(f"{kind}/p{i}: expected {case.dtype}, the optimizer holds {values.dtype}")
            states[kind].append(without_nan_payload(values.astype(holder)))
    counters = [shown.get("iterations", ()) for shown in seen]
    lr = np.array(rates, dtype=np.float64) if rates and rates[0] is not None else None
    iterations = np.array(counters, dtype=np.int64) if len(counters[-1]) else None
    return Trajectory(optimizer.name, case, states, lr, iterations)


def run_target(target: Target, case: Case) -> Trajectory:
    """Run a target on a case; a `ValueError` if it rejects the case (see `build.rejection`)."""
    arrays = target.arrays
    with arrays.active(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras warns of missing gradients, JAX of overflow: the states show it
        found = record(optimizer_of(target, arrays, case), case)
    rates = np.repeat(np.array(case.update_rates()), case.config.accumulate)[: case.steps]
    # In 16 bits numbers are computed in float32, where they are normal.
    deviations = () if case.dtype in ("float16", "bfloat16") else target.deviations
    return replace(found, name=target.name, lr=rates, deviations=deviations)
