"""``multiopt check``: multiopt on every library against recorded frameworks, the published rule, and itself."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from .checks.law import nothing_left_behind
from .checks.run import Findings, Selection, run
from .checks.verdict import OUTCOMES, count, expect, read_xfails
from .data.scenarios import SCENARIOS
from .data.systems import SYSTEMS
from .data.traces import FOLDER, load_all
from .report import tables
from .report.records import record, results
from .report.table import Table, to_rich
from .targets.target import all_targets, find


def add_selection(add: Callable[..., object]) -> None:
    """Add the options that the command and pytest have in common: what is checked."""
    add("--backend", action="append", metavar="NAME", help="check only this target (repeatable)")
    add("--against", action="append", metavar="SYSTEM", help="only this framework (repeatable)")
    add("--scenario", action="append", metavar="NAME", help="only this scenario (repeatable)")
    add("--namespace", metavar="MODULE", help="any array API namespace, by its import name")
    add("--xfails", type=Path, metavar="FILE", help="ids of the checks that it is known to fail")
    add("--quick", action="store_true", help="no run further than 40 steps, frameworks not judged")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``multiopt check``."""
    add_selection(parser.add_argument)
    parser.add_argument("--mutants", action="store_true", help="test the checks themselves, on wrong optimizers")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="only targets on this device")
    parser.add_argument("--list", action="store_true", help="list targets, frameworks and scenarios, and exit")
    parser.add_argument("--verbose", action="store_true", help="show tolerances and deviations too")
    parser.add_argument("--traces", type=Path, default=FOLDER, help="folder of the recorded traces")
    parser.add_argument("--processes", type=int, metavar="N", help="how many processes to use; by default two")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every verdict to this file")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write a page of HTML to this file")
    parser.add_argument("--record", type=Path, metavar="DIR", help="write all figures, and on what machine, to DIR")


def main(args: argparse.Namespace) -> int:
    """Check, print what was found, and return 0 if nothing failed, else 1.

    It raises an ImportError if rich, safetensors or a target that was asked for is missing, and a ValueError if a name
    is unknown, nothing is left to check, or a trace file is damaged.
    """
    from rich.console import Console
    from rich.progress import Progress

    console = Console()
    if not console.is_terminal:
        console = Console(width=150)
    if args.list:
        for table in _lists():
            console.print(to_rich(table))
        return 0
    if args.mutants:
        from .mutation.testing import main as test_mutants

        with nothing_left_behind():
            return test_mutants(console, args.traces, args.json)
    if args.xfails is not None and args.namespace is None:
        raise ValueError("--xfails: expected --namespace with it, whose known failures the file lists")
    xfails = {} if args.xfails is None else read_xfails(args.xfails)
    selection = select(args)
    files = load_all(selection.traces)  # damaged ones are rejected here, before the work
    begun = time.monotonic()
    with nothing_left_behind(), Progress(console=console, transient=True) as progress:
        bar = progress.add_task("checking", total=len(selection.targets) + (not selection.quick))
        verdicts = run(selection, lambda name: progress.advance(bar), processes=args.processes)
    seconds = time.monotonic() - begun
    if args.xfails is not None:
        verdicts = expect(verdicts, xfails, complete=selection.whole)
    findings = Findings(selection, files, verdicts, seconds)
    for table in (*tables.found(findings, verbose=args.verbose), tables.failures(verdicts)):
        if table.rows:
            console.print(to_rich(table))
    for note in notes(findings):
        console.print(f" · {note}", style="dim", highlight=False)
    if args.json is not None:
        args.json.write_text(json.dumps(results(findings), indent=1) + "\n")
    if args.record is not None:
        console.print(f"recorded in {record(args.record, findings)}")
    if args.report is not None:
        from .report.page import write

        write(args.report, findings, notes(findings))
        console.print(f"wrote {args.report}")
    if args.namespace is not None and (failed := {v.id for v in verdicts if v.failed and v.what != "xfail"}):
        console.print("Ids of what failed, for --xfails:", *sorted(failed), sep="\n", highlight=False, soft_wrap=True)
    totals = count(verdicts)
    shown = ", ".join(f"{number} {OUTCOMES[outcome]}" for outcome, number in totals.items() if number)
    style = "bold red" if totals["failed"] else "bold green"
    console.print(f"[{style}]{'FAILED' if totals['failed'] else 'passed'}[/]: {shown}, in {seconds:.0f} s")
    return 1 if totals["failed"] else 0


def select(args: argparse.Namespace) -> Selection:
    """Return what the options ask for; errors as those of `main`."""
    asked = args.backend
    if args.namespace is not None:
        asked = [*(asked or ()), find(args.namespace).name]
    targets = all_targets()
    names = _known("--backend", asked, targets)
    absences = {n: targets[n].absent() for n in names if args.device is None or targets[n].device == args.device}
    present = [name for name, reason in absences.items() if reason is None]
    if asked and (lacking := [f"{name}: {reason}" for name, reason in absences.items() if reason is not None]):
        raise ImportError(f"--backend {lacking[0]}")
    if not present:
        told = "; ".join(f"{name}: {reason}" for name, reason in absences.items())
        raise ValueError(f"no backend is left to check: {told or f'none of them is on {args.device}'}")
    return Selection(
        tuple(present),
        tuple(_known("--against", args.against, SYSTEMS)),
        tuple(_known("--scenario", args.scenario, SCENARIOS)),
        args.quick,
        args.traces,
    )


def _known(option: str, asked: Sequence[str] | None, table: Iterable[str]) -> list[str]:
    names = list(table)
    for name in asked or ():
        if name not in names:
            raise ValueError(f"{option}: expected one of {', '.join(names)}, got {name!r}")
    return [name for name in names if asked is None or name in asked]


def notes(findings: Findings) -> list[str]:
    """Return what a reader of the tables must know besides."""
    selection = findings.selection
    targets = all_targets()
    told = [f"{name}: {reason}" for name, target in targets.items() if (reason := target.absent()) is not None]
    brief = [name for name in selection.targets if targets[name].slow]
    if selection.quick:
        told.append("--quick: no run went further than 40 steps, and frameworks were not judged")
    elif brief:
        told.append(f"{', '.join(brief)}: slow by step, so that no run went further than 40 steps")
    without: dict[str, set[str]] = {}
    for v in findings.verdicts:
        if v.outcome == "unsupported":
            without.setdefault(v.reason, set()).add(v.scenario)
    return told + [f"not judged, {len(names)} scenarios: {reason}" for reason, names in sorted(without.items())]


def _lists() -> list[Table]:
    """Return what may be asked for."""
    return [
        Table(option, "", ("", "what", ""), rows)
        for option, rows in (
            ("--backend", [(t.name, t.about, t.absent() or "here") for t in all_targets().values()]),
            ("--against", [(s.name, s.about, "") for s in SYSTEMS.values()]),
            ("--scenario", [(s.name, s.about, f"{s.dtype}, {s.steps} steps") for s in SCENARIOS.values()]),
        )
    ]
