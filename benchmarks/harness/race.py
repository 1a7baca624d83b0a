"""The race: a process for each contender, rounds A B C A B C, in batches that the memory can hold.

Contenders on several workloads may take turns, each against the floor of its own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .contender import Contender, Running, missing
from .figures import FLOOR, Point, Row
from .process import Process
from .workload import Workload

__all__ = ["Heat", "Race"]

#: Pause before a sample: worker threads of the contender before may still be spinning.
PAUSE = 0.005


class Heat(NamedTuple):
    """Contenders on one workload; its floor, if it has one, is the first."""

    name: str
    workload: Workload
    contenders: Sequence[Contender]


@dataclass
class Entrant:
    """A contender on a workload. Those that are equal are one, measured once."""

    contender: Contender
    workload: Workload
    floor: Entrant | None  # a floor's own is None
    row: Row = field(compare=False)
    name: str = field(compare=False)  # of its heat

    @property
    def is_floor(self) -> bool:
        """Whether others are compared with it."""
        return self.contender.key == FLOOR

    @property
    def memory(self) -> float:
        """Bytes that its process takes."""
        return self.contender.memory(self.workload)


@dataclass(frozen=True)
class Race:
    """How contenders are measured."""

    rounds: int = 15  # samples of each contender
    sample: float = 0.05  # seconds that a sample should last; short steps are repeated within it
    budget: float = math.inf  # bytes that the contenders of one batch may take together
    extra: Callable[[Running], dict[str, Any]] = Running.counts  # what else each contender is asked for at the end
    progress: Callable[[str], None] = lambda words: None  # called with a few words on what is going on

    def __call__(self, *heats: Heat) -> list[Point]:
        """Measure all contenders in turns; those that are absent, or fail, get the reason in place of figures."""
        points, entrants = list[Point](), list[Entrant]()
        for name, workload, contenders in heats:
            rows, floor = list[Row](), None
            for contender in contenders:
                lacking = contender.absent() or missing(*workload.needs)
                entrant = Entrant(contender, workload, floor, Row(contender.key, contender.label), name)
                entrant.row.absent = lacking
                if entrant in entrants:
                    entrant = entrants[entrants.index(entrant)]
                else:
                    entrants.append(entrant)
                rows.append(entrant.row)
                if entrant.is_floor and lacking is None:
                    floor = entrant
            points.append(Point(name, rows, **workload.facts()))
        for batch in self.batches([e for e in entrants if e.row.absent is None]):
            self._run(batch, one_by_one=len(heats) == 1)
        return points

    def batches(self, entrants: Sequence[Entrant]) -> list[list[Entrant]]:
        """Split entrants so that each batch, with the first floor and its own ones, fits into the budget if it can."""
        first = [e for e in entrants if e.is_floor][:1]
        found, batch = list[list[Entrant]](), list[Entrant]()
        for entrant in entrants:
            needed = [*first, *([entrant.floor] if entrant.floor else []), entrant]
            together = _each_once([*batch, *needed])
            if sum(e.memory for e in together) > self.budget and not all(e.is_floor for e in batch):
                found.append(batch)
                together = _each_once(needed)
            batch = together
        return [*found, batch] if batch else found

    def _run(self, batch: Sequence[Entrant], one_by_one: bool) -> None:
        """Run one batch and put its figures into the rows; how soon each is ready, if they are set up one by one."""
        processes: dict[int, Process] = {}
        repeats: dict[int, int] = {}
        before = [len(entrant.row.samples) for entrant in batch]

        @contextmanager
        def dropped_if_it_fails(number: int) -> Iterator[None]:
            try:
                yield
            except RuntimeError as error:
                row = batch[number].row
                # The samples it gave before it failed are not shown either: they would look like a whole measurement.
                row.samples, row.ready, row.absent = [], None, f"failed: {error}"
                processes.pop(number).close()

        with ExitStack() as stack:
            for i, entrant in enumerate(batch):
                row = entrant.row
                if row.absent is not None:  # a floor that failed in a batch before
                    continue
                self.progress(f"{entrant.name}: setting up {row.label}")
                process = processes[i] = stack.enter_context(closing(Process(entrant.contender, entrant.workload)))
                if one_by_one:
                    with dropped_if_it_fails(i):
                        ready = process.ready()
                        row.ready = ready if row.ready is None else row.ready
            for i, process in list(processes.items()) * (not one_by_one):
                with dropped_if_it_fails(i):
                    process.ready()
            for i, process in list(processes.items()):
                with dropped_if_it_fails(i):
                    # The fastest of some steps is what is left of a step once everything is warm.
                    step = min(process(Running.sample, 1) for _ in range(3))
                    repeats[i] = max(1, round(self.sample / max(step, 1e-9)))
                    process(Running.sample, max(1, repeats[i] // 4))
            for number in range(self.rounds):
                self.progress(f"{batch[-1].name}: round {number + 1} of {self.rounds}")
                for i, process in list(processes.items()):
                    time.sleep(PAUSE)
                    with dropped_if_it_fails(i):
                        batch[i].row.samples.append(process(Running.sample, repeats[i]) / repeats[i])
            taken = [entrant.row.samples[start:] for entrant, start in zip(batch, before, strict=True)]
            for i, process in list(processes.items()):
                row, floor = batch[i].row, batch[i].floor
                with dropped_if_it_fails(i):
                    row.extra.update(process(self.extra))
                if batch[i].is_floor:
                    floor = batch[i]
                row.floor += taken[batch.index(floor)] if floor else []
                row.plain += taken[0] if batch[0].is_floor else []


def _each_once(entrants: Sequence[Entrant]) -> list[Entrant]:
    return [entrant for i, entrant in enumerate(entrants) if entrant not in entrants[:i]]
