"""Laws about the optimizer as an object: what it leaves alone, what it keeps, and what comes back from a file."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from multiopt import Adadelta, functional

from ..data.case import Case
from ..targets.arguments import FUNCTIONAL, core_options
from ..targets.optimizers import SLOTS
from ..targets.target import Target
from .law import BrokenError, law

_CORE = ("auto", "eager", "host", "cuda")


class _Bench:
    """One case's arrays, in the library of a target."""

    def __init__(self, target: Target, case: Case) -> None:
        self.target, self.arrays, self.case = target, target.arrays, case
        self.options = core_options(case)
        self.rows = [self.make(row) for row in case.gradients]

    def make(self, row: Sequence[Any]) -> list[Any]:
        return [self.arrays.make(np.asarray(values), self.case.dtype) for values in row]

    def optimizer(self, start: Sequence[Any] | None = None) -> Adadelta:
        params = self.make(self.case.start if start is None else start)
        return Adadelta(params, engine=self.target.engine, **self.options)

    def bits(self, arrays: Sequence[Any]) -> list[bytes]:
        return [values.tobytes() for values in self.arrays.read(arrays)]


def _held(opt: Adadelta) -> list[Any]:
    """Return every array that a step may change."""
    held = [*opt.params, *(state[slot] for state in opt.state for slot in SLOTS)]
    return [*held, *opt.ema_params] if opt.ema is not None else held


def _same(one: Sequence[bytes], other: Sequence[bytes], what: str) -> None:
    for i, (a, b) in enumerate(zip(one, other, strict=True)):
        if a != b:
            raise BrokenError(f"{what}: array {i} has other bits")


@law(labels=("plain", "coupled", "decoupled", "clipvalue"), engines=(*_CORE, "functional"))
def gradients_untouched(target: Target, case: Case, rng: np.random.Generator) -> None:
    """A step leaves gradients as they are; functional.update leaves everything."""
    bench = _Bench(target, case)
    before = [bench.bits(row) for row in bench.rows]
    if target.engine != "functional":
        opt = bench.optimizer()
        for row in bench.rows:
            opt.step(row)
    else:
        options = {name: bench.options[name] for name in FUNCTIONAL}
        params = bench.make(case.start)
        state = functional.init(params)
        for row in bench.rows:
            held = [*params, *(a for slot in SLOTS for a in state.slots[slot])]
            kept = bench.bits(held)
            params, state = functional.update(params, row, state, **options)
            _same(kept, bench.bits(held), "functional.update leaves parameters and state as they are")
    for row, bits in zip(bench.rows, before, strict=True):
        _same(bits, bench.bits(row), "a step leaves gradients as they are")


@law(engines=_CORE)
def dtype_and_device(target: Target, case: Case, rng: np.random.Generator) -> None:
    """Parameters and state keep dtype, device and shape."""

    def described(arrays: Sequence[Any]) -> list[str]:
        return [f"{a.dtype} {getattr(a, 'device', 'cpu')} {tuple(a.shape)}" for a in arrays]

    bench = _Bench(target, case)
    opt = bench.optimizer()
    count, before = len(opt.params), described(_held(opt))
    if count == 1 and before[0] != before[1]:
        raise BrokenError(f"state has the parameter's dtype, device and shape: {before}")
    for row in bench.rows:
        returned = opt.step(row)
    after = described(_held(opt))
    if after != before or described(returned) != before[:count]:
        raise BrokenError(f"dtype, device and shape stay: {before} became {after}")


@law(engines=_CORE)
def save_and_resume(target: Target, case: Case, rng: np.random.Generator) -> None:
    """What goes on from a saved state, a file or a dict, has the bits of what never stopped."""
    bench = _Bench(target, case)
    middle = len(bench.rows) // 2
    whole, first, second = (bench.optimizer() for _ in range(3))
    for opt, rows in ((whole, bench.rows), (first, bench.rows[:middle])):
        for row in rows:
            opt.step(row)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        first.save(path)
        second.load(path)
    third = bench.optimizer(bench.arrays.read(first.params))
    third.load_state_dict(first.state_dict())
    for name, opt in (("file", second), ("dict", third)):
        for row in bench.rows[middle:]:
            opt.step(row)
        _same(bench.bits(_held(whole)), bench.bits(_held(opt)), f"resumed from a {name}")


@law(engines=_CORE)
def refusal_changes_nothing(target: Target, case: Case, rng: np.random.Generator) -> None:
    """A step that raises leaves every array as it was."""
    bench = _Bench(target, case)
    opt = bench.optimizer()
    for row in bench.rows[:-1]:
        opt.step(row)
    before, steps = bench.bits(_held(opt)), (opt.steps, opt.micro_steps)
    good, last = bench.rows[-1], np.array(case.gradients[-1][-1])
    other = "float32" if case.dtype == "float64" else "float64"
    wrong: dict[str, list[Any]] = {
        "a wrong shape": [*good[:-1], *bench.make([np.zeros((2, 7, 1), last.dtype)])],
        "a wrong dtype": [*good[:-1], bench.arrays.make(np.zeros(last.shape), other)],
        "one gradient too many": [*good, *bench.make([last])],
        "no gradient": [None] * len(good),
        "no array": [*good[:-1], "1.0"],
    }
    if last.size:
        last.flat[-1] = np.nan
        wrong["NaN"] = [*good[:-1], *bench.make([last])]
    for what, grads in wrong.items():
        kinds: tuple[type[Exception], ...] = (TypeError, ValueError)
        if what == "NaN":
            opt.nonfinite, kinds = "raise", (FloatingPointError,)
        try:
            opt.step(grads)
        except kinds:
            _same(before, bench.bits(_held(opt)), f"rejected for {what}")
        else:
            raise BrokenError(f"a step is rejected for {what}")
    if (opt.steps, opt.micro_steps) != steps:
        raise BrokenError(f"a step that raises is not counted: {steps} became {(opt.steps, opt.micro_steps)}")


PROMISES = (gradients_untouched, dtype_and_device, save_and_resume, refusal_changes_nothing)
