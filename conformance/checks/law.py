"""What a law is, and how it is tried: on cases drawn by hypothesis, the same ones in every run."""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings

from ..data.case import Case
from ..data.specification import HOLDERS, Config
from ..reference.compare import Distance
from ..targets.build import unsupported
from ..targets.target import Target
from .examples import OPTIONS, drawn, make_case
from .verdict import Verdict

#: Cases a law is tried on: of a target that is fast, and of one that is slow or compiles a kernel for each option.
EXAMPLES, FEW = 12, 3
#: What a law does with a target and a case; what else it needs it draws from the generator.
Check = Callable[[Target, Case, np.random.Generator], None]
_COMPILE = ("host", "jit", "keras", "cuda")
_STORAGE = "HYPOTHESIS_STORAGE_DIRECTORY"


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """Let hypothesis keep its folder where it is thrown away, and not where the command is run."""
    with tempfile.TemporaryDirectory() as folder:
        mine = os.environ.setdefault(_STORAGE, folder) == folder
        try:
            yield
        finally:
            if mine:
                del os.environ[_STORAGE]


class BrokenError(AssertionError):
    """A law that does not hold, and where."""

    def __init__(self, message: str, place: Distance | None = None) -> None:
        super().__init__(message)
        self.place = place


@dataclass(frozen=True)
class Law:
    """One law."""

    name: str
    about: str
    #: Raises `BrokenError`.
    check: Check
    #: Names of the options, and data types, that it holds for.
    labels: tuple[str, ...] = tuple(OPTIONS)
    dtypes: tuple[str, ...] = tuple(HOLDERS)
    #: Engines that it is about; None for all.
    engines: tuple[str, ...] | None = None
    #: Options that its second case has, whatever those of the first.
    needs: Config | None = None

    def concerns(self, target: Target) -> bool:
        """Tell whether the law says anything about `target`."""
        if self.engines is not None and (target.engine not in self.engines or target.optimizer is not None):
            return False
        return bool((not self.needs or _supports(target, self.needs)) and self._labels(target) and self._dtypes(target))

    def _labels(self, target: Target) -> list[str]:
        return [name for name in self.labels if _supports(target, OPTIONS[name])]

    def _dtypes(self, target: Target) -> list[str]:
        return [dtype for dtype in HOLDERS if dtype in self.dtypes and target.lacks(dtype) is None]

    def verdict(self, target: Target, examples: int | None = None) -> Verdict:
        """Try the law on `target`, on so many cases: by default `EXAMPLES`, or `FEW` where each takes long."""
        few = examples is None and (target.slow or target.engine in _COMPILE)
        count = examples or (FEW if few else EXAMPLES)
        tried: list[str] = []

        # The same cases in every run. Others for each law, unless each new shape asks a compiler for something.
        @seed(0 if few else zlib.crc32(self.name.encode()))
        @settings(
            max_examples=count, database=None, deadline=None, phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(example=drawn(self._labels(target), self._dtypes(target)))
        def holds(example: tuple[Case, int]) -> None:
            case, number = example
            shapes = ", ".join(map(str, case.shapes))
            tried.append(f"{case.scenario}, {case.dtype}, shapes {shapes}, {case.steps} steps, seed {number}")
            with target.arrays.active():
                self.check(target, case, np.random.default_rng(number))

        blank = Verdict("law", target.name, "", "", self.name, "passed", reason=self.about)
        try:
            holds()
        except Exception as error:
            # Whatever goes wrong is a finding about the target, not the end of the check.
            place = error.place if isinstance(error, BrokenError) else None
            told = str(error) if isinstance(error, BrokenError) else f"{type(error).__name__}: {error}"
            return replace(blank, outcome="failed", place=place, note=f"{' '.join(told.split())} ({tried[-1]})")
        return replace(blank, note=f"{len(tried)} cases")


def law(**options: Any) -> Callable[[Check], Law]:
    """Make a law of a function: with the name of the function, and its docstring for what it says."""
    return lambda check: Law(check.__name__.replace("_", " "), str(check.__doc__).rstrip("."), check, **options)


def _supports(target: Target, config: Config) -> bool:
    return unsupported(target, make_case("", "float32", ((5,),), 1, 0, config)) is None
