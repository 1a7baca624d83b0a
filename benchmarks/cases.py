"""The cases: which workloads are raced, by whom, and what else is measured."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from multiopt.backends.engines.host.threads import thread_count

from .contender import Contender
from .figures import FLOOR, Point, Result, Row
from .race import Pace, Process, race
from .workload import Shapes, Workload, gpt2, resnet50

__all__ = ["CASES", "CUDA_CASES", "Run"]


@dataclass(frozen=True)
class Run:
    """What all cases of a run share.

    Parameters
    ----------
    contenders : mapping of str to Contender
        By key, in the order of the tables.
    pace : Pace
    quick : bool
        Whether to shrink every workload, to see that all works rather than how fast it is.
    device : str
        ``"cpu"`` or ``"cuda"``.
    told : callable
        Told in a few words what is going on.
    """

    contenders: Mapping[str, Contender]
    pace: Pace
    quick: bool
    device: str
    told: Callable[[str], None]

    def some(self, *keys: str) -> list[Contender]:
        """Choose contenders by key, those of this run."""
        return [c for key, c in self.contenders.items() if key in keys]

    def size(self, elements: int) -> int:
        """Shrink a number of elements if the run is quick."""
        return min(elements, 20_000) if self.quick else elements

    def race(
        self, name: str, shapes: Shapes, contenders: Sequence[Contender] | None = None, dtype: str = "float32"
    ) -> Point:
        """Race contenders, by default all, at one workload."""
        if self.quick:
            shapes = [tuple(min(n, 16) for n in shape) if len(shape) > 1 else shape for shape in shapes]
        field = list(self.contenders.values()) if contenders is None else list(contenders)
        if dtype == "float64":
            field = [replace(c, environment={**c.environment, "JAX_ENABLE_X64": "1"}) for c in field]
        return race(name, Workload(shapes, dtype), field, self.pace, self.told, counts=self.device == "cuda")


def large(run: Run) -> Result:
    """One large tensor, float32."""
    n = run.size(32_000_000 if run.device == "cpu" else 250_000_000)
    return Result("large", f"One tensor of {n:,} elements, float32", [run.race("large", [(n,)])])


def large64(run: Run) -> Result:
    """One large tensor, float64."""
    n = run.size(16_000_000 if run.device == "cpu" else 125_000_000)
    return Result("large64", f"One tensor of {n:,} elements, float64", [run.race("large64", [(n,)], dtype="float64")])


def model(name: str, title: str, shapes: Shapes) -> Callable[[Run], Result]:
    """Make the case of a model's tensors."""

    def case(run: Run) -> Result:
        point = run.race(name, shapes)
        return Result(name, f"{title}: {point.tensors} tensors, {point.elements / 1e6:.1f} M parameters", [point])

    return case


def small(run: Run) -> Result:
    """Many small tensors."""
    n = 100 if run.quick else 1000
    return Result("small", f"{n:,} tensors of 64 elements", [run.race("small", [(64,)] * n)])


def sweep(run: Run) -> Result:
    """One tensor, from tiny to large."""
    sizes = [100, 1000, 10_000] if run.quick else [10**2, 10**3, 10**4, 10**5, 10**6, 10**7, 32_000_000]
    keys = [FLOOR, "multiopt-numpy", "multiopt-torch", "multiopt-cupy", "torch-default", "torch-foreach"]
    keys += ["torch-adam", "optax", "numpy", "cupy"]
    points = [run.race(f"{n:,}", [(n,)], run.some(*keys)) for n in sizes]
    return Result("sweep", "One tensor, float32, by its number of elements", points)


def count(run: Run) -> Result:
    """Tensors of 64 elements, by their number: what a tensor costs."""
    counts = [1, 10, 40] if run.quick else [1, 10, 100, 500, 1000, 2000, 4000]
    keys = [
        FLOOR,
        "multiopt-numpy",
        "multiopt-tensors",
        "multiopt-torch",
        "multiopt-cupy",
        "torch-default",
        "torch-foreach",
    ]
    points = [run.race(str(n), [(64,)] * n, run.some(*keys)) for n in counts]
    return Result("count", "Tensors of 64 elements, by their number", points, lines(points))


def lines(points: Sequence[Point]) -> list[str]:
    """Fit a straight line, time against number of tensors, to every row; say how well it fits."""
    notes = []
    for key in [row.key for row in points[0].rows if row.key != FLOOR]:
        rows = [(p.tensors, row.time, row.label) for p in points if (row := p.row(key)) and row.time]
        if len(rows) < 3:
            continue
        n, t = (np.array(column, float) for column in list(zip(*rows, strict=True))[:2])
        # Weighted by 1 / t, so that the short times count as much as the long ones.
        slope, start = np.polyfit(n, t, 1, w=1 / t)
        worst = np.max(np.abs(start + slope * n - t) / t)
        line = f"{start * 1e6:.1f} µs + {slope * 1e6:.2f} µs a tensor"
        notes.append(f"{rows[0][2]}: {line}, straight within {worst:.0%}")
    return notes


def options(run: Run) -> Result:
    """Multiopt with its options on."""
    n = run.size(32_000_000)
    ours, floor = run.some("multiopt-numpy"), run.some(FLOOR)
    pass_ = {"weight_decay": 0.01, "maximize": True, "clip_value": 1.0}
    field = [*floor]
    field += [
        replace(c, key="floor-read", label="floor, gradients read twice", options={"more_reads": 1}) for c in floor
    ]
    variants: list[tuple[str, str, dict[str, Any]]] = [
        ("none", "no option", {}),
        ("pass", "weight decay, maximize, clip by value", pass_),
        ("decoupled", "decoupled weight decay", {"weight_decay": 0.01, "decoupled": True}),
        ("norm", "clip by norm", {"clip_norm": 1.0}),
        ("global", "clip by global norm", {"clip_global_norm": 1.0}),
        ("all", "weight decay, maximize, clip by value and global norm", pass_ | {"clip_global_norm": 1.0}),
        ("nonfinite", "skip steps with a gradient that is not finite", {"nonfinite": "skip"}),
        ("ema", "moving average of the parameters", {"ema": 0.99}),
    ]
    for key, label, chosen in variants:
        field += [replace(c, key=f"options-{key}", label=label, options=chosen) for c in ours]
    return Result(
        "options",
        f"multiopt, NumPy, one tensor of {n:,} elements, float32",
        [run.race("options", [(n,)], field)],
    )


def threads(run: Run) -> Result:
    """One thread and all."""
    n, points = run.size(32_000_000), []
    for number in sorted({1, thread_count()}):
        told = {"MULTIOPT_NUM_THREADS": str(number), "OMP_NUM_THREADS": str(number)}
        field = [
            replace(c, environment={**c.environment, **told})
            for c in run.some(FLOOR, "multiopt-numpy", "multiopt-torch", "torch-default", "torch-adam")
        ]
        points.append(run.race(f"{number} thread{'s' * (number > 1)}", [(n,)], field))
    return Result("threads", f"One tensor of {n:,} elements, float32, by the number of threads", points)


def memory(run: Run) -> Result:
    """Memory that a step takes beyond parameters, gradients and state."""
    shapes: dict[str, Shapes] = {f"{n:,}": [(n,)] for n in map(run.size, (1_000_000, 32_000_000))}
    if not run.quick:
        shapes["GPT-2 small"] = gpt2()
    field = [c for c in run.contenders.values() if c.key != FLOOR]
    field += [
        replace(
            c,
            key="multiopt-global",
            label="multiopt, NumPy, global norm clipped",
            options={"clip_global_norm": 1.0},
        )
        for c in run.some("multiopt-numpy")
    ]
    points = []
    for name, tensors in shapes.items():
        workload, rows = Workload(tensors), []
        for contender in field:
            row = Row(contender.key, contender.label, absent=contender.absent())
            rows.append(row)
            if row.absent is not None:
                continue
            run.told(f"memory: {name}, {contender.label}")
            process = Process(contender)
            try:
                process.open(workload)
                process("sample", n=2)
                row.extra.update(process("peak"))
            except RuntimeError as error:
                row.absent = f"failed: {error}"
            finally:
                process.close()
        points.append(Point(name, workload.elements, len(workload.shapes), workload.moved, workload.dtype, rows))
    return Result("memory", "Peak extra memory of a step", points, kind="memory")


IMPORT = "import numpy, sys, time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"


def imports(run: Run) -> Result:
    """Time of imports, beyond NumPy's, each in a fresh process."""
    wanted = ["multiopt"] + [name for name in ("torch", "optax", "keras") if any(name in key for key in run.contenders)]
    rows = [Row(f"import-{name}", f"import {name}") for name in wanted]
    for row in rows:
        row.absent = Contender(row.key, row.label, "", (row.key.removeprefix("import-"),)).absent()
    for number in range(min(run.pace.rounds, 9)):
        run.told(f"import: round {number + 1}")
        for row in rows:
            if row.absent is None:
                program = IMPORT.format(row.key.removeprefix("import-"))
                environment = {"KERAS_BACKEND": "numpy", **os.environ}
                done = subprocess.run(
                    [sys.executable, "-c", program],
                    capture_output=True,
                    text=True,
                    check=False,
                    env=environment,
                )
                if done.returncode:
                    row.samples, row.absent = [], f"failed: {done.stderr.strip().splitlines()[-1:]}"
                else:
                    row.samples.append(float(done.stdout.split()[-1]))
    return Result(
        "import",
        "Time of an import beyond `import numpy`",
        [Point("import", 0, 0, 0, "", rows)],
        kind="import",
    )


#: Every case of the CPU, by name, in the order in which they are run.
CASES: dict[str, Callable[[Run], Result]] = {
    "large": large,
    "large64": large64,
    "gpt2": model("gpt2", "GPT-2 small", gpt2()),
    "resnet50": model("resnet50", "ResNet-50", resnet50()),
    "small": small,
    "count": count,
    "sweep": sweep,
    "options": options,
    "threads": threads,
    "memory": memory,
    "import": imports,
}
#: Those that make sense on CUDA.
CUDA_CASES = ("large", "large64", "gpt2", "resnet50", "small", "count", "sweep")
