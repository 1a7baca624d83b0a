"""Options that a trajectory gives away: the rule's first step, solved for one of them at a time.

From zero accumulators the first step is ``v = (1 − ρ) g²``, ``d = √ε / √(v + ε) · g``, ``u = (1 − ρ) d²``. Each is
an estimate from rounded numbers: rounder ones beside it are offered first, and the caller tries them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ..data.case import Array, Case
from ..data.floats import parts
from ..data.specification import Config
from ..data.trajectory import Trajectory
from ..mutation.mutants import build
from ..targets.run import record
from .stepwise import GRADIENT

#: How far a rounder number may be from the estimate: a hundredth. Whether it is right, the trajectory says.
NEAR = 0.02


class _First(NamedTuple):
    """The first step, flat and in float64: gradient as the rule gets it, parameters around it, accumulators."""

    g: Array
    before: Array
    after: Array
    v: Array | None
    u: Array | None


def estimated(seen: Trajectory, base: Case) -> Iterator[Case]:
    """Yield cases like `base`, with options that the trajectory gives away."""
    c = base.config
    lr = base.rates[0] if base.rates else c.lr
    first = _first(seen, base) if c.accumulate == 1 and lr else None
    if first is None or not lr:
        return
    with np.errstate(all="ignore"):
        found = dict(_solved(first, c, lr, seen))
    guesses: list[dict[str, Any]] = [
        {"decay_kind": name, "weight_decay": value} if name in ("coupled", "decoupled") else {name: value}
        for name in ("lr", "rho", "eps", "coupled", "decoupled")
        for value in _rounder(found.get(name))
        if 0 < value < (1 if name == "rho" else np.inf) and (name != "lr" or base.rates is None)
    ]
    if c.decay_kind is not None:
        guesses.append({"weight_decay": 0.0, "decay_kind": None})
    together = {name: found.get(f"state {name}") for name in ("lr", "rho", "eps")}
    if all(together.values()):
        for digits in (2, 3, 6):
            numbers = {name: float(f"{value:.{digits}g}") for name, value in together.items()}
            if numbers["lr"] > 0 and 0 < numbers["rho"] < 1 and numbers["eps"] > 0:
                guesses.append(numbers)
    yield from (base.with_options(**options) for options in guesses)


def _first(seen: Trajectory, base: Case) -> _First | None:
    zeros = [np.zeros_like(x) for x in base.start]
    plain = replace(base.first(1), start=zeros).with_options(weight_decay=0.0, decay_kind=None, ema_momentum=None)
    try:
        given = record(build(plain, "eager", GRADIENT), plain).states["x"]
    except ValueError:
        return None
    there = [i for i, g in enumerate(base.gradients[0]) if g is not None]
    if not there:
        return None

    def flat(column: Any, step: int) -> Array:
        return np.concatenate([_flat(column[i][step]) for i in there]).astype(np.float64)

    g, x = flat(given, 1), seen.states["x"]
    usable = (g != 0) & np.isfinite(g)
    if not usable.any():
        return None
    v, u = (flat(seen.states[k], 1)[usable] if seen.has(k) else None for k in ("square_avg", "acc_delta"))
    return _First(g[usable], flat(x, 0)[usable], flat(x, 1)[usable], v, u)


def _flat(values: Any) -> Array:
    return np.asarray(parts(np.asarray(values))).ravel()


def _solved(f: _First, c: Config, lr: float, seen: Trajectory) -> Iterator[tuple[str, float]]:
    """Yield names and estimates."""
    rest, wd = 1.0 - c.rho, c.weight_decay
    g = f.g + wd * f.before if c.decay_kind == "coupled" else f.g
    start = f.before * (1.0 - lr * wd) if c.decay_kind == "decoupled" else f.before
    moved = start - f.after
    v = rest * g * g
    d = np.sqrt(c.eps / (v + c.eps)) * g
    yield "lr", float(np.sum(moved * d) / np.sum(d * d))
    ratio = (moved / (lr * g)) ** 2
    yield "eps", _middle(ratio * v / (1.0 - ratio))
    yield "rho", 1.0 - _middle(c.eps * (1.0 - ratio) / (ratio * g * g))
    yield "decoupled", _middle((f.before - lr * d - f.after) / (lr * f.before))
    undecayed = (f.before - f.after) / lr
    size = np.abs(undecayed) * np.sqrt(c.eps / (c.eps - undecayed**2 * rest)) if f.v is None else np.sqrt(f.v / rest)
    yield "coupled", _middle((np.sign(undecayed) * size - f.g) / f.before)
    if f.v is None or f.u is None:
        return
    rho = 1.0 - _middle(f.v / (g * g))
    square = f.u / (1.0 - rho)
    yield "state rho", rho
    yield "state eps", _middle(square * f.v / (g * g - square))
    yield "state lr", _rate(seen, rho, -1.0 if c.maximize else 1.0)
    # Without the motion, which says little where it is small beside the parameters.
    yield "rho", rho
    yield "eps", _middle((f.u / rest) * f.v / (g * g - f.u / rest))


def _rate(seen: Trajectory, rho: float, sign: float) -> float:
    """Return the learning rate that fits all motion best, updates being known from the second accumulator."""
    product = square = 0.0
    for i, (x, u) in enumerate(zip(seen.states["x"], seen.states["acc_delta"], strict=True)):
        for t, row in enumerate(seen.case.gradients):
            if row[i] is None:
                continue
            before, after, old, new = (_flat(a).astype(np.float64) for a in (x[t], x[t + 1], u[t], u[t + 1]))
            d = sign * np.sign(_flat(row[i])) * np.sqrt(np.maximum(new - rho * old, 0.0) / (1.0 - rho))
            product += float(np.nansum((before - after) * d))
            square += float(np.nansum(d * d))
    return product / square if square else 0.0


def _middle(values: Array) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else 0.0


def _rounder(value: float | None) -> list[float]:
    """Return numbers of few digits near a value, the fewest first, and the value itself."""
    if not value or not np.isfinite(value):
        return []
    near = [float(f"{value:.{digits}g}") for digits in range(1, 8)]
    singles = [float(np.float32(number)) for number in near]
    chosen = [number for number in (*near, *singles) if abs(number - value) <= NEAR * abs(value)]
    return list(dict.fromkeys([*chosen, value]))
