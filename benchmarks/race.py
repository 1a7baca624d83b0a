"""The race: a process for each contender, rounds A B C A B C, in batches that the memory can hold."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from .contender import Contender
from .figures import FLOOR, Point, Row
from .workload import Workload

__all__ = ["Pace", "Process", "race"]

#: Pause before a sample: worker threads of the contender before may still be spinning.
PAUSE = 0.005


@dataclass(frozen=True)
class Pace:
    """How long to measure.

    Parameters
    ----------
    rounds : int
        Samples of each contender.
    sample : float
        Seconds that a sample should last; short steps are repeated within it.
    budget : float
        Bytes that the contenders of one batch may take together.
    """

    rounds: int = 15
    sample: float = 0.05
    budget: float = math.inf


class Process:
    """A contender's process.

    Raises
    ------
    RuntimeError
        From any call, if the contender fails there.
    """

    def __init__(self, contender: Contender) -> None:
        self._contender = contender
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", f"{__package__}.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **contender.environment},
            text=True,
        )

    def __call__(self, do: str, **order: Any) -> dict[str, Any]:
        """Give an order and return the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **order}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._errors.seek(0)
            last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
            raise RuntimeError(f"its process ended with status {self._process.wait()} {' '.join(last)}".strip())
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def open(self, workload: Workload) -> float:
        """Set up, do the first step, and return the seconds until it was done."""
        contender = asdict(replace(self._contender, options={}, environment={}))
        contender["options"] = dict(self._contender.options)
        return self("open", shapes=list(workload.shapes), dtype=workload.dtype, contender=contender)["ready"]

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):  # what was not written cannot be, if the process has died
                    stream.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()


def race(
    name: str,
    workload: Workload,
    contenders: Sequence[Contender],
    pace: Pace,
    told: Callable[[str], None],
    counts: bool = False,
) -> Point:
    """Measure contenders at one workload.

    Parameters
    ----------
    name : str
        The point's.
    workload : Workload
    contenders : sequence of Contender
        The first one whose key is ``"floor"`` runs in every batch.
    pace : Pace
    told : callable
        Told in a few words what is going on.
    counts : bool
        Whether to ask the device for launches and allocations too.

    Returns
    -------
    Point
        Its rows in the order of `contenders`, the absent ones with the reason.
    """
    floor = next((c for c in contenders if c.key == FLOOR), None)
    rows = {c.key: Row(c.key, c.label, absent=c.absent()) for c in contenders}
    for batch in batches([c for c in contenders if rows[c.key].absent is None], floor, workload, pace.budget):
        _run(name, workload, batch, rows, pace, told, counts)
    return Point(
        name,
        workload.elements,
        len(workload.shapes),
        workload.moved,
        workload.dtype,
        [rows[c.key] for c in contenders],
    )


def batches(
    contenders: Sequence[Contender], floor: Contender | None, workload: Workload, budget: float
) -> list[list[Contender]]:
    """Split contenders so that each batch fits into `budget` bytes if it can; the floor is in every one."""
    done: list[list[Contender]] = []
    batch: list[Contender] = []
    always = [floor] if floor else []
    for contender in contenders:
        if contender is floor:
            continue
        arrays = sum(c.arrays for c in (*always, *batch, contender))
        if batch and arrays * workload.array_bytes > budget:
            done.append([*always, *batch])
            batch = []
        batch.append(contender)
    return [*done, [*always, *batch]] if batch or always else done


def _run(
    name: str,
    workload: Workload,
    batch: Sequence[Contender],
    rows: dict[str, Row],
    pace: Pace,
    told: Callable[[str], None],
    counts: bool,
) -> None:
    """Run one batch and put its figures into `rows`."""
    processes: dict[str, Process] = {}
    repeats: dict[str, int] = {}
    floor: list[float] = []

    def drop(key: str, error: Exception) -> None:
        # The samples it gave before it failed are not shown either: they would look like a whole measurement.
        rows[key].samples, rows[key].absent = [], f"failed: {error}"
        processes.pop(key).close()

    try:
        for contender in batch:
            key, row = contender.key, rows[contender.key]
            told(f"{name}: setting up {row.label}")
            process = processes[key] = Process(contender)
            try:
                ready = process.open(workload)
                row.ready = ready if row.ready is None else row.ready
                # The fastest of some steps is what is left of a step once everything is warm.
                step = min(process("sample", n=1)["seconds"] for _ in range(3))
                repeats[key] = max(1, round(pace.sample / max(step, 1e-9)))
                process("sample", n=max(1, repeats[key] // 4))
            except RuntimeError as error:
                drop(key, error)
        for number in range(pace.rounds):
            told(f"{name}: round {number + 1} of {pace.rounds}")
            for key, process in list(processes.items()):
                time.sleep(PAUSE)
                try:
                    seconds = process("sample", n=repeats[key])["seconds"] / repeats[key]
                except RuntimeError as error:
                    drop(key, error)
                    continue
                rows[key].samples.append(seconds)
                if key == FLOOR:
                    floor.append(seconds)
        for key, process in processes.items():
            rows[key].floor = rows[key].samples if key == FLOOR else floor
            if counts and not rows[key].extra:
                rows[key].extra.update(process("counts"))
    finally:
        for process in processes.values():
            process.close()
