"""Sums of squares that do not depend on the order of addition, and what clipping by norm makes of them.

A floating-point sum depends on its order, so a norm would depend on the number of threads, on the blocking, on the
split into tensors and on the sharding over machines. Here each square is cut, in float64, into slices that are
whole multiples of fixed powers of two, and the slices are added as 64-bit integers: exact in any order (the idea of
Demmel and Nguyen's reproducible summation, with bins fixed in advance by the clipping threshold).

`square_sums` is the definition in array-API code; the compiled engines fill the same table. `clip_factors` turns
tables into factors, on the host or on the device, without looking at a value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

__all__ = [
    "COLUMNS",
    "GRID_STEP",
    "HUGE",
    "LEVELS",
    "clip_factors",
    "lowest_exponent",
    "square_sums",
    "units",
]

#: Level l counts multiples of 2**(lowest + GRID_STEP * l). A slice is at most 2**31 units, so that 2**32 elements
#: cannot overflow a 64-bit sum.
GRID_STEP = 32
LEVELS = 64
#: A row of the table: one integer a level, then the number of infinite and of NaN squares.
COLUMNS = LEVELS + 2
#: The lowest unit is this far below the square of the threshold: an element is rounded by less than 2**-64 of it,
#: so that 2**40 elements are still summed more finely than float32 can tell.
BITS_BELOW = 64
#: Squares from here on (gradients beyond 1e139) count as infinite, so that no step below can overflow.
HUGE = 2.0**930


def lowest_exponent(threshold: float) -> int:
    """Exponent of the lowest level's unit for a clipping threshold (the smallest of those in force)."""
    return min(max(2 * math.frexp(threshold)[1] - BITS_BELOW, -960), 800)


def units(lowest: int) -> list[float]:
    """The levels' units, lowest first. Those beyond `HUGE` are never counted and are capped."""
    return [2.0 ** min(lowest + GRID_STEP * level, 960) for level in range(LEVELS)]


def square_sums(xp: Any, g: Any, lowest: int) -> list[int]:
    """One row of the table, as `COLUMNS` Python integers, for a gradient in float64, scaled and clipped by value.

    `xp` is any array API namespace with float64 and int64; for `lowest`, see `lowest_exponent`.
    """
    row = [0] * COLUMNS
    if math.prod(g.shape) == 0:
        return row
    s = g * g
    countable = s < HUGE
    row[LEVELS + 1] = int(xp.sum(xp.astype(xp.isnan(s), xp.int64)))
    row[LEVELS] = int(xp.sum(xp.astype(~countable, xp.int64))) - row[LEVELS + 1]
    s = xp.where(countable, s, xp.zeros_like(s))
    largest, unit = float(xp.max(s)), units(lowest)
    top = next(level for level in range(LEVELS) if largest < unit[level] * 2.0**30)
    for level, whole in zip(range(top, -1, -1), slices(xp, s, unit[top::-1]), strict=True):
        row[level] = int(xp.sum(whole, dtype=xp.int64))
    return row


def slices(xp: Any, s: Any, descending: list[float]) -> Iterator[Any]:
    """Cut squares into whole multiples of units, as integers: of each unit what the larger ones left."""
    for unit in descending:
        # Adding and taking away 1.5 * 2**52 units rounds to whole units; what a higher level left is below one unit.
        anchor = 1.5 * 2.0**52 * unit
        whole = (s + anchor) - anchor
        yield xp.astype(whole / unit, xp.int64)
        s = s - whole


def square_of_norms(xp: Any, table: Any, lowest: int) -> Any:
    """Turn rows of integers, shape (n, COLUMNS), into n squares of norms, float64; the same bits everywhere."""
    squares = xp.astype(table[:, :LEVELS], xp.float64) * xp.asarray(
        units(lowest), dtype=xp.float64, device=table.device
    )
    width = LEVELS
    while width > 1:  # a fixed tree of additions: a library's own sum has an order of its own
        width //= 2
        squares = squares[:, :width] + squares[:, width:]
    value, infinite, nan = squares[:, 0], table[:, LEVELS] > 0, table[:, LEVELS + 1] > 0
    value = xp.where(infinite, xp.full_like(value, math.inf), value)
    return xp.where(nan, xp.full_like(value, math.nan), value)


def factors(xp: Any, squares: Any, threshold: Any) -> Any:
    """min(1, threshold / norm), and NaN for a NaN norm."""
    norm = xp.sqrt(squares)
    one = xp.ones_like(norm)
    shrink = threshold / xp.where(norm > threshold, norm, one)
    return xp.where(norm > threshold, shrink, xp.where(norm == norm, one, norm))


def clip_factors(
    xp: Any, table: Any, lowest: int, clip_norm: Any | None, clip_global_norm: float | None
) -> tuple[Any, Any]:
    """What each tensor's gradient is multiplied by: first its own norm is clipped, then the norm of all.

    `table` has a row for each of the n tensors of a step, and `clip_norm` a threshold for each, infinite where it has
    none, or one for all, or None. Returns n factors, and the global norm before it is clipped (but after clipping by
    per-tensor norm), of shape (1,).
    """
    squares = square_of_norms(xp, table, lowest)
    own = xp.ones_like(squares)
    if clip_norm is not None:
        own = factors(xp, squares, clip_norm)
        table = rows(xp, squares * (own * own), lowest)
    total = square_of_norms(xp, xp.sum(table, axis=0, keepdims=True, dtype=xp.int64), lowest)
    if clip_global_norm is not None:
        own = own * factors(xp, total, clip_global_norm)
    return own, xp.sqrt(total)


def rows(xp: Any, s: Any, lowest: int) -> Any:
    """The table's rows for n squares that are at hand themselves, without looking at a value."""
    countable = s < HUGE
    nan = s != s
    levels = [*slices(xp, xp.where(countable, s, xp.zeros_like(s)), units(lowest)[::-1])][::-1]
    return xp.stack([*levels, xp.astype(~countable & ~nan, xp.int64), xp.astype(nan, xp.int64)], axis=1)
