"""What a law is, and how it is tried: on cases drawn by hypothesis, the same ones in every run."""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from ..data.case import Array, Case
from ..data.floats import rounded
from ..data.specification import HOLDERS, Config
from ..reference.compare import Distance
from ..targets.build import unsupported
from ..targets.target import Target
from .verdict import Verdict

#: Options by name. Few, because each asks a compiler for a kernel of its own.
OPTIONS: Mapping[str, Config] = {
    "plain": Config(),
    "paper": Config(lr=1.0, rho=0.95, eps=1e-6),
    "coupled": Config(lr=0.3, rho=0.5, eps=1e-3, weight_decay=0.1, decay_kind="coupled"),
    "decoupled": Config(weight_decay=0.1, decay_kind="decoupled"),
    "clipvalue": Config(rho=0.0, eps=0.1, clipvalue=0.5),
    "clipnorm": Config(clipnorm=0.75),
    "global-clipnorm": Config(rho=0.95, global_clipnorm=1.5),
    "accumulate": Config(accumulate=2),
    "ema": Config(ema_momentum=0.75),
}
#: Few again, and every kind: one element, none at all, no axis, several.
SHAPES: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (5,), (2, 3))
#: Cases a law is tried on: of a target that is fast, and of one that is slow or compiles a kernel for each option.
EXAMPLES, FEW = 12, 3
#: What a law does with a target and a case; what else it needs it draws from the generator.
Check = Callable[[Target, Case, np.random.Generator], None]
_COMPILE = ("host", "jit", "keras", "cuda")
_STORAGE = "HYPOTHESIS_STORAGE_DIRECTORY"


@st.composite
def drawn(draw: Any, labels: Sequence[str], dtypes: Sequence[str]) -> tuple[Case, int]:
    """Draw a case and the seed that it was made with; the first are the simplest."""
    label, dtype = draw(st.sampled_from(labels)), draw(st.sampled_from(dtypes))
    shapes = tuple(draw(st.lists(st.sampled_from(SHAPES[::-1]), min_size=1, max_size=3)))
    steps = draw(st.integers(1, 3))
    seed = draw(st.integers(0, 2**16))
    return make_case(label, dtype, shapes, steps, seed), seed


def make_case(
    label: str, dtype: str, shapes: tuple[tuple[int, ...], ...], steps: int, seed: int, config: Config | None = None
) -> Case:
    """Return a case with random parameters and gradients: several decades, some zeros, no number that anybody flushes.

    Its options are `config`, or those of the name `label` in `OPTIONS`. ``steps`` are updates: under accumulation
    there are more gradients.
    """
    rng = np.random.default_rng(seed)
    chosen = OPTIONS[label] if config is None else config
    half = dtype in ("float16", "bfloat16")
    if half and chosen.eps < 1e-3:
        chosen = replace(chosen, eps=1e-3)  # float16 has nothing near 1e-6

    def draw(shape: tuple[int, ...], low: int, high: int) -> Array:
        whole = (*shape, 2) if dtype.startswith("complex") else shape
        values = rng.uniform(1.0, 9.0, whole) * 10.0 ** rng.integers(low, high + 1, whole)
        values = values * rng.choice([-1.0, 1.0], whole) * (rng.random(whole) > 0.1)
        if dtype.startswith("complex"):
            values = values[..., 0] + 1j * values[..., 1]
        return rounded(np.asarray(values).astype(HOLDERS[dtype]), dtype)

    start = [draw(shape, -1, 0) for shape in shapes]
    low, high = (-2, 0) if half else (-4, 2)
    gradients = [[draw(shape, low, high) for shape in shapes] for _ in range(steps * chosen.accumulate)]
    return Case(label, dtype, chosen, start, gradients)


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
        @seeded(0 if few else zlib.crc32(self.name.encode()))
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
