"""Sums of squares that do not depend on the order of addition, and what clipping by norm makes of them.

A floating-point sum depends on its order, so a norm would depend on the number of threads, on the blocking, on the
split into tensors and on the sharding over machines. Here squares are added as integers, exactly: a *row* of int64
digits, each of which counts multiples of a power of two, is wide enough for the square of any number of its dtype.

The square of a float32 is exact in float64, and so is the sum of any number of them. That of a float64 is rounded
once, whatever stands beside it. What a norm is off the true one comes from that, from the sum's one rounding and from
the root: it is within one unit in the last place of the correctly rounded norm.

`square_sums` is the definition in array-API code; the compiled engines fill rows that are worth the same.
`clip_factors` turns them into factors, on the device by array-API code, without looking at a value; in this machine's
memory compiled, where Numba is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

__all__ = ["BITS", "DIGITS", "STEP", "array_factors", "clip_factors", "columns", "norms_of", "square_sums", "widened"]

#: Each digit counts multiples of 2**STEP of the one before. What is added to a digit at a time is less than 2**STEP,
#: so that 2**31 additions (of whole blocks) cannot overflow it; none is ever negative.
STEP = 32
MASK = (1 << STEP) - 1
#: By the dtype that is computed in, the exponent of the lowest digit's unit, and how many digits there are. The square
#: of the smallest float32 is 2**-298, that of the largest is below 2**256, and 2**52 of these still fit; likewise for
#: float64. The narrower row's digits are digits of the wider one.
DIGITS = {"float32": (-300, 19), "float64": (-2156, 133)}
#: Bits of a float64 that an anchored sum counts (see `sliced`): two fewer than those of its fraction leave room for
#: the sign of what a higher level left over.
BITS = 51
#: Exponent of a unit below that of any level, for sums at hand as Python integers.
LEAST = -4096


def columns(computing: str) -> int:
    """Integers of a row: the digits, lowest first, then the number of infinite and of NaN squares."""
    return DIGITS[computing][1] + 2


def square_sums(xp: Any, g: Any, computing: str) -> list[int]:
    """One row, as Python integers, for a gradient in float64, scaled and clipped by value in the dtype `computing`.

    `xp` is any array API namespace with float64 and int64.
    """
    infinite = nan = total = 0
    size = math.prod(g.shape)
    largest = float(xp.max(g := xp.abs(g))) if size else 0.0
    if not math.isfinite(largest):
        odd = ~xp.isfinite(g)
        nan = int(xp.sum(xp.astype(xp.isnan(g), xp.int64)))
        infinite = int(xp.sum(xp.astype(odd, xp.int64))) - nan
        g = xp.where(odd, xp.zeros_like(g), g)
        largest = float(xp.max(g))
    # A level counts so few bits of each square that the sum of all counts is an integer of 64.
    bits = min(BITS, 62 - size.bit_length())
    while largest > 0:
        # The largest elements, scaled so that their squares are neither huge nor subnormal; then those below them.
        exponent, least = math.frexp(largest)[1], math.ldexp(largest, -400)
        half, now = -exponent // 2, g >= least
        scaled = xp.where(now, g, xp.zeros_like(g)) * 2.0**half * 2.0 ** (-exponent - half)
        unit = 2 * exponent - LEAST
        for count in counted(xp, scaled * scaled, bits):
            unit -= bits
            total += count << unit
        g = xp.where(now, xp.zeros_like(g), g)
        largest = float(xp.max(g))
    start, digits = DIGITS[computing]
    total >>= start - LEAST  # the bits below are zeros
    return [*((total >> STEP * k) & MASK for k in range(digits)), infinite, nan]


def counted(xp: Any, s: Any, bits: int) -> Iterator[int]:
    """How many units of 2**-bits some numbers below 1 are worth, how many of 2**-(2 bits) what that left, and so on."""
    unit, left = 1.0, True
    while left:
        unit *= 2.0**-bits
        whole = rounded(s, unit)
        yield int(xp.sum(xp.astype(whole / unit, xp.int64)))
        s = s - whole
        left = bool(xp.any(s != 0))


def rounded(s: Any, unit: float) -> Any:
    """Round numbers of up to 2**51 units to whole units: the anchor leaves no room for less."""
    anchor = 1.5 * 2.0**52 * unit
    return (s + anchor) - anchor


# --- from rows to norms ---


def widened(xp: Any, table: Any) -> Any:
    """Rows of the narrower dtype, or of the wider one, as rows of the wider one."""
    narrow, wide = DIGITS["float32"], DIGITS["float64"]
    if table.shape[1] == columns("float64"):
        return table
    below = (narrow[0] - wide[0]) // STEP
    above = wide[1] - below - narrow[1]
    zeros = xp.zeros((table.shape[0], max(below, above)), dtype=xp.int64, device=table.device)
    return xp.concat([zeros[:, :below], table[:, : narrow[1]], zeros[:, :above], table[:, narrow[1] :]], axis=1)


def norms_of(xp: Any, table: Any) -> Any:
    """Turn n rows into n norms, float64: the same bits for the same numbers, however they are written in digits."""
    width = table.shape[1] - 2
    start = next(start for start, digits in DIGITS.values() if digits == width)
    infinite, nan, table = table[:, width] > 0, table[:, width + 1] > 0, table[:, :width]

    def constant(values: list[Any], dtype: Any) -> Any:
        return xp.asarray(values, dtype=dtype, device=table.device)

    # A row a digit, so that what follows is done for all tensors at once; and two of zeros below the lowest.
    count = table.shape[0]
    zeros = xp.zeros((2, count), dtype=xp.int64, device=table.device)
    digits = settled(xp, xp.concat([zeros, xp.permute_dims(table, (1, 0))], axis=0), constant)
    # The highest digit that is not 0 and the two below it: at least 65 bits.
    places = constant([2, 2, *range(2, width + 2)], xp.int64)[:, None]
    top = xp.max(xp.where(digits > 0, places, xp.full_like(places, 2)), axis=0)
    flat, column = xp.reshape(digits, (-1,)), xp.arange(count, dtype=xp.int64, device=table.device)
    high, middle, low = (xp.astype(xp.take(flat, (top - k) * count + column, axis=0), xp.float64) for k in range(3))
    # The root of the top digit's unit, as two equal factors, so that neither is too large or too small for float64.
    half = xp.take(constant([2.0 ** ((start + STEP * k) // 4) for k in range(-2, width)], xp.float64), top, axis=0)
    value = (xp.sqrt(high + (middle * 2.0**-32 + low * 2.0**-64)) * half) * half
    value = xp.where(infinite, xp.full_like(value, math.inf), value)
    return xp.where(nan, xp.full_like(value, math.nan), value)


def settled(xp: Any, digits: Any, constant: Any) -> Any:
    """The same numbers, a column each, in digits from 0 to 2**STEP - 1: the one way to write them."""
    # What a digit has too much goes to the next one. The highest never has.
    carries = digits >> STEP
    digits = (digits & MASK) + xp.concat([xp.zeros_like(carries[:1, :]), carries[:-1, :]], axis=0)
    # Now each digit is below 1.5 * 2**STEP: those from 2**STEP on hand on 1, and those one below hand on what they get.
    # So a carry runs as it does in the sum of two binary numbers, and is found by such a sum.
    hands, passes = digits >> STEP, xp.astype(digits == MASK, xp.int64)
    carry, parts = xp.zeros_like(digits[0, :]), []
    for first in range(0, digits.shape[0], 60):
        size = min(60, digits.shape[0] - first)
        weights = constant([1 << k for k in range(size)], xp.int64)[:, None]
        hand = xp.sum(hands[first : first + size, :] * weights, axis=0)
        passed = xp.sum(passes[first : first + size, :] * weights, axis=0)
        arriving = ((2 * hand + carry + passed) ^ passed) >> constant([*range(size + 1)], xp.int64)[:, None]
        parts.append(arriving[:-1, :])
        carry = arriving[-1, :] & 1
    return (digits + (xp.concat(parts, axis=0) & 1)) & MASK


def norm_of_lengths(xp: Any, lengths: Any) -> Any:
    """The norm, of shape (1,), of n lengths that are at hand themselves; their order does not matter."""
    exponents = range(-1074, 1024, STEP)

    def constant(values: list[float]) -> Any:
        return xp.asarray(values, dtype=xp.float64, device=lengths.device)

    # Scaled by a power of two, so that the largest is at least 1 and below 2**32; by its root, twice.
    reached = xp.max(lengths, keepdims=True) >= constant([2.0**e for e in exponents])
    halves = constant([2.0 ** (-e // 2) for e in exponents])
    half = xp.min(xp.where(reached, halves, xp.full_like(halves, 2.0**537)), keepdims=True)
    scaled = (lengths * half) * half
    s, sums = scaled * scaled, []
    finite = s < math.inf
    nan, s = s != s, xp.where(finite, s, xp.zeros_like(s))
    start, width = DIGITS["float32"]
    # Squares below 2**64. What is left below the last unit is less than 2**-170 of the largest.
    units = [2.0 ** (start + STEP * k) for k in range(5, 12)]
    for unit in reversed(units):
        whole = rounded(s, unit)
        whole = xp.where(whole > s, whole - unit, whole)  # rounded down: no digit may be negative
        sums.append(xp.sum(xp.astype(whole / unit, xp.int64), keepdims=True))
        s = s - whole
    none = xp.zeros_like(sums[0])
    odd = [xp.sum(xp.astype(flags, xp.int64), keepdims=True) for flags in (~finite & ~nan, nan)]
    row = xp.concat([*[none] * 5, *reversed(sums), *[none] * (width - 12), *odd], axis=0)
    return (norms_of(xp, row[None, :]) / half) / half


def factors(xp: Any, norms: Any, threshold: Any) -> Any:
    """min(1, threshold / norm), and NaN for a NaN norm."""
    one = xp.ones_like(norms)
    # An array is divided, because PyTorch multiplies a number by the reciprocal: rounded twice.
    shrink = (threshold * one) / xp.where(norms > threshold, norms, one)
    return xp.where(norms > threshold, shrink, xp.where(norms == norms, one, norms))


def array_factors(xp: Any, table: Any, clip_norm: Any | None, clip_global_norm: float | None) -> tuple[Any, Any]:
    """`clip_factors` in array-API code."""
    if clip_norm is None:
        total = norms_of(xp, xp.sum(table, axis=0, keepdims=True, dtype=xp.int64))
        own = xp.ones((table.shape[0],), dtype=xp.float64, device=table.device)
    else:
        lengths = norms_of(xp, table)
        own = factors(xp, lengths, clip_norm)
        # What is clipped has its threshold's length, but one that is infinite has NaN in it.
        total = norm_of_lengths(xp, xp.where(lengths > clip_norm, clip_norm + 0.0 * lengths, lengths))
    return own if clip_global_norm is None else own * factors(xp, total, clip_global_norm), total


@cache
def compiled() -> Callable[..., tuple[Any, Any]] | None:
    """The same for NumPy's tables, without their namespace; None where it cannot be compiled."""
    try:
        return import_module(".host.factors", __package__).clip_factors
    except ImportError:
        return None


def clip_factors(xp: Any, table: Any, clip_norm: Any | None, clip_global_norm: float | None) -> tuple[Any, Any]:
    """What each tensor's gradient is multiplied by: first its own norm is clipped, then the norm of all.

    `table` has a row for each of the n tensors of a step, and `clip_norm` a threshold for each, infinite where it has
    none, or one for all, or None. Returns n factors, and the global norm before it is clipped (but after clipping by
    per-tensor norm), of shape (1,).
    """
    if isinstance(table, np.ndarray) and (host := compiled()) is not None:
        return host(table, clip_norm, clip_global_norm)
    with np.errstate(all="ignore"):  # infinite norms are no more a warning here than on a device
        return array_factors(xp, table, clip_norm, clip_global_norm)
