"""Initial values of an optimizer's variables."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import backends
from ..backends.protocol import Array
from .variable import Variable

__all__ = ["fresh", "like"]

_NAMED = {"zeros": 0.0, "ones": 1.0}


def like(variable: Variable, initializer: Any = "zeros", shape: Any = None) -> Array:
    """An array of the variable's library, dtype and device, and of its shape unless another is given.

    Parameters
    ----------
    variable : Variable
    initializer : {"zeros", "ones"}, callable, array or number
        A callable gets ``shape`` and ``dtype`` (its name) and returns a value; a value may be a NumPy array, whatever
        the library.
    shape : sequence of int or None

    Raises
    ------
    ValueError
        If the name is unknown, or the value's shape is another.
    """
    shape = variable.shape if shape is None else tuple(int(n) for n in shape)
    backend = variable.backend
    array = variable.value.detach() if backend.name == "torch" else variable.value
    if shape == variable.shape:
        made = backend.full_like(array, _NAMED[initializer] if _is_name(initializer) else 0.0, variable.dtype)
    else:
        made = backend.cast(backend.from_host(np.zeros(shape, np.float32), "float32", array), variable.dtype)
        if _is_name(initializer):
            made = backend.filled(made, _NAMED[initializer])
    return made if _is_name(initializer) else _filled(made, initializer)


def fresh(shape: Any, dtype: str | None, initializer: Any, reference: Variable | None) -> Array:
    """An array of the library of `reference`, or NumPy's if that is None; float32 unless told otherwise."""
    host = np.zeros(tuple(int(n) for n in shape), np.float32)
    if reference is None:
        made: Array = host if dtype is None else backends.of(host).cast(host, dtype)
    else:
        array = reference.value.detach() if reference.backend.name == "torch" else reference.value
        made = reference.backend.from_host(host, "float32", array)
        made = made if dtype is None else reference.backend.cast(made, dtype)
    if _is_name(initializer):
        return backends.of(made).filled(made, _NAMED[initializer]) if initializer != "zeros" else made
    return _filled(made, initializer)


def _is_name(initializer: Any) -> bool:
    if not isinstance(initializer, str):
        return False
    if initializer not in _NAMED:
        raise ValueError(
            f"initializer: expected one of {', '.join(_NAMED)}, a callable or a value, got {initializer!r}"
        )
    return True


def _filled(made: Array, initializer: Any) -> Array:
    box = Variable(made, trainable=False, name="initializer")
    value = initializer(shape=box.shape, dtype=box.dtype) if callable(initializer) else initializer
    return box.assign(value).value
