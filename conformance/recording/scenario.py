"""One scenario of one recorded system: make its optimizer, step it, write down what it did or that it refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from ..data.case import Case
from ..data.deviations import deviations_of
from ..data.floats import without_nan_payload
from ..data.inputs import case_of
from ..data.specification import HOLDERS, Scenario
from ..data.trajectory import Trajectory
from ..targets.protocol import TargetOptimizer
from ..targets.run import record


class RecordedOptimizer(TargetOptimizer, Protocol):
    """A real optimizer with its parameters."""

    def hyperparameters(self) -> Mapping[str, float | None]:
        """Return lr, rho and eps as the framework holds them."""

    def finalized(self) -> Sequence[Any] | None:
        """End the training, if the framework knows such a thing; return the parameters after it."""


def record_scenario(system: str, scenario: Scenario, make: Callable[[str, Case], RecordedOptimizer]) -> Trajectory:
    """Return the trace of ``system`` in ``scenario``; ``make`` makes the optimizer.

    Raises
    ------
    RuntimeError
        If the system refuses what it should do, or does what it should refuse.
    """
    case = case_of(scenario)
    deviations, expected = deviations_of(system, scenario), scenario.refusals.get(system)
    try:
        optimizer = make(system, case)
        hyperparameters = optimizer.hyperparameters() if scenario.config.defaults else {}
        found = record(optimizer, case)
        finalized = optimizer.finalized()
    except Exception as error:
        names = [cls.__name__ for cls in type(error).__mro__]
        if expected not in names:
            raise RuntimeError(f"{system} refused {scenario.name}: {type(error).__name__}: {error}") from error
        start = {"x": [values[np.newaxis] for values in case.start]}
        return Trajectory(system, case, start, deviations=deviations, refusal=expected)
    if expected is not None:
        raise RuntimeError(f"{system} was expected to refuse {scenario.name} with {expected}, and did not")
    states = dict(found.states)
    if finalized is not None:
        states["finalized"] = [without_nan_payload(np.asarray(v).astype(HOLDERS[case.dtype])) for v in finalized]
    return replace(found, name=system, case=case.with_options(**hyperparameters), states=states, deviations=deviations)
