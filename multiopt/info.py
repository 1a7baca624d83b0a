"""``multiopt info``: which array libraries are here, which engine each one gets, and why not a faster one."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
import warnings
from dataclasses import dataclass, field
from typing import Any

from . import backends
from .backends.engines.host.threads import thread_count
from .backends.protocol import Backend

__all__ = ["Library", "Place", "add_arguments", "find", "main"]

#: Array libraries by import name, and what installs each one.
LIBRARIES = {
    "numpy": "numpy",
    "torch": '"multiopt[torch]"',
    "cupy": '"multiopt[cupy]"',
    "jax": '"multiopt[jax]"',
    "dask": '"multiopt[dask]"',
    "array_api_strict": "array-api-strict",
}
#: Helpers by import name: what installs each one, and what it is for.
HELPERS = {
    "numba": (
        '"multiopt[numba]"',
        "the host engine: compiled loops over NumPy arrays and PyTorch CPU tensors",
    ),
    "optree": ('"multiopt[tree]"', "parameters in nested containers"),
    "safetensors": ('"multiopt[checkpoint]"', "save and load"),
}
ACCELERATORS = ("cuda", "gpu", "rocm", "tpu", "xpu", "mps")


@dataclass(frozen=True)
class Place:
    """A device of a library: what ``asarray(..., device=)`` takes (None for its default), and its engine."""

    device: Any
    name: str
    engine: str
    reasons: dict[str, str]


@dataclass(frozen=True)
class Library:
    """What was found of an array library: a backend with places, or else a problem."""

    name: str
    version: str = ""
    backend: Backend | None = None
    places: list[Place] = field(default_factory=list)
    problem: str = ""


def find(name: str) -> Library:
    """Look for an array library, and make an array on each of its devices; tell what goes wrong.

    Parameters
    ----------
    name : str
        Its import name.
    """
    if not installed(name):
        return Library(name, problem=f"is not installed: pip install {LIBRARIES.get(name, name)}")
    places: dict[str, Place] = {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a library's complaints while it looks for devices
            backend = backends.get(name)
            for device in (None, *_accelerators(backend.xp)):
                array = backend.xp.zeros(1, dtype=backend.xp.float32, device=device)
                where = backend.device(array)
                if where not in places:
                    engine, reasons = backends.engine_for(backend, where, ["float32", "float32"])
                    places[where] = Place(device, str(where), engine.name, reasons)
    except Exception as error:
        # A broken library may raise anything, and is what this command is there to show.
        text = " ".join(str(error).split())
        return Library(name, _version(name), problem=f"does not work here: {type(error).__name__}: {text}")
    return Library(name, _version(name), backend, list(places.values()))


def installed(name: str) -> bool:
    """Whether a module can be found; it is not imported."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _accelerators(xp: Any) -> list[Any]:
    try:
        devices = xp.__array_namespace_info__().devices()
    except AttributeError:
        return []
    return [d for d in devices if any(word in str(d).lower() for word in ACCELERATORS)]


def _version(name: str) -> str:
    return str(getattr(sys.modules.get(name), "__version__", ""))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``multiopt info``: it has none."""


def main(args: argparse.Namespace) -> int:
    """Print the tables.

    Raises
    ------
    ImportError
        If rich is not installed.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    with console.status("looking at the array libraries"):
        found = [find(name) for name in LIBRARIES]
    table = Table("library", "version", "device", "engine for float32", box=box.SIMPLE_HEAD)
    notes = []
    for library in found:
        if not library.places:
            table.add_row(library.name, library.version, "–", "–", style="dim")
            notes.append(f"{library.name} {library.problem}")
        for place in library.places:
            style = "yellow" if place.reasons else "green"
            table.add_row(library.name, library.version, Text(place.name), Text(place.engine, style=style))
            where = f"{library.name} on {place.name}"
            notes += [f"{where}, no {name} engine: {why}" for name, why in place.reasons.items()]
    helpers = Table("module", "version", "for", box=box.SIMPLE_HEAD)
    for name, (install, purpose) in HELPERS.items():
        version, problem = _helper(name)
        helpers.add_row(name, version or "–", purpose, style="dim" if problem else "")
        if problem:
            notes.append(f"{name} {problem}: pip install {install}")
    console.print(table, helpers)
    lines = Table.grid(padding=(0, 1))
    for note in (*notes, f"threads of the host engine: {_threads()}"):
        lines.add_row(" ·", Text(note))
    console.print(lines)
    return 0


def _helper(name: str) -> tuple[str, str]:
    """Version and problem of a helper."""
    if not installed(name):
        return "", "is not installed"
    try:
        importlib.import_module(name)
    except Exception as error:  # as in `find`
        return "", f"does not work here ({type(error).__name__}: {' '.join(str(error).split())})"
    return _version(name), ""


def _threads() -> str:
    given = os.environ.get("MULTIOPT_NUM_THREADS")
    try:
        count = thread_count()
    except ValueError as error:
        return str(error)
    if given:
        return f"{count}, as MULTIOPT_NUM_THREADS says"
    return f"{count}, the processors that this process may use (set MULTIOPT_NUM_THREADS to change it)"
