"""Mutation testing: every wrong optimizer goes through the checks that ours go through, and must not survive.

Four kinds of check try it, each by itself: the published rule, the recorded frameworks, NumPy's bits and the laws.
One of them is enough to kill; the table says for each which scenario or law was the first to do so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..checks.judge import Judge, cases_of
from ..checks.laws import LAWS
from ..checks.verdict import Verdict
from ..data.specification import HOLDERS
from ..data.traces import TraceFile, load_all
from ..report.table import NONE, Cell, Table, to_rich
from ..targets.build import unsupported
from ..targets.target import Target
from .mutants import MUTANTS, TRUE, Mutant

if TYPE_CHECKING:
    from rich.console import Console

#: The kinds of check, in the order of the table.
CHECKS = ("oracle", "trace", "bits", "law")
#: Systems whose traces are used: one of each family, with the fewest deviations of its own.
SYSTEMS = ("torch-forloop", "tf-keras", "keras-jax", "tf-keras-legacy", "optax")
#: Runs of a thousand steps add nothing.
LONGEST = 20


@dataclass(frozen=True)
class Result:
    """What became of one mutant: the first failed verdict of each kind of check, where there is one."""

    mutant: Mutant
    kills: Mapping[str, Verdict]

    @property
    def survived(self) -> bool:
        """Whether no check noticed anything."""
        return not self.kills

    def verdict(self) -> Verdict:
        """Return it as one thing judged: it fails if the mutant survives, or if the true rule does not."""
        blank = Verdict("mutant", "", "", "", self.mutant.name, "failed", reason=self.mutant.about)
        if self.mutant.name == TRUE.name:
            told = "; ".join(str(kill) for kill in self.kills.values())
            return replace(blank, outcome="passed" if self.survived else "failed", note=told or "no check rejects it")
        if self.survived:
            return replace(blank, note="no check noticed it")
        told = "; ".join(f"{name}: {_where(kill)}" for name, kill in self.kills.items())
        first = replace(next(iter(self.kills.values())), what="mutant", target="", kind=self.mutant.name, over="")
        return replace(first, outcome="passed", reason=self.mutant.about, note=f"killed by {told}")


def _where(kill: Verdict) -> str:
    named = " ".join(part for part in (kill.system, kill.scenario, kill.kind) if part)
    return named if kill.observed is None else f"{named}, {kill.observed:.3g} {kill.unit} ({kill.tolerance:g} allowed)"


class MutationTest:
    """Puts the cases of the suite, from its recorded traces, to mutants; what is right is computed once."""

    def __init__(self, files: Mapping[str, TraceFile], engine: str = "host") -> None:
        self.judge, self.engine = Judge(), engine
        self.traces = [t for system in SYSTEMS for t in files[system].traces.values() if t.steps <= LONGEST]
        fitting = [case for case in cases_of(self.traces) if not unsupported(TRUE.target(), case)]
        # Where a mistake shows in many, let the one be told that is easiest to follow.
        self.cases = sorted(fitting, key=lambda case: list(HOLDERS).index(case.dtype))
        self._checks: Mapping[str, Callable[[Target], Iterator[Verdict]]] = {
            "oracle": lambda target: (v for case in self.cases for v in self.judge.against_oracle(target, case)),
            "trace": lambda target: (v for trace in self.traces for v in self.judge.against_trace(target, trace)),
            "bits": lambda target: (v for case in self.cases for v in self.judge.against_bits(target, case)),
            "law": lambda target: (law.verdict(target) for law in LAWS.values() if law.concerns(target)),
        }

    def run(self, mutant: Mutant, checks: Sequence[str] = CHECKS, *, until_dead: bool = False) -> Result:
        """Return what each kind of check finds first; or only what the first of them does that finds something."""
        kills: dict[str, Verdict] = {}
        for name in checks:
            found = next((v for v in self.verdicts(name, mutant) if v.failed), None)
            if found is not None:
                kills[name] = found
                if until_dead:
                    break
        return Result(mutant, kills)

    def verdicts(self, check: str, mutant: Mutant) -> Iterator[Verdict]:
        """Yield all that one kind of check says of a mutant."""
        # Laws ask for many more kernels, each of which would have to be compiled for each mutant.
        return self._checks[check](mutant.target("eager" if check == "law" else self.engine))


def main(console: Console, traces: Path, json_file: Path | None = None) -> int:
    """Try all mutants, and the true rule last; print the table. 0: every mutant died, and the true rule did not."""
    from rich.progress import track

    test = MutationTest(load_all(traces))
    everyone = [*MUTANTS.values(), TRUE]
    results = [test.run(mutant) for mutant in track(everyone, "mutants", console=console, transient=True)]
    console.print(to_rich(table(results)))
    verdicts = [result.verdict() for result in results]
    wrong = [verdict for verdict in verdicts if verdict.failed]
    for verdict in wrong:
        console.print(f"[bold red]✗[/] {verdict}", highlight=False)
    dead = sum(not result.survived for result in results if result.mutant is not TRUE)
    style = "bold red" if wrong else "bold green"
    console.print(f"[{style}]{'FAILED' if wrong else 'passed'}[/]: {dead} of {len(MUTANTS)} mutants killed")
    if json_file is not None:
        json_file.write_text(json.dumps([verdict.as_json() for verdict in verdicts], indent=1) + "\n")
    return 1 if wrong else 0


def table(results: Sequence[Result]) -> Table:
    """Return mutants × kinds of check: which scenario or law was the first to kill, and by how much."""

    def row(result: Result) -> list[Cell | str]:
        mood = "bad" if result.verdict().failed else "good" if result.survived else ""
        cells = [_cell(result.kills.get(name)) for name in CHECKS]
        return [Cell(result.mutant.name, mood=mood), result.mutant.about, *cells]

    return Table(
        "Wrong optimizers, and what kills them",
        "The first to notice; worst accumulator in ulps, or worst parameter in units of motion.",
        ("mutant", "what is wrong", "the published rule", "a framework's trace", "NumPy's bits", "a law"),
        [row(result) for result in results],
    )


def _cell(kill: Verdict | None) -> Cell:
    if kill is None:
        return NONE
    if kill.observed is None:
        return Cell(kill.kind)
    named = " ".join(part for part in (kill.system, kill.scenario) if part)
    return Cell(f"{named}: {kill.observed:.2g} {kill.unit}")
