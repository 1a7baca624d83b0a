"""The cases: which workloads are measured, with which contenders, and what else is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from multiopt.backends import thread_count

from .contenders import rows as of_rows
from .contenders.jax import nothing
from .harness.contender import Running, missing
from .harness.figures import FLOOR, Point, Result, Row
from .harness.machine import memory as memory_of
from .harness.process import peak
from .harness.race import Heat
from .harness.workload import DRAWN, Shapes, Table, Workload, gpt2, resnet50
from .run import Run, with_environment
from .turns import OURS, dtypes, options, paths

__all__ = ["CASES", "CUDA_CASES", "UNASKED"]


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


def jax(run: Run) -> Result:
    """JAX arrays, inside `jax.jit` and outside: one large tensor, and many small ones."""
    shapes: list[Shapes] = [[(run.size(32_000_000),)], [(64,)] * (100 if run.quick else 1000)]
    ours = "multiopt-jax", "multiopt-arrays", "multiopt-donate", "multiopt-step", "multiopt-optax", "keras-ours"
    call = run.some("multiopt-jax", key="jax-call", label="JAX, a call that does nothing", build=nothing)
    contenders = [*run.some(FLOOR, *ours, "optax", "keras-jax"), *call]
    large, small = points = [run.measure(f"{len(each):,} × {each[0][0]:,}", each, contenders) for each in shapes]
    pairs = zip(large.rows, small.rows, strict=True)
    notes = [
        f"{one.label}: the first step, compiled, is done after {one.ready:.2f} and {other.ready:.2f} s"
        for one, other in pairs
        if one.key != FLOOR and one.ready and other.ready
    ]
    return Result("jax", "JAX arrays, float32", points, notes)


def tiny(run: Run) -> Result:
    """So many tensors that nothing but what a tensor costs is left."""
    shapes = [(8,)] * (100 if run.quick else 100_000)
    points = [run.measure("tiny", shapes, run.some(FLOOR, *OURS, "torch-foreach", "torch-adam"))]
    return Result("tiny", f"{len(shapes):,} tensors of 8 elements, float32", points)


def huge(run: Run) -> Result:
    """One tensor with more elements than 32 bits count; contenders one after another, for each fills the memory."""
    workload = Workload([(run.size(2**31) + 5,)], "bfloat16")
    race, rows, free = replace(run.race, extra=alike), list[Row](), memory_of(run.device)
    for contender in run.some(FLOOR, *OURS):
        needed = contender.memory(workload)
        excuse = f"needs {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free" if needed > free else None
        rows += race(Heat("huge", workload, [replace(contender, excuse=contender.excuse or excuse)]))[0].rows
    for row in rows:
        row.floor = rows[0].samples
    title = f"One tensor of {workload.elements:,} elements, {workload.dtype}; bits compared with those of its like"
    return Result("huge", title, [Point("huge", rows, **workload.facts())])


def alike(running: Running) -> dict[str, Any]:
    """Nothing; ValueError if an element is not what its like, `DRAWN` before it, has become, bit for bit."""
    for array in running.params():
        bits = array.view(f"u{array.itemsize}")
        for start in range(DRAWN, len(bits), DRAWN):
            differs = bits[start : start + DRAWN] != bits[: min(DRAWN, len(bits) - start)]
            if differs.any():
                raise ValueError(f"element {start + int(differs.argmax())} is not what its like has become")
    return {}


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
    points = run.race(Heat("embedding", table, contenders))
    return Result("embedding", f"{table.rows:,} rows of an embedding of {n:,} × {width}, {dtype}", points)


def threads(run: Run) -> Result:
    """One thread, as many as processors, and twice as many."""
    n, points = run.size(32_000_000), []
    contenders = run.some(FLOOR, "multiopt-numpy", "multiopt-torch", "torch-default", "torch-adam")
    for number in sorted({1, thread_count(), 2 * thread_count()}):
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
    points = [race(Heat(name, Workload(tensors), contenders))[0] for name, tensors in shapes.items()]
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
    "jax": jax,
    "tiny": tiny,
    "dtypes": dtypes,
    "options": options,
    "paths": paths,
    "embedding": embedding,
    "threads": threads,
    "memory": memory,
    "import": imports,
    "huge": huge,
}
#: Those that run only if they are named.
UNASKED = ("huge",)
#: Those that make sense on CUDA.
CUDA_CASES = ("large", "large64", "gpt2", "resnet50", "small", "count", "sweep")
