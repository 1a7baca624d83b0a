"""Record the real optimizers again and compare with the committed traces: ``multiopt record``.

Nothing here is trusted: a trace that nobody can record again proves nothing. Systems that are not installed are
passed over, unless they are required.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..data.systems import SYSTEMS
from ..data.traces import FOLDER, TraceFile, describe, load, path_of
from ..reference.compare import differences, inputs_agree, same_bits
from . import missing_packages, record_to


@dataclass(frozen=True)
class Allowance:
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
ALLOWED: Mapping[str, Allowance] = {
    "torch-forloop": _TORCH,
    "torch-foreach": _TORCH,
    "keras-torch": _TORCH,
    "keras-jax": _XLA,
    "optax": _XLA,
    **dict.fromkeys(("tf-keras-legacy", "tf-keras", "tf-keras-dtensor", "keras-tensorflow", "tf-v1", "tf-raw"), _TF),
}
#: Types of 16 bits keep so few of them that a difference in arithmetic rarely shows; 25 units would hide anything.
HALF_ULPS = 2.0
#: Rates come from powers and cosines in float32, or in float64: relative difference allowed.
RATE = 1e-6


@dataclass(frozen=True)
class Verdict:
    """What became of one system: ``same``, ``close``, ``different``, ``failed`` or ``absent``, and in a few words
    why.
    """

    system: str
    outcome: str
    scenarios: int = 0
    ulps: float = 0.0
    motion: float = 0.0
    note: str = ""


def judge(old: TraceFile, new: TraceFile) -> Verdict:
    """Compare two recordings of one system."""
    allowed = ALLOWED[old.system]
    notes = []
    if old.versions != new.versions:
        changed = (f"{k} {old.versions.get(k)} → {v}" for k, v in new.versions.items() if old.versions.get(k) != v)
        notes.append("other versions: " + ", ".join(changed))
    wrong, equal, worst_ulps, worst_motion = [], True, 0.0, 0.0
    if old.traces.keys() != new.traces.keys():
        wrong.append("other scenarios: " + ", ".join(sorted(old.traces.keys() ^ new.traces.keys())))
    for name in old.traces.keys() & new.traces.keys():
        a, b = old.traces[name], new.traces[name]
        described, again = describe(a), describe(b)
        changed_keys = [key for key in described if described[key] != again[key]]
        if changed_keys or not inputs_agree(a, b):
            wrong.append(f"{name}: {', '.join(changed_keys) or 'inputs'}")
            continue
        if a.refusal is not None:
            continue
        if a.arrays.keys() != b.arrays.keys():
            wrong.append(f"{name}: other arrays")
            continue
        for kind, found in differences(a, b).items():
            equal &= found.same_bits
            accumulator = kind in ("square_avg", "acc_delta")
            worst_ulps = max(worst_ulps, found.units if accumulator else 0.0)
            worst_motion = max(worst_motion, 0.0 if accumulator else found.units)
            limit = allowed.ulps if accumulator else allowed.motion
            if a.dtype in ("float16", "bfloat16"):
                limit = min(limit, HALF_ULPS)
            if not found.units <= limit:
                wrong.append(f"{name}: {found}")
        for key in {"lr", "iterations"} & a.arrays.keys():
            one, other = a.arrays[key], b.arrays[key]
            if not same_bits(one, other):
                equal = False
                if key == "iterations" or abs(one - other).max() > RATE:
                    wrong.append(f"{name}: {key}")
    outcome = "different" if wrong else "same" if equal else "close"
    if outcome == "close":
        notes.append(f"allowed {allowed.ulps:g} and {allowed.motion:g}: {allowed.reason}")
    shown = wrong[:3] + ([f"and {len(wrong) - 3} more"] if len(wrong) > 3 else [])
    return Verdict(old.system, outcome, len(new.traces), worst_ulps, worst_motion, "; ".join(shown + notes))


def record(system: str, into: Path, *, committed: Path = FOLDER) -> Verdict:
    """Record ``system`` into the folder ``into`` and judge it against the traces in ``committed``."""
    missing = missing_packages(system)
    if missing:
        return Verdict(system, "absent", note="not installed: " + ", ".join(missing))
    # Read first: the new recording may take the old one's place.
    old_path, path = path_of(system, committed), path_of(system, into)
    old = load(old_path) if old_path.exists() else None
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        record_to(system, path)
    except RuntimeError as error:
        return Verdict(system, "failed", note=str(error).strip().splitlines()[-1])
    new = load(path)
    if old is None:
        return Verdict(system, "different", len(new.traces), note="no committed trace")
    return judge(old, new)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``multiopt record`` to ``parser``."""
    parser.add_argument(
        "--system", action="append", choices=list(SYSTEMS), help="record only this one (may be repeated)"
    )
    parser.add_argument(
        "--require",
        action="append",
        choices=[*SYSTEMS, "all"],
        default=[],
        help="fail if this system is not installed (may be repeated)",
    )
    parser.add_argument("--into", type=Path, help="keep the new traces in this folder")
    parser.add_argument("--exact", action="store_true", help="demand the same bits")


def main(options: argparse.Namespace) -> int:
    """Record as ``options`` say, print a table, and return the exit code: 0 if every trace was confirmed."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError as error:
        raise ImportError('multiopt record needs rich: pip install "multiopt[cli]"') from error
    systems = options.system or list(SYSTEMS)
    required = set(SYSTEMS) if "all" in options.require else set(options.require)
    systems += [name for name in SYSTEMS if name in required and name not in systems]
    console = Console()
    table = Table()
    for heading in ("system", "outcome", "scenarios", "ulps", "motion"):
        table.add_column(heading, no_wrap=True)
    table.add_column("note")
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        into = options.into or Path(scratch)
        for name in systems:
            with console.status(f"recording {name}"):
                verdict = record(name, into)
            bad = verdict.outcome in ("different", "failed")
            bad |= verdict.outcome == "absent" and name in required
            bad |= verdict.outcome == "close" and options.exact
            failed |= bad
            colour = "red" if bad else "yellow" if verdict.outcome in ("absent", "close") else "green"
            table.add_row(
                name,
                f"[{colour}]{verdict.outcome}[/]",
                str(verdict.scenarios or "–"),
                f"{verdict.ulps:g}",
                f"{verdict.motion:.3g}",
                verdict.note.replace("[", r"\["),
            )
    console.print(table)
    return 1 if failed else 0
