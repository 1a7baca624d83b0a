"""``multiopt check``: multiopt on every library against recorded frameworks, the published rule, and itself."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .checks.expected import check_id, expect, read_xfails
from .checks.law import nothing_left_behind
from .checks.run import Selection, run
from .checks.verdict import Verdict, count
from .data.scenarios import SCENARIOS
from .data.systems import SYSTEMS
from .data.traces import FOLDER, load_all
from .report import summary, tables
from .report.records import record, results
from .targets.target import all_targets, find

if TYPE_CHECKING:
    from rich.console import Console

#: Outcomes in a sentence.
WORDS = {
    "passed": "within tolerance",
    "habit": "told, by a framework's habit",
    "inexpressible": "without words for it",
    "expected failure": "failed as expected",
    "failed": "failed",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``multiopt check``."""
    parser.add_argument("--backend", action="append", metavar="NAME", help="only this one of ours (repeatable)")
    parser.add_argument("--against", action="append", metavar="SYSTEM", help="only this framework (repeatable)")
    parser.add_argument("--scenario", action="append", metavar="NAME", help="only this scenario (repeatable)")
    parser.add_argument("--namespace", metavar="MODULE", help="any array API namespace, by its import name")
    parser.add_argument("--xfails", type=Path, metavar="FILE", help="ids of the checks that it is known to fail")
    parser.add_argument("--mutants", action="store_true", help="try the checks themselves, on wrong optimizers")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="only backends on this device")
    parser.add_argument("--quick", action="store_true", help="no run further than 40 steps, frameworks not judged")
    parser.add_argument("--list", action="store_true", help="list backends, frameworks and scenarios, and end")
    parser.add_argument("--verbose", action="store_true", help="show tolerances and habits too")
    parser.add_argument("--traces", type=Path, default=FOLDER, help="folder of the recorded traces")
    parser.add_argument("--processes", type=int, metavar="N", help="how many work side by side; by default two")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every verdict to this file")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write a page of HTML to this file")
    parser.add_argument("--record", type=Path, metavar="DIR", help="write what was seen, and on what machine, to DIR")


def main(args: argparse.Namespace) -> int:
    """Check, and print what was found.

    Returns
    -------
    int
        0 if nothing failed, else 1.

    Raises
    ------
    ImportError
        If rich or safetensors is not installed, or a backend that was asked for does not work here.
    ValueError
        If a name is unknown, nothing is left to check, or a trace file is damaged.
    """
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=150)
    if args.list:
        _list(console)
        return 0
    if args.mutants:
        from .mutation.hunt import main as hunt

        with nothing_left_behind():
            return hunt(console, args.traces, args.json)
    if args.xfails is not None and args.namespace is None:
        raise ValueError("--xfails: expected --namespace with it, whose known failures the file lists")
    xfails = {} if args.xfails is None else read_xfails(args.xfails)
    selection = select(args)
    files = load_all(selection.traces)  # damaged ones are refused here, before the work
    begun = time.monotonic()
    with nothing_left_behind():
        verdicts = _run(console, selection, args.processes)
    seconds = time.monotonic() - begun
    if args.xfails is not None:
        verdicts = expect(verdicts, xfails, complete=selection.whole)
    _print(console, selection, verdicts, summary.habits(files, verdicts), args.verbose)
    if args.json is not None:
        args.json.write_text(json.dumps(results(selection, files, verdicts, seconds), indent=1) + "\n")
    if args.record is not None:
        console.print(f"recorded in {record(args.record, selection, files, verdicts, seconds)}")
    if args.report is not None:
        from .report.report import write

        write(args.report, selection, files, verdicts, notes(selection, verdicts))
        console.print(f"wrote {args.report}")
    if args.namespace is not None and (failed := {check_id(v) for v in verdicts if v.failed and v.what != "xfail"}):
        console.print("Ids of what failed, for --xfails:", *sorted(failed), sep="\n", highlight=False, soft_wrap=True)
    totals = count(verdicts)
    shown = ", ".join(f"{number} {WORDS[outcome]}" for outcome, number in totals.items() if number)
    style = "bold red" if totals["failed"] else "bold green"
    console.print(f"[{style}]{'FAILED' if totals['failed'] else 'passed'}[/]: {shown}, in {seconds:.0f} s")
    return 1 if totals["failed"] else 0


def select(args: argparse.Namespace) -> Selection:
    """Return what the options ask for.

    Raises
    ------
    ImportError, ValueError
        See `main`.
    """
    asked = args.backend
    if args.namespace is not None:
        asked = [*(asked or ()), find(args.namespace).name]
    backends = _known("--backend", asked, all_targets())
    present = []
    for name in backends:
        target = all_targets()[name]
        if args.device is not None and target.device != args.device:
            continue
        reason = target.absent()
        if reason is None:
            present.append(name)
        elif asked:
            raise ImportError(f"--backend {name}: {reason}")
    if not present:
        raise ValueError(f"no backend is left to check: {_absences(backends, args.device)}")
    return Selection(
        tuple(present),
        tuple(_known("--against", args.against, SYSTEMS)),
        tuple(_known("--scenario", args.scenario, SCENARIOS)),
        args.quick,
        args.traces,
    )


def _absences(names: Sequence[str], device: str | None) -> str:
    found = [all_targets()[name] for name in names]
    told = [f"{target.name}: {target.absent()}" for target in found if target.device == (device or target.device)]
    return "; ".join(told) or f"none of them is on {device}"


def _known(option: str, asked: Sequence[str] | None, table: Iterable[str]) -> list[str]:
    names = list(table)
    for name in asked or ():
        if name not in names:
            raise ValueError(f"{option}: expected one of {', '.join(names)}, got {name!r}")
    return [name for name in names if asked is None or name in asked]


def _run(console: Console, selection: Selection, processes: int | None) -> list[Verdict]:
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:12}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
    )
    rows: dict[str, TaskID] = {}
    with Progress(*columns, console=console, transient=True) as progress:

        def tell(title: str, done: int, total: int) -> None:
            if title not in rows:
                rows[title] = progress.add_task(title, total=total)
            progress.update(rows[title], completed=done)

        return run(selection, tell, processes=processes)


def _print(
    console: Console, selection: Selection, verdicts: Sequence[Verdict], habits: list[summary.Habit], verbose: bool
) -> None:
    shown = [tables.matrix(verdicts, selection), tables.bits(verdicts, selection), tables.laws(verdicts, selection)]
    shown.append(tables.accuracy(verdicts))
    if verbose:
        shown += [tables.habits(habits), tables.limits(verdicts)]
    for table in (*shown, tables.failures(verdicts)):
        if table is not None:
            console.print(table)
    for note in notes(selection, verdicts):
        console.print(f" · {note}", style="dim", highlight=False)


def notes(selection: Selection, verdicts: Sequence[Verdict]) -> list[str]:
    """Return what a reader of the tables must know besides."""
    told = [f"{name}: {target.absent()}" for name, target in all_targets().items() if target.absent() is not None]
    brief = [name for name in selection.backends if all_targets()[name].slow]
    if selection.quick:
        told.append("--quick: no run went further than 40 steps, and frameworks were not judged")
    elif brief:
        told.append(f"{', '.join(brief)}: slow by step, so that no run went further than 40 steps")
    without: dict[str, set[str]] = {}
    for v in verdicts:
        if v.outcome == "inexpressible":
            without.setdefault(f"{v.reason}", set()).add(v.scenario)
    told += [f"not judged, {len(names)} scenarios: {reason}" for reason, names in sorted(without.items())]
    return told


def _list(console: Console) -> None:
    from rich.table import Table

    for title, rows in (
        ("--backend", [(p.name, p.about, p.absent() or "here") for p in all_targets().values()]),
        ("--against", [(s.name, s.about, "") for s in SYSTEMS.values()]),
        ("--scenario", [(s.name, s.about, f"{s.dtype}, {s.steps} steps") for s in SCENARIOS.values()]),
    ):
        table = Table(title, "what", "", box=None, pad_edge=False)
        for row in rows:
            table.add_row(*row)
        console.print(table, "")
