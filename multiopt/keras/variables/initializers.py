"""Initial values of an optimizer's variables."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import backends
from ...backends.generic import Array
from .variable import Variable

__all__ = ["fresh", "like"]

_NAMED = {"zeros": 0.0, "ones": 1.0}


def like(variable: Variable, initializer: Any = "zeros", shape: Any = None) -> Array:
    """An array of the variable's library, dtype and device, and of its shape unless `shape` is given.

    An initializer is "zeros", "ones", a number, an array, or a callable of ``shape`` and ``dtype`` that returns one.
    """
    shape = variable.shape if shape is None else tuple(int(n) for n in shape)
    if shape != variable.shape:
        return fresh(shape, variable.dtype, initializer, variable)
    return _filled(variable.backend.full_like(variable.detached(), 0.0, variable.dtype), initializer)


def fresh(shape: Any, dtype: str | None, initializer: Any, reference: Variable | None) -> Array:
    """An array of the library of `reference`, or a NumPy array if that is None; float32 by default."""
    zeros: Array = np.zeros(tuple(int(n) for n in shape), np.float32)
    if reference is not None:
        zeros = reference.backend.from_host(zeros, "float32", reference.detached())
    return _filled(backends.of(zeros).cast(zeros, dtype or "float32"), initializer)


def _filled(zeros: Array, initializer: Any) -> Array:
    if isinstance(initializer, str):
        if initializer not in _NAMED:
            raise ValueError(
                f"initializer: expected one of {', '.join(_NAMED)}, a callable or a value, got {initializer!r}"
            )
        initializer = _NAMED[initializer]
    box = Variable(zeros, trainable=False, name="initializer")
    value = initializer(shape=box.shape, dtype=box.dtype) if callable(initializer) else initializer
    if isinstance(value, (int, float)):
        return zeros if value == 0 else box.backend.filled(zeros, value)
    return box.assign(value).value
