"""Hyperparameters as TensorFlow takes them: numbers, arrays, functions without arguments, or schedules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import numpy as np

from ... import backends, rule
from ... import schedules as core
from .. import schedules
from ..variables.variable import Variable

__all__ = ["CLIPS", "Hyper", "Hyperparameters", "check_not_negative", "restored", "valid"]

Hyper = float | Callable[[], Any] | schedules.LearningRateSchedule | Any
CLIPS = ("clipvalue", "clipnorm", "global_clipnorm")


class Hyperparameters:
    """A part of `Optimizer`: named hyperparameters, which are attributes, too."""

    iterations: Any
    gradient_transformers: list[Any]
    _initial_decay: float

    def __init__(self) -> None:
        #: Each as a number, an array, a Variable, a callable or a schedule.
        self._hyper: dict[str, Any] = {}

    def _set_hyper(self, name: str, value: Any) -> None:
        """Set a hyperparameter: a number, an array, a function without arguments, or a schedule.

        A number is assigned to the Variable of the number before, if there is one.
        """
        before = self._hyper.get(name)
        if isinstance(value, (Real, np.generic)) and not isinstance(value, (bool, np.bool_)):
            number = np.array(float(value))  # type: ignore[arg-type]
            if isinstance(before, _Number):
                before.assign(number)
            else:
                self._hyper[name] = _Number(number, trainable=False, name=name)
            return
        if not callable(value) and not isinstance(value, Variable):
            try:
                array = backends.of(value)
            except TypeError:
                array = None
            if array is None or np.prod(value.shape) != 1:
                raise ValueError(
                    f"{name}: expected a number, an array of one element, a function without arguments or a "
                    f"LearningRateSchedule, got {value!r}"
                )
        self._hyper[name] = value

    def _get_hyper(self, name: str, dtype: str | None = None) -> Any:
        """A hyperparameter: what holds it or, given the dtype of a computation, its current value as a Python float.

        What holds it is a Variable for a number, an array, or a schedule; of a function, what it returns now. Python
        numbers, and the values of schedules and functions, go through float32, as in TensorFlow; arrays keep their
        precision.
        """
        held = self._hyper[name]
        if dtype is None:
            return held if _is_schedule(held) or not callable(held) else held()
        iteration = int(self.iterations)
        value = held(iteration) if _is_schedule(held) else held() if callable(held) else held
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise TypeError(f"{name}: expected a number at iteration {iteration}, got {value!r}") from None
        return float(np.float32(number)) if isinstance(held, _Number) or callable(held) else number

    def _decayed_lr(self, dtype: str) -> float:
        """The learning rate of this update: the schedule's value, over ``1 + decay * iterations``."""
        rate: float = self._get_hyper("learning_rate", dtype)
        decay = self._get_hyper("decay", dtype) if "decay" in self._hyper else self._initial_decay
        return rate / (1.0 + decay * int(self.iterations)) if decay > 0 else rate

    def _serialize_hyperparameter(self, name: str) -> Any:
        """A hyperparameter for `get_config`: a number, a schedule's dictionary, or the name of a function."""
        value = self._hyper[name]
        if _is_schedule(value):
            return schedules.serialize(value)
        if callable(value):
            own = getattr(value, "__name__", "<lambda>")
            return float(value()) if own == "<lambda>" else own
        return float(value)

    def __getattr__(self, name: str) -> Any:
        name = "learning_rate" if name == "lr" else name
        if name in self.__dict__.get("_hyper", ()):
            return self._get_hyper(name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        name = "learning_rate" if name == "lr" else name
        if name in self.__dict__.get("_hyper", ()):
            self._set_hyper(name, value)
        else:
            if name in CLIPS and value is not None:
                value = check_not_negative(name, value)
                if self.gradient_transformers:
                    raise ValueError(f"{name}: expected None with gradient_transformers; make clipping one of them")
            object.__setattr__(self, name, value)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._hyper, *["lr"] * ("learning_rate" in self._hyper)]


def restored(config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None) -> dict[str, Any]:
    """A configuration with schedules and functions in place of their dictionaries and names."""
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


def check_not_negative(option: str, value: Any) -> float:
    """A number of at least 0, as a float; ValueError if it is something else."""
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{option}: expected a number, got {value!r}") from None
    if not number >= 0:
        raise ValueError(f"{option}: expected a number that is not negative, got {value!r}")
    return number


def valid(hyper: rule.Hyper, name: str, value: Any) -> Any:
    """A hyperparameter's value; ValueError if it is invalid, as TensorFlow's documents say, of a wrong type too."""
    try:
        return hyper.check(name, value)
    except TypeError as error:
        raise ValueError(str(error)) from None


def _is_schedule(value: Any) -> bool:
    """Whether it is called with the iteration, rather than without arguments."""
    return isinstance(value, (schedules.LearningRateSchedule, core.Schedule))


class _Number(Variable):
    """Holds a Python number in float64, so that a configuration has the number that was given."""
