"""The same bits everywhere: long runs on every library and engine, against NumPy operation by operation.

Gradients go over many decades, so that squares underflow and accumulators span all exponents, and options are on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import numpy as np

from ..data.case import Case
from ..data.floats import parts, ulps
from ..data.inputs import case_of
from ..data.specification import Config, Draw, Scenario, Schedule
from ..data.trajectory import STATES, Trajectory
from ..reference.compare import Distance
from ..targets.target import Target

#: Whose bits are everybody's.
REFERENCE = "numpy-eager"
#: Sizes that fill vector registers and leave a rest, 0-d and empty ones.
SHAPES = ((301,), (3, 7), (), (0,), (1,))
STEPS = 300
#: Of libraries that take milliseconds for a step.
STEPS_SLOW = 15

_COSINE = Schedule("cosine", {"initial": 1.0, "decay_steps": STEPS, "alpha": 0.1})
OPTIONS: Mapping[str, Config] = {
    "plain": Config(lr=0.7, rho=0.9),
    "coupled decay, clip by value": Config(lr=0.7, weight_decay=0.013, decay_kind="coupled", clipvalue=3.7),
    "decoupled decay, schedule": Config(rho=0.95, weight_decay=0.013, decay_kind="decoupled", schedule=_COSINE),
    "maximize, clip each norm": Config(lr=0.7, maximize=True, clipnorm=1.3),
    "clip value, norm, global norm": Config(lr=0.7, clipvalue=1e6, clipnorm=900.0, global_clipnorm=700.0),
    "accumulate 3, average": Config(lr=0.7, accumulate=3, ema_momentum=0.97),
}
#: Decades of gradients, so wide that squares underflow, but do not overflow; and so that all numbers are normal.
WIDE = {"float32": (-44, 18), "float64": (-320, 135)}
NORMAL = (-4, 4)


@cache
def _whole(dtype: str, options: str, normal: bool) -> Case:
    low, high = NORMAL if normal else WIDE[dtype]
    return case_of(
        Scenario(f"{dtype}, {options}", "the same bits everywhere", (), OPTIONS[options], dtype=dtype,
                 shapes=SHAPES, steps=STEPS, gradients=Draw("decades", low=low, high=high))
    )  # fmt: skip


def runs(target: Target, *, brief: bool = False) -> dict[str, Case]:
    """Return what `target` is asked, by name: less where it is slow, and no subnormal numbers where it has none."""
    normal = "flushes-subnormals" in target.deviations
    steps = STEPS_SLOW if target.slow or brief else STEPS
    pairs = [(dtype, options) for dtype in WIDE for options in OPTIONS]
    return {f"{dtype}, {options}": _whole(dtype, options, normal).first(steps) for dtype, options in pairs}


def values(run: Trajectory) -> int:
    """Return how many numbers a run computed."""
    return sum(series[1:].size for kind in STATES if run.has(kind) for series in run.states[kind])


def differing(ours: Trajectory, theirs: Trajectory) -> tuple[Distance, float]:
    """Return how many values differ in their bits and where the first of them is; and how many ulps at worst."""
    first, count, worst = Distance("all states", 0.0, same_bits=True), 0, 0.0
    for kind in STATES:
        if not ours.has(kind):
            continue
        for name, a, b in zip(ours.names, ours.states[kind], theirs.states[kind], strict=True):
            one, other = parts(a), parts(b)
            differ = one.view(f"u{one.dtype.itemsize}") != other.view(f"u{other.dtype.itemsize}")
            if not differ.any():
                continue
            count += int(differ.sum())
            worst = max(worst, float(ulps(a, b, ours.dtype).max()))
            step, *where = (int(i) for i in np.argwhere(differ)[0])
            if first.same_bits or step < first.step:
                element = int(np.ravel_multi_index(where, differ.shape[1:])) if where else 0
                pair = float(one[(step, *where)]), float(other[(step, *where)])
                first = Distance("all states", 0.0, step, f"{kind}/{name}", element, *pair)
    return replace(first, units=float(count)), worst
