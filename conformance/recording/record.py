"""Record the real optimizers again and compare with the committed traces: ``multiopt record``.

Nothing here is trusted: a trace that nobody can record again proves nothing. Systems that are not installed are
passed over, unless they are required.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..data.systems import SYSTEMS, TORCH
from ..data.traces import FOLDER, TraceFile, describe, load, path_of
from ..reference.compare import differences, inputs_agree, same_bits
from ..reference.tolerances import STEP
from ..report.table import Cell, Table, to_rich


class Allowance(NamedTuple):
    """How far a new recording may be from the committed one: units in the last place, units of motion, and why."""

    ulps: float
    motion: float
    reason: str


_TORCH = Allowance(
    64, 8, "vectorised square roots come from a library that chooses its code by processor; without vectors: 25 and 3"
)
_XLA = Allowance(
    32, 4, "XLA compiles for the processor at hand and contracts to multiply-add where there is one; on AVX: 16 and 1"
)
_TF = Allowance(16, 4, "Eigen and libm choose code by processor in schedules and norms; no difference was seen")
#: The same framework version on the same kind of processor gives the same bits; another processor may differ by
#: this much.
ALLOWED = dict.fromkeys(SYSTEMS, _TF) | {
    **dict.fromkeys((*TORCH, "keras-torch"), _TORCH),
    **dict.fromkeys(("keras-jax", "optax"), _XLA),
}
#: Types of 16 bits keep so few of them that a difference in arithmetic rarely shows; 25 units would hide anything.
HALF_ULPS = 2.0
#: Rates come from powers and cosines in float32, or in float64: relative difference allowed.
RATE = 1e-6


@dataclass(frozen=True)
class Recording:
    """What became of recording one system again: ``same``, ``close``, ``different``, ``failed`` or ``absent``."""

    system: str
    outcome: str
    scenarios: int = 0
    ulps: float = 0.0
    motion: float = 0.0
    note: str = ""


def versions_of(system: str) -> dict[str, str]:
    """Return the versions of the distributions behind ``system``, of those that are installed."""
    found: dict[str, str] = {}
    for name in SYSTEMS[system].packages:
        for distribution in (name, "tensorflow-cpu") if name == "tensorflow" else (name,):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found.setdefault(name, importlib.metadata.version(distribution))
    return found


def record_to(system: str, path: Path, *, timeout: float = 900.0) -> None:
    """Run the recorder of ``system`` in a process of its own; it writes ``path``, or a `RuntimeError` says why not."""
    # -P: the folder that one stands in may hold another multiopt, such as the sources of this one.
    command = [sys.executable, "-P", "-m", "multiopt.conformance.recording", system, str(path)]
    # Others may run at the same time: threads that wait are not to spin.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **SYSTEMS[system].environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"recorder of {system} failed ({done.returncode}):\n{done.stderr[-4000:]}")


def judge(old: TraceFile, new: TraceFile) -> Recording:
    """Compare two recordings of one system."""
    allowed = ALLOWED[old.system]
    changed = [f"{k} {old.versions.get(k)} → {v}" for k, v in new.versions.items() if old.versions.get(k) != v]
    notes = ["other versions: " + ", ".join(changed)] if changed else []
    wrong, equal, worst = [], True, {"ulp": 0.0, "motion": 0.0}
    if old.traces.keys() != new.traces.keys():
        wrong.append("other scenarios: " + ", ".join(sorted(old.traces.keys() ^ new.traces.keys())))
    for name in old.traces.keys() & new.traces.keys():
        a, b = old.traces[name], new.traces[name]
        before, after = describe(a), describe(b)
        other = [key for key in before if before[key] != after[key]]
        if not other and (not inputs_agree(a, b) or a.arrays.keys() != b.arrays.keys()):
            other = ["other arrays"]
        if other or a.refusal is not None:
            wrong += [f"{name}: {', '.join(other)}"] if other else []
            continue
        for kind, found in differences(a, b).items():
            equal &= found.same_bits
            unit = STEP[kind].unit
            worst[unit] = max(worst[unit], found.units)
            limit = allowed.ulps if unit == "ulp" else allowed.motion
            if not found.units <= (min(limit, HALF_ULPS) if a.dtype in ("float16", "bfloat16") else limit):
                wrong.append(f"{name}: {found}")
        for key in {"lr", "iterations"} & a.arrays.keys():
            one, other_one = a.arrays[key], b.arrays[key]
            equal &= same_bits(one, other_one)
            if abs(one - other_one).max() > (RATE if key == "lr" else 0):
                wrong.append(f"{name}: {key}")
    outcome = "different" if wrong else "same" if equal else "close"
    if outcome == "close":
        notes.append(f"allowed {allowed.ulps:g} and {allowed.motion:g}: {allowed.reason}")
    shown = wrong[:3] + ([f"and {len(wrong) - 3} more"] if len(wrong) > 3 else [])
    return Recording(old.system, outcome, len(new.traces), worst["ulp"], worst["motion"], "; ".join(shown + notes))


def record(system: str, into: Path, *, committed: Path = FOLDER) -> Recording:
    """Record ``system`` into the folder ``into`` and judge it against the traces in ``committed``."""
    installed = versions_of(system)
    if missing := [name for name in SYSTEMS[system].packages if name not in installed]:
        return Recording(system, "absent", note="not installed: " + ", ".join(missing))
    # Read first: the new recording may take the old one's place.
    old_path, path = path_of(system, committed), path_of(system, into)
    old = load(old_path) if old_path.exists() else None
    try:
        record_to(system, path)
    except RuntimeError as error:
        return Recording(system, "failed", note=str(error).strip().splitlines()[-1])
    new = load(path)
    if old is None:
        return Recording(system, "different", len(new.traces), note="no committed trace")
    return judge(old, new)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``multiopt record`` to ``parser``."""
    parser.add_argument("--system", action="append", choices=list(SYSTEMS),
                        help="record only this one (may be repeated)")  # fmt: skip
    parser.add_argument("--require", action="append", choices=[*SYSTEMS, "all"], default=[],
                        help="fail if this system is not installed (may be repeated)")  # fmt: skip
    parser.add_argument("--into", type=Path, help="keep the new traces in this folder")
    parser.add_argument("--exact", action="store_true", help="demand the same bits")


def main(options: argparse.Namespace) -> int:
    """Record as ``options`` say, print a table, and return the exit code: 0 if every trace was confirmed."""
    try:
        from rich.console import Console
    except ImportError as error:
        raise ImportError('multiopt record needs rich: pip install "multiopt[cli]"') from error
    required = set(SYSTEMS) if "all" in options.require else set(options.require)
    systems = dict.fromkeys([*(options.system or SYSTEMS), *(name for name in SYSTEMS if name in required)])
    console, rows, failed = Console(), [], False
    # Each has a process of its own, which mostly computes on one core.
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        pool = ThreadPoolExecutor(os.cpu_count())
        stack.callback(pool.shutdown, cancel_futures=True)
        waiting = [pool.submit(record, name, options.into or Path(scratch)) for name in systems]
        for name, recording in zip(systems, waiting, strict=True):
            with console.status(f"recording {name}"):
                found = recording.result()
            bad = found.outcome in ("different", "failed") or (found.outcome == "absent" and name in required)
            bad |= found.outcome == "close" and options.exact
            failed |= bad
            mood = "bad" if bad else "known" if found.outcome in ("absent", "close") else "good"
            numbers = str(found.scenarios or "–"), f"{found.ulps:g}", f"{found.motion:.3g}"
            rows.append((name, Cell(found.outcome, mood=mood), *numbers, found.note))
    console.print(to_rich(Table("", "", ("system", "outcome", "scenarios", "ulps", "motion", "note"), rows)))
    return 1 if failed else 0
