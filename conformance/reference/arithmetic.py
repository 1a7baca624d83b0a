"""What the reference computes with: a floating-point type, or 50 decimal digits."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from decimal import Context, Decimal, localcontext
from typing import Any

import numpy as np

from ..data.case import Array
from ..data.floats import REAL, format_of, parts, rounded
from ..data.specification import HOLDERS


def through(value: float, dtype: str) -> float:
    """Return a number rounded to a data type."""
    with np.errstate(all="ignore"):
        held = np.asarray(value).astype(HOLDERS[dtype])
    return float(parts(rounded(held, dtype)).ravel()[0])


class Floats:
    """The arithmetic of a data type, by NumPy, on flat arrays; 16 bits are computed in 32, complex numbers by parts."""

    def __init__(self, dtype: str) -> None:
        self.dtype = REAL.get(dtype, dtype)
        self.held = np.dtype(HOLDERS[self.dtype])
        #: NumPy's data type of arrays that are computed with.
        self.wide = np.dtype(np.float32) if self.held == np.float16 else self.held

    def working(self) -> AbstractContextManager[Any]:
        """Return what must be entered around all work."""
        return np.errstate(all="ignore")

    def array(self, values: Any) -> Array:
        """Return the values of an array to be computed with."""
        return np.array(parts(np.asarray(values)).ravel(), dtype=self.wide)

    def exact(self, value: float) -> Any:
        """Return an option as it was given, not rounded yet."""
        return float(value)

    def option(self, value: float) -> Any:
        """Return a hyperparameter that frameworks hold in the parameters' data type, not rounded yet where ours do."""
        return self.exact(value)

    def number(self, value: Any) -> Any:
        """Return a number as it is computed with."""
        return self.wide.type(value)

    def hold(self, values: Array) -> Array:
        """Return the result of an operation as the data type's range would have it."""
        return values

    def keep(self, values: Array) -> Array:
        """Return values as they are kept in memory."""
        return rounded(np.asarray(values).astype(self.held), self.dtype).astype(self.wide)

    def sqrt(self, values: Array) -> Array:
        """Return the square root of each."""
        return np.asarray(np.sqrt(values))

    def squares(self, values: Array) -> Any:
        """Return the sum of squares; as in the library, huge ones count as infinite."""
        each = np.square(np.asarray(values, dtype=np.float64))
        return math.fsum(np.where(each >= 2.0**930, np.inf, each))

    def norm(self, squares: list[Any]) -> Any:
        """Return the square root of the sum of these sums of squares."""
        return math.sqrt(math.fsum(squares))


class Digits(Floats):
    """Decimal arithmetic of 50 digits; only the range is that of a data type.

    ``as_held`` rounds hyperparameters to the data type first, as every framework must; with ``flushes``, numbers below
    its smallest normal one become 0.
    """

    context = Context(prec=50, Emin=-999_999, Emax=999_999, traps=[])

    def __init__(self, dtype: str, *, as_held: bool = True, flushes: bool = False) -> None:
        super().__init__(dtype)
        self.wide = np.dtype(object)
        self.whole, self.as_held, self.flushes = dtype, as_held, flushes
        precision, emin, emax = format_of(dtype)
        with self.working():
            # From here on, rounding to nearest gives infinity.
            self.overflow = Decimal(2) ** emax * (2 - Decimal(2) ** -precision)
            self.tiny = Decimal(2) ** emin

    def working(self) -> AbstractContextManager[Any]:
        return localcontext(self.context)

    def array(self, values: Any) -> Array:
        return np.array([Decimal(float(value)) for value in parts(np.asarray(values)).ravel()], dtype=object)

    def exact(self, value: float) -> Any:
        return Decimal(value)

    def option(self, value: float) -> Any:
        return Decimal(through(value, self.whole) if self.as_held else value)

    def number(self, value: Any) -> Any:
        return value

    def _held(self, value: Decimal) -> Decimal:
        if abs(value) >= self.overflow:
            return Decimal("Infinity").copy_sign(value)
        return Decimal(0).copy_sign(value) if self.flushes and abs(value) < self.tiny else value

    def hold(self, values: Array) -> Array:
        return np.asarray(np.frompyfunc(self._held, 1, 1)(values), dtype=object)

    keep = hold

    def sqrt(self, values: Array) -> Array:
        return np.asarray(np.frompyfunc(Decimal.sqrt, 1, 1)(values), dtype=object)

    def squares(self, values: Array) -> Any:
        return sum(values * values, Decimal(0))

    def norm(self, squares: list[Any]) -> Any:
        return sum(squares, Decimal(0)).sqrt()
