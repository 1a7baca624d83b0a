"""Is it another optimizer altogether? Textbook rules, with a learning rate that is fitted to the parameters' path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from ..data.case import Array
from ..data.trajectory import Trajectory
from ..reference.compare import units_apart
from .differences import LIMITS
from .stepwise import rounder, seen_gradients

#: What a parameter moves by at a learning rate of 1, for the gradients of all steps.
Rule = Callable[[Array], Array]


def _averaged(g: Array, decay: float, weight: float) -> Array:
    average, found = np.zeros(g.shape[1:]), []
    for row in g:
        average = decay * average + weight * row
        found.append(average)
    return np.array(found)


def _adam(g: Array, eps: float) -> Array:
    t = np.arange(1, len(g) + 1).reshape(-1, *[1] * (g.ndim - 1))
    m, v = _averaged(g, 0.9, 0.1) / (1 - 0.9**t), _averaged(g * g, 0.999, 0.001) / (1 - 0.999**t)
    return np.asarray(m / (np.sqrt(v) + eps))


def _rmsprop(decay: float, g: Array) -> Array:
    return np.asarray(g / (np.sqrt(_averaged(g * g, decay, 1 - decay)) + 1e-8))


RULES: Mapping[str, Rule] = {
    "gradient descent": lambda g: g,
    "gradient descent with momentum 0.9": lambda g: _averaged(g, 0.9, 1.0),
    "gradient descent with Nesterov's momentum 0.9": lambda g: g + 0.9 * _averaged(g, 0.9, 1.0),
    "gradient descent by signs": np.sign,
    "Adagrad": lambda g: g / (np.sqrt(np.cumsum(g * g, axis=0)) + 1e-10),
    **{f"RMSprop with decay {decay}": partial(_rmsprop, decay) for decay in (0.9, 0.95, 0.99)},
    "Adam, eps 1e-8": lambda g: _adam(g, 1e-8),
    "Adam, eps 1e-7": lambda g: _adam(g, 1e-7),
}  # fmt: skip


def another(seen: Trajectory) -> tuple[str, float, float] | None:
    """Return the name of the optimizer that moves parameters like this, its learning rate, and how well it fits."""
    case = seen.case
    if case.missing or case.is_sparse or seen.dtype in ("float16", "bfloat16") or seen.dtype.startswith("complex"):
        return None
    wide = [np.asarray(x, dtype=np.float64) for x in seen.states["x"]]
    with np.errstate(all="ignore"):
        for name, rule in RULES.items():
            paths = [np.cumsum(np.nan_to_num(rule(seen_gradients(case, i).astype(np.float64))), axis=0)
                     for i in range(len(wide))]  # fmt: skip
            product = sum(float(np.sum((x[:1] - x[1:]) * p)) for x, p in zip(wide, paths, strict=True))
            square = sum(float(np.sum(p * p)) for p in paths)
            for lr in rounder(product / square) if square and product else ():
                far = max(_far(seen, x, lr * p) for x, p in zip(seen.states["x"], paths, strict=True))
                if far <= LIMITS["x"]:
                    return name, lr, far
    return None


def _far(seen: Trajectory, x: Array, path: Array) -> float:
    made = np.concatenate([x[:1], (x[:1] - path).astype(x.dtype)])
    return float(np.max(units_apart("x", made, x, seen.dtype), initial=0.0))
