"""Keras' variables: a named box around an array of any library, and the gradient of some of its rows."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from .. import backends
from ..backends.protocol import Array, Backend

__all__ = ["Boxes", "IndexedSlices", "Variable"]


class Variable:
    """A named box around an array.

    The array of a mutable library (NumPy, CuPy, PyTorch) is the caller's own: it is written in place, and the
    caller sees it. The arrays of JAX are immutable: the box then holds the newest one.

    Parameters
    ----------
    initial_value : array, number, nested list, or callable without arguments
        Numbers and lists become NumPy arrays: float32, int32 or bool, as in TensorFlow.
    trainable : bool
        Whether a `GradientTape` follows it: a floating PyTorch tensor is told to require a gradient, as Keras 3 does.
    name : str
        For messages, slots and weight decay.
    dtype : str or None
        Another dtype for the array, which is then a copy.
    constraint : callable or None
        ``constraint(array) -> array``: an optimizer calls it after each update, and assigns what it returns.

    Raises
    ------
    TypeError
        If the array's library is not known, or if `constraint` cannot be called.
    """

    __array_priority__ = 100  # NumPy leaves its operators with a Variable to ours

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
        self._value = _array(initial_value)
        self.backend: Backend = backends.of(self._value)
        if dtype is not None:
            self._value = self.backend.cast(self._value, dtype)
        self._dtype = self.backend.dtype(self._value)
        self.trainable = trainable

    # --- what it is ---

    @property
    def value(self) -> Array:
        """The array."""
        return self._value

    @value.setter
    def value(self, array: Array) -> None:
        # Of the library and dtype that it had; optimizers put the new arrays of immutable libraries here, and
        # differentiation puts traced ones.
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
        """The dtype's name, such as ``"float32"``; it stays the same."""
        return self._dtype

    @property
    def device(self) -> Any:
        """Where the array is."""
        return self.backend.device(self._value)

    @property
    def trainable(self) -> bool:
        """Whether a tape follows it."""
        return self._trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        self._trainable = bool(value)
        tensor = self._value
        if self.backend.name == "torch" and tensor.is_leaf and (tensor.is_floating_point() or tensor.is_complex()):
            tensor.requires_grad_(self._trainable)

    def numpy(self) -> np.ndarray:
        """A NumPy copy of the values; bfloat16 as float32, which holds them exactly."""
        host = self.backend.to_host(self._value)
        if self.dtype == "bfloat16":
            host = (host.astype(np.uint32) << 16).view(np.float32)
        return np.array(host).reshape(self.shape)

    # --- writing ---

    def assign(self, value: Any) -> Variable:
        """Put a value in: in place where the library's arrays are mutable.

        Parameters
        ----------
        value : Variable, array, number or nested list
            Of the same shape. It is converted to the dtype; a NumPy array may be given to any library.

        Raises
        ------
        ValueError
            If the shape is another.
        TypeError
            If it is an array of another library, NumPy's aside.
        """
        new = self._like(value)
        if self.backend.mutable:
            self.backend.write(self._value, new)
        else:
            self._value = new
        return self

    def assign_add(self, delta: Any) -> Variable:
        """Add to the value; see `assign`."""
        return self.assign(self._detached() + self._like(delta))

    def assign_sub(self, delta: Any) -> Variable:
        """Subtract from the value; see `assign`."""
        return self.assign(self._detached() - self._like(delta))

    def _detached(self) -> Array:
        return self._value.detach() if self.backend.name == "torch" else self._value

    def _like(self, value: Any) -> Array:
        """`value` as an array of this variable's library, dtype, device and shape."""
        array = value.value if isinstance(value, Variable) else _array(value, default=None)
        found = backends.of(array)
        if tuple(array.shape) != self.shape:
            raise ValueError(f"{self.name}: expected a value of shape {self.shape}, got {tuple(array.shape)}")
        if found is self.backend:
            return self.backend.cast(array.detach() if found.name == "torch" else array, self.dtype)
        if found.name != "numpy":
            raise TypeError(f"{self.name}: expected a {self.backend.name} or numpy array, got a {found.name} array")
        if self.dtype == "bfloat16":
            # By way of float32: NumPy has no bfloat16 of its own, and each library rounds as it does.
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
        return function(*_unboxed(args), **(_unboxed(kwargs) if kwargs else {}))

    def __float__(self) -> float:
        return float(self.numpy())

    def __int__(self) -> int:
        return int(self.numpy())

    def __index__(self) -> int:
        return operator.index(self.numpy()[()])

    def __bool__(self) -> bool:
        return bool(self.numpy())

    def __len__(self) -> int:
        return len(self._value)

    def __getitem__(self, key: Any) -> Array:
        return self._value[key]

    def __neg__(self) -> Array:
        return -self._value

    def __pos__(self) -> Array:
        return +self._value

    def __abs__(self) -> Array:
        return abs(self._value)

    def __repr__(self) -> str:
        return f"<Variable {self.name!r} shape={self.shape} dtype={self.dtype} value={self._value!r}>"

    def __deepcopy__(self, memo: dict[int, Any]) -> Variable:
        # Keras' optimizers are copied with their state; a copied box has memory of its own.
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        twin.name, twin.constraint, twin.backend = self.name, self.constraint, self.backend
        twin._value, twin._dtype = self.backend.copy(self._value), self._dtype
        twin.trainable = self._trainable
        return twin


def _operators() -> None:
    """Give Variable the operators of its array. Comparison for equality stays that of the box, which is hashable."""

    def forward(function: Callable[[Any, Any], Any]) -> Callable[[Variable, Any], Any]:
        return lambda self, other: function(self._value, _unbox(other))

    def backward(function: Callable[[Any, Any], Any]) -> Callable[[Variable, Any], Any]:
        return lambda self, other: function(_unbox(other), self._value)

    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"):
        function = getattr(operator, name)
        setattr(Variable, f"__{name}__", forward(function))
        setattr(Variable, f"__r{name}__", backward(function))
    for name in ("lt", "le", "gt", "ge"):
        setattr(Variable, f"__{name}__", forward(getattr(operator, name)))


_operators()


def _unbox(value: Any) -> Any:
    return value.value if isinstance(value, Variable) else value


def _unboxed(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(map(_unboxed, value))
    if isinstance(value, dict):
        return {key: _unboxed(entry) for key, entry in value.items()}
    return _unbox(value)


def _array(value: Any, default: Any = np.float32) -> Array:
    """An array as it is; a number or nested list as a NumPy array, floats of them in dtype `default`."""
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
    backends.of(value)  # which says what it is that is no array
    return value


class IndexedSlices:
    """The gradient of some rows of a variable: row ``indices[i]`` has the gradient ``values[i]``.

    Rows may occur more than once; their gradients are then to be added up.

    Parameters
    ----------
    values : array, shape (n, ...)
        Of the variable's library and dtype; without the first axis, shaped like one row of it.
    indices : array or sequence of int, shape (n,)
        Of any library.
    dense_shape : tuple of int or None
        The variable's shape, if it is known.

    Raises
    ------
    TypeError
        If `indices` are not integers.
    ValueError
        If the two do not agree, or an index is negative or outside `dense_shape`.
    """

    def __init__(self, values: Any, indices: Any, dense_shape: Iterable[int] | None = None) -> None:
        self.values: Array = _array(values)
        self.indices: np.ndarray = _integers(indices)
        self.dense_shape = None if dense_shape is None else tuple(int(n) for n in dense_shape)
        shape = tuple(self.values.shape)
        if self.indices.ndim != 1 or not shape or shape[0] != len(self.indices):
            raise ValueError(
                f"indices: expected one for each of the rows of values, which has shape {shape}, "
                f"got shape {self.indices.shape}"
            )
        if self.dense_shape is not None:
            self.check(self.dense_shape, "dense_shape")

    def check(self, shape: tuple[int, ...], what: str) -> None:
        """Raise ValueError unless these are rows of an array of this shape."""
        if not shape or tuple(self.values.shape)[1:] != shape[1:]:
            raise ValueError(f"{what}: expected rows of shape {shape[1:]}, got {tuple(self.values.shape)[1:]}")
        if len(self.indices) and not (self.indices.min() >= 0 and self.indices.max() < shape[0]):
            raise ValueError(f"{what}: expected indices in [0, {shape[0]}), got {self.indices}")

    def __repr__(self) -> str:
        return f"IndexedSlices(values={self.values!r}, indices={self.indices!r}, dense_shape={self.dense_shape})"


def _integers(indices: Any) -> np.ndarray:
    if not isinstance(indices, (list, tuple)):
        array = _array(indices)
        host = backends.of(array).to_host(array).reshape(tuple(array.shape))
    else:
        host = np.asarray(indices, dtype=None if len(indices) else np.int64)
    if host.dtype.kind not in "iu":
        raise TypeError(f"indices: expected integers, got {host.dtype}")
    return host.astype(np.int64)


class Boxes:
    """The variables that an optimizer has been given, found by what the caller gave: a `Variable` or a plain array.

    A plain array of a mutable library is put into a box of ours, which stays the same for the same array.
    """

    def __init__(self) -> None:
        self._boxes: dict[int, Variable] = {}

    def of(self, given: Any, where: str = "variable") -> Variable:
        """The variable for what the caller gave.

        Raises
        ------
        TypeError
            If it is neither, or an array that cannot be written to.
        """
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
