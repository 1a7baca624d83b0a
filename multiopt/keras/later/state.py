"""The variables that an optimizer of the later API holds: the model's, and its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any

import numpy as np

from ...lock import Lock, locked
from ..distribute import mesh as meshes
from ..variables import initializers
from ..variables.variable import Boxes, Variable, check_values, unboxed

__all__ = ["OptimizerVariables", "unchanged_by_errors"]


@contextmanager
def unchanged_by_errors(owner: Any) -> Iterator[None]:
    """If the block raises, the attributes of `owner`, its lists and dicts among them, are what they were before."""
    before = {name: copy(value) if type(value) in (list, dict) else value for name, value in vars(owner).items()}
    try:
        yield
    except BaseException:
        vars(owner).clear()
        vars(owner).update(before)
        raise


class _Count(Variable):
    """A number of iterations that is computed from another one, so that it cannot be assigned."""

    def assign(self, value: Any) -> Variable:
        """Raise AttributeError, as Keras does, where this is no variable."""
        raise AttributeError(
            "iterations: with gradient_accumulation_steps it counts updates, not calls, and cannot be assigned; "
            "set_weights sets the count of calls"
        )


class _Variables(list[Variable]):
    """A list that may also be called, as in tf_keras: ``opt.variables`` and ``opt.variables()`` are the same."""

    def __call__(self) -> _Variables:
        return self


class OptimizerVariables:
    """A part of `Optimizer`: it creates, saves and loads variables."""

    name: str
    mesh: Any
    built: bool
    gradient_accumulation_steps: int | None

    def __init__(self) -> None:
        self._step_lock = Lock()
        self.built = False
        self._boxes = Boxes()
        self._variables: list[Variable] = []
        self._trainable_variables: list[Variable] = []
        self._index_dict: dict[int, int] = {}
        #: What the names of new variables begin with.
        self._scope = ""
        self._iterations = Variable(np.zeros((), np.int64), trainable=False, name="iteration")
        self._variables.append(self._iterations)

    @property
    def variables(self) -> _Variables:
        """The optimizer's own: iterations, averages, sums of gradients, then what `build` adds, in this order.

        The list may be called, and returns itself then.
        """
        return _Variables(self._variables)

    @property
    def iterations(self) -> Variable:
        """The number of steps: of calls of `apply_gradients` or, with accumulation, of updates, which is read only.

        Another Variable of one integer may be set before the optimizer is built.
        """
        if not self.gradient_accumulation_steps:
            return self._iterations
        updates = self._iterations.value // self.gradient_accumulation_steps
        return _Count(updates, trainable=False, name="iteration")

    @iterations.setter
    def iterations(self, variable: Variable) -> None:
        if self.built:
            raise RuntimeError("iterations: expected it to be set before the optimizer is built; assign a value to it")
        if self.gradient_accumulation_steps:
            raise AttributeError("iterations: cannot be set with gradient_accumulation_steps, where it is computed")
        if not isinstance(variable, Variable) or variable.shape != () or "int" not in variable.dtype:
            raise TypeError(f"iterations: expected a Variable of one integer, got {variable!r}")
        self._variables[0] = self._iterations = variable

    def build(self, var_list: Sequence[Any]) -> None:
        """Create the optimizer's variables; subclasses call ``super().build(var_list)`` first.

        Parameters
        ----------
        var_list : sequence of Variable or mutable arrays
            All variables that will ever be updated.

        Raises
        ------
        TypeError
            If one is neither a Variable nor a mutable array.
        ValueError
            If there is none, if one occurs twice, or if one is not on the mesh.
        """
        if self.built:
            return
        boxes = [self._boxes.of(given, f"var_list[{i}]") for i, given in enumerate(var_list)]
        if len({id(box) for box in boxes}) < len(boxes):
            raise ValueError("var_list: expected each variable once, got one twice")
        if not boxes:
            raise ValueError("var_list: expected at least one variable, got none")
        meshes.check_on_mesh(self.mesh, [box.value for box in boxes], [box.name for box in boxes])
        self._trainable_variables = boxes
        self._index_dict = {self._var_key(box): i for i, box in enumerate(boxes)}
        self.built = True

    def add_variable(
        self,
        shape: Any = None,
        dtype: str | None = None,
        initializer: Any = "zeros",
        name: str | None = None,
    ) -> Variable:
        """Create a variable of the optimizer's own, of the library and device of the first model variable, once built.

        Parameters
        ----------
        shape : sequence or 1-D array of int, or None
            Scalar if None.
        dtype : str or None
            ``"float32"`` if None.
        initializer : str, callable, array or number
            The name of one of Keras' initializers, with its defaults: ``"ones"``, ``"glorot_uniform"``, … A callable is
            called with ``shape`` and ``dtype`` and returns a value.
        name : str or None
            Its name.

        Returns
        -------
        Variable
            Replicated on the mesh, if there is one.

        Raises
        ------
        TypeError, ValueError
            If the shape is not one of integers, or the initializer is not known.
        """
        like = self._trainable_variables[0] if self._trainable_variables and self.mesh is None else None
        value = initializers.fresh(() if shape is None else shape, dtype, initializer, like)
        if self.mesh is not None:
            value = meshes.replicated(value, self.mesh)
        made = Variable(value, trainable=False, name=self._scope + (name or "variable"))
        self._variables.append(made)
        return made

    def add_variable_from_reference(
        self,
        model_variable: Any,
        variable_name: str,
        shape: Any = None,
        initial_value: Any = None,
    ) -> Variable:
        """Create a variable for a model variable, of its library, dtype and sharding.

        Parameters
        ----------
        model_variable : Variable, or mutable array
            The reference.
        variable_name : str
            The new variable is called ``{variable_name}/{model_variable.name}``.
        shape : sequence or 1-D array of int, or None
            The reference's shape if None.
        initial_value : Variable, array, number or None
            0 if None.
        """
        box = self._boxes.of(model_variable, "model_variable")
        value = initializers.like(box, "zeros" if initial_value is None else unboxed(initial_value), shape)
        made = Variable(value, trainable=False, name=f"{self._scope}{variable_name}/{box.name}")
        self._variables.append(made)
        return made

    def _var_key(self, variable: Any) -> int:
        return id(variable)

    def _get_variable_index(self, variable: Any) -> int:
        return self._index_dict[self._var_key(self._boxes.of(variable))]

    def assign(self, variable: Variable, value: Any) -> None:
        """Set the value of a variable."""
        variable.assign(value)

    def assign_add(self, variable: Variable, value: Any) -> None:
        """Add a value to a variable."""
        variable.assign_add(value)

    def assign_sub(self, variable: Variable, value: Any) -> None:
        """Subtract a value from a variable."""
        variable.assign_sub(value)

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Assign arrays to `variables`, in their order.

        Raises
        ------
        ValueError
            If the optimizer is not built, or the number of arrays or a shape differs. Nothing has been written then.
        """
        if not self.built:
            raise ValueError("set_weights: expected an optimizer that is built; call build() first")
        check_values(self._variables, weights)
        for variable, weight in zip(self._variables, weights, strict=True):
            meshes.assign(variable, weight)

    @locked
    def save_own_variables(self, store: MutableMapping[str, Any]) -> None:
        """Put NumPy copies of `variables` into a mapping, under ``"0"``, ``"1"``, … ; sharded ones are gathered."""
        for i, variable in enumerate(self._variables):
            store[str(i)] = meshes.numpy(variable)

    @locked
    def load_own_variables(self, store: Mapping[str, Any]) -> None:
        """Assign what `save_own_variables` has stored.

        Raises
        ------
        ValueError
            See `set_weights`. (Keras warns, and continues without the state.)
        """
        expected = [str(i) for i in range(len(self._variables))]
        if sorted(store.keys()) != sorted(expected):
            raise ValueError(
                f"store: expected {len(expected)} arrays for optimizer {self.name!r}, got {sorted(store.keys())}"
            )
        self.set_weights([np.asarray(store[key]) for key in expected])

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is looked up by identity."""
        return {**self.__dict__, "_index_dict": {}, "_boxes": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._boxes = Boxes()
        self._index_dict = {self._var_key(box): i for i, box in enumerate(self._trainable_variables)}
