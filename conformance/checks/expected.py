"""Checks that an array library is known to fail.

A file of expected failures lists the ids of such checks, one a line; what follows ``#`` is the reason. The list is
strict: a check in it that passes is a failure too, so that the list stays true. ``multiopt check --namespace NAME``
prints the ids of what fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from .verdict import Verdict


def check_id(verdict: Verdict) -> str:
    """Return the id of what was judged, whoever it was: ``trace/torch-forloop/paper/x``."""
    parts = [verdict.what, verdict.system, verdict.scenario, verdict.kind]
    if verdict.what == "oracle" and verdict.kind:
        parts.append("one step" if verdict.note.startswith("one step") else "the whole run")
    return "/".join(part for part in parts if part)


def read_xfails(path: Path) -> dict[str, str]:
    """Read a file of expected failures: id to reason.

    Raises
    ------
    OSError
        If it cannot be read.
    ValueError
        If an id is listed twice.
    """
    listed: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        key, _, reason = (part.strip() for part in line.partition("#"))
        if key in listed:
            raise ValueError(f"{path}:{number}: {key!r} is listed twice")
        if key:
            listed[key] = reason
    return listed


def expect(verdicts: Iterable[Verdict], xfails: Mapping[str, str], *, complete: bool = True) -> list[Verdict]:
    """Return the verdicts with failures that were expected called so, and expectations that are wrong as failures.

    Parameters
    ----------
    verdicts : iterable of Verdict
        Of one target.
    xfails : mapping
        From `read_xfails`.
    complete : bool
        Whether the verdicts are all there are: then an id that is not among them is a mistake.
    """
    found: list[Verdict] = []
    outcomes: dict[str, set[str]] = {}
    for verdict in verdicts:
        key = check_id(verdict)
        outcomes.setdefault(key, set()).add(verdict.outcome)
        if verdict.failed and key in xfails:
            told = f"expected: {xfails[key] or 'no reason given'}"
            verdict = replace(verdict, outcome="expected failure", reason=told)
        found.append(verdict)
    for key in xfails:
        blank = Verdict("xfail", found[0].backend if found else "", "", "", key, "failed")
        if key in outcomes and "failed" not in outcomes[key]:
            found.append(replace(blank, reason="expected to fail, but it passes: take it off the list"))
        elif key not in outcomes and complete:
            found.append(replace(blank, reason="expected to fail, but there is no such check"))
    return found
