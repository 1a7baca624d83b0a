"""What a check has to say: one record for each thing judged, whatever judged it; and which failures are expected."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..reference.compare import Distance
from ..reference.tolerances import Tolerance

#: Outcomes, from best to worst. ``deviation``: the framework itself leaves the published rule, by a way with a name;
#: its numbers are shown, and ours are judged by the rule instead. ``unsupported``: the target cannot express it.
#: ``expected failure``: it is in the file of expected failures.
OUTCOMES = ("passed", "deviation", "unsupported", "expected failure", "failed")
#: Over what a distance from the published rule was measured.
ONE_STEP, WHOLE_RUN = "one step", "the whole run"
#: What is told of where a number was seen.
_PLACE = ("step", "tensor", "element", "ours", "theirs")


@dataclass(frozen=True)
class Verdict:
    """One thing judged.

    Attributes
    ----------
    what : str
        ``"trace"`` (against a recorded framework), ``"oracle"`` (against the published rule), ``"explained"`` (a
        framework's trace against the rule with its deviations), ``"published"`` (the same without: shown, not
        judged), ``"rate"`` (learning rates), ``"bits"`` (across libraries), ``"law"``, ``"mutant"``.
    target, system, scenario : str
        Ours, theirs, and in what; empty where there is none.
    kind : str
        The state that was looked at, such as ``"square_avg"``, or the name of the law.
    outcome : str
        One of `OUTCOMES`.
    observed : float or None
        The worst number seen, in `unit`: infinite where one is NaN or infinite and the other is not.
    unit : str
        ``"ulp"``, ``"motion"`` (see `accuracy`) or ``"values that differ"``.
    tolerance : float or None
        What it must not exceed.
    reason : str
        Why the tolerance is what it is, which deviation it is, or why there is nothing to judge.
    place : Distance or None
        Where the worst was seen.
    over : str
        `ONE_STEP` or `WHOLE_RUN`, where distances are from the published rule.
    note : str
        What else there is to know.
    """

    what: str
    target: str
    system: str
    scenario: str
    kind: str
    outcome: str
    observed: float | None = None
    unit: str = ""
    tolerance: float | None = None
    reason: str = ""
    place: Distance | None = None
    over: str = ""
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
        data = {**asdict(self), "place": None}
        if self.place is not None:
            data["place"] = {name: _plain(getattr(self.place, name)) for name in _PLACE}
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
    """Read a file of expected failures, one id a line, with the reason after ``#``: id to reason.

    Raises
    ------
    OSError
        If it cannot be read.
    ValueError
        If an id is listed twice.
    """
    listed: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        key, _, reason = (part.strip() for part in line.partition("#"))
        if key in listed:
            raise ValueError(f"{path}:{number}: {key!r} is listed twice")
        if key:
            listed[key] = reason
    return listed


def expect(verdicts: Iterable[Verdict], xfails: Mapping[str, str], *, complete: bool = True) -> list[Verdict]:
    """Return the verdicts with expected failures marked, and what was expected wrongly as failures.

    Parameters
    ----------
    verdicts : iterable of Verdict
        Of one target.
    xfails : mapping
        From `read_xfails`.
    complete : bool
        Whether the verdicts are all there are: then an id that is not among them is a mistake.
    """
    given = list(verdicts)
    failed = {v.id for v in given if v.failed}
    found = [
        replace(v, outcome="expected failure", reason=f"expected: {xfails[v.id] or 'no reason given'}")
        if v.failed and v.id in xfails
        else v
        for v in given
    ]
    known = {v.id for v in given}
    for key in xfails:
        if key not in failed and (key in known or complete):
            wrong = "it passes: remove it from the list" if key in known else "there is no such check"
            target = given[0].target if given else ""
            found.append(Verdict("xfail", target, "", "", key, "failed", reason=f"expected to fail, but {wrong}"))
    return found
