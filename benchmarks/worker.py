"""A contender's process: it obeys lines of JSON on its standard input and answers with lines of JSON.

``open`` sets the contender up and does the first step, ``sample`` times steps, ``peak`` measures the memory
of one, ``counts`` asks a device what one does.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from .contender import Contender, Running
from .workload import Workload

__all__ = ["serve"]

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident(name: str) -> int:
    """Read a figure of this process' memory, in bytes: ``VmRSS``, or ``VmHWM``, its highest value."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024


def peak(sample: Callable[[int], float]) -> dict[str, int | None]:
    """Highest growth of memory during one step, in bytes: resident, and as Python's tracemalloc sees it."""
    gc.collect()
    grown = None
    if RESET.exists():
        ctypes.CDLL(None).malloc_trim(0)  # or the step would reuse what an earlier one left
        RESET.write_text("5")
        before = resident("VmRSS")
        sample(1)
        grown = max(resident("VmHWM") - before, 0)
    tracemalloc.start()
    sample(1)
    traced = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {"resident": grown, "traced": traced}


def serve(read: Any, write: Any) -> None:
    """Obey until the input ends."""
    running: Running | None = None
    for line in read:
        order = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            match order.pop("do"):
                case "open":
                    workload = Workload([tuple(shape) for shape in order["shapes"]], order["dtype"])
                    build = Contender(**order["contender"]).prepare()
                    running = build(workload, order["contender"]["options"])
                    running.sample(1)
                    answer["ready"] = perf_counter() - running.began
                case "sample":
                    answer["seconds"] = running.sample(order["n"])  # type: ignore[union-attr]
                case "peak":
                    answer = dict(peak(running.sample))  # type: ignore[union-attr]
                case "counts":
                    counts = running.counts  # type: ignore[union-attr]
                    answer = dict(counts()) if counts is not None else {}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        write.write(json.dumps(answer) + "\n")
        write.flush()


if __name__ == "__main__":
    # A library that prints must not disturb the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.stdin, answers)
