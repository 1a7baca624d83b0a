"""What was measured, and every figure that is derived from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Any

__all__ = ["FLOOR", "TORCH", "Point", "Result", "Row"]

#: Keys of the rows that the others are compared with.
FLOOR, TORCH = "floor", "torch-default"


@dataclass
class Row:
    """One contender at one workload.

    Attributes
    ----------
    key, label : str
    samples : list of float
        Seconds a step, one for each round.
    floor : list of float
        The floor's samples in the same rounds.
    ready : float or None
        Seconds from parameters and gradients to the end of the first step, in a fresh process.
    absent : str or None
        Why there are no samples.
    extra : dict
        What else was measured: ``resident`` and ``traced`` (bytes), ``launches``, ``allocations``.
    """

    key: str
    label: str
    samples: list[float] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)
    ready: float | None = None
    absent: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def time(self) -> float | None:
        """Median of the samples, seconds a step."""
        return median(self.samples) if self.samples else None

    @property
    def ratio(self) -> float | None:
        """How many times the floor it takes."""
        return median(self.samples) / median(self.floor) if self.samples and self.floor else None


@dataclass
class Point:
    """All rows at one workload.

    Attributes
    ----------
    name : str
    elements, tensors, moved : int
        Parameters, tensors, and bytes that the update must move.
    dtype : str
    rows : list of Row
    """

    name: str
    elements: int
    tensors: int
    moved: int
    dtype: str
    rows: list[Row]

    def row(self, key: str) -> Row | None:
        """Find the row of this key."""
        return next((row for row in self.rows if row.key == key), None)

    def speedup(self, row: Row) -> float | None:
        """Say how many times faster than torch.optim's default it is, each by its own floor."""
        torch = self.row(TORCH)
        if torch is None or row.ratio is None or torch.ratio is None:
            return None
        return torch.ratio / row.ratio

    def bandwidth(self, row: Row) -> float | None:
        """Divide the update's bytes by the time: bytes a second."""
        return self.moved / row.time if row.time else None


@dataclass
class Result:
    """What a case gives.

    Attributes
    ----------
    case, title : str
    points : list of Point
    notes : list of str
    kind : str
        ``"race"`` for times; ``"memory"`` or ``"import"`` for those figures.
    """

    case: str
    title: str
    points: list[Point]
    notes: list[str] = field(default_factory=list)
    kind: str = "race"
