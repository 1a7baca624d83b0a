"""What a contender is: a name, what it needs, and a function that sets it up in a process of its own."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from time import perf_counter
from types import MappingProxyType
from typing import Any

import numpy as np

from .workload import Workload

__all__ = ["Contender", "Running", "wall"]


@dataclass
class Running:
    """A contender that is set up.

    Parameters
    ----------
    sample : callable
        ``sample(n)`` does n steps, waits until they are done and returns the seconds that they took.
    step : callable
        Does one step, without waiting.
    params : callable
        The parameters as NumPy arrays, to see that the contender did its work.
    began : float
        What the clock said when parameters and gradients were there and setting up began.
    counts : callable, optional
        Counts what a step does on a device: ``{"launches": ..., "allocations": ...}``.
    """

    sample: Callable[[int], float]
    step: Callable[[], Any]
    params: Callable[[], list[np.ndarray]]
    began: float
    counts: Callable[[], dict[str, int | None]] | None = None


def wall(step: Callable[[], Any], wait: Callable[[], Any] | None = None) -> Callable[[int], float]:
    """Make a `sample` function that reads this process' clock."""

    def sample(n: int) -> float:
        start = perf_counter()
        for _ in range(n):
            step()
        if wait is not None:
            wait()
        return perf_counter() - start

    return sample


@dataclass(frozen=True)
class Contender:
    """One row of a table.

    Parameters
    ----------
    key : str
        For ``--rows`` and the JSON file.
    label : str
        For people.
    build : str
        ``module:function`` of this package; called with a workload and `options`, it returns a `Running`.
    needs : tuple of str
        Modules without which it is absent.
    arrays : float
        How many arrays of all parameters' size it has at its peak, to keep within the machine's memory.
    options : mapping
        Passed to `build`.
    environment : mapping of str to str
        Environment variables of its process.
    excuse : str, optional
        Why it is left out of this run.
    """

    key: str
    label: str
    build: str
    needs: tuple[str, ...] = ()
    arrays: float = 4
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    excuse: str | None = None

    def absent(self) -> str | None:
        """Say why it cannot run here, or return None."""
        if self.excuse is not None:
            return self.excuse
        missing = [name for name in self.needs if not _found(name)]
        return f"{' and '.join(missing)} not installed" if missing else None

    def prepare(self) -> Callable[[Workload, dict[str, Any]], Running]:
        """Import what it needs, so that the time of imports is not counted, and return the function."""
        for name in self.needs:
            import_module(name)
        module, function = self.build.split(":")
        return getattr(import_module(f".{module}", __package__), function)


def _found(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is missing
        return False
