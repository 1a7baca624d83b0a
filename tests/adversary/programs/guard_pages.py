"""Buckets of arrays between guard pages, updated, measured, summed and averaged: the same bits as on ordinary memory.

Run in a process of its own: one byte beyond an array ends it.
"""

import itertools
import os

import ml_dtypes
import numpy as np
from guarded import Guarded, strides_of
from libraries import torch_tensor
from multiopt.backends.engines.host.engine import COPIED, PIECE, SERIAL
from multiopt.backends.engines.host.squares import BLOCK

from multiopt import ADADELTA
from multiopt.binding import Binding
from multiopt.plan import run
from multiopt.update import AVERAGE, REPLACE, SUM, FusedUpdate

#: Dtypes of the parameter, the gradient and the state.
DTYPES = [
    *((dtype,) * 3 for dtype in ("float16", "bfloat16", "float32", "float64", "complex64", "complex128")),
    ("bfloat16", "bfloat16", "float32"), ("float32", "float32", "float64"), ("complex64", "complex64", "complex128"),
    ("float16", "float32", "float32"), ("float64", "float64", "float32"),
]  # fmt: skip
OPTIONS = {
    "plain": {},
    "all": {"scaled": True, "clipped": True, "normed": True, "coupled": True},
    "decoupled": {"decoupled": True, "normed": True},
}
NUMBERS = {"lr": 0.5, "rho": 0.9, "eps": 1e-3, "scale": -0.5, "clip_value": 1.0, "weight_decay": 0.01}
SMALL = range(71)
LARGE = sorted({max(0, limit * k + d) for limit in (BLOCK, SERIAL, COPIED, PIECE) for k in (1, 2) for d in (-1, 0, 1)})
LAYOUTS = "C", "F", "gaps", "backwards", "shifted"


def native(dtype):
    return np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


class Arrays:
    """One array of a bucket: between guard pages, and its twin in ordinary memory."""

    def __init__(self, rng, library, shape, dtype, layout, side, positive=False, readonly=False):
        values = rng.standard_normal((2, *shape))
        values = np.abs(values) if positive else values
        plain = (values[0] + 1j * values[1] if dtype.startswith("complex") else values[0]).astype(native(dtype))
        self.plain = np.asarray(plain)
        strides = strides_of(layout, shape, self.plain.itemsize)
        self.guarded = Guarded(self.plain, side, strides, 1 if layout == "shifted" else 0, readonly)
        self.given = torch_tensor(self.guarded.array) if library == "torch" else self.guarded.array

    def check(self, what):
        if self.guarded.array.tobytes() != self.plain.tobytes():
            raise AssertionError(f"other bits than on ordinary memory: {what}")
        if not self.guarded.slack_is_whole():
            raise AssertionError(f"bytes of nobody's were written: {what}")


def shape_of(rng, size):
    """A shape of a size, of one to three axes."""
    divisors = [d for d in range(1, min(size, 64) + 1) if size % d == 0] or [1]
    first = int(rng.choice(divisors))
    return [(size,), (first, size // first), (1, size // first, first)][rng.integers(3)]


def one_bucket(rng, library, dtypes, options, sizes, layouts, sides):
    """Update a bucket of such arrays by every kernel; the number of arrays that were."""
    dtype, grad_dtype, state_dtype = dtypes
    columns = {"x": dtype, "square_avg": state_dtype, "acc_delta": state_dtype, "sum": state_dtype, "ema": state_dtype}
    if library == "torch":  # has no strides below 0, and ends the process itself where complex128 is not aligned
        layouts = [layout for layout in layouts if layout not in ("backwards", "shifted")]
    rows = []
    for size in sizes:
        shape, layout = shape_of(rng, size), layouts[rng.integers(len(layouts)) if rng.random() < 0.5 else 0]
        # All of one layout as a rule, each its own as an exception.
        own = [layout if rng.random() < 0.8 else layouts[rng.integers(len(layouts))] for _ in range(6)]
        made = {
            name: Arrays(rng, library, shape, kind, own[j], sides[rng.integers(len(sides))], positive="_" in name)
            for j, (name, kind) in enumerate(columns.items())
        }
        made["g"] = Arrays(rng, library, shape, grad_dtype, own[5], sides[rng.integers(len(sides))], readonly=True)
        rows.append(made)
    what = library, dtypes, options, list(sizes)
    skipped = [rng.random() < 0.1 for _ in rows] if len(rows) > 1 else [False]
    update = FusedUpdate(ADADELTA, **OPTIONS[options])

    def steps(attribute, engine):
        def column(name):
            return [getattr(row[name], attribute) for row in rows]

        def bound(rule, name, state=None, grads=grad_dtype):
            return Binding(rule, column(name), names, state=state, grad_dtypes=[grads] * len(rows), engine=engine)

        names = [f"p{i}" for i in range(len(rows))]
        grads = [None if skip else g for g, skip in zip(column("g"), skipped, strict=True)]
        state = [
            dict(zip(ADADELTA.slots, pair, strict=True)) for pair in zip(*map(column, ADADELTA.slots), strict=True)
        ]
        main, found = bound(ADADELTA, "x", state), []
        for _ in range(2):
            plan = main.plan(update, grads, NUMBERS | {"clip_norm": 0.7})
            found.append(plan.nonfinite())
            norm = run([plan], 3.0 if update.normed else None)
            found.append(None if norm is None else float(norm[0]))
            run([bound(SUM.rule, "sum").plan(SUM, grads, {})])
            averages = bound(AVERAGE.rule, "ema", grads=dtype)
            run([averages.plan(AVERAGE, column("x"), {"momentum": 0.9})])
        return found

    expected = steps("plain", "eager")
    if steps("given", "host") != expected:
        raise AssertionError(f"another norm than on ordinary memory: {what}")
    for made in rows:
        for name, arrays in made.items():
            arrays.check((name, *what))
    clipped(rng, library, grad_dtype, [row["g"] for row in rows], what)
    return 7 * len(rows)


def clipped(rng, library, dtype, grads, what):
    """Clip gradients in place, as `clip_grad_norm_` does."""
    made = [
        Arrays(rng, library, g.plain.shape, dtype, "C" if rng.random() < 0.8 else "gaps", ["end", "start"][i % 2])
        for i, g in enumerate(grads)
    ]
    update, names, norms = FusedUpdate(REPLACE, normed=True), [f"g{i}" for i in range(len(made))], []
    for attribute, engine in (("plain", "eager"), ("given", "host")):
        own = [getattr(each, attribute) for each in made]
        norm = run([Binding(REPLACE, own, names, engine=engine).plan(update, own, {})], 0.5)
        norms.append(float(norm[0]))
    if norms[0] != norms[1]:
        raise AssertionError(f"another norm than on ordinary memory: {norms}, {what}")
    for each in made:
        each.check(("clipped", *what))


def small(rng, dtypes, options):
    """Every size from 0 to 70."""
    count = 0
    for library, own, which in itertools.product(("numpy", "torch"), dtypes, options):
        count += one_bucket(rng, library, own, which, SMALL, LAYOUTS, ["end", "start"])
    return count


def large(rng, dtypes, options, cases):
    """A few sizes around the limits of blocks and pieces, of any layout, on 1 to 3 threads."""
    count = 0
    for _ in range(cases):
        os.environ["MULTIOPT_NUM_THREADS"] = str(rng.integers(1, 4))
        sizes = [int(rng.choice(LARGE if rng.random() < 0.4 else SMALL)) for _ in range(rng.integers(1, 6))]
        library, which = ["numpy", "torch"][rng.integers(2)], options[rng.integers(len(options))]
        own = dtypes[rng.integers(len(dtypes))]
        count += one_bucket(rng, library, own, which, sizes, LAYOUTS, ["end", "start"])
    return count


def main(seed, cases, folder):
    rng = np.random.default_rng(seed)
    # Each dtype and each option compiles kernels of its own, which is most of a short run's time.
    dtypes, options = (DTYPES, list(OPTIONS)) if cases >= 100 else (DTYPES[:6], ["all"])
    print(small(rng, dtypes, options) + large(rng, dtypes, options, cases), "arrays")
