"""What a check has to say: one record for each thing judged, whatever judged it; and which failures are expected."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..reference.compare import Distance
from ..reference.tolerances import Tolerance

#: Outcomes, from best to worst, and what is said of them. ``deviation``: the framework itself leaves the published
#: rule, by a way with a name; its numbers are shown, and ours are judged by the rule instead. ``unsupported``: the
#: target cannot express it. ``expected failure``: it is in the file of expected failures.
OUTCOMES: Mapping[str, str] = {
    "passed": "within tolerance",
    "deviation": "where a framework deviates",
    "unsupported": "not supported",
    "expected failure": "failed as expected",
    "failed": "failed",
}
#: Over what a distance from the published rule was measured.
ONE_STEP, WHOLE_RUN = "one step", "the whole run"
#: What is told of where a number was seen.
_PLACE = ("step", "tensor", "element", "ours", "theirs")


@dataclass(frozen=True)
class Verdict:
    """One thing judged."""

    #: ``"trace"`` (against a recorded framework), ``"oracle"`` (against the published rule), ``"explained"`` (a
    #: framework's trace against the rule with its deviations), ``"rate"`` (learning rates), ``"bits"`` (across
    #: libraries), ``"law"``, ``"mutant"``.
    what: str
    #: Ours, theirs, and in what; empty where there is none.
    target: str
    system: str
    scenario: str
    #: The state that was looked at, such as ``"square_avg"``, or the name of the law.
    kind: str
    #: One of `OUTCOMES`.
    outcome: str
    #: The worst number seen: infinite where one is NaN or infinite and the other is not.
    observed: float | None = None
    #: Over a whole run, for the tables: the same from the rule with lr, rho and eps as they were asked for, in double
    #: precision, whoever rounds them and to what. One yardstick for ours and theirs.
    published: float | None = None
    #: ``"ulp"``, ``"motion"`` (see `accuracy`) or ``"values that differ"``.
    unit: str = ""
    #: What the number must not exceed; and why it is that, which deviation it is, or why there is nothing to judge.
    tolerance: float | None = None
    reason: str = ""
    #: Where the worst was seen.
    place: Distance | None = None
    #: `ONE_STEP` or `WHOLE_RUN`, where distances are from the published rule.
    over: str = ""
    #: What else there is to know.
    note: str = ""

    def __post_init__(self) -> None:
        if self.outcome not in OUTCOMES:
            raise ValueError(f"outcome: expected one of {', '.join(OUTCOMES)}, got {self.outcome!r}")

    @property
    def failed(self) -> bool:
        """Whether this makes the check fail."""
        return self.outcome == "failed"

    @property
    def id(self) -> str:
        """The id of what was judged, whichever the target: ``trace/torch-forloop/paper/x``."""
        over = self.over if self.what == "oracle" else ""
        return "/".join(part for part in (self.what, self.system, self.scenario, self.kind, over) if part)

    @property
    def where(self) -> str:
        """Target, system and scenario."""
        return " · ".join(part for part in (self.target, self.system, self.scenario) if part)

    def judged(self, found: Distance, allowed: Tolerance) -> Verdict:
        """Return the verdict on a distance: whether it is within what is allowed. NaN is not."""
        return replace(
            self, outcome="passed" if found.units <= allowed.limit else "failed", observed=found.units,
            unit=allowed.unit, tolerance=allowed.limit, reason=allowed.reason, place=None if found.same_bits else found,
        )  # fmt: skip

    def as_json(self) -> dict[str, Any]:
        """Return what is not empty, as plain data; numbers that JSON lacks become text."""
        data = asdict(self)
        if self.place is not None:
            data["place"] = {name: _plain(data["place"][name]) for name in _PLACE}
        return {key: _plain(value) for key, value in data.items() if value not in (None, "")}

    def __str__(self) -> str:
        text = f"{' · '.join(part for part in (self.where, self.kind) if part)}: {self.outcome}"
        if self.observed is not None:
            text += f", {self.observed:.4g} {self.unit}"
            text += f" ({self.tolerance:g} allowed)" if self.tolerance is not None else ""
        if (p := self.place) is not None:
            text += f" at {p.tensor}[{p.element}] after step {p.step}: {p.ours!r} against {p.theirs!r}"
        return text + "".join(f"; {more}" for more in (self.reason, self.over, self.note) if more)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def count(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """Return how many verdicts there are of each outcome."""
    totals = dict.fromkeys(OUTCOMES, 0)
    for verdict in verdicts:
        totals[verdict.outcome] += 1
    return totals


# --- expected failures ---


def read_xfails(path: Path) -> dict[str, str]:
    """Read a file of expected failures, one id a line, with the reason after ``#``: id to reason."""
    listed: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        key, _, reason = (part.strip() for part in line.partition("#"))
        if key in listed:
            raise ValueError(f"{path}:{number}: {key!r} is listed twice")
        if key:
            listed[key] = reason
    return listed


def expect(verdicts: Iterable[Verdict], xfails: Mapping[str, str], *, complete: bool = True) -> list[Verdict]:
    """Return the verdicts on a target with expected failures marked, and what was expected wrongly as failures.

    ``complete``: the verdicts are all there are, so that an id in `xfails` that is not among them is a mistake.
    """
    found = list(verdicts)
    target = found[0].target if found else ""
    outcomes: dict[str, bool] = {}
    for v in found:
        outcomes[v.id] = v.failed or outcomes.get(v.id, False)
    for i, v in enumerate(found):
        if v.failed and v.id in xfails:
            found[i] = replace(v, outcome="expected failure", reason=f"expected: {xfails[v.id] or 'no reason given'}")
    for key in xfails:
        if outcomes.get(key, not complete):
            continue
        wrong = "it passes: remove it from the list" if key in outcomes else "there is no such check"
        found.append(Verdict("xfail", target, "", "", key, "failed", reason=f"expected to fail, but {wrong}"))
    return found
