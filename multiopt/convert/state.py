"""Adadelta's state as plain data, and what all conversions share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import backends

__all__ = ["Arrays", "State", "cast_like", "check_shapes", "only", "shapes_of", "to_host", "whole"]

Arrays = list[np.ndarray]


@dataclass(frozen=True)
class State:
    """Adadelta's state between two updates.

    Attributes
    ----------
    steps : int
        Updates done.
    square_avg, acc_delta : list of arrays or None
        In the order of the parameters; bfloat16 in float32, which holds it exactly. None stands for zeros: PyTorch
        has no state for a parameter before its first gradient.
    average : list of arrays, or None
        Moving averages of the parameters, where they are kept.
    options : dict
        What is known of the configuration, by the core's names: ``Adadelta(params, **state.options)``.
    """

    steps: int
    square_avg: list[np.ndarray | None]
    acc_delta: list[np.ndarray | None]
    average: Arrays | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, source: Any) -> State:
        """Read the state of an optimizer, or of optax' state.

        Raises
        ------
        TypeError
            If it is not known.
        ValueError
            If an optimizer is not built, is in the middle of an accumulation, or has groups with different options.
        """
        return sides(source)[0](source)

    def into(self, target: Any) -> None:
        """Write the state, without the options, into an optimizer that has its parameters.

        Raises
        ------
        TypeError
            If it is not known, or is optax' state, which is immutable: see `to_optax`.
        ValueError
            If number or shapes differ. Nothing has been written then.
        """
        sides(target)[1](self, target)


def sides(thing: Any) -> tuple[Callable[[Any], State], Callable[[State, Any], None]]:
    """How to read and write an object."""
    from . import core, keras, optax, torch

    modules = [base.__module__ for base in type(thing).__mro__]
    roots = {module.partition(".")[0] for module in modules}
    if "multiopt.optimizer" in modules and getattr(thing.rule, "name", None) == "adadelta":
        return core.of_core, core.into_core
    if hasattr(thing, "get_config") and ({"keras", "tf_keras"} & roots or any("multiopt.keras" in m for m in modules)):
        return keras.of_keras, keras.into_keras
    if hasattr(thing, "param_groups") and hasattr(thing, "load_state_dict"):
        return torch.from_torch, torch.into_torch
    if isinstance(thing, tuple):
        return optax.from_optax, optax.into_optax
    raise TypeError(f"expected an Adadelta of ours, PyTorch, Keras or tf_keras, or optax' state, got {type(thing)}")


def only(state: State, known: set[str], who: str) -> dict[str, Any]:
    """The options, if they are all known or off."""
    off = (None, False, 1)  # which 0.0, True and 1.0 equal, too
    odd = {k: v for k, v in state.options.items() if k not in known and (callable(v) or v not in off)}
    if odd:
        raise ValueError(f"options: expected what {who} has, got {odd}")
    return {k: v for k, v in state.options.items() if v is not None}


def to_host(array: Any) -> np.ndarray:
    """A NumPy copy; bfloat16 as float32."""
    if not hasattr(array, "shape") or isinstance(array, np.generic):
        return np.asarray(array)
    array = getattr(array, "value", array) if hasattr(array, "assign") else array
    backend = backends.of(array)
    host = backend.to_host(array).reshape(tuple(array.shape))
    return (host.astype(np.uint32) << 16).view(np.float32) if backend.dtype(array) == "bfloat16" else host


def cast_like(host: np.ndarray, like: Any) -> Any:
    """An array of the library, dtype and device of `like`."""
    backend = backends.of(like)
    dtype = backend.dtype(like)
    if dtype == "bfloat16":
        wide = backend.from_host(np.ascontiguousarray(host, np.float32).reshape(host.shape), "float32", like)
        return backend.cast(wide, dtype)
    return backend.from_host(np.ascontiguousarray(host, dtype).reshape(host.shape), dtype, like)


def whole(arrays: Sequence[np.ndarray | None]) -> Arrays:
    """The arrays, which must all be there."""
    missing = [i for i, array in enumerate(arrays) if array is None]
    if missing:
        raise ValueError(
            f"state: expected an array for each parameter, got none for {missing}, which never had gradients"
        )
    return [array for array in arrays if array is not None]


def check_shapes(state: State, shapes: Sequence[tuple[int, ...]]) -> None:
    """Check number and shapes of a state's arrays."""
    for slot in ("square_avg", "acc_delta", "average"):
        arrays = getattr(state, slot)
        if arrays is None:
            continue
        if len(arrays) != len(shapes):
            raise ValueError(f"{slot}: expected {len(shapes)} arrays, got {len(arrays)}")
        for i, (array, shape) in enumerate(zip(arrays, shapes, strict=True)):
            if array is not None and array.shape != tuple(shape):
                raise ValueError(f"{slot}[{i}]: expected shape {tuple(shape)}, got {array.shape}")


def shapes_of(arrays: Sequence[np.ndarray]) -> list[tuple[int, ...]]:
    """For messages, and to compare."""
    return [array.shape for array in arrays]
