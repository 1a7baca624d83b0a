"""The verdicts of a check, as tables: for the terminal and the page alike."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..checks.run import Findings
from ..checks.verdict import OUTCOMES, WHOLE_RUN, Verdict
from ..data.deviations import DEVIATIONS, deviations_in
from ..data.scenarios import SCENARIOS
from ..data.systems import SYSTEMS
from ..reference.tolerances import RUN, TRACE
from ..targets.target import all_targets
from .table import NONE, Cell, Table, short

#: Scenarios that every framework has, and in which none leaves the rule by more than rounding: a fair comparison.
FAIR = {
    "float64": ("paper", "several-shapes", "learning-rate", "large-eps", "long-float64"),
    "float32": ("float32", "float32-wide", "long-float32"),
    "float16": ("float16",),
    "bfloat16": ("bfloat16",),
}
#: Failures that are shown.
MOST = 40
_RULE = "the published rule"
_UNITS = "Accumulators in units in the last place (ulps) · parameters in units of motion"


@dataclass
class Tally:
    """Many verdicts in few numbers: how many scenarios had which worst outcome, and the worst number in each unit."""

    outcomes: Counter[str] = field(default_factory=Counter)
    worst: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, verdicts: Sequence[Verdict]) -> None:
        """Take in all verdicts on one scenario."""
        self.outcomes[max((v.outcome for v in verdicts), key=list(OUTCOMES).index)] += 1
        for v in verdicts:
            if v.outcome in ("passed", "failed"):
                self.see(v.unit, v.observed)

    def see(self, unit: str, units: float | None) -> None:
        """Take in a number."""
        if units is not None:
            self.worst[unit] = max(self.worst[unit], units)

    @property
    def judged(self) -> int:
        """How many scenarios passed or failed."""
        return self.outcomes["passed"] + self.outcomes["failed"]

    def __str__(self) -> str:
        return f"{short(self.worst['ulp'])}\u00a0·\u00a0{short(self.worst['motion'])}"


def tallies(
    verdicts: Iterable[Verdict], kinds: Sequence[str], row: Callable[[Verdict], str]
) -> dict[str, dict[str, Tally]]:
    """Return a tally for each row and target, over the verdicts of these kinds."""
    grouped: dict[tuple[str, str, str], list[Verdict]] = defaultdict(list)
    for v in verdicts:
        if v.what in kinds:
            grouped[row(v), v.target, v.scenario].append(v)
    found: dict[str, dict[str, Tally]] = defaultdict(lambda: defaultdict(Tally))
    for (name, target, _), same in grouped.items():
        found[name][target].add(same)
    return found


def found(findings: Findings, *, verbose: bool = True) -> list[Table]:
    """Return the tables that have rows, in the order in which they are read; ``verbose``: all of them."""
    made = [matrix(findings), bits(findings), laws(findings), accuracy(findings.verdicts)]
    made += [deviations(findings), tolerances(findings.verdicts)] if verbose else []
    return [table for table in made if table.rows]


def _by_target(
    findings: Findings, title: str, caption: str, corner: str, rows: Iterable[tuple[Cell | str, Mapping[str, Cell]]]
) -> Table:
    """Return a table with a column for each target."""
    targets = findings.selection.targets
    drawn = [[first, *(cells.get(target, NONE) for target in targets)] for first, cells in rows]
    return Table(title, caption, (corner, *targets), drawn, grid=True)


def matrix(findings: Findings) -> Table:
    """Systems × targets: scenarios passed, failed and deviating, and the worst numbers."""
    found = tallies(findings.verdicts, ("trace", "oracle"), lambda v: v.system)
    marks = {"✓": "passed", "✗": "failed", "x": "expected failure", "~": "deviation"}

    def cell(system: str, target: str, tally: Tally) -> Cell:
        if not tally.judged:
            return NONE
        counts = [f"{mark}{tally.outcomes[outcome]}" for mark, outcome in marks.items() if tally.outcomes[outcome]]
        title = ", ".join(f"{tally.outcomes[outcome]} {outcome}" for outcome in OUTCOMES if tally.outcomes[outcome])
        allowed = TRACE if system else RUN
        ratio = max(tally.worst["ulp"] / allowed["acc_delta"].limit, tally.worst["motion"] / allowed["x"].limit)
        share = min(1.0, max(0.0, 1 + math.log10(ratio) / 3)) if ratio > 0 else 0.0
        mood = "bad" if tally.outcomes["failed"] else "good"
        return Cell(" ".join(counts), str(tally), mood, f"{target} against {system or _RULE}: {title}", share)

    return _by_target(
        findings,
        "Every state after every step, against recorded frameworks and the published rule",
        "✓ scenarios within tolerance. ~ scenarios in which the framework itself deviates from the published rule, so "
        "that ours is judged by the rule. Below: the worst accumulator in units in the last place (ulps) · the worst "
        "parameter in units of motion, which are the rounding of the path so far plus the last place.",
        "against",
        [
            (Cell(system or _RULE, title=SYSTEMS[system].about if system else "Zeiler 2012, in 50 digits"),
             {target: cell(system, target, tally) for target, tally in found[system].items()})
            for system in (*findings.selection.systems, "")
        ],
    )  # fmt: skip


def bits(findings: Findings) -> Table:
    """Runs × targets: the same bits or not."""

    def cell(tally: Tally) -> Cell:
        if not tally.judged:
            return NONE
        if tally.outcomes["failed"]:
            return Cell("✗", short(tally.worst["values that differ"] or tally.worst["ulp"]), "bad")
        contracted = tally.worst["ulp"] or tally.worst["motion"]
        return Cell("≈", str(tally), "known") if contracted else Cell("=", mood="good", share=0.35)

    found = tallies(findings.verdicts, ("bits",), lambda v: v.scenario)
    return _by_target(
        findings,
        "The same bits: long runs over many decades of gradients, against NumPy operation by operation",
        "= every value of every step has the same bits. ≈ compiled with multiply-add: worst accumulator in ulps · "
        "worst parameter in units of motion.",
        "run",
        [(run, {target: cell(tally) for target, tally in row.items()}) for run, row in found.items()],
    )


def laws(findings: Findings) -> Table:
    """Laws × targets: on how many examples each was tried."""
    found: dict[str, dict[str, Cell]] = defaultdict(dict)
    about = {}
    for v in findings.verdicts:
        if v.what == "law":
            about[v.kind] = v.reason
            if v.outcome == "passed":
                drawn = Cell(f"✓ {v.note.partition(' ')[0]}", mood="good", title=v.note, share=0.35)
            else:
                drawn = Cell("✗", mood="bad" if v.failed else "known", title=v.note)
            found[v.kind][v.target] = drawn
    return _by_target(
        findings,
        "Laws: what must hold whatever the numbers are",
        "✓ and the number of examples, which hypothesis draws. – not supported, or the law says nothing of it.",
        "law",
        [(Cell(law, title=about[law]), cells) for law, cells in found.items()],
    )


def accuracy(verdicts: Iterable[Verdict]) -> Table:
    """Who is how accurate, over the `FAIR` scenarios: a row each, but one for all that have the same numbers.

    Targets that took part of the steps only are left out; their bits are others'.
    """
    # From the rule as it was asked for (published), and with the numbers as they rounded them (followed).
    found: dict[str, dict[str, tuple[Tally, Tally]]] = defaultdict(lambda: defaultdict(lambda: (Tally(), Tally())))
    targets = all_targets()
    for v in verdicts:
        ours = v.what == "oracle" and v.over == WHOLE_RUN
        dtype = SCENARIOS[v.scenario].dtype if v.scenario in SCENARIOS else ""
        brief = v.target in targets and targets[v.target].slow
        if v.observed is None or brief or v.scenario not in FAIR.get(dtype, ()):
            continue
        if ours or v.what == "explained":
            for place, units in enumerate((v.published, v.observed)):
                found[v.target or v.system][dtype][place].see(v.unit, units)
    order = [*targets, *SYSTEMS]
    alike: dict[tuple[Cell, ...], list[str]] = defaultdict(list)
    for who in sorted(found, key=order.index):
        alike[tuple(_accuracy(found[who].get(dtype)) for dtype in FAIR)].append(who)
    return Table(
        "Who is how accurate: worst distance from the published rule in 50 digits, over the scenarios that all share",
        f"{_UNITS}; below: with lr, ρ and ε as they were rounded first, where that differs.",
        ("", *FAIR),
        [[", ".join(names), *cells] for cells, names in alike.items()],
        grid=True,
    )


def _accuracy(found: tuple[Tally, Tally] | None) -> Cell:
    if found is None:
        return NONE
    published, followed = found
    mood = "known" if max(published.worst.values(), default=0.0) > 1e3 else "good"
    return Cell(str(published), "" if str(published) == str(followed) else f"({followed})", mood, share=0.2)


def deviations(findings: Findings) -> Table:
    """Every deviation in the traces, with both numbers in the one that shows it best: with the fewest others."""
    theirs: dict[tuple[str, str], Tally] = defaultdict(Tally)
    ours: dict[str, Tally] = defaultdict(Tally)
    for v in findings.verdicts:
        if v.published is None:
            continue
        if v.what == "explained":
            theirs[v.system, v.scenario].see(v.unit, v.published)
        elif v.what == "oracle":
            ours[v.scenario].see(v.unit, v.published)
    shown = defaultdict(list)
    for system, scenario in theirs:
        trace = findings.files[system].traces[scenario]
        for name in deviations_in(trace):
            shown[name].append(trace)
    rows = []
    for name, traces in sorted(shown.items()):
        best = min(traces, key=lambda trace: (len(trace.deviations), -trace.steps))
        we = str(ours[best.scenario]) if best.scenario in ours else "not judged"
        systems = ", ".join(sorted({trace.name for trace in traces}))
        rows.append([name, systems, DEVIATIONS[name].about, str(theirs[best.name, best.scenario]), we])
    return Table(
        "Deviations: where frameworks leave the published rule",
        f"Distances from the published rule in the trace that shows it best. {_UNITS}.",
        ("deviation", "who", "what", "they", "we"),
        rows,
    )


_COMPARISONS = {
    "oracle": "ours against the published rule",
    "trace": "ours against a framework's run",
    "explained": "a framework against the rule with its deviations",
    "rate": "our schedules against their formulas",
    "bits": "across libraries",
}


def worst(verdicts: Iterable[Verdict]) -> list[tuple[str, Verdict]]:
    """Return, for every tolerance that was used, what it was used for and the verdict that came nearest to it."""
    found: dict[tuple[str, float, str, str], Verdict] = {}
    for v in verdicts:
        if v.tolerance is None or v.observed is None:
            continue
        about = _COMPARISONS.get(v.what, v.what) + (f", {v.over}" if v.what == "oracle" else "")
        key = about, v.tolerance, v.kind, v.unit
        # "not <=" lets NaN count as worse than any number.
        if key not in found or not v.observed <= (found[key].observed or 0.0):
            found[key] = v
    return [(key[0], found[key]) for key in sorted(found)]


def tolerances(verdicts: Iterable[Verdict]) -> Table:
    """All tolerances that were used, with the worst that was seen."""
    rows: list[list[Cell | str]] = []
    for about, v in worst(verdicts):
        observed, allowed = v.observed or 0.0, v.tolerance or 0.0
        share = min(1.0, observed / allowed) if allowed else float(observed > 0)
        seen = Cell(short(observed), mood="good" if observed <= allowed else "bad", share=share)
        rows.append([about, v.kind, seen, short(allowed), v.unit, v.reason, v.where])
    return Table(
        "Tolerances",
        "All of them, with the worst that was seen, and why they are what they are.",
        ("comparison", "of", "worst", "allowed", "unit", "why", "worst where"),
        rows,
    )


def provenance(findings: Findings) -> Table:
    """Where the traces come from."""
    rows: list[list[Cell | str]] = []
    for name in findings.selection.systems:
        content, digest = findings.files[name], findings.files[name].digest()
        told = (", ".join(f"{k} {v}" for k, v in pairs.items()) for pairs in (content.versions, content.provenance))
        refused = sum(trace.refusal is not None for trace in content.traces.values())
        counts = f"{len(content.traces) - refused} + {refused}"
        rows.append([name, SYSTEMS[name].about, *told, counts, Cell(f"{digest[:16]}…", title=digest)])
    return Table(
        "Where the traces come from",
        "Recorded from the real optimizers by programs in the repository; the command multiopt record records them "
        "again and compares. A hash covers configuration, versions and every number.",
        ("system", "what it is", "versions", "recorded on", "traces + rejected", "SHA-256"),
        rows,
    )


def failures(verdicts: Iterable[Verdict]) -> Table:
    """What failed, in words."""
    rows = [[Cell(f"✗ {v}", mood="bad")] for v in verdicts if v.failed]
    caption = f"The first {MOST} of {len(rows)}; --json FILE has all" if len(rows) > MOST else ""
    return Table("Failures", caption, ("",), rows[:MOST])
