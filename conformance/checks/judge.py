"""Verdicts on players: against recorded frameworks, and against the published rule.

Where a framework leaves the rule by a habit that is a matter of options, ours is given the options that it acted on,
and must meet its trace. Where the habit is arithmetic of its own, ours must meet the published rule, theirs the rule
with the habit, and the distance between the two is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..data.rates import rates_of
from ..data.tracefile import Trace, TraceFile
from ..reference.accuracy import Accuracy, Distance, accuracy_of, distances
from ..reference.compare import Difference, differences
from ..reference.floats import ulps
from ..reference.oracle import NOT_FOLLOWED
from ..reference.quirks import QUIRKS
from ..reference.tolerances import RATE, RUN, TRACE, Tolerance, against_oracle
from ..targets.players import Player
from ..targets.replay import SCHEDULE, SCHEDULE_ABOUT, Question, bits, first, followed, habits, play
from ..targets.stages import inexpressible, refusal
from .verdict import Place, Verdict, judged

#: So many steps at most of a player that is slow.
BRIEF = 40
ABOUT = {**{quirk.name: quirk.about for quirk in QUIRKS}, SCHEDULE: SCHEDULE_ABOUT}


class Judge:
    """Asks each question once of each player, and keeps the answers; equal bits are judged once.

    Parameters
    ----------
    brief : bool
        Let every player take long questions no further than `BRIEF` steps, not only slow ones.
    """

    def __init__(self, *, brief: bool = False) -> None:
        self.brief = brief
        self._answers: dict[tuple[str, str], Trace | str] = {}
        self._distances: dict[tuple[str, bool], dict[str, Distance]] = {}
        self._differences: dict[tuple[str, str], dict[str, Difference]] = {}
        self._accuracies: dict[str, Accuracy] = {}

    # --- answers ---

    def shortened(self, player: Player, question: Question) -> Question:
        """Return the part of a question that `player` gets."""
        if not (player.slow or self.brief) or question.steps <= BRIEF:
            return question
        return question.first(BRIEF)

    def answer(self, player: Player, question: Question) -> Trace | str:
        """Return what `player` did, or the name and message of the exception that it raised."""
        key = player.name, question.key
        if key not in self._answers:
            try:
                self._answers[key] = play(player, question)
            except Exception as error:
                # Whatever goes wrong is a finding about the player, not the end of the check.
                self._answers[key] = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return self._answers[key]

    def _unanswered(self, what: str, player: Player, system: str, question: Question) -> Verdict | Trace:
        """Return the answer, or the verdict that stands in its place."""
        blank = Verdict(what, player.name, system, question.scenario, "", "inexpressible")
        if reason := inexpressible(player, question):
            return replace(blank, reason=reason)
        answer, refused = self.answer(player, question), refusal(player, question)
        if refused is not None:
            if isinstance(answer, str) and answer.startswith("ValueError"):
                return replace(blank, reason=f"refused by design: {refused}")
            what_came = "an answer" if isinstance(answer, Trace) else answer
            return replace(blank, outcome="failed", reason=f"expected a ValueError ({refused}), got {what_came}")
        return answer if isinstance(answer, Trace) else replace(blank, outcome="failed", reason=answer)

    # --- against the rule ---

    def from_oracle(self, answer: Trace, *, stepwise: bool) -> Mapping[str, Distance]:
        """Return how far an answer of ours is from the published rule."""
        key = bits(answer), stepwise
        if key not in self._distances:
            # In 16 bits ours computes in float32: its hyperparameters are not rounded to the parameters' dtype.
            as_held = answer.dtype not in ("float16", "bfloat16")
            self._distances[key] = distances(answer, stepwise=stepwise, as_held=as_held)
        return self._distances[key]

    def against_oracle(self, player: Player, question: Question) -> list[Verdict]:
        """Judge a player by the published rule, one step at a time and over the whole run."""
        question = self.shortened(player, question)
        answer = self._unanswered("oracle", player, "", question)
        if isinstance(answer, Verdict):
            return [answer]
        return [
            _by_distance(
                Verdict("oracle", player.name, "", question.scenario, kind, "passed"),
                found,
                against_oracle(kind, question.dtype, stepwise=stepwise),
                "one step" if stepwise else "the whole run",
            )
            for stepwise in (True, False)
            for kind, found in self.from_oracle(answer, stepwise=stepwise).items()
        ]

    def rates(self, question: Question) -> Verdict:
        """Judge our schedules by the suite's own formulas."""
        rate = question.learning_rate()
        theirs = [1.0 if r is None else r for r in rates_of(question.config, question.steps)]
        updates = theirs[:: question.config.accumulate]
        ours = [rate(step) if callable(rate) else rate for step in range(len(updates))]
        apart = ulps(np.array(ours), np.array(updates), "float64")
        worst = int(np.argmax(apart))
        outcome = judged(float(apart[worst]), RATE.limit)
        place = Place(worst, "lr", 0, ours[worst], updates[worst])
        return Verdict("rate", "schedules", "", question.scenario, "lr", outcome, float(apart[worst]), RATE.unit,
                       RATE.limit, RATE.reason, place)  # fmt: skip

    # --- against frameworks ---

    def accuracy(self, trace: Trace) -> Accuracy:
        """Return how far a framework's trace is from the rule."""
        key = bits(trace)
        if key not in self._accuracies:
            self._accuracies[key] = accuracy_of(trace)
        return self._accuracies[key]

    def explained(self, trace: Trace) -> list[Verdict]:
        """Judge a framework's trace: whether the rule, with the habits that are named, explains it."""
        blank = Verdict("explained", "", trace.system, trace.scenario, "", "habit")
        if trace.refusal is not None:
            return [replace(blank, reason=f"it refuses with {trace.refusal}: there is nothing to compare")]
        unknown = NOT_FOLLOWED & set(trace.quirks)
        if unknown:
            return [replace(blank, reason="; ".join(ABOUT[name] for name in sorted(unknown)))]
        return [
            _by_distance(replace(blank, kind=kind), found, RUN[kind], "the whole run, with its habits")
            for kind, found in self.accuracy(trace).followed.items()
        ] + [
            Verdict("published", "", trace.system, trace.scenario, kind, "passed", found.units, TRACE[kind].unit)
            for kind, found in self.accuracy(trace).published.items()
        ]

    def against_trace(self, player: Player, trace: Trace) -> list[Verdict]:
        """Judge a player by a framework's trace; one that holds a refusal gives nothing."""
        if trace.refusal is not None:
            return []
        question, left = followed(trace)
        question = self.shortened(player, question)
        answer = self._unanswered("trace", player, trace.system, question)
        if isinstance(answer, Verdict):
            return [answer]
        cut = first(trace, question.steps)
        key = bits(trace), bits(answer)
        try:
            if key not in self._differences:
                self._differences[key] = differences(answer, cut)
        except ValueError as error:
            return [Verdict("trace", player.name, trace.system, trace.scenario, "", "failed", reason=str(error))]
        left = (*left, *(quirk for quirk in player.quirks if quirk not in trace.quirks and _flushed(trace)))
        notes = [] if cut is trace else [f"the first {question.steps} of {trace.steps} steps"]
        if habits(trace):
            notes.append(self._both(player, trace))
        return [
            _by_difference(
                Verdict("trace", player.name, trace.system, trace.scenario, kind, "passed", note="; ".join(notes)),
                found,
                TRACE[kind],
                left,
            )
            for kind, found in self._differences[key].items()
        ]

    def _both(self, player: Player, trace: Trace) -> str:
        """Tell both distances from the published rule: theirs, by their habits, and ours."""
        theirs = self.accuracy(trace).published
        told = f"habits: {', '.join(habits(trace))}; from the published rule: they {_worst(theirs)}"
        published = self.shortened(player, Question.of_trace(trace))
        if inexpressible(player, published) or refusal(player, published):
            return told + ", which ours refuses or has no words for"
        answer = self.answer(player, published)
        return told if isinstance(answer, str) else told + f", we {_worst(self.from_oracle(answer, stepwise=False))}"


def questions_of(files: Mapping[str, TraceFile], systems: Sequence[str], scenarios: Sequence[str]) -> list[Question]:
    """Return every different question that was asked of the systems, by the published rule."""
    found: dict[str, Question] = {}
    for system in systems:
        for name, trace in files[system].traces.items():
            if name in scenarios and trace.refusal is None:
                question = Question.of_trace(trace)
                found.setdefault(question.key, question)
    return list(found.values())


def _flushed(trace: Trace) -> bool:
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
