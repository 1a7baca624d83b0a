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
    return [name for name in SYSTEMS[system].packages if not _versions(name)]


def versions_of(system: str) -> dict[str, str]:
    """Return the versions of the distributions behind ``system``."""
    return {name: _versions(name)[0] for name in SYSTEMS[system].packages}


def _versions(name: str) -> list[str]:
    names = ["tensorflow", "tensorflow-cpu"] if name == "tensorflow" else [name]
    return [found.version for name in names for found in importlib.metadata.distributions(name=name)]


def record_to(system: str, path: Path, *, timeout: float = 900.0) -> None:
    """Run the recorder of ``system`` in a process of its own; it writes ``path``, or a `RuntimeError` says why not."""
    # -P: the folder that one stands in may hold another multiopt, such as the sources of this one.
    command = [sys.executable, "-P", "-m", "multiopt.conformance.recording", system, str(path)]
    environment = {**os.environ, **SYSTEMS[system].environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"recorder of {system} failed ({done.returncode}):\n{done.stderr[-4000:]}")
