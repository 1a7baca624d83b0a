"""Record one system: ``python -m multiopt.conformance.recording SYSTEM FILE``."""

from __future__ import annotations

import importlib
import platform
import sys
import warnings
from pathlib import Path

from ..data.scenarios import scenarios_of
from ..data.systems import SYSTEMS
from ..data.traces import TraceFile, save
from . import versions_of
from .scenario import record_scenario


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
    traces = {}
    for scenario in scenarios_of(system):
        traces[scenario.name] = record_scenario(system, scenario, recorder.make)
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
