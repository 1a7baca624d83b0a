"""What a legacy optimizer holds: its count of iterations, its slots, and the order in which they were created."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from ...lock import Lock, locked
from ..distribute.aggregation import Aggregated, SyncOnRead, VariableAggregation, VariableSynchronization
from ..variables import initializers
from ..variables.variable import Boxes, Variable, check_values

__all__ = ["Weights"]


class Weights:
    """A part of `Optimizer`: the variables of the optimizer's own."""

    def __init__(self) -> None:
        self._step_lock = Lock()
        self._boxes = Boxes()
        self._weights: list[Variable] = []
        self._slots: dict[Variable, dict[str, Variable]] = {}
        self._slot_names: list[str] = []
        self._iterations: Variable | None = None

    @property
    def iterations(self) -> Variable:
        """The number of updates done: a Variable. Another one may be set before the first use."""
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
        self._weights.append(variable)

    @property
    def weights(self) -> list[Variable]:
        """The optimizer's variables in the order they were created: iterations, then slots."""
        return list(self._weights)

    def variables(self) -> list[Variable]:
        """The same as `weights`."""
        return self.weights

    @locked
    def get_weights(self) -> list[np.ndarray]:
        """The values of `weights`, as NumPy arrays."""
        return [weight.numpy() for weight in self._weights]

    @locked
    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set the values of `weights`; see `get_weights`.

        Raises
        ------
        ValueError
            If the number of arrays or a shape differs. Nothing has been changed then.
        """
        check_values(self._weights, weights)
        for weight, value in zip(self._weights, weights, strict=True):
            weight.assign(value)

    def add_slot(self, var: Any, slot_name: str, initializer: Any = "zeros", shape: Any = None) -> Variable:
        """The slot of a variable: a Variable of its library, dtype and shape, created if there is none yet.

        Parameters
        ----------
        var : Variable or array
        slot_name : str
        initializer : str, callable of shape and dtype, or value
            A string is the name of one of Keras' initializers; see `multiopt.keras.Optimizer.add_variable`.
        shape : sequence or 1-D array of int, or None
            The variable's shape if None.
        """
        variable = self._boxes.of(var, "var")
        own = self._slots.get(variable, {})
        if slot_name not in own:
            array = initializers.like(variable, initializer, shape)
            own[slot_name] = Variable(array, trainable=False, name=f"{variable.name}/{slot_name}")
            self._slots[variable] = own
            self._weights.append(own[slot_name])
            if slot_name not in self._slot_names:
                self._slot_names.append(slot_name)
        return own[slot_name]

    def get_slot(self, var: Any, slot_name: str) -> Variable:
        """A slot of a variable; KeyError if there is none."""
        variable = self._boxes.of(var, "var")
        if slot_name not in self._slots.get(variable, {}):
            known = ", ".join(v.name for v in self._slots) or "none"
            raise KeyError(
                f"no slot {slot_name!r} for {variable!r}; slots are {self._slot_names}, "
                f"variables with slots are {known}"
            )
        return self._slots[variable][slot_name]

    def get_slot_names(self) -> list[str]:
        """The names of the slots that were created."""
        return list(self._slot_names)

    def add_weight(
        self,
        name: str,
        shape: Any,
        dtype: str | None = None,
        initializer: Any = "zeros",
        trainable: bool | None = None,
        synchronization: Any = VariableSynchronization.AUTO,
        aggregation: Any = VariableAggregation.NONE,
    ) -> Variable:
        """Create a variable for a subclass's own use, which is not one of `weights`.

        Parameters
        ----------
        name, shape, dtype, initializer
            See `multiopt.keras.Optimizer.add_variable`.
        trainable : bool or None
            True by default; of a variable that is synchronized on read, False.
        synchronization : {"auto", "none", "on_write", "on_read"}
            "on_read": each replica of a process has a value of its own. The others mean the same here, where they share
            the variable.
        aggregation : {"none", "sum", "mean", "only_first_replica"}
            How the values that several replicas assign at the same time become one or, synchronized on read, what the
            variable is outside of them.

        Returns
        -------
        Variable
            Of the library of the variables that have slots, or NumPy's if there are none.

        Raises
        ------
        TypeError, ValueError
            If the shape is not one of integers, a name is not known, or a trainable variable is to be synchronized on
            read.
        """
        on_read = VariableSynchronization.of(synchronization) is VariableSynchronization.ON_READ
        if on_read and trainable:
            raise ValueError(f"trainable: expected False with synchronization on_read for {name!r}, got {trainable!r}")
        how = VariableAggregation.of(aggregation)
        array = initializers.fresh(shape, dtype, initializer, next(iter(self._slots), None))
        return SyncOnRead(array, name, how) if on_read else Aggregated(array, trainable is not False, name, how)

    @locked
    def _create_all_weights(self, var_list: Sequence[Variable]) -> None:
        self.iterations  # noqa: B018  # created first, so that it comes first among the weights
        self._create_slots(var_list)

    def _create_slots(self, var_list: Sequence[Variable]) -> None:
        """Create the state of new variables, by `add_slot`; by default there is none."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # The copy has its own state, and trains the same variables, unless they are being copied, too.
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        for variable in self._slots:
            memo.setdefault(id(variable), variable)
        state: Any = self.__getstate__()
        twin.__dict__.update(copy.deepcopy(state, memo))
        return twin
