"""What a check has to say: one record for each thing judged, whatever judged it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

#: Outcomes, from best to worst. ``habit`` is a framework's own way, by name: shown with its numbers, and judged by the
#: oracle instead. ``inexpressible`` has no words on our side, ``expected failure`` is listed with its reason.
OUTCOMES = ("passed", "habit", "inexpressible", "expected failure", "failed")


@dataclass(frozen=True)
class Place:
    """Where a number was seen: steps taken, name of the tensor, flat element, and the two values."""

    step: int
    tensor: str
    element: int
    ours: float
    theirs: float

    def __str__(self) -> str:
        return f"{self.tensor}[{self.element}] after step {self.step}: {self.ours!r} against {self.theirs!r}"


@dataclass(frozen=True)
class Verdict:
    """One thing judged.

    Attributes
    ----------
    what : str
        ``"trace"`` (against a recorded framework), ``"oracle"`` (against the published rule), ``"explained"`` (a
        framework's trace against the rule with its habits), ``"published"`` (the same without: told, not judged),
        ``"rate"`` (learning rates), ``"bits"`` (across libraries), ``"law"``, ``"mutant"``.
    backend, system, scenario : str
        Ours, theirs, and in what; empty where there is none.
    kind : str
        The state that was looked at, such as ``"square_avg"``, or the name of the law.
    outcome : str
        One of `OUTCOMES`.
    observed : float or None
        The worst number seen, in `unit`: infinite where one is NaN or infinite and the other is not.
    unit : str
        ``"ulp"``, ``"motion"`` (see `accuracy`), ``"half ulp"`` or ``"values that differ"``.
    tolerance : float or None
        What it must not exceed.
    reason : str
        Why the tolerance is what it is, which habit it is, or why there is nothing to judge.
    place : Place or None
        Where the worst was seen.
    note : str
        What else there is to know.
    """

    what: str
    backend: str
    system: str
    scenario: str
    kind: str
    outcome: str
    observed: float | None = None
    unit: str = ""
    tolerance: float | None = None
    reason: str = ""
    place: Place | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if self.outcome not in OUTCOMES:
            raise ValueError(f"outcome: expected one of {', '.join(OUTCOMES)}, got {self.outcome!r}")

    @property
    def failed(self) -> bool:
        """Whether this makes the check fail."""
        return self.outcome == "failed"

    def as_json(self) -> dict[str, Any]:
        """Return what is not empty, as plain data; numbers that JSON lacks become text."""
        return {key: _plain(value) for key, value in asdict(self).items() if value not in (None, "")}

    def __str__(self) -> str:
        who = " · ".join(part for part in (self.backend, self.system, self.scenario, self.kind) if part)
        text = f"{who}: {self.outcome}"
        if self.observed is not None:
            text += f", {self.observed:.4g} {self.unit}"
            text += f" ({self.tolerance:g} allowed)" if self.tolerance is not None else ""
        text += f" at {self.place}" if self.place is not None else ""
        return text + "".join(f"; {more}" for more in (self.reason, self.note) if more)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def judged(observed: float, tolerance: float) -> str:
    """Return the outcome of a number; NaN is within nothing."""
    return "passed" if observed <= tolerance else "failed"


def count(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """Return how many verdicts there are of each outcome."""
    totals = dict.fromkeys(OUTCOMES, 0)
    for verdict in verdicts:
        totals[verdict.outcome] += 1
    return totals
