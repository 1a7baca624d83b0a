"""Verdicts on targets: against recorded frameworks, and against the published rule.

Where a framework leaves the rule by a habit that is a matter of options, ours is given the options that it acted on,
and must meet its trace. Where the habit is arithmetic of its own, ours must meet the published rule, theirs the rule
with the habit, and the distance between the two is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..data.case import Case
from ..data.deviations import DEVIATIONS, NOT_FOLLOWED, deviations_in, followed
from ..data.floats import ulps
from ..data.rates import rates_of
from ..data.traces import TraceFile
from ..data.trajectory import Trajectory
from ..reference.accuracy import Accuracy, Distance, accuracy_of, distances
from ..reference.compare import Difference, differences
from ..reference.tolerances import RATE, RUN, TRACE, Tolerance, against_oracle
from ..targets.build import learning_rate, rejection, unsupported
from ..targets.run import run_target
from ..targets.target import Target
from .verdict import Place, Verdict, judged

#: So many steps at most of a target that is slow.
BRIEF = 40
ABOUT = {name: deviation.about for name, deviation in DEVIATIONS.items()}


class Judge:
    """Asks each case once of each target, and keeps the answers; equal bits are judged once.

    Parameters
    ----------
    brief : bool
        Let every target take long cases no further than `BRIEF` steps, not only slow ones.
    """

    def __init__(self, *, brief: bool = False) -> None:
        self.brief = brief
        self._answers: dict[tuple[str, str], Trajectory | str] = {}
        self._distances: dict[tuple[str, bool], dict[str, Distance]] = {}
        self._differences: dict[tuple[str, str], dict[str, Difference]] = {}
        self._accuracies: dict[str, Accuracy] = {}

    # --- answers ---

    def shortened(self, target: Target, case: Case) -> Case:
        """Return the part of a case that `target` gets."""
        if not (target.slow or self.brief) or case.steps <= BRIEF:
            return case
        return case.first(BRIEF)

    def answer(self, target: Target, case: Case) -> Trajectory | str:
        """Return what `target` did, or the name and message of the exception that it raised."""
        key = target.name, case.key
        if key not in self._answers:
            try:
                self._answers[key] = run_target(target, case)
            except Exception as error:
                # Whatever goes wrong is a finding about the target, not the end of the check.
                self._answers[key] = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return self._answers[key]

    def _unanswered(self, what: str, target: Target, system: str, case: Case) -> Verdict | Trajectory:
        """Return the answer, or the verdict that stands in its place."""
        blank = Verdict(what, target.name, system, case.scenario, "", "inexpressible")
        if reason := unsupported(target, case):
            return replace(blank, reason=reason)
        answer, refused = self.answer(target, case), rejection(target, case)
        if refused is not None:
            if isinstance(answer, str) and answer.startswith("ValueError"):
                return replace(blank, reason=f"refused by design: {refused}")
            what_came = "an answer" if isinstance(answer, Trajectory) else answer
            return replace(blank, outcome="failed", reason=f"expected a ValueError ({refused}), got {what_came}")
        return answer if isinstance(answer, Trajectory) else replace(blank, outcome="failed", reason=answer)

    # --- against the rule ---

    def from_oracle(self, answer: Trajectory, *, stepwise: bool) -> Mapping[str, Distance]:
        """Return how far an answer of ours is from the published rule."""
        key = answer.bits(), stepwise
        if key not in self._distances:
            # In 16 bits ours computes in float32: its hyperparameters are not rounded to the parameters' dtype.
            as_held = answer.dtype not in ("float16", "bfloat16")
            self._distances[key] = distances(answer, stepwise=stepwise, as_held=as_held)
        return self._distances[key]

    def against_oracle(self, target: Target, case: Case) -> list[Verdict]:
        """Judge a target by the published rule, one step at a time and over the whole run."""
        case = self.shortened(target, case)
        answer = self._unanswered("oracle", target, "", case)
        if isinstance(answer, Verdict):
            return [answer]
        return [
            _by_distance(
                Verdict("oracle", target.name, "", case.scenario, kind, "passed"),
                found,
                against_oracle(kind, case.dtype, stepwise=stepwise),
                "one step" if stepwise else "the whole run",
            )
            for stepwise in (True, False)
            for kind, found in self.from_oracle(answer, stepwise=stepwise).items()
        ]

    def rates(self, case: Case) -> Verdict:
        """Judge our schedules by the suite's own formulas."""
        rate = learning_rate(case)
        theirs = [1.0 if r is None else r for r in rates_of(case.config, case.steps)]
        updates = theirs[:: case.config.accumulate]
        ours = [rate(step) if callable(rate) else rate for step in range(len(updates))]
        apart = ulps(np.array(ours), np.array(updates), "float64")
        worst = int(np.argmax(apart))
        outcome = judged(float(apart[worst]), RATE.limit)
        place = Place(worst, "lr", 0, ours[worst], updates[worst])
        return Verdict("rate", "schedules", "", case.scenario, "lr", outcome, float(apart[worst]), RATE.unit,
                       RATE.limit, RATE.reason, place)  # fmt: skip

    # --- against frameworks ---

    def accuracy(self, trace: Trajectory) -> Accuracy:
        """Return how far a framework's trace is from the rule."""
        key = trace.bits()
        if key not in self._accuracies:
            self._accuracies[key] = accuracy_of(trace)
        return self._accuracies[key]

    def explained(self, trace: Trajectory) -> list[Verdict]:
        """Judge a framework's trace: whether the rule, with the habits that are named, explains it."""
        blank = Verdict("explained", "", trace.name, trace.scenario, "", "habit")
        if trace.refusal is not None:
            return [replace(blank, reason=f"it refuses with {trace.refusal}: there is nothing to compare")]
        unknown = NOT_FOLLOWED & set(trace.deviations)
        if unknown:
            return [replace(blank, reason="; ".join(ABOUT[name] for name in sorted(unknown)))]
        return [
            _by_distance(replace(blank, kind=kind), found, RUN[kind], "the whole run, with its habits")
            for kind, found in self.accuracy(trace).followed.items()
        ] + [
            Verdict("published", "", trace.name, trace.scenario, kind, "passed", found.units, TRACE[kind].unit)
            for kind, found in self.accuracy(trace).published.items()
        ]

    def against_trace(self, target: Target, trace: Trajectory) -> list[Verdict]:
        """Judge a target by a framework's trace; one that holds a refusal gives nothing."""
        if trace.refusal is not None:
            return []
        case, left = followed(trace)
        case = self.shortened(target, case)
        answer = self._unanswered("trace", target, trace.name, case)
        if isinstance(answer, Verdict):
            return [answer]
        cut = trace.first(case.steps)
        key = trace.bits(), answer.bits()
        try:
            if key not in self._differences:
                self._differences[key] = differences(answer, cut)
        except ValueError as error:
            return [Verdict("trace", target.name, trace.name, trace.scenario, "", "failed", reason=str(error))]
        left = (
            *left,
            *(deviation for deviation in target.deviations if deviation not in trace.deviations and _flushed(trace)),
        )
        notes = [] if cut is trace else [f"the first {case.steps} of {trace.steps} steps"]
        if deviations_in(trace):
            notes.append(self._both(target, trace))
        return [
            _by_difference(
                Verdict("trace", target.name, trace.name, trace.scenario, kind, "passed", note="; ".join(notes)),
                found,
                TRACE[kind],
                left,
            )
            for kind, found in self._differences[key].items()
        ]

    def _both(self, target: Target, trace: Trajectory) -> str:
        """Tell both distances from the published rule: theirs, by their habits, and ours."""
        theirs = self.accuracy(trace).published
        told = f"habits: {', '.join(deviations_in(trace))}; from the published rule: they {_worst(theirs)}"
        published = self.shortened(target, trace.case.published())
        if unsupported(target, published) or rejection(target, published):
            return told + ", which ours refuses or has no words for"
        answer = self.answer(target, published)
        return told if isinstance(answer, str) else told + f", we {_worst(self.from_oracle(answer, stepwise=False))}"


def cases_of(files: Mapping[str, TraceFile], systems: Sequence[str], scenarios: Sequence[str]) -> list[Case]:
    """Return every different case that was asked of the systems, by the published rule."""
    found: dict[str, Case] = {}
    for system in systems:
        for name, trace in files[system].traces.items():
            if name in scenarios and trace.refusal is None:
                case = trace.case.published()
                found.setdefault(case.key, case)
    return list(found.values())


def _flushed(trace: Trajectory) -> bool:
    """Whether subnormal numbers decide a trace."""
    return trace.scenario.startswith(("magnitudes-float32", "subnormals"))


def _worst(found: Mapping[str, Distance]) -> str:
    state = [found[kind].units for kind in ("square_avg", "acc_delta") if kind in found]
    moved = [found[kind].units for kind in ("x", "average") if kind in found]
    return f"{max(state):.3g} ulp and {max(moved):.3g} motion"


def _by_distance(verdict: Verdict, found: Distance, allowed: Tolerance, note: str) -> Verdict:
    place = Place(found.step, found.tensor, found.element, found.recorded, found.exact)
    return replace(
        verdict, outcome=judged(found.units, allowed.limit), observed=found.units, unit=allowed.unit,
        tolerance=allowed.limit, reason=allowed.reason, place=place, note=note,
    )  # fmt: skip


def _by_difference(verdict: Verdict, found: Difference, allowed: Tolerance, left: Sequence[str]) -> Verdict:
    place = None if found.same_bits else Place(found.step, found.tensor, found.element, found.first, found.second)
    verdict = replace(verdict, observed=found.units, unit=allowed.unit, place=place)
    if left:
        reason = "; ".join(f"{name}: {ABOUT[name]}" for name in left)
        return replace(verdict, outcome="habit", reason=reason)
    return replace(verdict, outcome=judged(found.units, allowed.limit), tolerance=allowed.limit, reason=allowed.reason)
