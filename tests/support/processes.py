"""Programs run in a process of their own."""

import os
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any


def run_python(code: str, timeout: float = 900, **environment: str) -> str:
    """Run a program in a process of its own, and return what it printed.

    A hang is a failure; the time-out is so long that a busy machine is none.
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.strip()


def forked(count: int, act: Callable[[int], Any]) -> None:
    """Do ``act(rank)`` in `count` forks of this process at once, which share what it has imported and compiled.

    An error of one is an error here, and the end of the others.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forks while threads live
        running = {os.fork() or _work(rank, act): rank for rank in range(count)}
    try:
        while running:
            child, status = os.wait()
            rank = running.pop(child)
            assert status == 0, f"rank {rank} of {count} ended with {status}"
    finally:
        for child in running:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _work(rank: int, act: Callable[[int], Any]) -> Any:
    signal.alarm(800)  # a hang is a failure
    status = 1
    try:
        act(rank)
        status = 0
    except BaseException:
        sys.stderr.write(f"--- rank {rank} ---\n{traceback.format_exc()}")
    sys.stdout.flush()
    sys.stderr.flush()
    # Without the interpreter's end, while which threads of PyTorch's gloo now and then abort the process.
    os._exit(status)
