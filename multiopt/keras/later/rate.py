"""The learning rate of Keras' optimizer: a number that may be assigned, a schedule, or a callable without arguments."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...adadelta import ADADELTA
from .. import schedules
from ..variables.variable import Variable, is_traced, unboxed

__all__ = ["Rate", "Rated"]


class Rate:
    """A learning rate; a number is kept in double precision, a callable is called at each step."""

    def __init__(self, value: Any) -> None:
        self.source = _source(value)
        #: The value in the last step.
        self.used: Any = None

    def at(self, count: Any) -> Any:
        """The learning rate of the step after `count` others: a float, or a traced array."""
        value = self.source(count) if self.is_scheduled else unboxed(self._now())
        return value if is_traced(value) else ADADELTA.hypers["lr"].check("learning_rate", value)

    @property
    def is_scheduled(self) -> bool:
        """Whether it is called with the step."""
        return isinstance(self.source, schedules.LearningRateSchedule)

    def _now(self) -> Any:
        return self.source if isinstance(self.source, Variable) else self.source()

    def shown(self) -> Any:
        """What the optimizer shows: the Variable that holds a number; of a schedule, its value in the last step."""
        if self.is_scheduled:
            return self.source(0) if self.used is None else self.used
        return self._now()

    def assign(self, value: Any) -> None:
        """Set another one; TypeError if it is a number in place of a schedule."""
        new = _source(value)
        if isinstance(self.source, Variable) and isinstance(new, Variable):
            self.source.assign(new)
        elif self.is_scheduled and isinstance(new, Variable):
            raise TypeError(
                f"learning_rate: expected a schedule, as this optimizer was made with one, got {value!r}; "
                "make it with a number if it is to be settable"
            )
        else:
            self.source = new

    def config(self) -> Any:
        """As plain data; a callable is called."""
        return schedules.serialize(self.source) if self.is_scheduled else float(self._now())


def _source(value: Any) -> Any:
    if isinstance(value, schedules.LearningRateSchedule) or (callable(value) and not hasattr(value, "dtype")):
        return value
    number = ADADELTA.hypers["lr"].check("learning_rate", value)
    return Variable(np.asarray(number, np.float64), trainable=False, name="learning_rate")


class Rated:
    """A part of `Optimizer`: its learning rate, by both of its names."""

    _rate: Rate

    @property
    def learning_rate(self) -> Any:
        """The learning rate: a `Variable` of float64, which may be assigned; of a schedule, what the last step used.

        Raises
        ------
        TypeError
            If a number is assigned in place of a schedule.
        """
        return self._rate.shown()

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self._rate.assign(value)

    #: The old name, as tf_keras has it.
    lr = learning_rate
