"""What the reference computes with: a floating-point type, or 50 decimal digits."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from decimal import Context, Decimal, localcontext
from typing import Any, Protocol

import numpy as np

from ..data.case import Array
from ..data.floats import REAL, format_of, parts, rounded
from ..data.specification import HOLDERS

#: A number that is not rounded yet: a float, or a Decimal.
Number = Any


class Arithmetic(Protocol):
    """Numbers, and flat arrays of them; a complex array is the array of its parts."""

    #: NumPy's data type of arrays that are computed with.
    wide: np.dtype[Any]

    def working(self) -> AbstractContextManager[Any]:
        """Return what must be entered around all work."""

    def array(self, values: Any) -> Array:
        """Return the values of an array, flat, to be computed with."""

    def exact(self, value: float) -> Number:
        """Return an option's value as it was given."""

    def option(self, value: float) -> Number:
        """Return the value of a hyperparameter that frameworks hold in the parameters' data type."""

    def number(self, value: Number) -> Any:
        """Return a number as it is computed with."""

    def hold(self, values: Array) -> Array:
        """Return the result of an operation as the data type's range would have it."""

    def keep(self, values: Array) -> Array:
        """Return values as they are kept in memory."""

    def sqrt(self, values: Array) -> Array:
        """Return the square root of each."""

    def squares(self, values: Array) -> Number:
        """Return the sum of squares."""

    def norm(self, squares: list[Number]) -> Number:
        """Return the square root of the sum of these sums of squares."""


class Floats:
    """The arithmetic of a data type, by NumPy; 16 bits are computed in 32."""

    def __init__(self, dtype: str) -> None:
        self.dtype = REAL.get(dtype, dtype)
        self.held = np.dtype(HOLDERS[self.dtype])
        self.wide = np.dtype(np.float32) if self.held == np.float16 else self.held

    def working(self) -> AbstractContextManager[Any]:
        """See `Arithmetic`."""
        return np.errstate(all="ignore")

    def array(self, values: Any) -> Array:
        """See `Arithmetic`."""
        return np.array(parts(np.asarray(values)).ravel(), dtype=self.wide)

    def exact(self, value: float) -> float:
        """See `Arithmetic`."""
        return float(value)

    option = exact

    def number(self, value: Number) -> Any:
        """See `Arithmetic`."""
        return self.wide.type(value)

    def hold(self, values: Array) -> Array:
        """See `Arithmetic`."""
        return values

    def keep(self, values: Array) -> Array:
        """See `Arithmetic`."""
        return rounded(np.asarray(values).astype(self.held), self.dtype)

    def sqrt(self, values: Array) -> Array:
        """See `Arithmetic`."""
        return np.asarray(np.sqrt(values))

    def squares(self, values: Array) -> float:
        """See `Arithmetic`; as in the library, huge ones count as infinite."""
        each = np.square(np.asarray(values, dtype=np.float64))
        return math.fsum(np.where(each >= 2.0**930, np.inf, each))

    def norm(self, squares: list[Number]) -> float:
        """See `Arithmetic`."""
        return math.sqrt(math.fsum(squares))


class Digits:
    """Decimal arithmetic of 50 digits; only the range is that of a data type.

    Parameters
    ----------
    dtype : str
        Whose largest number overflows, and whose smallest normal number is where `flushes` begins.
    as_held : bool
        Round hyperparameters to `dtype` first, as every framework must.
    flushes : bool
        Whether subnormal numbers become 0.
    """

    context = Context(prec=50, Emin=-999_999, Emax=999_999, traps=[])
    wide = np.dtype(object)

    def __init__(self, dtype: str, *, as_held: bool = True, flushes: bool = False) -> None:
        self.dtype, self.as_held, self.flushes = dtype, as_held, flushes
        precision, emin, emax = format_of(dtype)
        with self.working():
            two = Decimal(2)
            # From here on, rounding to nearest gives infinity.
            self.overflow = two**emax * (two - two ** (-precision))
            self.tiny = two**emin
        self._each_held = np.frompyfunc(self._held, 1, 1)
        self._each_root = np.frompyfunc(Decimal.sqrt, 1, 1)

    def working(self) -> AbstractContextManager[Any]:
        """See `Arithmetic`."""
        return localcontext(self.context)

    def array(self, values: Any) -> Array:
        """See `Arithmetic`; values are exact."""
        flat = parts(np.asarray(values)).ravel()
        return np.array([Decimal(float(value)) for value in flat], dtype=object)

    def exact(self, value: float) -> Decimal:
        """See `Arithmetic`."""
        return Decimal(value)

    def option(self, value: float) -> Decimal:
        """See `Arithmetic`."""
        return Decimal(through(value, self.dtype) if self.as_held else value)

    def number(self, value: Number) -> Any:
        """See `Arithmetic`."""
        return value

    def _held(self, value: Decimal) -> Decimal:
        if abs(value) >= self.overflow:
            return Decimal("Infinity").copy_sign(value)
        if self.flushes and abs(value) < self.tiny:
            return Decimal(0).copy_sign(value)
        return value

    def hold(self, values: Array) -> Array:
        """See `Arithmetic`."""
        return np.asarray(self._each_held(values), dtype=object)

    keep = hold

    def sqrt(self, values: Array) -> Array:
        """See `Arithmetic`."""
        return np.asarray(self._each_root(values), dtype=object)

    def squares(self, values: Array) -> Decimal:
        """See `Arithmetic`."""
        return sum(values * values, Decimal(0))

    def norm(self, squares: list[Number]) -> Decimal:
        """See `Arithmetic`."""
        return sum(squares, Decimal(0)).sqrt()


def through(value: float, dtype: str) -> float:
    """Return a number rounded to a data type."""
    with np.errstate(all="ignore"):
        held = np.asarray(value).astype(HOLDERS[dtype])
    return float(parts(rounded(held, dtype)).ravel()[0])
