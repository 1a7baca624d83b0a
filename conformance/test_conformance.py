"""The suite as pytest: ``pytest --pyargs multiopt.conformance --backend numpy``. Each part of the check is a test."""

from __future__ import annotations

from argparse import Namespace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from multiopt.conformance.check import select
from multiopt.conformance.checks.run import Part, Selection, checks
from multiopt.conformance.checks.verdict import expect, read_xfails
from multiopt.conformance.data.traces import FOLDER

_OPTIONS = ("backend", "namespace", "against", "scenario", "quick")


def _selection(config: pytest.Config) -> Selection:
    asked = {name: config.getoption(name, None) for name in _OPTIONS}
    try:
        return select(Namespace(**{**asked, "quick": bool(asked["quick"])}, device=None, traces=FOLDER))
    except (ImportError, ValueError) as error:
        raise pytest.UsageError(str(error)) from error


@cache
def _xfails(path: Path | None) -> dict[str, str]:
    return {} if path is None else read_xfails(path)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test of each part of the check."""
    if "part" in metafunc.fixturenames:
        selection = _selection(metafunc.config)
        found = {
            f"{name}-{key}": (part, name == metafunc.config.getoption("namespace", None))
            for name in selection.targets
            for key, part in checks(selection, name).items()
        }
        metafunc.parametrize(("part", "foreign"), list(found.values()), ids=list(found))


def test_check(part: Part, foreign: bool, request: pytest.FixtureRequest) -> None:
    """One scenario, run or law: nothing fails but what is expected to."""
    xfails = _xfails(request.config.getoption("xfails", None)) if foreign else {}
    verdicts = expect(part(), xfails, complete=False)
    if all(verdict.outcome == "unsupported" for verdict in verdicts):
        pytest.skip("; ".join(dict.fromkeys(verdict.reason for verdict in verdicts)) or "nothing to judge")
    bad = [str(verdict) for verdict in verdicts if verdict.failed]
    assert not bad, "\n" + "\n".join(bad)
    reasons: Any = {verdict.reason for verdict in verdicts if verdict.outcome == "expected failure"}
    if reasons:
        pytest.xfail("; ".join(sorted(reasons)))
