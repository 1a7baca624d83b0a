"""The learning rate of Keras' optimizer: a number that may be assigned, a schedule, or a callable without arguments."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...adadelta import ADADELTA
from .. import schedules
from ..variables.variable import Variable, is_traced

__all__ = ["Rate"]


class Rate:
    """A learning rate; a number is kept in double precision, a callable is called at each step."""

    def __init__(self, value: Any) -> None:
        self.source = _source(value)
        #: The value in the last step.
        self.used: Any = None

    def at(self, count: Any) -> Any:
        """The learning rate of the step after `count` others: a float, or a traced array."""
        if isinstance(self.source, schedules.LearningRateSchedule):
            value = self.source(count)
        else:
            value = self.source.value if isinstance(self.source, Variable) else self.source()
        return value if is_traced(value) else ADADELTA.hypers["lr"].check("learning_rate", value)

    def shown(self) -> Any:
        """What the optimizer shows: the Variable that holds a number; of a schedule, its value in the last step."""
        if isinstance(self.source, schedules.LearningRateSchedule):
            return self.source(0) if self.used is None else self.used
        return self.source if isinstance(self.source, Variable) else self.source()

    def assign(self, value: Any) -> None:
        """Set another one; TypeError if it is a number in place of a schedule."""
        new = _source(value)
        if isinstance(self.source, Variable) and isinstance(new, Variable):
            self.source.assign(new)
        elif isinstance(self.source, schedules.LearningRateSchedule) and isinstance(new, Variable):
            raise TypeError(
                f"learning_rate: expected a schedule, as this optimizer was made with one, got {value!r}; "
                "make it with a number if it is to be settable"
            )
        else:
            self.source = new

    def config(self) -> Any:
        """As plain data; a callable is called."""
        if isinstance(self.source, schedules.LearningRateSchedule):
            return schedules.serialize(self.source)
        return float(self.source if isinstance(self.source, Variable) else self.source())


def _source(value: Any) -> Any:
    if isinstance(value, schedules.LearningRateSchedule) or (callable(value) and not hasattr(value, "dtype")):
        return value
    number = ADADELTA.hypers["lr"].check("learning_rate", value)
    return Variable(np.asarray(number, np.float64), trainable=False, name="learning_rate")
