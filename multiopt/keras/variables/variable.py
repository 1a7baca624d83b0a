"""Keras' variables: a named box around an array of any library."""

from __future__ import annotations

import copy
import operator
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ... import backends
from ...backends.generic import Array, Backend

__all__ = ["Boxes", "Variable", "as_array", "check_values", "detached", "holding", "is_traced", "unboxed"]


class Variable:
    """A named box around an array.

    NumPy, CuPy and PyTorch arrays are not copied: they are written in place, so that the caller sees every change.
    JAX arrays are immutable: the variable holds a new array after each change.

    Parameters
    ----------
    initial_value : array, number, nested list, or callable without arguments
        Numbers and lists become NumPy arrays: float32, int32 or bool, as in TensorFlow.
    trainable : bool
        Whether a `GradientTape` records it: a floating PyTorch tensor is set to require a gradient, as in Keras 3.
    name : str
        Used in messages, in the names of slots, and to exclude variables from weight decay.
    dtype : str or None
        Convert the array, which is then a copy, to this dtype.
    constraint : callable or None
        ``constraint(array) -> array``: an optimizer calls it after each update, and assigns what it returns.

    Raises
    ------
    TypeError
        If the array's library is not supported, or `constraint` is not callable.
    """

    __array_priority__ = 100  # in `array + variable`, NumPy defers to the Variable's operators

    def __init__(
        self,
        initial_value: Any,
        trainable: bool = True,
        name: str = "Variable",
        dtype: str | None = None,
        constraint: Callable[[Array], Array] | None = None,
    ) -> None:
        if constraint is not None and not callable(constraint):
            raise TypeError(f"constraint: expected a function of the array, got {constraint!r}")
        if callable(initial_value) and not hasattr(initial_value, "dtype"):
            initial_value = initial_value()
        self.name = name
        self.constraint = constraint
        self._value = as_array(initial_value)
        self.backend: Backend = backends.of(self._value)
        if dtype is not None:
            self._value = self.backend.cast(self._value, dtype)
        self._dtype = self.backend.dtype(self._value)
        self.trainable = trainable

    # --- description ---

    @property
    def value(self) -> Array:
        """The array."""
        return self._value

    @value.setter
    def value(self, array: Array) -> None:
        # Not checked: optimizers put the new arrays of immutable libraries here, and differentiation traced ones.
        self._value = array

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return tuple(self._value.shape)

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    @property
    def dtype(self) -> str:
        """The dtype's name, such as ``"float32"``; it never changes."""
        return self._dtype

    @property
    def device(self) -> Any:
        """The array's device."""
        return self.backend.device(self._value)

    @property
    def trainable(self) -> bool:
        """Whether a `GradientTape` records it."""
        return self._trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        self._trainable = bool(value)
        tensor = self._value
        if self.backend.name == "torch" and tensor.is_leaf and (tensor.is_floating_point() or tensor.is_complex()):
            tensor.requires_grad_(self._trainable)

    def detached(self) -> Array:
        """The array, for operations that PyTorch's autograd is not to record."""
        return detached(self._value)

    def numpy(self) -> np.ndarray:
        """A NumPy copy of the values; bfloat16 as float32, which holds them exactly."""
        host = self.backend.to_host(self._value)
        if self.dtype == "bfloat16":
            host = (host.astype(np.uint32) << 16).view(np.float32)
        return np.array(host).reshape(self.shape)

    # --- writing ---

    def assign(self, value: Any) -> Variable:
        """Set the value, in place where the library's arrays are mutable.

        Parameters
        ----------
        value : Variable, array, number or nested list
            Of the same shape; it is converted to the variable's dtype. NumPy arrays are accepted for every library.

        Raises
        ------
        ValueError
            If the shape differs.
        TypeError
            If it is an array of another library than NumPy or the variable's.
        """
        new = self._like(value)
        if self.backend.mutable:
            self.backend.write(self._value, new)
        else:
            self._value = new
        return self

    def assign_add(self, delta: Any) -> Variable:
        """Add to the value; see `assign`."""
        return self.assign(self.detached() + self._like(delta))

    def assign_sub(self, delta: Any) -> Variable:
        """Subtract from the value; see `assign`."""
        return self.assign(self.detached() - self._like(delta))

    def _like(self, value: Any) -> Array:
        """`value` as an array of this variable's library, dtype, device and shape."""
        array = as_array(value, default=None)
        found = backends.of(array)
        if tuple(array.shape) != self.shape:
            raise ValueError(f"{self.name}: expected a value of shape {self.shape}, got {tuple(array.shape)}")
        if found is self.backend:
            return self.backend.cast(detached(array), self.dtype)
        if found.name != "numpy":
            raise TypeError(f"{self.name}: expected a {self.backend.name} or numpy array, got a {found.name} array")
        if self.dtype == "bfloat16":
            # Through float32: NumPy has no bfloat16; the library rounds.
            host = np.ascontiguousarray(array, dtype=np.float32).reshape(self.shape)
            return self.backend.cast(self.backend.from_host(host, "float32", self._value), "bfloat16")
        host = np.array(array, dtype=self.dtype, order="C").reshape(self.shape)
        return self.backend.from_host(host, self.dtype, self._value)

    # --- use in expressions ---

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("a Variable cannot become a NumPy array without a copy; use its value")
        return self.numpy().astype(dtype) if dtype is not None else self.numpy()

    def __jax_array__(self) -> Array:
        return self._value

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*_all_unboxed(args), **_all_unboxed(kwargs or {}))

    def __float__(self) -> float:
        return float(self.numpy())

    def __int__(self) -> int:
        return int(self.numpy())

    def __bool__(self) -> bool:
        return bool(self.numpy())

    def __index__(self) -> int:
        return operator.index(self.numpy()[()])

    def __len__(self) -> int:
        return len(self._value)

    def __getitem__(self, key: Any) -> Array:
        return self._value[key]

    def __repr__(self) -> str:
        return f"<Variable {self.name!r} shape={self.shape} dtype={self.dtype} value={self._value!r}>"

    def __deepcopy__(self, memo: dict[int, Any]) -> Variable:
        twin = memo[id(self)] = copy.copy(self)
        twin._value = self.backend.copy(self._value)
        twin.trainable = self._trainable
        return twin


def _operators() -> None:
    """Give Variable the operators of its array, except ``==``: variables are compared and hashed by identity."""

    def add(name: str, function: Callable[..., Any]) -> None:
        setattr(Variable, f"__{name}__", lambda self, *other: function(self._value, *map(unboxed, other)))

    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"):
        function = getattr(operator, name)
        add(name, function)
        add(f"r{name}", lambda mine, other, function=function: function(other, mine))
    for name in ("lt", "le", "gt", "ge", "neg", "pos", "abs"):
        add(name, getattr(operator, name))


_operators()


def detached(array: Array) -> Array:
    """The array, without its history of operations if it is a PyTorch tensor; both share memory."""
    return array.detach() if backends.of(array).name == "torch" else array


def is_traced(value: Any) -> bool:
    """Whether JAX is tracing it, so that it has no value yet."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(value, jax.core.Tracer)


@contextmanager
def holding(variables: Sequence[Variable], values: Sequence[Any]) -> Iterator[None]:
    """Within it, the variables hold other values."""
    before = [variable.value for variable in variables]
    try:
        for variable, value in zip(variables, values, strict=True):
            variable.value = value
        yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.value = value


def unboxed(value: Any) -> Any:
    """The array of a Variable; anything else as it is."""
    return value.value if isinstance(value, Variable) else value


def _all_unboxed(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(map(_all_unboxed, value))
    if isinstance(value, dict):
        return {key: _all_unboxed(entry) for key, entry in value.items()}
    return unboxed(value)


def as_array(value: Any, default: Any = np.float32) -> Array:
    """An array as it is; a number or nested list as a NumPy array, Python floats in dtype `default`."""
    if isinstance(value, Variable):
        return value.value
    if isinstance(value, np.generic):
        return np.asarray(value)
    if isinstance(value, (bool, int, float, complex, list, tuple)):
        array = np.asarray(value)
        if default is not None and array.dtype == np.float64:
            return array.astype(default)
        if default is not None and array.dtype == np.int64:
            return array.astype(np.int32)
        return array
    backends.of(value)  # raises TypeError for what is not an array
    return value


class Boxes:
    """The variables that an optimizer has been given: Variables, or plain arrays, which it wraps in Variables.

    A plain array must be mutable. The same array always gets the same Variable.
    """

    def __init__(self) -> None:
        self._boxes: dict[int, Variable] = {}

    def of(self, given: Any, where: str = "variable") -> Variable:
        """The variable for what the caller gave; TypeError if it is neither a Variable nor a mutable array."""
        if isinstance(given, Variable):
            return given
        found = self._boxes.get(id(given))
        if found is not None and found.value is given:
            return found
        try:
            backend = backends.of(given)
        except TypeError as error:
            raise TypeError(f"{where}: expected a Variable or an array; {error}") from None
        if not backend.mutable:
            raise TypeError(f"{where}: {backend.name} arrays are immutable; expected a Variable around one")
        trainable = backend.name != "torch" or given.requires_grad
        box = Variable(given, trainable=trainable, name=f"array_{len(self._boxes)}")
        self._boxes[id(given)] = box
        return box


def check_values(variables: Sequence[Variable], values: Sequence[Any]) -> None:
    """Raise ValueError unless there is a value of the right shape for each variable."""
    if len(values) != len(variables):
        raise ValueError(f"weights: expected {len(variables)} arrays, got {len(values)}")
    for variable, value in zip(variables, values, strict=True):
        if tuple(np.shape(value)) != variable.shape:
            raise ValueError(
                f"weights: expected shape {variable.shape} for {variable.name}, got {tuple(np.shape(value))}"
            )
