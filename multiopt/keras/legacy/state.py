"""What an optimizer holds: its count of iterations, its slots, and the order in which they were made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import initializers
from ..aggregation import VariableAggregation, VariableSynchronization, variable_for
from ..variable import Variable

__all__ = ["State"]


class State:
    """The variables of one optimizer.

    Attributes
    ----------
    weights : list of Variable
        In the order in which they were created.
    slots : dict of Variable to dict of str to Variable
    names : list of str
        Names of slots.
    """

    def __init__(self) -> None:
        self.weights: list[Variable] = []
        self.slots: dict[Variable, dict[str, Variable]] = {}
        self.names: list[str] = []
        self._iterations: Variable | None = None

    @property
    def iterations(self) -> Variable:
        """The count, an int64 NumPy variable; it is made when it is first asked for."""
        if self._iterations is None:
            self.iterations = Variable(np.array(0, np.int64), trainable=False, name="iter")
        assert self._iterations is not None
        return self._iterations

    @iterations.setter
    def iterations(self, variable: Variable) -> None:
        if self._iterations is not None:
            raise RuntimeError(
                "iterations: expected it to be set before it is first used; assign a value to it instead"
            )
        if not isinstance(variable, Variable) or variable.shape != ():
            raise TypeError(f"iterations: expected a Variable of one integer, got {variable!r}")
        self._iterations = variable
        self.weights.append(variable)

    def add_slot(self, variable: Variable, name: str, initializer: Any, shape: Any) -> Variable:
        """The slot of a variable; a new one, unless it exists."""
        if not isinstance(variable, Variable):
            raise TypeError(f"var: expected a Variable, got {variable!r}")
        own = self.slots.get(variable, {})
        if name not in own:
            array = initializers.like(variable, initializer, shape)
            own[name] = Variable(array, trainable=False, name=f"{variable.name}/{name}")
            self.slots[variable] = own
            self.weights.append(own[name])
            if name not in self.names:
                self.names.append(name)
        return own[name]

    def get_slot(self, variable: Variable, name: str) -> Variable:
        """A slot.

        Raises
        ------
        KeyError
            If there is none.
        """
        if name not in self.slots.get(variable, {}):
            known = ", ".join(v.name for v in self.slots) or "none"
            raise KeyError(
                f"no slot {name!r} for {variable!r}; slots are {self.names}, variables with slots are {known}"
            )
        return self.slots[variable][name]

    def add_weight(
        self,
        name: str,
        shape: Any,
        dtype: str | None,
        initializer: Any,
        trainable: bool | None,
        synchronization: str,
        aggregation: str,
    ) -> Variable:
        """A variable of the optimizer's own, of the library of its first variable, or NumPy's."""
        synchronization = VariableSynchronization.of(synchronization)
        if trainable is None:
            trainable = synchronization != VariableSynchronization.ON_READ
        reference = next(iter(self.slots), None)
        array = initializers.fresh(shape, dtype, initializer, reference)
        return variable_for(array, trainable, name, synchronization, VariableAggregation.of(aggregation))

    def values(self) -> list[np.ndarray]:
        """The weights' values."""
        return [weight.numpy() for weight in self.weights]

    def assign(self, values: Sequence[Any]) -> None:
        """Set the weights' values, all of them or none.

        Raises
        ------
        ValueError
            If their number, or the shape of one, is another.
        """
        if len(values) != len(self.weights):
            raise ValueError(f"weights: expected {len(self.weights)} arrays, got {len(values)}")
        for weight, value in zip(self.weights, values, strict=True):
            if tuple(np.shape(value)) != weight.shape:
                raise ValueError(f"weights: expected shape {weight.shape} for {weight.name}, got {np.shape(value)}")
        for weight, value in zip(self.weights, values, strict=True):
            weight.assign(value)
