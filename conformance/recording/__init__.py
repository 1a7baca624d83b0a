"""Recorders: programs that run the real optimizers and write down everything they do.

Each module here drives one family of frameworks. Most of them must own their process (TensorFlow's virtual
devices, Keras' backend and JAX's precision are fixed at import), so they run as ``python -m
multiopt.conformance.recording``.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

from ..data.systems import SYSTEMS


def missing_packages(system: str) -> list[str]:
    """Return which distributions are not installed that ``system`` needs."""
    missing = []
    for name in SYSTEMS[system].packages:
        try:
            _version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    return missing


def _version(name: str) -> str:
    if name != "tensorflow":
        return importlib.metadata.version(name)
    try:
        return importlib.metadata.version("tensorflow")
    except importlib.metadata.PackageNotFoundError:
        return importlib.metadata.version("tensorflow-cpu")


def versions_of(system: str) -> dict[str, str]:
    """Return the versions of the distributions behind ``system``."""
    return {name: _version(name) for name in SYSTEMS[system].packages}


def record_to(system: str, path: Path, *, timeout: float = 900.0) -> None:
    """Run the recorder of ``system`` in a process of its own; it writes ``path``.

    Raises
    ------
    RuntimeError
        If the recorder fails; the message ends with what it said.
    """
    # -P: the folder that one stands in may hold another multiopt, such as the sources of this one.
    command = [sys.executable, "-P", "-m", "multiopt.conformance.recording", system, str(path)]
    done = subprocess.run(
        command,
        env={**os.environ, **SYSTEMS[system].environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"recorder of {system} failed ({done.returncode}):\n{done.stderr[-4000:]}")
