"""Record one system: ``python -m multiopt.conformance.recording SYSTEM FILE``."""

from __future__ import annotations

import importlib
import platform
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data.case import Case
from ..data.deviations import deviations_of
from ..data.floats import without_nan_payload
from ..data.inputs import case_of
from ..data.scenarios import scenarios_of
from ..data.specification import HOLDERS, Scenario
from ..data.systems import SYSTEMS
from ..data.traces import TraceFile, save
from ..data.trajectory import Trajectory
from ..targets.run import record
from .record import versions_of


def record_scenario(system: str, scenario: Scenario, make: Callable[[str, Case], Any]) -> Trajectory:
    """Return the trace of ``system`` in ``scenario``: what it did, or that it refused as it should.

    ``make(system, case)`` returns the framework's optimizer as a `TargetOptimizer`. Where it has defaults, its
    ``hyperparameters()`` are lr, rho and eps as the framework holds them; where there is an end of training, its
    ``finalized()`` ends it and returns the parameters after it.
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


def _vector_width() -> str:
    """Return the widest vector instructions of this processor that matter to a framework's last bits."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return "unknown"
    return next((name for name in ("avx512f", "avx2", "avx", "asimd") if name in flags), "unknown")


def main(system: str, path: Path) -> None:
    """Record every scenario of ``system`` into ``path``."""
    # The frameworks warn about missing gradients, old names and the like; the traces show what they do.
    warnings.simplefilter("ignore")
    recorder = importlib.import_module(f".{SYSTEMS[system].recorder}", __package__)
    traces = {scenario.name: record_scenario(system, scenario, recorder.make) for scenario in scenarios_of(system)}
    provenance = {
        "python": platform.python_version(),
        "device": "CPU",
        "machine": platform.machine(),
        "vectors": _vector_width(),
        "system": platform.system(),
    }
    save(TraceFile(system, versions_of(system), provenance, traces), path)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
