"""The hunt for mutants: every wrong optimizer goes through the checks that ours go through, and must not survive.

Four kinds of check hunt apart from each other: the published rule, the recorded frameworks, NumPy's bits and the
laws. One of them is enough to kill; the table says for each which scenario or law was the first to do so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..checks.judge import Judge, cases_of
from ..checks.laws import LAWS
from ..checks.verdict import Place, Verdict
from ..data.case import Case
from ..data.scenarios import SCENARIOS
from ..data.specification import HOLDERS
from ..data.traces import TraceFile, load_all
from ..reference.compare import differences
from ..reference.tolerances import BITS
from ..targets.build import unsupported
from ..targets.target import Target, all_targets
from .mutants import JUDGED_AS, MUTANTS, TRUE, Mutant

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

#: The kinds of check, in the order of the table.
HUNTERS = ("oracle", "trace", "bits", "law")
#: Systems whose traces hunt: one of each family, with the fewest habits of its own.
SYSTEMS = ("torch-forloop", "tf-keras", "keras-jax", "tf-keras-legacy", "optax")
#: Runs of a thousand steps add nothing to a hunt.
LONGEST = 20
_REFERENCE = all_targets()["numpy-eager"]


@dataclass(frozen=True)
class Hunt:
    """What became of one mutant: the first failed verdict of each kind of check, where there is one."""

    mutant: Mutant
    kills: Mapping[str, Verdict]

    @property
    def survived(self) -> bool:
        """Whether no check noticed anything."""
        return not self.kills

    def verdict(self) -> Verdict:
        """Return the hunt as one thing judged: it fails if the mutant survives."""
        blank = Verdict("mutant", "", "", "", self.mutant.name, "failed", reason=self.mutant.about)
        if self.mutant.name in TRUE:
            # Whoever kills the truth is wrong.
            told = "; ".join(str(kill) for kill in self.kills.values())
            return replace(blank, outcome="passed" if self.survived else "failed", note=told or "it lives")
        if self.survived:
            return replace(blank, note="no check noticed it")
        first = next(self.kills[name] for name in HUNTERS if name in self.kills)
        told = "; ".join(f"{name}: {where(self.kills[name])}" for name in HUNTERS if name in self.kills)
        return replace(
            blank, outcome="passed", system=first.system, scenario=first.scenario, observed=first.observed,
            unit=first.unit, tolerance=first.tolerance, place=first.place, note=f"killed by {told}",
        )  # fmt: skip


def where(kill: Verdict) -> str:
    """Say in a few words which check killed, and by how much."""
    named = " ".join(part for part in (kill.system, kill.scenario, kill.kind) if part)
    if kill.observed is None:
        return named
    return f"{named}, {kill.observed:.3g} {kill.unit} ({kill.tolerance:g} allowed)"


class Hunter:
    """Puts the cases of the suite to mutants; true answers are computed once.

    Parameters
    ----------
    files : mapping
        The recorded traces, by system.
    """

    def __init__(self, files: Mapping[str, TraceFile]) -> None:
        self.judge = Judge()
        self.files = {system: files[system] for system in SYSTEMS}
        recorded = cases_of(self.files, SYSTEMS, tuple(SCENARIOS))
        fitting = [q for q in recorded if q.steps <= LONGEST and not unsupported(JUDGED_AS, q)]
        # Where a mistake shows in many, let the one be told that is easiest to follow.
        self.cases = sorted(fitting, key=lambda q: list(HOLDERS).index(q.dtype))
        self._checks: Mapping[str, Callable[[Target], Iterator[Verdict]]] = {
            "oracle": self._oracle,
            "trace": self._traces,
            "bits": self._bits,
            "law": self._laws,
        }

    def hunt(self, mutant: Mutant, *, until_dead: bool = False) -> Hunt:
        """Return what each kind of check finds first; or only what the first of them does that finds something."""
        kills: dict[str, Verdict] = {}
        for name in HUNTERS:
            found = next((v for v in self.verdicts(name, mutant) if v.failed), None)
            if found is not None:
                kills[name] = found
                if until_dead:
                    break
        return Hunt(mutant, kills)

    def verdicts(self, hunter: str, mutant: Mutant) -> Iterator[Verdict]:
        """Yield all that one kind of check says of a mutant."""
        return self._checks[hunter](mutant.target())

    def _oracle(self, target: Target) -> Iterator[Verdict]:
        for case in self.cases:
            yield from self.judge.against_oracle(target, case)

    def _traces(self, target: Target) -> Iterator[Verdict]:
        for file in self.files.values():
            for trace in file.traces.values():
                if trace.steps <= LONGEST:
                    yield from self.judge.against_trace(target, trace)

    def _bits(self, target: Target) -> Iterator[Verdict]:
        for case in filter(_promised, self.cases):
            ours, theirs = self.judge.answer(target, case), self.judge.answer(_REFERENCE, case)
            if isinstance(ours, str) or isinstance(theirs, str):
                continue  # refused by design: the oracle's check looks at that
            for kind, found in differences(ours, theirs).items():
                place = Place(found.step, found.tensor, found.element, found.first, found.second)
                outcome = "passed" if found.same_bits else "failed"
                unit = "ulp" if kind in ("square_avg", "acc_delta") else "motion"
                yield Verdict("bits", target.name, "", case.scenario, kind, outcome, found.units, unit,
                              BITS.limit, BITS.reason, None if found.same_bits else place)  # fmt: skip

    def _laws(self, target: Target) -> Iterator[Verdict]:
        for law in LAWS.values():
            if law.concerns(target):
                yield law.verdict(target)


def _promised(case: Case) -> bool:
    """Whether the reference has the library's bits: its norms are summed in another way."""
    return case.config.clipnorm is None and case.config.global_clipnorm is None


def main(console: Console, traces: Path, json_file: Path | None = None) -> int:
    """Hunt all mutants, and the true rule last; print the table.

    Returns
    -------
    int
        0 if every mutant died and the true rule did not, else 1.
    """
    from rich.progress import track

    hunter = Hunter(load_all(traces))
    everyone = [*MUTANTS.values(), *TRUE.values()]
    hunts = [hunter.hunt(m) for m in track(everyone, "mutants", console=console, transient=True)]
    console.print(table(hunts))
    wrong = [hunt for hunt in hunts if hunt.verdict().failed]
    for hunt in wrong:
        console.print(f"[bold red]✗[/] {hunt.verdict()}", highlight=False)
    dead = sum(not hunt.survived for hunt in hunts if hunt.mutant.name in MUTANTS)
    style = "bold red" if wrong else "bold green"
    console.print(f"[{style}]{'FAILED' if wrong else 'passed'}[/]: {dead} of {len(MUTANTS)} mutants killed")
    if json_file is not None:
        json_file.write_text(json.dumps([hunt.verdict().as_json() for hunt in hunts], indent=1) + "\n")
    return 1 if wrong else 0


def table(hunts: Sequence[Hunt]) -> Table:
    """Return mutants × kinds of check: which scenario or law was the first to kill, and by how much."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(
        title="Wrong optimizers, and what kills them",
        caption="the first to notice; worst state in ulps, or worst parameter in units of motion",
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        caption_style="dim",
        box=box.SIMPLE_HEAD,
    )
    for title in ("mutant", "what is wrong", "the published rule", "a framework's trace", "NumPy's bits", "a law"):
        shown.add_column(title, overflow="fold")
    for hunt in hunts:
        verdict = hunt.verdict()
        style = "bold red" if verdict.failed else "green" if hunt.survived else ""
        cells = [_cell(hunt.kills.get(name)) for name in HUNTERS]
        shown.add_row(Text(hunt.mutant.name, style=style), hunt.mutant.about, *cells)
    return shown


def _cell(kill: Verdict | None) -> str:
    if kill is None:
        return "–"
    if kill.observed is None:
        return kill.kind
    return f"{' '.join(part for part in (kill.system, kill.scenario) if part)}: {kill.observed:.2g} {kill.unit}"
