"""Floating-point formats as bits: rounding to bfloat16, units in the last place, distances in them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Format(NamedTuple):
    """A binary format: significand bits (the hidden one included) and the range of exponents of normal numbers."""

    precision: int
    emin: int
    emax: int


#: The formats of the real data types; a complex number is two of them.
FORMATS = {
    "float64": Format(53, -1022, 1023),
    "float32": Format(24, -126, 127),
    "float16": Format(11, -14, 15),
    "bfloat16": Format(8, -126, 127),
}
REAL = {"complex64": "float32", "complex128": "float64"}


def format_of(dtype: str) -> Format:
    """Return the `Format` of ``dtype``; of a complex one, that of its parts."""
    return FORMATS[REAL.get(dtype, dtype)]


def to_bfloat16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round float32 to bfloat16, ties to even, and return the 16 bits. NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, nearest).astype(np.uint16).reshape(np.shape(values))


def from_bfloat16_bits(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return bfloat16 bits as float32 values, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(values: NDArray[np.generic], dtype: str) -> NDArray[np.generic]:
    """Return ``values`` rounded to what ``dtype`` can hold, in the array type that holds it."""
    if dtype == "bfloat16":
        return from_bfloat16_bits(to_bfloat16_bits(np.asarray(values, dtype=np.float32)))
    return values


def parts(values: NDArray[Any]) -> NDArray[Any]:
    """Return complex values as pairs of real ones along a new last axis; real values as they are."""
    if values.dtype.kind != "c":
        return values
    return np.ascontiguousarray(values).view(values.real.dtype).reshape(*values.shape, 2)


def without_nan_payload(values: NDArray[Any]) -> NDArray[Any]:
    """Return a copy in which every NaN has the same bits: sign and payload of a NaN mean nothing."""
    values = np.array(values, order="C")
    if values.dtype.kind in "fc":
        real = values.reshape(-1).view(values.real.dtype)
        real[np.isnan(real)] = np.nan
    return values


def spacing(values: ArrayLike, dtype: str) -> NDArray[np.float64]:
    """Return the distance from each value to the next one of ``dtype`` (real; subnormals included)."""
    precision, emin, emax = format_of(dtype)
    values = np.asarray(values, dtype=np.float64)
    _, exponent = np.frexp(np.abs(values))
    exponent = np.where(values == 0.0, emin, np.clip(exponent - 1, emin, emax))
    return np.ldexp(1.0, exponent - (precision - 1))


def ulps(a: NDArray[np.generic], b: NDArray[np.generic], dtype: str) -> NDArray[np.float64]:
    """Return how many representable numbers of ``dtype`` lie from ``a`` to ``b``, element by element.

    Complex values are judged part by part. NaN agrees with NaN; NaN or an infinity against anything else is
    infinitely far. +0 and −0 agree.
    """
    a, b = parts(np.asarray(a)), parts(np.asarray(b))
    key_a, key_b = _ordered(a, dtype), _ordered(b, dtype)
    # Unsigned subtraction of the smaller from the larger cannot overflow.
    distance = (np.maximum(key_a, key_b) - np.minimum(key_a, key_b)).astype(np.float64)
    both_nan = np.isnan(a) & np.isnan(b)
    odd = ~(np.isfinite(a) & np.isfinite(b)) & (a != b)
    return np.where(both_nan, 0.0, np.where(odd, np.inf, distance))


def _ordered(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Map floats to unsigned integers that are ordered as the floats are, neighbours one apart."""
    if dtype == "bfloat16":
        bits: NDArray[Any] = to_bfloat16_bits(values.astype(np.float32))
    else:
        bits = np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}").reshape(values.shape)
    sign = bits.dtype.type(1 << (8 * bits.dtype.itemsize - 1))
    magnitude = bits & ~sign
    return np.where(bits & sign, sign - magnitude, sign + magnitude)
