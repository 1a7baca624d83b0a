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
from .law import BrokenError, Law

_CORE = ("auto", "eager", "host", "cuda")


class _Bench:
    """One case's arrays, in the library of a target."""

    def __init__(self, target: Target, case: Case) -> None:
        self.target, self.arrays, self.case = target, target.arrays, case
        self.options = core_options(case)

    def make(self, row: Sequence[Any]) -> list[Any]:
        return [self.arrays.make(np.asarray(values), self.case.dtype) for values in row]

    def optimizer(self, start: Sequence[Any] | None = None) -> Adadelta:
        params = self.make(self.case.start if start is None else start)
        return Adadelta(params, engine=self.target.engine, **self.options)

    def held(self, opt: Adadelta) -> list[Any]:
        """Every array that a step may change."""
        held = [*opt.params, *(state[slot] for state in opt.state for slot in SLOTS)]
        return [*held, *opt.ema_params] if opt.ema is not None else held

    def bits(self, arrays: Sequence[Any]) -> list[bytes]:
        return [values.tobytes() for values in self.arrays.read(arrays)]


def _same(one: Sequence[bytes], other: Sequence[bytes], what: str) -> None:
    for i, (a, b) in enumerate(zip(one, other, strict=True)):
        if a != b:
            raise BrokenError(f"{what}: array {i} has other bits")


def gradients_untouched(target: Target, case: Case, rng: np.random.Generator) -> None:
    """Step, and look at the gradients again; in functional form at parameters and state too."""
    bench = _Bench(target, case)
    rows = [bench.make(row) for row in bench.case.gradients]
    before = [bench.bits(row) for row in rows]
    if bench.target.engine != "functional":
        opt = bench.optimizer()
        for row in rows:
            opt.step(row)
    else:
        options = {name: bench.options[name] for name in FUNCTIONAL}
        params = bench.make(bench.case.start)
        state = functional.init(params)
        for row in rows:
            held = [*params, *(a for slot in SLOTS for a in state.slots[slot])]
            kept = bench.bits(held)
            params, state = functional.update(params, row, state, **options)
            _same(kept, bench.bits(held), "functional.update leaves parameters and state as they are")
    for row, bits in zip(rows, before, strict=True):
        _same(bits, bench.bits(row), "a step leaves gradients as they are")


def dtype_and_device(target: Target, case: Case, rng: np.random.Generator) -> None:
    """Step, and ask every array for its dtype, device and shape."""
    bench = _Bench(target, case)

    def described(arrays: Sequence[Any]) -> list[str]:
        return [f"{a.dtype} {getattr(a, 'device', 'cpu')} {tuple(a.shape)}" for a in arrays]

    opt = bench.optimizer()
    before = described(bench.held(opt))
    if before[: len(opt.params)] != before[len(opt.params) : 2 * len(opt.params)] and len(opt.params) == 1:
        raise BrokenError(f"state has the parameter's dtype, device and shape: {before}")
    for row in bench.case.gradients:
        returned = opt.step(bench.make(row))
    after = described(bench.held(opt))
    if after != before or described(returned) != before[: len(opt.params)]:
        raise BrokenError(f"dtype, device and shape stay: {before} became {after}")


def save_and_resume(target: Target, case: Case, rng: np.random.Generator) -> None:
    """Stop in the middle, go on with what was saved, as a dict and as a file."""
    bench = _Bench(target, case)
    rows = bench.case.gradients
    middle = len(rows) // 2
    whole, first, second = (bench.optimizer() for _ in range(3))
    for row in rows:
        whole.step(bench.make(row))
    for row in rows[:middle]:
        first.step(bench.make(row))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        first.save(path)
        second.load(path)
    third = bench.optimizer(bench.arrays.read(first.params))
    third.load_state_dict(first.state_dict())
    for name, opt in (("file", second), ("dict", third)):
        for row in rows[middle:]:
            opt.step(bench.make(row))
        _same(bench.bits(bench.held(whole)), bench.bits(bench.held(opt)), f"resumed from a {name}")


def errors_change_nothing(target: Target, case: Case, rng: np.random.Generator) -> None:
    """Give a step what it must reject, and look at every array."""
    bench = _Bench(target, case)
    opt = bench.optimizer()
    rows = bench.case.gradients
    good = [np.asarray(g) for g in rows[-1]]
    for row in rows[:-1]:
        opt.step(bench.make(row))
    before, steps = bench.bits(bench.held(opt)), (opt.steps, opt.micro_steps)
    other = "float32" if bench.case.dtype == "float64" else "float64"
    wrong: dict[str, list[Any]] = {
        "a wrong shape": [*bench.make(good[:-1]), bench.make([np.zeros((2, 7, 1), good[-1].dtype)])[0]],
        "a wrong dtype": [*bench.make(good[:-1]), bench.arrays.make(np.zeros(good[-1].shape), other)],
        "one gradient too many": bench.make([*good, good[-1]]),
        "no gradient": [None] * len(good),
        "no array": [*bench.make(good[:-1]), "1.0"],
    }
    for what, grads in wrong.items():
        _rejected(opt, grads, (TypeError, ValueError), what)
        _same(before, bench.bits(bench.held(opt)), f"rejected for {what}")
    last = good[-1].copy()
    if last.size:
        last.flat[-1] = np.nan
        opt.nonfinite = "raise"
        _rejected(opt, bench.make([*good[:-1], last]), (FloatingPointError,), "NaN")
        _same(before, bench.bits(bench.held(opt)), "rejected for NaN")
    if (opt.steps, opt.micro_steps) != steps:
        raise BrokenError(f"a step that raises is not counted: {steps} became {(opt.steps, opt.micro_steps)}")


def _rejected(opt: Adadelta, grads: list[Any], kinds: tuple[type[Exception], ...], what: str) -> None:
    try:
        opt.step(grads)
    except kinds:
        return
    raise BrokenError(f"a step is rejected for {what}")


PROMISES = (
    Law("gradients untouched", "a step leaves gradients as they are; functional.update leaves everything",
        gradients_untouched, ("plain", "coupled", "decoupled", "clipvalue"), engines=(*_CORE, "functional")),
    Law("dtype and device", "parameters and state keep dtype, device and shape", dtype_and_device, engines=_CORE),
    Law("save and resume", "what goes on from a saved state has the bits of what never stopped", save_and_resume,
        engines=_CORE),
    Law("refusal changes nothing", "a step that raises leaves every array as it was", errors_change_nothing,
        engines=_CORE),
)  # fmt: skip
