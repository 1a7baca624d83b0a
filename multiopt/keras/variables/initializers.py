"""Initial values of an optimizer's variables: Keras' initializers by name, values, and functions."""

from __future__ import annotations

import math
import operator
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ... import backends
from ...backends.generic import FLOATING, Array
from .variable import Variable

__all__ = ["fresh", "like"]


def like(variable: Variable, initializer: Any = "zeros", shape: Any = None) -> Array:
    """An array of the variable's library, dtype and device, and of its shape unless `shape` is given.

    An initializer is the name of one of Keras', a number, an array, or a callable of ``shape`` and ``dtype`` that
    returns one. What is random is drawn anew each time: Python's `random.seed` repeats it.
    """
    shape = variable.shape if shape is None else _sizes(shape)
    if shape != variable.shape:
        return fresh(shape, variable.dtype, initializer, variable)
    return _filled(variable.backend.full_like(variable.detached(), 0.0, variable.dtype), initializer)


def fresh(shape: Any, dtype: str | None, initializer: Any, reference: Variable | None) -> Array:
    """An array of the library of `reference`, or a NumPy array if that is None; float32 by default."""
    zeros: Array = np.zeros(_sizes(shape), np.float32)
    if reference is not None:
        zeros = reference.backend.from_host(zeros, "float32", reference.detached())
    return _filled(backends.of(zeros).cast(zeros, dtype or "float32"), initializer)


def _sizes(shape: Any) -> tuple[int, ...]:
    """A shape given as integers, as an array of them, or, as in tf_keras, as a single one."""
    axes = getattr(shape, "ndim", int(hasattr(shape, "__len__")))
    try:
        if axes > 1:
            raise TypeError
        sizes = tuple(operator.index(n) for n in (shape if axes else [shape]))
    except TypeError:
        raise TypeError(f"shape: expected integers, in a list, a tuple or a 1-D array, got {shape!r}") from None
    if any(n < 0 for n in sizes):
        raise ValueError(f"shape: expected sizes of at least 0, got {shape!r}")
    return sizes


def _filled(zeros: Array, initializer: Any) -> Array:
    box = Variable(zeros, trainable=False, name="initializer")
    if isinstance(initializer, str):
        value = _named(initializer)(box)
    else:
        value = initializer(shape=box.shape, dtype=box.dtype) if callable(initializer) else initializer
    if isinstance(value, (int, float)):
        return zeros if value == 0 else box.backend.filled(zeros, value)
    return box.assign(value).value


# --- Keras' initializers, with their defaults ---


def _generator(box: Variable) -> np.random.Generator:
    if box.dtype not in FLOATING or "complex" in box.dtype:
        raise ValueError(f"initializer: expected a real dtype for random numbers and identities, got {box.dtype}")
    return np.random.default_rng(random.getrandbits(128))


def _normal(box: Variable) -> np.ndarray:
    return _generator(box).normal(0.0, 0.05, box.shape)


def _uniform(box: Variable, limit: float = 0.05) -> np.ndarray:
    return _generator(box).uniform(-limit, limit, box.shape)


def _truncated(box: Variable, deviation: float = 0.05) -> np.ndarray:
    """Normal numbers; those beyond two deviations are drawn again."""
    rng = _generator(box)
    drawn = rng.normal(size=box.shape)
    while (far := abs(drawn) > 2).any():
        drawn = np.where(far, rng.normal(size=box.shape), drawn)
    return deviation * drawn


def _scaled(box: Variable, scale: float, over_both: bool = False, uniform: bool = False) -> np.ndarray:
    """Numbers of variance `scale` over the fan in, or over the mean of fan in and fan out."""
    *field, into, out = (1, *box.shape) if box.ndim > 1 else box.shape * 2 or (1, 1)
    fans = math.prod(field) * np.array([into, out])
    variance = scale / max(1.0, fans.mean() if over_both else fans[0])
    if uniform:
        return _uniform(box, math.sqrt(3 * variance))
    # What is cut off beyond two deviations leaves this deviation of a standard normal.
    return _truncated(box, math.sqrt(variance) / 0.87962566103423978)


def _orthogonal(box: Variable) -> np.ndarray:
    """A random matrix whose rows, or columns, are orthonormal; the last axis is that of the columns."""
    if box.ndim < 2:
        raise ValueError(f"initializer: expected two axes or more for 'orthogonal', got shape {box.shape}")
    rows, columns = math.prod(box.shape[:-1]), box.shape[-1]
    q, r = np.linalg.qr(_generator(box).normal(size=(max(rows, columns), min(rows, columns))))
    q = q * np.sign(np.diagonal(r))
    return (q.T if rows < columns else q).reshape(box.shape)


def _identity(box: Variable) -> np.ndarray:
    _generator(box)
    if box.ndim != 2:
        raise ValueError(f"initializer: expected two axes for 'identity', got shape {box.shape}")
    return np.eye(box.shape[0], box.shape[1])


_NAMED: dict[str, Callable[[Variable], Any]] = {
    **dict.fromkeys(("zeros", "zero", "constant"), lambda box: 0.0),
    **dict.fromkeys(("ones", "one"), lambda box: 1.0),
    **dict.fromkeys(("random_normal", "normal"), _normal),
    **dict.fromkeys(("random_uniform", "uniform"), _uniform),
    "truncated_normal": _truncated,
    "variance_scaling": partial(_scaled, scale=1.0),
    "lecun_normal": partial(_scaled, scale=1.0),
    "lecun_uniform": partial(_scaled, scale=1.0, uniform=True),
    "he_normal": partial(_scaled, scale=2.0),
    "he_uniform": partial(_scaled, scale=2.0, uniform=True),
    "glorot_normal": partial(_scaled, scale=1.0, over_both=True),
    "glorot_uniform": partial(_scaled, scale=1.0, over_both=True, uniform=True),
    "orthogonal": _orthogonal,
    "identity": _identity,
}


def _named(name: str) -> Callable[[Variable], Any]:
    """An initializer by the name of its function or of its class."""
    found = {known.replace("_", ""): initializer for known, initializer in _NAMED.items()}
    if name.replace("_", "").lower() not in found:
        raise ValueError(f"initializer: expected one of {', '.join(_NAMED)}, a callable or a value, got {name!r}")
    return found[name.replace("_", "").lower()]
