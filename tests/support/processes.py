"""Programs run in a process of their own."""

import os
import subprocess
import sys


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
