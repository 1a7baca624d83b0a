"""The loop that every recorder shares: step, look, write down."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..data.inputs import Gradient, inputs_of
from ..data.specification import HOLDERS, Scenario
from ..data.tracefile import Trace, gradient_arrays, without_nan_payload
from ..reference.quirks import quirks_of


class Driver(Protocol):
    """A real optimizer with its parameters, ready to be stepped."""

    def hyperparameters(self) -> dict[str, float | None]:
        """Return lr, rho and eps as the framework holds them."""

    def step(self, step: int, gradients: Sequence[Gradient]) -> float | None:
        """Take one step; return the learning rate it used (None: there is none)."""

    def snapshot(self) -> Mapping[str, Sequence[Any]]:
        """Return ``x``, ``square_avg``, ``acc_delta`` and, if kept, ``average``: one array per tensor."""

    def iterations(self) -> list[int]:
        """Return the framework's counters of steps; empty if it has none."""

    def finalize(self) -> Sequence[Any] | None:
        """End the training, if the framework knows such a thing; return the parameters after it."""


def record_scenario(
    system: str, scenario: Scenario, driver: Callable[[str, Scenario, Sequence[NDArray[Any]]], Driver]
) -> Trace:
    """Return the trace of ``system`` in ``scenario``; ``driver`` makes the optimizer.

    Raises
    ------
    RuntimeError
        If the system refuses what it should do, or does what it should refuse.
    """
    inputs = inputs_of(scenario)
    arrays = gradient_arrays(inputs.gradients, inputs.start)
    trace = Trace(
        system=system,
        scenario=scenario.name,
        about=scenario.about,
        dtype=scenario.dtype,
        shapes=scenario.shapes,
        steps=scenario.steps,
        config=scenario.config,
        quirks=quirks_of(system, scenario),
        missing=tuple((t, i) for t in range(scenario.steps) for i in range(len(scenario.shapes))
                      if scenario.is_missing(t, i)),
    )  # fmt: skip
    expected = scenario.refusals.get(system)
    try:
        recorded, hyperparameters = _run(scenario, driver(system, scenario, inputs.start), inputs.gradients)
    except Exception as error:
        names = [cls.__name__ for cls in type(error).__mro__]
        if expected not in names:
            raise RuntimeError(f"{system} refused {scenario.name}: {type(error).__name__}: {error}") from error
        arrays.update({f"x/p{i}": values[np.newaxis] for i, values in enumerate(inputs.start)})
        return replace(trace, refusal=expected, arrays=_clean(arrays))
    if expected is not None:
        raise RuntimeError(f"{system} was expected to refuse {scenario.name} with {expected}, and did not")
    config = replace(scenario.config, **hyperparameters) if scenario.config.defaults else scenario.config
    return replace(trace, config=config, arrays=_clean({**arrays, **recorded}))


def _run(
    scenario: Scenario, driver: Driver, gradients: Sequence[Sequence[Gradient]]
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    holder = HOLDERS[scenario.dtype]
    snapshots = [driver.snapshot()]
    counters = [driver.iterations()]
    rates: list[float | None] = []
    hyperparameters = driver.hyperparameters()
    for step, row in enumerate(gradients):
        rates.append(driver.step(step, row))
        snapshots.append(driver.snapshot())
        counters.append(driver.iterations())
    arrays: dict[str, NDArray[Any]] = {}
    for kind in snapshots[-1]:
        for i, shape in enumerate(scenario.shapes):
            values = np.stack([np.asarray(shot[kind][i]) for shot in snapshots])
            if values.dtype.name != scenario.dtype and values.dtype != holder:
                raise RuntimeError(f"{kind}/p{i}: expected {scenario.dtype}, the framework holds {values.dtype}")
            arrays[f"{kind}/p{i}"] = values.astype(holder).reshape(len(snapshots), *shape)
    if rates and rates[0] is not None:
        arrays["lr"] = np.array(rates, dtype=np.float64)
    if counters[-1]:
        arrays["iterations"] = np.array(counters, dtype=np.int64)
    finalized = driver.finalize()
    if finalized is not None:
        for i, values in enumerate(finalized):
            arrays[f"finalized/p{i}"] = np.asarray(values).astype(holder)
    return arrays, hyperparameters


def _clean(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {key: without_nan_payload(values) for key, values in arrays.items()}
