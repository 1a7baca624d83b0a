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
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..checks.run import Findings
from ..checks.verdict import Verdict, count
from ..reference.tolerances import everything
from ..targets.target import all_targets
from .tables import worst

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


def results(findings: Findings) -> dict[str, Any]:
    """Return everything, as JSON data."""
    return {**_about("multiopt-check 2", findings), "verdicts": [verdict.as_json() for verdict in findings.verdicts]}


def _about(form: str, findings: Findings) -> dict[str, Any]:
    selection, targets = findings.selection, all_targets()
    traces = {name: findings.files[name] for name in selection.systems}
    return {
        "format": form,
        "seconds": round(findings.seconds, 1),
        "machine": describe(),
        "targets": {name: targets[name].about for name in selection.targets},
        "absent": {name: reason for name, target in targets.items() if (reason := target.absent()) is not None},
        "quick": selection.quick,
        "traces": {name: {"versions": dict(f.versions), "digest": f.digest()} for name, f in traces.items()},
        "tolerances": {name: asdict(tolerance) for name, tolerance in everything().items()},
        "counts": count(findings.verdicts),
    }


def record(folder: Path, findings: Findings) -> Path:
    """Write a record into `folder`, named after the kind of machine, and return its path."""
    verdicts = findings.verdicts
    content = {
        **_about("multiopt-record 2", findings),
        "worst": [
            {"about": about, "kind": v.kind, "unit": v.unit, "allowed": v.tolerance, "observed": _figure(v.observed),
             "where": v.where}
            for about, v in worst(verdicts)
        ],
        "figures": _figures(verdicts),
        "failures": [str(verdict) for verdict in verdicts if verdict.failed],
    }  # fmt: skip
    machine = content["machine"]
    kind = machine["gpus"][0]["name"] if machine["gpus"] else f"{machine['system']} {machine['machine']} CPU"
    name = re.sub(r"[^a-z0-9]+", "-", f"{kind} Python {machine['python']}".lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def _figures(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Return what, target, system, scenario, kind → number; a target with another's numbers only names it."""
    trees: dict[str, dict[str, Any]] = {}
    for v in verdicts:
        if v.observed is None:
            continue
        what = f"oracle, {v.over}" if v.what == "oracle" else v.what
        for name, units in ((what, v.observed), ("published", v.published)):
            if units is not None:
                tree = trees.setdefault(v.target or "frameworks", {})
                for step in (name, v.system or "the rule", v.scenario):
                    tree = tree.setdefault(step, {})
                tree[v.kind] = _figure(units)
    first: dict[str, str] = {}
    return {
        target: {
            what: rows if (who := first.setdefault(json.dumps([what, rows]), target)) == target else f"as {who}"
            for what, rows in tree.items()
        }
        for target, tree in trees.items()
    }


def _figure(value: float | None) -> float | str | None:
    if value is None:
        return None
    return float(f"{value:.4g}") if math.isfinite(value) else str(value)
