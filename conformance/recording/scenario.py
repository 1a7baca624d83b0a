"""One scenario of one recorded system: make its optimizer, step it, write down what it did or that it refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ..data.case import Case
from ..data.deviations import deviations_of
from ..data.floats import without_nan_payload
from ..data.inputs import case_of
from ..data.specification import HOLDERS, Scenario
from ..data.trajectory import Trajectory
from ..targets.run import record


def record_scenario(system: str, scenario: Scenario, make: Callable[[str, Case], Any]) -> Trajectory:
    """Return the trace of ``system`` in ``scenario``.

    ``make(system, case)`` returns the framework's optimizer as a `TargetOptimizer`. Where it has defaults, its
    ``hyperparameters()`` are lr, rho and eps as the framework holds them; where there is an end of training, its
    ``finalized()`` ends it and returns the parameters after it.

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
        finalized = optimizer.finalized() if hasattr(optimizer, "finalized") else None
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
