"""Programs of the adversary, each in a process of its own: what kills it fails one test."""

import os
from pathlib import Path

from processes import run_python

SUPPORT = Path(__file__).parent
PROGRAMS = SUPPORT.parent / "adversary" / "programs"


def run_program(name, *arguments, timeout=900, **environment):
    """Call ``main(*arguments)`` of a program, and return what it printed."""
    path = os.pathsep.join([str(PROGRAMS), str(SUPPORT), os.environ.get("PYTHONPATH", "")])
    code = f"import faulthandler, {name}; faulthandler.enable(); {name}.main(*{arguments!r})"
    return run_python(code, timeout, PYTHONPATH=path, **environment)
