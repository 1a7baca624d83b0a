"""What all cases of a run share, and how a case has contenders measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .harness.contender import Contender
from .harness.figures import Point
from .harness.race import Heat, Race
from .harness.workload import Shapes, Workload

__all__ = ["Run", "with_environment"]


@dataclass(frozen=True)
class Run:
    """What all cases of a run share."""

    contenders: Mapping[str, Contender]  # by key, in the order of the tables
    race: Race
    quick: bool  # shrink every workload, to see that all works rather than how fast it is
    device: str  # "cpu" or "cuda"

    def some(self, *keys: str, **changes: Any) -> list[Contender]:
        """Choose those contenders of this run that have one of these keys, and change them."""
        return [replace(c, **changes) for key, c in self.contenders.items() if key in keys]

    def size(self, elements: int, on_cuda: int = 0) -> int:
        """Choose a number of elements by the device, and shrink it if the run is quick."""
        elements = (on_cuda if self.device == "cuda" else 0) or elements
        return min(elements, 20_000) if self.quick else elements

    def measure(
        self, name: str, shapes: Shapes, contenders: Sequence[Contender] | None = None, dtype: str = "float32"
    ) -> Point:
        """Measure contenders, by default all, on one workload."""
        if self.quick:
            shapes = [tuple(min(n, 16) for n in shape) if len(shape) > 1 else shape for shape in shapes]
        contenders = [c for c in self.contenders.values() if c.whole] if contenders is None else contenders
        if dtype == "float64":
            contenders = with_environment(contenders, JAX_ENABLE_X64="1")
        return self.race(Heat(name, Workload(shapes, dtype), contenders))[0]


def with_environment(contenders: Sequence[Contender], **variables: str) -> list[Contender]:
    """Add environment variables to contenders."""
    return [replace(c, environment={**c.environment, **variables}) for c in contenders]
