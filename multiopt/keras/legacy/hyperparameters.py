"""Hyperparameters as TensorFlow takes them: numbers, arrays, functions without arguments, or schedules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import numpy as np

from ... import backends
from ... import schedules as core
from .. import schedules
from ..variable import Variable

__all__ = ["Hyperparameters", "single"]


def single(value: float) -> float:
    """A Python number as TensorFlow holds it: in float32, whatever the variables' dtype."""
    return float(np.float32(value))


class Hyperparameters:
    """Named hyperparameters, each set as a number, an array, a Variable, a callable or a schedule."""

    def __init__(self) -> None:
        self._held: dict[str, Any] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._held

    def names(self) -> list[str]:
        """Those that were set, in order."""
        return list(self._held)

    def set(self, name: str, value: Any) -> None:
        """Set one. A number goes into the Variable that holds the number before, if one does.

        Raises
        ------
        TypeError
            If it is none of the things that a hyperparameter may be.
        """
        before = self._held.get(name)
        if isinstance(value, (Real, np.generic)) and not isinstance(value, (bool, np.bool_)):
            number = np.array(float(value))  # type: ignore[arg-type]
            if isinstance(before, _Number):
                before.assign(number)
            else:
                self._held[name] = _Number(number, trainable=False, name=name)
            return
        if not callable(value) and not isinstance(value, Variable):
            try:
                array = backends.of(value)
            except TypeError:
                array = None
            if array is None or np.prod(value.shape) != 1:
                raise TypeError(
                    f"{name}: expected a number, an array of one element, a function without arguments or a "
                    f"LearningRateSchedule, got {value!r}"
                )
        self._held[name] = value

    def get(self, name: str) -> Any:
        """What holds it: a Variable for a number, an array, a schedule; of a function, what it returns now."""
        value = self._held[name]
        return value if is_schedule(value) or not callable(value) else value()

    def number(self, name: str, iteration: int) -> float:
        """Its value in an update, where `iteration` is the number of updates before.

        A Python number, and what a schedule or a function gives, goes through float32, as in TensorFlow. Arrays keep
        their own precision.

        Raises
        ------
        TypeError
            If a function or a schedule returns something that is not a number.
        """
        held = self._held[name]
        value = held(iteration) if is_schedule(held) else self.get(name)
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise TypeError(f"{name}: expected a number at iteration {iteration}, got {value!r}") from None
        return single(number) if isinstance(held, _Number) or callable(held) else number

    def stored(self, name: str) -> Any:
        """What a configuration holds: a number, a schedule's dictionary, or the name of a function that has one."""
        value = self._held[name]
        if is_schedule(value):
            return schedules.serialize(value)
        if callable(value):
            own = getattr(value, "__name__", "<lambda>")
            return float(value()) if own == "<lambda>" else own
        return float(value)


def restored(config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None) -> dict[str, Any]:
    """A configuration with schedules and functions in place of their dictionaries and names.

    Raises
    ------
    ValueError
        If a hyperparameter is a name that `custom_objects` does not have.
    """
    found = dict(config)
    if "lr" in found:
        found["learning_rate"] = found.pop("lr")
    for key, value in found.items():
        if isinstance(value, Mapping) and "class_name" in value:
            found[key] = schedules.deserialize(value, custom_objects)
        elif isinstance(value, str) and key != "name":
            if custom_objects is None or value not in custom_objects:
                raise ValueError(f"{key}: expected a number or a schedule, got {value!r}, not in custom_objects")
            found[key] = custom_objects[value]
    return found


def is_schedule(value: Any) -> bool:
    """Whether it is called with the iteration, rather than with nothing."""
    return isinstance(value, (schedules.LearningRateSchedule, core.Schedule))


class _Number(Variable):
    """Holds a number that was given as a Python number: in float64, so that it is given back as it came."""


Hyper = float | Callable[[], Any] | schedules.LearningRateSchedule | Any
