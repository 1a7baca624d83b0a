"""What was measured, and every figure that is derived from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Any

__all__ = ["FLOOR", "TORCH", "Point", "Result", "Row"]

#: Keys of the contenders that the others are compared with.
FLOOR, TORCH = "floor", "torch-default"
#: Ratios up to this one count as the floor: medians of one and the same loop differ by as much on a busy machine.
AT_FLOOR = 1.1


@dataclass
class Row:
    """One contender on one workload."""

    key: str
    label: str
    samples: list[float] = field(default_factory=list)  # seconds a step, one for each round
    floor: list[float] = field(default_factory=list)  # its floor's samples in the same rounds
    ready: float | None = None  # seconds until the first step was done, in a fresh process
    absent: str | None = None  # why there are no samples
    extra: dict[str, Any] = field(default_factory=dict)  # resident and traced (bytes), launches, allocations
    plain: list[float] = field(default_factory=list)  # the first point's floor's samples in the same rounds

    @property
    def time(self) -> float | None:
        """Median of the samples, seconds a step."""
        return median(self.samples) if self.samples else None

    @property
    def ratio(self) -> float | None:
        """How many times the floor it takes."""
        return median(self.samples) / median(self.floor) if self.samples and self.floor else None

    @property
    def at_floor(self) -> bool:
        """Whether its time is the floor's, within what a shared machine lets one tell apart."""
        return self.ratio is not None and self.ratio <= AT_FLOOR


@dataclass
class Point:
    """All contenders on one workload."""

    name: str
    rows: list[Row]
    elements: int = 0
    tensors: int = 0
    moved: int = 0  # bytes that the update must move
    dtype: str = ""
    groups: int = 1

    def row(self, key: str) -> Row | None:
        """Find the row of this key."""
        return next((row for row in self.rows if row.key == key), None)

    @property
    def floor_ratio(self) -> float | None:
        """How many times the first point's floor its own floor takes."""
        floor = self.row(FLOOR)
        return median(floor.samples) / median(floor.plain) if floor and floor.samples and floor.plain else None

    def speedup(self, row: Row) -> float | None:
        """Say how many times faster than torch.optim's default it is, each by its own floor."""
        torch = self.row(TORCH)
        return torch.ratio / row.ratio if torch and torch.ratio and row.ratio else None


@dataclass
class Result:
    """What a case gives."""

    case: str
    title: str
    points: list[Point]
    notes: list[str] = field(default_factory=list)
    kind: str = "race"  # or "turns", of points that took turns; or "memory" or "import", for those figures
