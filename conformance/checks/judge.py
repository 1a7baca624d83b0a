"""Verdicts on targets: against the published rule, against recorded frameworks, against NumPy's bits.

Where a framework's deviation is a matter of options, ours is given the options that it acted on, and must meet its
trace. Where the deviation is arithmetic of its own, ours must meet the published rule, theirs the rule with the
deviation, and the distance between the two is told.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from ..data.case import Case
from ..data.deviations import DEVIATIONS, NOT_FOLLOWED, deviations_in, followed
from ..data.floats import ulps
from ..data.rates import rates_of
from ..data.trajectory import Trajectory
from ..reference.accuracy import Accuracy, accuracy_of, distances
from ..reference.compare import Distance, differences
from ..reference.tolerances import BITS, COMPILED, RATE, RUN, TRACE, Tolerance, against_oracle
from ..targets.arguments import learning_rate
from ..targets.build import rejection, unsupported
from ..targets.run import run_target
from ..targets.target import Target, find
from .same_bits import REFERENCE, differing, values
from .verdict import ONE_STEP, WHOLE_RUN, Verdict

T = TypeVar("T")
#: So many steps at most of a target that is slow.
BRIEF = 40


class Judge:
    """Asks each case once of each target, and keeps the answers; equal bits are judged once.

    ``brief`` lets every target take long cases no further than `BRIEF` steps, not only slow ones.
    """

    def __init__(self, *, brief: bool = False) -> None:
        self.brief = brief
        self._kept: dict[Hashable, Any] = {}

    def _once(self, key: Hashable, make: Callable[[], T]) -> T:
        if key not in self._kept:
            self._kept[key] = make()
        kept: T = self._kept[key]
        return kept

    # --- answers ---

    def shortened(self, target: Target, case: Case) -> Case:
        """Return the part of a case that `target` gets."""
        return case.first(BRIEF) if (target.slow or self.brief) and case.steps > BRIEF else case

    def answer(self, target: Target, case: Case) -> Trajectory | str:
        """Return what `target` did, or the name and message of the exception that it raised."""

        def run() -> Trajectory | str:
            try:
                return run_target(target, case)
            except Exception as error:
                # Whatever goes wrong is a finding about the target, not the end of the check.
                return f"{type(error).__name__}: {' '.join(str(error).split())}"

        return self._once(("answer", target.name, case.key), run)

    def _answer_or_verdict(self, blank: Verdict, target: Target, case: Case) -> Trajectory | Verdict:
        """Return the answer, or the verdict that stands in its place."""
        if reason := unsupported(target, case):
            return replace(blank, outcome="unsupported", reason=reason)
        answer, rejected = self.answer(target, case), rejection(target, case)
        if rejected is None:
            return answer if isinstance(answer, Trajectory) else replace(blank, outcome="failed", reason=answer)
        if isinstance(answer, str) and answer.startswith("ValueError"):
            return replace(blank, outcome="unsupported", reason=f"rejected by design: {rejected}")
        came = "an answer" if isinstance(answer, Trajectory) else answer
        return replace(blank, outcome="failed", reason=f"expected a ValueError ({rejected}), got {came}")

    # --- against the rule ---

    def accuracy(self, run: Trajectory, *, ours: bool = False) -> Accuracy:
        """Return how far a whole run, a framework's or ours, is from the rule."""
        return self._once(("accuracy", run.bits(), ours), lambda: accuracy_of(run, as_held=_as_held(run, ours)))

    def one_step(self, answer: Trajectory) -> Mapping[str, Distance]:
        """Return how far an answer of ours is from the rule, one step at a time."""
        key = ("distances", answer.bits())
        return self._once(key, lambda: distances(answer, stepwise=True, as_held=_as_held(answer, ours=True)))

    def against_oracle(self, target: Target, case: Case) -> list[Verdict]:
        """Judge a target by the published rule, one step at a time and over the whole run."""
        case = self.shortened(target, case)
        blank = Verdict("oracle", target.name, "", case.scenario, "", "passed")
        answer = self._answer_or_verdict(blank, target, case)
        if isinstance(answer, Verdict):
            return [answer]
        accuracy = self.accuracy(answer, ours=True)
        return [
            replace(blank, kind=kind, over=ONE_STEP).judged(found, against_oracle(kind, case.dtype, stepwise=True))
            for kind, found in self.one_step(answer).items()
        ] + _whole_run(blank, accuracy, lambda kind: against_oracle(kind, case.dtype, stepwise=False))

    def rates(self, case: Case) -> Verdict:
        """Judge our schedules by the suite's own formulas."""
        rate = learning_rate(case)
        updates = [1.0 if r is None else r for r in rates_of(case.config, case.steps)][:: case.config.accumulate]
        ours = [rate(step) if callable(rate) else rate for step in range(len(updates))]
        apart = ulps(np.array(ours), np.array(updates), "float64")
        worst = int(np.argmax(apart))
        found = Distance("lr", float(apart[worst]), worst, "lr", 0, ours[worst], updates[worst])
        return Verdict("rate", "schedules", "", case.scenario, "lr", "passed").judged(found, RATE)

    # --- against frameworks ---

    def explained(self, trace: Trajectory) -> list[Verdict]:
        """Judge a framework's trace: whether the rule, with the deviations that are named, explains it."""
        blank = Verdict("explained", "", trace.name, trace.scenario, "", "deviation")
        if trace.refusal is not None:
            return [replace(blank, reason=f"it raises {trace.refusal}: there is nothing to compare")]
        if unknown := NOT_FOLLOWED & set(trace.deviations):
            return [replace(blank, reason="; ".join(DEVIATIONS[name].about for name in sorted(unknown)))]
        return _whole_run(blank, self.accuracy(trace), RUN.__getitem__)

    def against_trace(self, target: Target, trace: Trajectory) -> list[Verdict]:
        """Judge a target by a framework's trace; one in which the framework raised gives nothing."""
        if trace.refusal is not None:
            return []
        case, left = followed(trace)
        case = self.shortened(target, case)
        blank = Verdict("trace", target.name, trace.name, trace.scenario, "", "passed")
        answer = self._answer_or_verdict(blank, target, case)
        if isinstance(answer, Verdict):
            return [answer]
        cut = trace.first(case.steps)
        try:
            found = self._once(("differences", trace.bits(), answer.bits()), lambda: differences(answer, cut))
        except ValueError as error:
            return [replace(blank, outcome="failed", reason=str(error))]
        left = (*left, *(name for name in target.deviations if name not in trace.deviations and _subnormal(trace)))
        notes = [] if cut is trace else [f"the first {case.steps} of {trace.steps} steps"]
        if deviations_in(trace):
            notes.append(self._both(target, trace))
        reason = "; ".join(f"{name}: {DEVIATIONS[name].about}" for name in left)
        blank = replace(blank, note="; ".join(notes))
        verdicts = [replace(blank, kind=kind).judged(far, TRACE[kind]) for kind, far in found.items()]
        return [replace(v, outcome="deviation", tolerance=None, reason=reason) if left else v for v in verdicts]

    def _both(self, target: Target, trace: Trajectory) -> str:
        """Tell both distances from the published rule: theirs, by their deviations, and ours."""
        theirs = self.accuracy(trace).published
        told = f"deviations: {', '.join(deviations_in(trace))}; from the published rule: they {_worst(theirs)}"
        published = self.shortened(target, trace.case.published())
        if unsupported(target, published) or rejection(target, published):
            return told + "; ours rejects or does not support it"
        answer = self.answer(target, published)
        return told if isinstance(answer, str) else told + f", we {_worst(self.accuracy(answer, ours=True).published)}"

    # --- against NumPy's bits ---

    def against_bits(self, target: Target, case: Case) -> list[Verdict]:
        """Compare a target with NumPy operation by operation: to the bit, or in units where a compiler contracts."""
        blank = Verdict("bits", target.name, "", case.scenario, "all states", "passed")
        ours = self._answer_or_verdict(blank, target, case)
        if isinstance(ours, Verdict):
            return [ours]
        theirs = self.answer(find(REFERENCE), case)
        if isinstance(theirs, str):
            return [replace(blank, outcome="failed", reason=theirs)]
        note = f"{case.steps} steps, {values(ours)} values"
        if target.bits:
            first, worst = differing(ours, theirs)
            note += f"; {worst:.3g} ulp apart at worst" if worst else ""
            return [replace(blank, note=note).judged(first, BITS)]
        return [
            replace(blank, kind=kind, note=note).judged(found, COMPILED[kind])
            for kind, found in differences(ours, theirs).items()
        ]


def cases_of(traces: Iterable[Trajectory]) -> list[Case]:
    """Return every different case in which a framework answered, by the published rule."""
    found: dict[str, Case] = {}
    for case in (trace.case.published() for trace in traces if trace.refusal is None):
        found.setdefault(case.key, case)
    return list(found.values())


def _as_held(run: Trajectory, ours: bool) -> bool:
    """Whether hyperparameters are rounded to the parameters' dtype. In 16 bits ours computes in float32."""
    return not (ours and run.dtype in ("float16", "bfloat16"))


def _whole_run(blank: Verdict, accuracy: Accuracy, allowed: Callable[[str], Tolerance]) -> list[Verdict]:
    return [
        replace(blank, kind=kind, over=WHOLE_RUN, published=accuracy.published[kind].units).judged(found, allowed(kind))
        for kind, found in accuracy.followed.items()
    ]


def _subnormal(trace: Trajectory) -> bool:
    """Whether subnormal numbers decide a trace."""
    return trace.scenario.startswith(("magnitudes-float32", "subnormals"))


def _worst(found: Mapping[str, Distance]) -> str:
    state = [found[kind].units for kind in ("square_avg", "acc_delta") if kind in found]
    moved = [found[kind].units for kind in ("x", "average") if kind in found]
    return f"{max(state):.3g} ulp and {max(moved):.3g} motion"
