"""The options of ``pytest --pyargs multiopt.conformance``.

pytest finds this module by its entry point, so that the options are there before the suite is. They are added only
where the suite is asked for: other people's ``--backend`` is theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

SUITE = "multiopt.conformance"


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config, parser: pytest.Parser, args: Sequence[str]) -> None:
    """Add the options, if the suite is among the arguments."""
    if not any(str(arg).partition("::")[0] == SUITE for arg in args):
        return
    group = parser.getgroup("multiopt", "conformance suite of multiopt")
    add: Any = group.addoption
    add("--backend", action="append", metavar="NAME", help="only this one of multiopt's (repeatable)")
    add("--namespace", metavar="MODULE", help="any array API namespace, by its import name")
    add("--xfails", type=Path, metavar="FILE", help="ids of the checks that the namespace is known to fail")
    add("--against", action="append", metavar="SYSTEM", help="only this framework (repeatable)")
    add("--scenario", action="append", metavar="NAME", help="only this scenario (repeatable)")
    add("--quick", action="store_true", help="no run further than 40 steps")
