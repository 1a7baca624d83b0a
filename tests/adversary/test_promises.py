"""Each promise of docs/promises.md, and a program that tries to break it, in a process that may die of it.

A few cases each, always the same; ``--adversary N`` tries N others.
"""

import os
import secrets
from pathlib import Path

import pytest
from processes import run_python

HERE = Path(__file__).parent
#: The programs, and how many cases a short run has.
PROGRAMS = {
    "guard_pages": 3, "core_machine": 8, "dropin_machine": 8, "kills": 20, "interrupts": 20, "crowd": 10, "forks": 1,
    "damage": 25,
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_nothing_breaks_the_promise(name, request, tmp_path):
    for module in ("numba", "torch", "ml_dtypes"):
        pytest.importorskip(module)
    asked = request.config.getoption("--adversary", None)
    seed, cases = (0, PROGRAMS[name]) if asked is None else (secrets.randbits(32), asked)
    path = os.pathsep.join([str(HERE / "programs"), str(HERE.parent / "support"), os.environ.get("PYTHONPATH", "")])
    code = f"import faulthandler, {name}; faulthandler.enable(); {name}.main({seed}, {cases}, {str(tmp_path)!r})"
    try:
        print(f"{name}: {run_python(code, 900 if asked is None else 10**6, PYTHONPATH=path)}")
    except BaseException as error:
        error.add_note(f"{name}.main({seed}, {cases}, ...)")
        if (log := tmp_path / "log").exists():
            error.add_note(f"the last case:\n{log.read_text()[-4000:].rpartition('make ')[2]}")
        raise
