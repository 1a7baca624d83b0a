"""The cases: which workloads are measured, with which contenders, and what else is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from multiopt.backends import thread_count

from .contenders import rows as of_rows
from .harness.contender import Contender, missing
from .harness.figures import FLOOR, Point, Result, Row
from .harness.process import peak
from .harness.race import Race
from .harness.workload import Shapes, Table, Workload, gpt2, resnet50

__all__ = ["CASES", "CUDA_CASES", "Run"]


@dataclass(frozen=True)
class Run:
    """What all cases of a run share."""

    contenders: Mapping[str, Contender]  # by key, in the order of the tables
    race: Race
    quick: bool  # shrink every workload, to see that all works rather than how fast it is
    device: str  # "cpu" or "cuda"

    def some(self, *keys: str, **changes: Any) -> list[Contender]:
        """Choose those contenders of this run that have one of these keys, and change them."""
        return [replace(c, **changes) for key, c in self.contenders.items() if key in keys]

    def size(self, elements: int, on_cuda: int = 0) -> int:
        """Choose a number of elements by the device, and shrink it if the run is quick."""
        elements = (on_cuda if self.device == "cuda" else 0) or elements
        return min(elements, 20_000) if self.quick else elements

    def measure(
        self, name: str, shapes: Shapes, contenders: Sequence[Contender] | None = None, dtype: str = "float32"
    ) -> Point:
        """Measure contenders, by default all, on one workload."""
        if self.quick:
            shapes = [tuple(min(n, 16) for n in shape) if len(shape) > 1 else shape for shape in shapes]
        contenders = [c for c in self.contenders.values() if c.whole] if contenders is None else contenders
        if dtype == "float64":
            contenders = with_environment(contenders, JAX_ENABLE_X64="1")
        return self.race(name, Workload(shapes, dtype), contenders)


def with_environment(contenders: Sequence[Contender], **variables: str) -> list[Contender]:
    """Add environment variables to contenders."""
    return [replace(c, environment={**c.environment, **variables}) for c in contenders]


def one_workload(
    name: str, title: str, shapes: Callable[[Run], Shapes], dtype: str = "float32"
) -> Callable[[Run], Result]:
    """Make the case of one workload; `title` is a format for its ``point`` and ``millions`` of parameters."""

    def case(run: Run) -> Result:
        point = run.measure(name, shapes(run), dtype=dtype)
        return Result(name, title.format(point=point, millions=point.elements / 1e6), [point])

    return case


#: Contenders of the cases that show how times grow.
GROWING = (FLOOR, "multiopt-numpy", "multiopt-torch", "multiopt-cupy", "torch-default", "torch-foreach")


def sweep(run: Run) -> Result:
    """One tensor, from tiny to large."""
    sizes = [100, 1000, 10_000] if run.quick else [10**2, 10**3, 10**4, 10**5, 10**6, 10**7, 32_000_000]
    contenders = run.some(*GROWING, "torch-adam", "optax", "numpy", "cupy")
    points = [run.measure(f"{n:,}", [(n,)], contenders) for n in sizes]
    return Result("sweep", "One tensor, float32, by its number of elements", points)


def count(run: Run) -> Result:
    """Tensors of 64 elements, by their number: what a tensor costs."""
    counts = [1, 10, 40] if run.quick else [1, 10, 100, 500, 1000, 2000, 4000]
    contenders = run.some(*GROWING, "multiopt-tensors")
    points = [run.measure(str(n), [(64,)] * n, contenders) for n in counts]
    return Result("count", "Tensors of 64 elements, by their number", points, lines(points))


def lines(points: Sequence[Point]) -> list[str]:
    """Fit a straight line, time against number of tensors, to every contender; say how well it fits."""
    notes = []
    for key, label in [(row.key, row.label) for row in points[0].rows if row.key != FLOOR]:
        seen = [(p.tensors, row.time) for p in points if (row := p.row(key)) and row.time]
        if len(seen) < 3:
            continue
        n, t = np.array(seen, float).T
        # Weighted by 1 / t, so that the short times count as much as the long ones.
        slope, start = np.polyfit(n, t, 1, w=1 / t)
        worst = np.max(np.abs(start + slope * n - t) / t)
        notes.append(f"{label}: {start * 1e6:.1f} µs + {slope * 1e6:.2f} µs a tensor, linear within {worst:.0%}")
    return notes


PASS = {"weight_decay": 0.01, "maximize": True, "clip_value": 1.0}
#: Key, label and arguments of the optimizers that show what options cost.
OPTIONS: list[tuple[str, str, dict[str, Any]]] = [
    ("none", "no option", {}),
    ("pass", "weight decay, maximize, clip by value", PASS),
    ("decoupled", "decoupled weight decay", {"weight_decay": 0.01, "decoupled": True}),
    ("norm", "clip by norm", {"clip_norm": 1.0}),
    ("global", "clip by global norm", {"clip_global_norm": 1.0}),
    ("all", "weight decay, maximize, clip by value and global norm", PASS | {"clip_global_norm": 1.0}),
    ("nonfinite", "skip steps with a gradient that is not finite", {"nonfinite": "skip"}),
    ("ema", "moving average of the parameters", {"ema": 0.99}),
]


def options(run: Run) -> Result:
    """Multiopt with its options on."""
    n = run.size(32_000_000)
    twice = {"key": "floor-read", "label": "floor, gradients read twice", "options": {"more_reads": 1}}
    contenders = [*run.some(FLOOR), *run.some(FLOOR, **twice)]
    for key, label, chosen in OPTIONS:
        contenders += run.some("multiopt-numpy", key=f"options-{key}", label=label, options=chosen)
    points = [run.measure("options", [(n,)], contenders)]
    return Result("options", f"multiopt, NumPy, one tensor of {n:,} elements, float32", points)


def embedding(run: Run) -> Result:
    """A sparse gradient: some rows of an embedding."""
    table = Table([(2000, 16)], rows=20) if run.quick else Table([(1_000_000, 64)], rows=1000)
    contenders = [
        *run.some(FLOOR, label="floor, these rows", build=of_rows.floor_of_rows),
        *run.some("multiopt-numpy", label="multiopt.keras.legacy, NumPy", build=of_rows.legacy_numpy),
        *run.some("multiopt-tensors", label="multiopt.keras.legacy, PyTorch", build=of_rows.legacy_tensors),
        *run.some("tf-keras"),
    ]
    (n, width), dtype = table.shapes[0], table.dtype
    points = [run.race("embedding", table, contenders)]
    return Result("embedding", f"{table.rows:,} rows of an embedding of {n:,} × {width}, {dtype}", points)


def threads(run: Run) -> Result:
    """One thread and all."""
    n, points = run.size(32_000_000), []
    contenders = run.some(FLOOR, "multiopt-numpy", "multiopt-torch", "torch-default", "torch-adam")
    for number in sorted({1, thread_count()}):
        told = with_environment(contenders, MULTIOPT_NUM_THREADS=str(number), OMP_NUM_THREADS=str(number))
        points.append(run.measure(f"{number} thread{'s' * (number > 1)}", [(n,)], told))
    return Result("threads", f"One tensor of {n:,} elements, float32, by the number of threads", points)


def memory(run: Run) -> Result:
    """Memory that a step takes beyond parameters, gradients and state."""
    shapes: dict[str, Shapes] = {f"{n:,}": [(n,)] for n in map(run.size, (1_000_000, 32_000_000))}
    if not run.quick:
        shapes["GPT-2 small"] = gpt2()
    clipped = {"label": "multiopt, NumPy, global norm clipped", "options": {"clip_global_norm": 1.0}}
    contenders = [c for c in run.contenders.values() if c.whole and c.key != FLOOR]
    contenders += run.some("multiopt-numpy", key="multiopt-global", **clipped)
    race = replace(run.race, rounds=0, extra=peak)
    points = [race(name, Workload(tensors), contenders) for name, tensors in shapes.items()]
    return Result("memory", "Peak extra memory of a step", points, kind="memory")


def imports(run: Run) -> Result:
    """Time of imports, beyond NumPy's, each in a fresh process."""
    wanted = [name for name in ("torch", "optax", "keras") if any(name in key for key in run.contenders)]
    rows = [Row(f"import-{name}", f"import {name}", absent=missing(name)) for name in ("multiopt", *wanted)]
    for number in range(min(run.race.rounds, 9)):
        run.race.progress(f"import: round {number + 1}")
        for row in [row for row in rows if row.absent is None]:
            done = subprocess.run(
                [sys.executable, "-c", IMPORT.format(row.label)],
                capture_output=True,
                text=True,
                env={"KERAS_BACKEND": "numpy", **os.environ},
            )
            if done.returncode:
                row.samples, row.absent = [], f"failed: {done.stderr.strip().splitlines()[-1:]}"
            else:
                row.samples.append(float(done.stdout.split()[-1]))
    return Result("import", "Time of an import beyond `import numpy`", [Point("import", rows)], kind="import")


IMPORT = "import numpy, sys, time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"
LARGE = "One tensor of {point.elements:,} elements, {point.dtype}"
MODEL = "{point.tensors} tensors, {millions:.1f} M parameters"
SMALL = "{point.tensors:,} tensors of 64 elements"
#: Every case of the CPU, by name, in the order in which they are run.
CASES: dict[str, Callable[[Run], Result]] = {
    "large": one_workload("large", LARGE, lambda run: [(run.size(32_000_000, 250_000_000),)]),
    "large64": one_workload("large64", LARGE, lambda run: [(run.size(16_000_000, 125_000_000),)], "float64"),
    "gpt2": one_workload("gpt2", f"GPT-2 small: {MODEL}", lambda run: gpt2()),
    "resnet50": one_workload("resnet50", f"ResNet-50: {MODEL}", lambda run: resnet50()),
    "small": one_workload("small", SMALL, lambda run: [(64,)] * (100 if run.quick else 1000)),
    "count": count,
    "sweep": sweep,
    "options": options,
    "embedding": embedding,
    "threads": threads,
    "memory": memory,
    "import": imports,
}
#: Those that make sense on CUDA.
CUDA_CASES = ("large", "large64", "gpt2", "resnet50", "small", "count", "sweep")
