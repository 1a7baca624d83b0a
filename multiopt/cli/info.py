"""``multiopt info``: the installed array libraries, the engine that each one gets, and why not a faster one."""

from __future__ import annotations

import argparse
import os

from ..backends import libraries, thread_count
from .libraries import find, problem, version

__all__ = ["add_arguments", "main"]

#: Optional modules: what installs each one, and what it is for.
MODULES = {
    "numba": ('"multiopt[numba]"', "the host engine: compiled loops over NumPy arrays and PyTorch CPU tensors"),
    "optree": ('"multiopt[tree]"', "parameters in nested containers"),
    "safetensors": ('"multiopt[conformance]"', "the recorded traces of the conformance suite"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: ``multiopt info`` has no options."""


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
        found = [find(library.name) for library in libraries()]
    table = Table("library", "version", "device", "engine for float32", box=box.SIMPLE_HEAD)
    notes = []
    for library in found:
        if library.problem:
            table.add_row(library.name, library.version, "–", "–", style="dim")
            notes.append(f"{library.name} {library.problem}")
        for place in library.places:
            style = "yellow" if place.reasons else "green"
            table.add_row(library.name, library.version, Text(place.name), Text(place.engine, style=style))
            where = f"{library.name} on {place.name}"
            notes += [f"{where}, no {name} engine: {why}" for name, why in place.reasons.items()]
    modules = Table("module", "version", "for", box=box.SIMPLE_HEAD)
    for name, (requirement, purpose) in MODULES.items():
        reason = problem(name, requirement)
        modules.add_row(name, version(name) or "–", purpose, style="dim" if reason else "")
        notes += [f"{name} {reason}"] if reason else []
    console.print(table, modules)
    lines = Table.grid(padding=(0, 1))
    for note in (*notes, f"threads of the host engine: {_threads()}"):
        lines.add_row(" ·", Text(note))
    console.print(lines)
    return 0


def _threads() -> str:
    try:
        count = thread_count()
    except ValueError as error:
        return str(error)
    if os.environ.get("MULTIOPT_NUM_THREADS"):
        return f"{count}, from MULTIOPT_NUM_THREADS"
    return (
        f"{count}, as many as processors that this process may use, or fewer: what OMP_NUM_THREADS says; for tensors,"
        " torch.get_num_threads(). MULTIOPT_NUM_THREADS goes before them"
    )
