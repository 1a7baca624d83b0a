"""What a check saw, as data: every verdict for a program, and a small record for the repository.

A record says what machine it was (processor, GPU, driver, versions) and every figure. It holds no paths, no names of
hosts or people, no time.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..checks.run import Selection
from ..checks.verdict import Verdict, count
from ..data.traces import TraceFile
from ..reference.tolerances import everything
from ..targets.target import all_targets
from . import summary

#: Distributions whose versions matter to the numbers.
_DISTRIBUTIONS = (
    "numpy", "numba", "torch", "jax", "jaxlib", "dask", "array-api-strict", "array-api-compat", "ml_dtypes",
    "cupy-cuda12x", "cupy-cuda13x",
)  # fmt: skip


def describe() -> dict[str, Any]:
    """Return what machine this is: kind of processor and GPU, driver, versions."""
    from multiopt import __version__

    versions = {}
    for name in _DISTRIBUTIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": _processor(),
        "gpus": _gpus(),
        "python": platform.python_version(),
        "versions": {"multiopt": __version__, **versions},
    }


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor()


def _gpus() -> list[dict[str, str]]:
    """Return name, driver and compute capability of each NVIDIA GPU, from the driver's own tool."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines() if line.count(",") == 2]
    return [{"name": name, "driver": driver, "compute capability": cc} for name, driver, cc in rows]


def _about(selection: Selection, files: Mapping[str, TraceFile], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    return {
        "machine": describe(),
        "backends": {name: all_targets()[name].about for name in selection.backends},
        "absent": {name: reason for name, p in all_targets().items() if (reason := p.absent()) is not None},
        "quick": selection.quick,
        "traces": {
            name: {"versions": dict(files[name].versions), "digest": files[name].digest()} for name in selection.systems
        },
        "tolerances": {name: asdict(tolerance) for name, tolerance in everything().items()},
        "counts": count(verdicts),
    }


def results(
    selection: Selection, files: Mapping[str, TraceFile], verdicts: Sequence[Verdict], seconds: float
) -> dict[str, Any]:
    """Return everything, as JSON data."""
    return {
        "format": "multiopt-check 1",
        "seconds": round(seconds, 1),
        **_about(selection, files, verdicts),
        "verdicts": [verdict.as_json() for verdict in verdicts],
    }


def record(
    folder: Path, selection: Selection, files: Mapping[str, TraceFile], verdicts: Sequence[Verdict], seconds: float
) -> Path:
    """Write a record into `folder`, named after the kind of machine, and return its path."""
    about = _about(selection, files, verdicts)
    content = {
        "format": "multiopt-record 1",
        "seconds": round(seconds, 1),
        **about,
        "worst": [
            {key: _figure(value) for key, value in asdict(limit).items() if key != "reason"}
            for limit in summary.limits(verdicts)
        ],
        "figures": _figures(verdicts),
        "failures": [str(verdict) for verdict in summary.failures(verdicts)],
    }
    machine = about["machine"]
    kind = machine["gpus"][0]["name"] if machine["gpus"] else f"{machine['system']} {machine['machine']} CPU"
    name = re.sub(r"[^a-z0-9]+", "-", f"{kind} Python {machine['python']}".lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def _figures(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Return what, backend, system, scenario, kind → number; a backend with another's numbers only names it."""
    trees: dict[str, dict[str, Any]] = {}
    for v in verdicts:
        if v.observed is None:
            continue
        what = v.what if v.what != "oracle" else f"oracle, {v.note}"
        tree = trees.setdefault(v.backend or "frameworks", {})
        for step in (what, v.system or "the rule", v.scenario):
            tree = tree.setdefault(step, {})
        tree[v.kind] = _figure(v.observed)
    seen: dict[str, str] = {}
    shared: dict[str, Any] = {}
    for backend, tree in trees.items():
        shared[backend] = {}
        for what, rows in tree.items():
            text = json.dumps([what, rows])
            shared[backend][what] = f"as {seen[text]}" if text in seen else rows
            seen.setdefault(text, backend)
    return shared


def _figure(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.4g}") if math.isfinite(value) else str(value)
