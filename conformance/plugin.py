"""The options of ``pytest --pyargs multiopt.conformance``.

pytest finds this module by its entry point, so that the options are there before the suite is. They are added only
where the suite is asked for: other people's ``--backend`` is theirs.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

SUITE = "multiopt.conformance"


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config, parser: pytest.Parser, args: Sequence[str]) -> None:
    """Add the options, if the suite is among the arguments."""
    if not any(str(arg).partition("::")[0] == SUITE for arg in args):
        return
    from .check import add_selection

    add_selection(parser.getgroup("multiopt", "conformance suite of multiopt").addoption)
