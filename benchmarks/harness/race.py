"""The race: a process for each contender, rounds A B C A B C, in batches that the memory can hold."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any

from .contender import Contender, Running
from .figures import FLOOR, Point, Row
from .process import Process
from .workload import Workload

__all__ = ["Race"]

#: Pause before a sample: worker threads of the contender before may still be spinning.
PAUSE = 0.005


@dataclass(frozen=True)
class Race:
    """How contenders are measured."""

    rounds: int = 15  # samples of each contender
    sample: float = 0.05  # seconds that a sample should last; short steps are repeated within it
    budget: float = math.inf  # bytes that the contenders of one batch may take together
    extra: Callable[[Running], dict[str, Any]] = Running.counts  # what else each contender is asked for at the end
    progress: Callable[[str], None] = lambda words: None  # called with a few words on what is going on

    def __call__(self, name: str, workload: Workload, contenders: Sequence[Contender]) -> Point:
        """Measure contenders on one workload; those that are absent, or fail, get the reason in place of figures."""
        rows = {c.key: Row(c.key, c.label, absent=c.absent()) for c in contenders}
        for batch in self.batches(workload, [c for c in contenders if rows[c.key].absent is None]):
            self._run(name, workload, batch, rows)
        return Point(name, list(rows.values()), **workload.facts())

    def batches(self, workload: Workload, contenders: Sequence[Contender]) -> list[list[Contender]]:
        """Split contenders so that each batch fits into the budget if it can; the floor is in every one."""
        floor = [c for c in contenders if c.key == FLOOR]
        found = [list(floor)]
        for contender in contenders:
            if contender.key == FLOOR:
                continue
            arrays = sum(c.arrays for c in (*found[-1], contender))
            if len(found[-1]) > len(floor) and arrays * workload.array_bytes > self.budget:
                found.append(list(floor))
            found[-1].append(contender)
        return found

    def _run(self, name: str, workload: Workload, batch: Sequence[Contender], rows: Mapping[str, Row]) -> None:
        """Run one batch and put its figures into `rows`."""
        processes: dict[str, Process] = {}
        repeats: dict[str, int] = {}
        floor: list[float] = []

        @contextmanager
        def dropped_if_it_fails(key: str) -> Iterator[None]:
            try:
                yield
            except RuntimeError as error:
                # The samples it gave before it failed are not shown either: they would look like a whole measurement.
                rows[key].samples, rows[key].ready, rows[key].absent = [], None, f"failed: {error}"
                processes.pop(key).close()

        with ExitStack() as stack:
            for contender in batch:
                key, row = contender.key, rows[contender.key]
                self.progress(f"{name}: setting up {row.label}")
                process = processes[key] = stack.enter_context(closing(Process(contender, workload)))
                with dropped_if_it_fails(key):
                    ready = process.ready()
                    row.ready = ready if row.ready is None else row.ready
                    # The fastest of some steps is what is left of a step once everything is warm.
                    step = min(process(Running.sample, 1) for _ in range(3))
                    repeats[key] = max(1, round(self.sample / max(step, 1e-9)))
                    process(Running.sample, max(1, repeats[key] // 4))
            for number in range(self.rounds):
                self.progress(f"{name}: round {number + 1} of {self.rounds}")
                for key, process in list(processes.items()):
                    time.sleep(PAUSE)
                    with dropped_if_it_fails(key):
                        rows[key].samples.append(process(Running.sample, repeats[key]) / repeats[key])
                        if key == FLOOR:
                            floor.append(rows[key].samples[-1])
            for key, process in list(processes.items()):
                rows[key].floor = rows[key].samples if key == FLOOR else floor
                with dropped_if_it_fails(key):
                    rows[key].extra.update(process(self.extra))
