"""Adadelta's state as plain data, and what all conversions share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from .. import backends

__all__ = ["CONVERTERS", "Arrays", "Converter", "State", "cast_like", "fitted", "only", "to_host", "whole"]

Arrays = list[np.ndarray]


@dataclass(frozen=True)
class State:
    """Adadelta's state between two updates.

    Attributes
    ----------
    steps : int
        Number of updates done.
    square_avg, acc_delta : list of arrays or None
        In the order of the parameters; bfloat16 as float32, which holds it exactly. None stands for zeros of a shape
        that is not known: a ``state_dict`` of PyTorch holds nothing of a parameter before its first gradient.
    average : list of arrays, or None
        Moving averages of the parameters, where the optimizer keeps them.
    options : dict
        The known part of the configuration, under the core's names: ``Adadelta(params, **state.options)``.
    """

    steps: int
    square_avg: list[np.ndarray | None]
    acc_delta: list[np.ndarray | None]
    average: Arrays | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, source: Any) -> State:
        """Read the state of an Adadelta of multiopt, PyTorch, Keras or tf_keras, or that of ``optax.adadelta``.

        Raises
        ------
        TypeError
            If `source` is none of these.
        ValueError
            If an optimizer is not built, is in the middle of an accumulation, or has groups with different options.
        """
        return _converter(source).read(source)

    def into(self, target: Any) -> Any:
        """Write the state, without the options, into an optimizer that already has its parameters.

        Parameters
        ----------
        target : optimizer, or optax' state
            Of ``optax.adadelta`` what ``init(params)`` returned. It is immutable, and what is returned is to be used in
            its place. Its arrays are taken in the order that they have in it: see `to_optax` for another one.

        Returns
        -------
        object
            What goes on with this state: the optimizer, or a new state of optax.

        Raises
        ------
        TypeError
            If `target` is not supported.
        ValueError
            If the number of arrays or their shapes differ; nothing has been written then.
        """
        return _converter(target).write(self, target)


class Converter(NamedTuple):
    """How the state of one kind of optimizer is read and written."""

    recognises: Callable[[Any], bool]
    read: Callable[[Any], State]
    #: Returns what holds the state afterwards.
    write: Callable[[State, Any], Any]


#: Filled by the package: the first converter that recognises an object is the one that converts it.
CONVERTERS: list[Converter] = []


def _converter(thing: Any) -> Converter:
    for converter in CONVERTERS:
        if converter.recognises(thing):
            return converter
    raise TypeError(f"expected an Adadelta of multiopt, PyTorch, Keras or tf_keras, or optax' state, got {type(thing)}")


def only(state: State, known: set[str], who: str) -> dict[str, Any]:
    """The options that are set, if each of them is known or off."""
    off = (None, False, 1)  # 0.0 equals False; True and 1.0 equal 1
    unknown = {k: v for k, v in state.options.items() if k not in known and (callable(v) or v not in off)}
    if unknown:
        raise ValueError(f"options: expected options that {who} has, got {unknown}")
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
    wide = "float32" if dtype == "bfloat16" else dtype  # NumPy has no bfloat16
    made = backend.from_host(np.ascontiguousarray(host, wide).reshape(host.shape), wide, like)
    return made if wide == dtype else backend.cast(made, dtype)


def whole(arrays: Sequence[np.ndarray | None]) -> Arrays:
    """The arrays, none of which may be missing."""
    missing = [i for i, array in enumerate(arrays) if array is None]
    if missing:
        raise ValueError(
            f"state: expected an array for each parameter, got none for {missing}, which never had gradients; "
            "State.of(optimizer), or into(optimizer), knows the shapes of their zeros"
        )
    return [array for array in arrays if array is not None]


def fitted(state: State, shapes: Sequence[tuple[int, ...]]) -> State:
    """Check the number and the shapes of a state's arrays, and make zeros of what never had a gradient."""
    for slot in ("square_avg", "acc_delta", "average"):
        arrays = getattr(state, slot)
        if arrays is None:
            continue
        if len(arrays) != len(shapes):
            raise ValueError(f"{slot}: expected {len(shapes)} arrays, got {len(arrays)}")
        for i, (array, shape) in enumerate(zip(arrays, shapes, strict=True)):
            if array is not None and array.shape != shape:
                raise ValueError(f"{slot}[{i}]: expected shape {shape}, got {array.shape}")
    made = [
        [np.zeros(shape) if array is None else array for array, shape in zip(arrays, shapes, strict=True)]
        for arrays in (state.square_avg, state.acc_delta)
    ]
    return replace(state, square_avg=list(made[0]), acc_delta=list(made[1]))
