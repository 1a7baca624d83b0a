"""What `norms` makes of its rows, compiled for tables in this machine's memory: bit for bit what it gives there.

Few numbers are computed, but by many small operations on arrays, each of which costs more than a tensor's update.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
from numba import types

from .. import norms
from .kernels import NUMBERS, TABLE, disabled

__all__ = ["clip_factors"]

if reason := disabled():
    raise ImportError(reason)

MASK, STEP = np.int64(norms.MASK), norms.STEP
WIDTHS = {width: start for start, width in norms.DIGITS.values()}
NARROW, COLUMNS = norms.DIGITS["float32"][0], norms.columns("float32")
ROW = types.int64[::1]


@cache
def _compiled() -> Callable[..., float]:
    number, digit = types.float64, types.int64

    @numba.njit(number(ROW, digit), error_model="numpy")
    def norm(row: Any, start: Any) -> Any:
        """One row's norm; the row may be written to."""
        width, carry, top = len(row) - 2, np.int64(0), 0
        if row[width + 1] > 0:
            return np.nan
        if row[width] > 0:
            return np.inf
        for k in range(width):
            settled = row[k] + carry
            row[k], carry = settled & MASK, settled >> STEP
            if row[k] > 0:
                top = k
        middle = np.float64(row[top - 1]) if top > 0 else 0.0
        low = np.float64(row[top - 2]) if top > 1 else 0.0
        half = math.ldexp(1.0, (start + STEP * top) // 4)
        return (math.sqrt(np.float64(row[top]) + (middle * 2.0**-32 + low * 2.0**-64)) * half) * half

    @numba.njit(number(NUMBERS, ROW), error_model="numpy")
    def norm_of_lengths(lengths: Any, row: Any) -> Any:
        """That of lengths; the row, of zeros, is written to."""
        largest, half = 0.0, 2.0**537
        for i in range(len(lengths)):
            if lengths[i] != lengths[i]:
                return lengths[i]
            largest = max(largest, lengths[i])
        if largest == np.inf:
            return largest
        for exponent in range(-1074, 1024, STEP):
            if largest >= math.ldexp(1.0, exponent):
                half = math.ldexp(1.0, -exponent // 2)
        for i in range(len(lengths)):
            scaled = (lengths[i] * half) * half
            s = scaled * scaled
            for k in range(11, 4, -1):
                unit = math.ldexp(1.0, NARROW + STEP * k)
                anchor = 1.5 * 2.0**52 * unit
                whole = (s + anchor) - anchor
                if whole > s:
                    whole -= unit
                row[k] += np.int64(whole / unit)
                s -= whole
        return (norm(row, NARROW) / half) / half

    # Memory comes from the caller: to make or to copy arrays takes Numba's compiler seconds.
    @numba.njit(number(TABLE, digit, NUMBERS, number, NUMBERS, NUMBERS, ROW, ROW), error_model="numpy")
    def factors(
        table: Any, start: Any, own: Any, threshold: Any, out: Any, lengths: Any, row: Any, other: Any
    ) -> Any:  # fmt: skip
        """Write the factors, and return the norm of all; `own` has a threshold for each norm, or is empty."""
        for i in range(len(table)):
            out[i] = 1.0
            for k in range(len(row)):
                row[k] = table[i, k] if len(own) else row[k] + table[i, k]
            if len(own):
                length = norm(row, start)
                clipped = length > own[i]
                out[i] = own[i] / length if clipped else (1.0 if length == length else length)
                lengths[i] = own[i] + 0.0 * length if clipped else length
        total = norm_of_lengths(lengths, other) if len(own) else norm(row, start)
        if threshold == threshold and not total <= threshold:
            shrink = threshold / total if total == total else total
            for i in range(len(out)):
                out[i] *= shrink
        return total

    return factors


def clip_factors(table: np.ndarray, clip_norm: Any | None, clip_global_norm: float | None) -> tuple[Any, Any]:
    """See `norms.clip_factors`."""
    table, out, lengths = np.ascontiguousarray(table), np.empty(len(table)), np.empty(len(table))
    row, other = np.zeros(table.shape[1], np.int64), np.zeros(COLUMNS, np.int64)
    own = np.empty(0) if clip_norm is None else np.broadcast_to(np.asarray(clip_norm, np.float64), out.shape).copy()
    threshold = math.nan if clip_global_norm is None else float(clip_global_norm)
    total = _compiled()(table, WIDTHS[table.shape[1] - 2], own, threshold, out, lengths, row, other)
    return out, np.array([total])
