"""What a contender is: a name, what it needs, and a function that sets it up in a process of its own."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from time import perf_counter
from typing import Any

import numpy as np

from .workload import Workload

__all__ = ["Contender", "Running", "missing"]

#: Bytes of a process with an array library and a compiler, beside its arrays.
PROCESS = 200e6


@dataclass
class Running:
    """A contender that is set up."""

    step: Callable[[], Any]  # does one step; the work may still be going on when it returns
    params: Callable[[], list[np.ndarray]]  # to see that the contender did its work
    began: float  # what the clock said when parameters and gradients were there and setting up began
    wait: Callable[[], Any] = lambda: None  # waits until the work of all steps is done

    def sample(self, n: int) -> float:
        """Do `n` steps, wait until they are done, and return the seconds that they took."""
        start = perf_counter()
        for _ in range(n):
            self.step()
        self.wait()
        return perf_counter() - start

    def counts(self) -> dict[str, int | None]:
        """Count what a step does on a device, by the name of the table's column."""
        return {}


@dataclass(frozen=True)
class Contender:
    """What is measured, and how to set it up."""

    key: str  # for --contenders and the JSON file
    label: str  # for the tables
    build: Callable[..., Running]  # a function of a module, called with a workload and the options
    needs: tuple[str, ...] = ()  # modules without which it is absent; they are imported before any clock is read
    arrays: float = 4  # that it has at its peak, where an update has four, to keep within the machine's memory
    options: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)  # variables of its process
    excuse: str | None = None  # why it is left out of this run
    whole: bool = True  # whether it takes gradients of whole tensors, as all cases have them but that of rows

    def absent(self) -> str | None:
        """Say why it cannot run here, or return None."""
        return self.excuse or missing(*self.needs)

    def memory(self, workload: Workload) -> float:
        """Bytes that its process takes on a workload, about."""
        return PROCESS + workload.held * self.arrays / 4

    def start(self, workload: Workload) -> Running:
        """Import what it needs, and set it up in this process."""
        for name in self.needs:
            import_module(name)
        return self.build(workload, **self.options)


def missing(*modules: str) -> str | None:
    """Say which modules are not installed, or return None."""
    names = [name for name in modules if importlib.util.find_spec(name.partition(".")[0]) is None]
    return f"{' and '.join(names)} not installed" if names else None
