"""A contender's process, as it is seen from outside and from inside."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import re
import tempfile
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any

from .contender import Contender, Running
from .workload import Workload

__all__ = ["Process", "peak"]

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Process:
    """A fresh interpreter in which a contender is set up; each call raises RuntimeError if the contender fails."""

    def __init__(self, contender: Contender, workload: Workload) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._errors = tempfile.NamedTemporaryFile()  # noqa: SIM115 - closed by close()
        self._calls, calls = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(calls, self._errors.name, contender, workload))
        self._process.start()
        calls.close()

    def ready(self) -> float:
        """Wait for the first step, and return the seconds that it took to be done; to be called first, and once."""
        try:
            answer, error = self._calls.recv()
        except (EOFError, OSError):
            self._process.join()
            last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
            error = f"its process ended with status {self._process.exitcode} {' '.join(last)}".strip()
        if error is not None:
            raise RuntimeError(error)
        return answer

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return ``function(running, *args)``, called there."""
        with suppress(OSError):  # if the process has died, that is what the answer will be
            self._calls.send((function, args))
        return self.ready()

    def close(self) -> None:
        """End the process; a second call does nothing."""
        self._calls.close()
        self._process.join(10)
        self._process.kill()
        self._errors.close()


def _serve(calls: Connection, errors: str, contender: Contender, workload: Workload) -> None:
    """Set a contender up, and call functions on it until nobody asks any more."""
    written = os.open(errors, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):  # what a library prints must not disturb the tables
        os.dup2(written, stream)
    os.environ.update(contender.environment)
    try:
        running = contender.start(workload)
        running.sample(1)
        answer: Any = perf_counter() - running.began
        while True:
            calls.send((answer, None))
            function, args = calls.recv()
            answer = function(running, *args)
    except EOFError:
        return
    except Exception as error:
        calls.send((None, f"{type(error).__name__}: {error}"))


def peak(running: Running) -> dict[str, int | None]:
    """Highest growth of memory during one step, in bytes: resident, and as Python's tracemalloc sees it."""
    gc.collect()
    grown = None
    if RESET.exists():
        ctypes.CDLL(None).malloc_trim(0)  # or the step would reuse what an earlier one left
        RESET.write_text("5")
        before = re.search(r"VmRSS:\s*(\d+)", STATUS.read_text())
        running.sample(1)
        highest = re.search(r"VmHWM:\s*(\d+)", STATUS.read_text())
        grown = max(int(highest[1]) - int(before[1]), 0) * 1024 if before and highest else None
    tracemalloc.start()
    running.sample(1)
    traced = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {"resident": grown, "traced": traced}
