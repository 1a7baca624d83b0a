"""The same bits everywhere: long runs on every library and engine, against NumPy operation by operation.

Gradients go over many decades, so that squares underflow and accumulators span all exponents, and options are on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..data.case import Case
from ..data.floats import parts, ulps
from ..data.inputs import case_of
from ..data.specification import Config, Draw, Scenario, Schedule
from ..data.trajectory import STATES, Trajectory
from ..reference.compare import differences
from ..reference.tolerances import BITS, COMPILED
from ..targets.build import unsupported
from ..targets.target import Target, all_targets
from .judge import Judge
from .verdict import Place, Verdict, judged

#: Whose bits are everybody's.
REFERENCE = "numpy-eager"
#: Sizes that fill vector registers and leave a rest, 0-d and empty ones.
SHAPES = ((301,), (3, 7), (), (0,), (1,))
STEPS = 300
#: Of libraries that take milliseconds for a step.
STEPS_SLOW = 15

_COSINE = Schedule("cosine", {"initial": 1.0, "decay_steps": STEPS, "alpha": 0.1})
OPTIONS: Mapping[str, Config] = {
    "plain": Config(lr=0.7, rho=0.9),
    "coupled decay, clip by value": Config(lr=0.7, weight_decay=0.013, decay_kind="coupled", clipvalue=3.7),
    "decoupled decay, schedule": Config(rho=0.95, weight_decay=0.013, decay_kind="decoupled", schedule=_COSINE),
    "maximize, clip each norm": Config(lr=0.7, maximize=True, clipnorm=1.3),
    "clip value, norm, global norm": Config(lr=0.7, clipvalue=1e6, clipnorm=900.0, global_clipnorm=700.0),
    "accumulate 3, average": Config(lr=0.7, accumulate=3, ema_momentum=0.97),
}
#: Decades of gradients, so wide that squares underflow, but do not overflow; and so that all numbers are normal.
WIDE = {"float32": (-44, 18), "float64": (-320, 135)}
NORMAL = (-4, 4)


def scenario(dtype: str, options: str, *, normal: bool) -> Scenario:
    """Return what is run: in one of the two data types, with one of `OPTIONS`."""
    low, high = NORMAL if normal else WIDE[dtype]
    return Scenario(f"{dtype}, {options}", "the same bits everywhere", (), OPTIONS[options], dtype=dtype,
                    shapes=SHAPES, steps=STEPS, gradients=Draw("decades", low=low, high=high))  # fmt: skip


class Across:
    """Runs and compares; each case is made and answered by the reference once.

    Parameters
    ----------
    judge : Judge
        Who asks.
    brief : bool
        Take every run no further than `STEPS_SLOW` steps.
    """

    def __init__(self, judge: Judge, *, brief: bool = False) -> None:
        self.judge, self.brief = judge, brief
        self._cases: dict[tuple[str, str, bool], Case] = {}

    def case(self, target: Target, dtype: str, options: str) -> Case:
        """Return what `target` is asked: less where it is slow, and no subnormal numbers where it has none."""
        normal = "flushes-subnormals" in target.deviations
        if (dtype, options, normal) not in self._cases:
            made = scenario(dtype, options, normal=normal)
            self._cases[dtype, options, normal] = case_of(made)
        whole = self._cases[dtype, options, normal]
        return whole.first(STEPS_SLOW) if target.slow or self.brief else whole

    def verdicts(self, target: Target, dtype: str, options: str) -> list[Verdict]:
        """Compare one run of `target` with the reference's: to the bit, or in units where a compiler contracts."""
        case = self.case(target, dtype, options)
        blank = Verdict("bits", target.name, "", case.scenario, "all states", "inexpressible")
        if reason := unsupported(target, case):
            return [replace(blank, reason=reason)]
        ours, theirs = self.judge.answer(target, case), self.judge.answer(all_targets()[REFERENCE], case)
        for answer in (ours, theirs):
            if isinstance(answer, str):
                return [replace(blank, outcome="failed", reason=answer)]
        assert isinstance(ours, Trajectory)
        assert isinstance(theirs, Trajectory)
        note = f"{case.steps} steps, {values(ours)} values"
        if target.bits:
            return [_to_the_bit(replace(blank, note=note), ours, theirs)]
        return [
            replace(
                blank, kind=kind, outcome=judged(found.units, COMPILED[kind].limit), observed=found.units,
                unit=COMPILED[kind].unit, tolerance=COMPILED[kind].limit, reason=COMPILED[kind].reason, note=note,
                place=Place(found.step, found.tensor, found.element, found.first, found.second),
            )
            for kind, found in differences(ours, theirs).items()
        ]  # fmt: skip


def values(trace: Trajectory) -> int:
    """Return how many numbers a run computed."""
    return sum(series[1:].size for kind in STATES if trace.has(kind) for series in trace.states[kind])


def _to_the_bit(verdict: Verdict, ours: Trajectory, theirs: Trajectory) -> Verdict:
    """Count the values that differ, and say where the first of them is."""
    count, place, unit = 0, None, 0.0
    for kind in STATES:
        if not ours.has(kind):
            continue
        for name, a, b in zip(ours.names, ours.states[kind], theirs.states[kind], strict=True):
            apart = parts(a).view(f"u{a.dtype.itemsize}") != parts(b).view(f"u{b.dtype.itemsize}")
            if not apart.any():
                continue
            count += int(apart.sum())
            unit = max(unit, float(ulps(a, b, ours.dtype).max()))
            step, *where = (int(i) for i in np.argwhere(apart)[0])
            if place is None or step < place.step:
                element = int(np.ravel_multi_index(where, apart.shape[1:])) if where else 0
                spot = (step, *where)
                place = Place(step, f"{kind}/{name}", element, float(a[spot]), float(b[spot]))
    note = f"{verdict.note}; {unit:.3g} ulp apart at worst" if count else verdict.note
    return replace(
        verdict, outcome=judged(float(count), BITS.limit), observed=float(count), unit=BITS.unit,
        tolerance=BITS.limit, reason=BITS.reason, place=place, note=note,
    )  # fmt: skip
