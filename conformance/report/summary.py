"""Many verdicts in few numbers: what tables, pages and records have in common."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..checks.judge import ABOUT
from ..checks.verdict import OUTCOMES, Verdict
from ..data.deviations import deviations_in as names_of
from ..data.scenarios import SCENARIOS
from ..data.systems import SYSTEMS
from ..data.traces import TraceFile
from ..data.trajectory import Trajectory
from ..targets.target import all_targets

#: Scenarios that every framework has, and in which none leaves the rule by more than rounding: a fair comparison.
FAIR = {
    "float64": ("paper", "several-shapes", "learning-rate", "large-eps", "long-float64"),
    "float32": ("float32", "float32-wide", "long-float32"),
    "float16": ("float16",),
    "bfloat16": ("bfloat16",),
}
_STATE = ("square_avg", "acc_delta")


@dataclass
class Cell:
    """Scenarios by their worst outcome, and the worst numbers of those that were judged and passed or failed.

    ``state`` in units in the last place, ``motion`` in units of motion, ``values`` counts values that differ.
    """

    outcomes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    state: float = 0.0
    motion: float = 0.0
    values: float = 0.0

    def add(self, verdicts: Sequence[Verdict]) -> None:
        """Take in all verdicts on one scenario."""
        self.outcomes[max((v.outcome for v in verdicts), key=OUTCOMES.index)] += 1
        for v in verdicts:
            if v.observed is None or v.outcome not in ("passed", "failed"):
                continue
            if v.unit == "values that differ":
                self.values = max(self.values, v.observed)
            elif v.unit == "motion":
                self.motion = max(self.motion, v.observed)
            else:
                self.state = max(self.state, v.observed)

    @property
    def failed(self) -> int:
        """How many scenarios failed."""
        return self.outcomes["failed"]

    @property
    def judged(self) -> int:
        """How many scenarios were judged."""
        return self.outcomes["passed"] + self.outcomes["failed"]


def matrix(verdicts: Iterable[Verdict]) -> dict[tuple[str, str], Cell]:
    """Return, for each (system, backend), how ours did against the framework's traces.

    The system ``""`` stands for the published rule.
    """
    grouped: dict[tuple[str, str, str], list[Verdict]] = defaultdict(list)
    for v in verdicts:
        if v.what in ("trace", "oracle"):
            grouped[v.system, v.backend, v.scenario].append(v)
    return _cells(grouped)


def _cells(grouped: dict[tuple[str, str, str], list[Verdict]]) -> dict[tuple[str, str], Cell]:
    cells: dict[tuple[str, str], Cell] = defaultdict(Cell)
    for (row, column, _), verdicts in grouped.items():
        cells[row, column].add(verdicts)
    return dict(cells)


def bits(verdicts: Iterable[Verdict]) -> dict[tuple[str, str], Cell]:
    """Return, for each (run, backend), how its bits compare with NumPy's."""
    grouped: dict[tuple[str, str, str], list[Verdict]] = defaultdict(list)
    for v in verdicts:
        if v.what == "bits":
            grouped[v.scenario, v.backend, ""].append(v)
    return _cells(grouped)


@dataclass
class Accuracy:
    """How far one system is from the rule, in one data type, at worst: state in ulps, parameters in motion.

    ``published`` with the numbers that were asked for, ``arithmetic`` with those that it rounded them to.
    """

    published: list[float] = field(default_factory=lambda: [0.0, 0.0])
    arithmetic: list[float] = field(default_factory=lambda: [0.0, 0.0])


def accuracy(verdicts: Iterable[Verdict]) -> dict[str, dict[str, Accuracy]]:
    """Return who is how accurate: system or backend, then data type, over the `FAIR` scenarios.

    Backends that took part of the steps only are left out; their bits are others'. Equal rows become one.
    """
    found: dict[str, dict[str, Accuracy]] = defaultdict(lambda: defaultdict(Accuracy))
    for v in verdicts:
        ours = v.what == "oracle" and v.note == "the whole run"
        dtype = SCENARIOS[v.scenario].dtype if v.scenario in SCENARIOS else ""
        brief = v.backend in all_targets() and all_targets()[v.backend].slow
        if (
            v.observed is None
            or brief
            or v.scenario not in FAIR.get(dtype, ())
            or not (ours or v.what in ("published", "explained"))
        ):
            continue
        row = found[v.backend or v.system][dtype]
        place = 0 if v.kind in _STATE else 1
        for numbers in ([row.published] if ours or v.what == "published" else []) + (
            [row.arithmetic] if ours or v.what == "explained" else []
        ):
            numbers[place] = max(numbers[place], v.observed)
    merged: dict[str, dict[str, Accuracy]] = {}
    order = [*all_targets(), *SYSTEMS]
    for who, rows in sorted(found.items(), key=lambda pair: order.index(pair[0])):
        twin = next((other for other, those in merged.items() if who in all_targets() and those == rows), None)
        if twin is not None:
            merged = {f"{twin}, {who}" if other == twin else other: those for other, those in merged.items()}
        else:
            merged[who] = dict(rows)
    return merged


@dataclass
class Limit:
    """A tolerance with the worst that was seen of it."""

    about: str
    kind: str
    unit: str
    allowed: float
    reason: str
    observed: float = -1.0
    where: str = ""


_ABOUT = {
    "oracle": "ours against the published rule",
    "trace": "ours against a framework's run",
    "explained": "a framework against the rule with its habits",
    "rate": "our schedules against their formulas",
    "bits": "across libraries",
}


def laws(verdicts: Iterable[Verdict]) -> dict[tuple[str, str], Verdict]:
    """Return, for each (law, backend), whether it holds."""
    return {(v.kind, v.backend): v for v in verdicts if v.what == "law"}


def limits(verdicts: Iterable[Verdict]) -> list[Limit]:
    """Return every tolerance that was used, and the worst observed."""
    found: dict[tuple[str, str, str, float], Limit] = {}
    for v in verdicts:
        if v.tolerance is None or v.observed is None:
            continue
        about = _ABOUT.get(v.what, v.what) + (f", {v.note}" if v.what == "oracle" else "")
        limit = found.setdefault(
            (about, v.kind, v.unit, v.tolerance), Limit(about, v.kind, v.unit, v.tolerance, v.reason)
        )
        if not v.observed <= limit.observed:
            limit.observed = v.observed
            limit.where = " · ".join(part for part in (v.backend, v.system, v.scenario) if part)
    return sorted(found.values(), key=lambda limit: (limit.about, limit.allowed, limit.kind))


@dataclass
class Habit:
    """A habit of a framework's.

    ``apart`` is how far it takes them from the published rule, and ``ours`` how far we are from it, each as state in
    ulps and parameters in motion, in ``example``, the trace that shows it best: the one with the fewest other habits.
    """

    name: str
    about: str
    systems: list[str]
    scenarios: list[str]
    example: str
    apart: tuple[float, float]
    ours: tuple[float, float] | None


def habits(files: Mapping[str, TraceFile], verdicts: Sequence[Verdict]) -> list[Habit]:
    """Return every habit that the traces show."""
    theirs: dict[tuple[str, str], list[Verdict]] = defaultdict(list)
    ours: dict[str, list[Verdict]] = defaultdict(list)
    for v in verdicts:
        if v.what == "published":
            theirs[v.system, v.scenario].append(v)
        elif v.what == "oracle" and v.note == "the whole run":
            ours[v.scenario].append(v)
    shown: dict[str, list[Trajectory]] = defaultdict(list)
    for system, scenario in theirs:
        trace = files[system].traces[scenario]
        for name in names_of(trace):
            shown[name].append(trace)
    found = []
    for name, traces in shown.items():
        best = min(traces, key=lambda trace: (len(trace.deviations), -trace.steps))
        mine = ours.get(best.scenario)
        found.append(
            Habit(
                name,
                ABOUT[name],
                sorted({trace.name for trace in traces}),
                sorted({trace.scenario for trace in traces}),
                f"{best.name}, {best.scenario}",
                _pair(theirs[best.name, best.scenario]),
                None if mine is None else _pair(mine),
            )
        )
    return sorted(found, key=lambda habit: habit.name)


def _pair(verdicts: Iterable[Verdict]) -> tuple[float, float]:
    state = motion = 0.0
    for v in verdicts:
        if v.kind in _STATE:
            state = max(state, v.observed or 0.0)
        else:
            motion = max(motion, v.observed or 0.0)
    return state, motion


def failures(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Return what failed, the worst scenario first."""
    return [v for v in verdicts if v.failed]
