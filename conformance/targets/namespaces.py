"""Other people's array libraries: any namespace of the array API standard, by its import name.

A library may be known to fail somewhere. A file of expected failures lists the ids of such checks, one a line; what
follows ``#`` is the reason. The list is strict: a check in it that passes is a failure too, so that the list stays
true. ``multiopt check --namespace NAME`` prints the ids of what fails.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..checks.verdict import Verdict
from ..data.specification import HOLDERS
from .players import PLAYERS, Array, Library, Player


class Foreign(Library):
    """Arrays of a namespace that nobody here has seen before."""

    def read(self, arrays: Sequence[Any]) -> list[Array]:
        """Return copies as NumPy arrays, by DLPack or, failing that, NumPy's own protocol."""
        return [np.array(np.from_dlpack(a) if hasattr(a, "__dlpack__") else np.asarray(a)) for a in arrays]


def find(name: str) -> Player:
    """Return the player of this name, or one for the array API namespace of this import name.

    Raises
    ------
    ImportError
        If there is no such module.
    ValueError
        If it is no array API namespace, or its arrays say that they belong to another one.
    """
    if name not in PLAYERS:
        PLAYERS[name] = _player(name)
    return PLAYERS[name]


def _player(name: str) -> Player:
    xp = importlib.import_module(name)
    missing = [part for part in ("asarray", "float32", "float64", "sqrt", "where") if not hasattr(xp, part)]
    if missing:
        raise ValueError(f"--namespace {name}: expected an array API namespace; it lacks {', '.join(missing)}")
    probe = xp.asarray([1.0], dtype=xp.float32)
    # NumPy before 2.0 has no such method, and PyTorch has none: multiopt knows their arrays by their types.
    said = getattr(probe.__array_namespace__(), "__name__", "") if hasattr(probe, "__array_namespace__") else name
    known = name.partition(".")[0] in ("array_api_compat", *_KNOWN)
    if said != name and not known:
        raise ValueError(
            f"--namespace {name}: expected arrays whose __array_namespace__() is {name}, "
            f"got {said or 'something without a name'}: multiopt goes by what arrays say"
        )
    dtypes = tuple(dtype for dtype in HOLDERS if hasattr(xp, dtype) and dtype != "bfloat16")
    # How long a step takes there nobody knows: no run goes far.
    return Player(name, f"the namespace {name}", Foreign, name, engine="eager", dtypes=dtypes, slow=True)


_KNOWN = ("numpy", "torch", "jax", "dask", "cupy")

# --- expected failures ---


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
        Of one player.
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
