"""Tensors that the kernels cannot walk where they lie, tile by tile through the cache.

A tile is a box of a tensor, small enough for the cache. A kernel that comes to such a tensor has each tile copied into
buffers, does to them what it does to any tensor, and has what it has written copied back; what lies without gaps is
walked where it lies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

import numba
import numpy as np
from numba import types

from ...generic import Place
from ..locate import ITEMSIZES
from .storage import STORAGE, fetch, long_pointer

__all__ = ["described"]

#: Real numbers of a tile: all its buffers are in the nearer caches.
ROOM = 1 << 13
#: Elements of a tile along an axis on which some array is contiguous, if another one is not: a few cache lines.
NARROW = 64
#: Lines of a copy, across the axis that is contiguous, that are fetched ahead.
AHEAD = 8
#: Bytes between two buffers, so that they do not begin on the same lines of the cache.
APART = 320
#: Plans that are kept.
PLANS = 1024
#: Words of a description before the extents, and of each column before its steps.
HEAD, COLUMN = 6, 4


def described(places: Sequence[tuple[tuple[int, ...], Sequence[Place]]], dtypes: Sequence[str], parts: int) -> Any:
    """Describe tensors for `mover`: an array that holds it all, and where each tensor's begins.

    Parameters
    ----------
    places : sequence of (shape, sequence of Place)
        The tensors, none of them empty; where x, g and each state array lie.
    dtypes : sequence of str
        Their real dtypes.
    parts : int
        Real numbers that make up an element.
    """
    widths = tuple(ITEMSIZES[dtype] for dtype in dtypes)
    words, starts = list[int](), list[int]()
    for shape, own in places:
        ndim, plan = planned(shape, tuple(place.steps for place in own), widths, parts, ROOM)
        starts.append(len(words))
        words += mover().address, *plan
        for c, place in enumerate(own):
            words[starts[-1] + HEAD + 2 * ndim + c * (COLUMN + ndim)] = place.address
    made = np.array(words, np.int64)
    return made, [made.ctypes.data + 8 * start for start in starts]


@lru_cache(PLANS)
def planned(
    shape: tuple[int, ...], steps: Sequence[tuple[int, ...]], widths: Sequence[int], parts: int, room: int
) -> tuple[int, list[int]]:
    """The axes that are walked, and a description as `mover` takes it, but for its first word and the addresses.

    `steps` are those of x, g and the state. The tensor is cut along as few axes as will do.
    """
    # In the order of x; axes along which every array goes on where it was are one.
    order = [k for _, k in sorted((-abs(steps[0][k]), k) for k, n in enumerate(shape) if n > 1)]
    extents, walked = [1], [[parts] for _ in steps]
    for k in order:
        own = [step[k] for step in steps]
        if extents == [1] or all(w[-1] == s * shape[k] for w, s in zip(walked, own, strict=True)):
            extents[-1] *= shape[k]
            for w, s in zip(walked, own, strict=True):
                w[-1] = s
        else:
            extents.append(shape[k])
            for w, s in zip(walked, own, strict=True):
                w.append(s)
    inner = [min(range(len(w)), key=lambda k: (abs(w[k]), -k)) for w in walked]
    tile, room = [1] * len(extents), max(1, room // parts)
    if len(set(inner)) > 1:
        room = room * 15 // 16  # or lines of the buffer would lie a power of two apart, and share the cache's sets
    for axis, most in [*((k, NARROW) for k in sorted(set(inner))), *((k, room) for k in reversed(range(len(tile))))]:
        others = math.prod(tile) // tile[axis]
        tile[axis] = max(tile[axis], min(extents[axis], most, room // others))
    # Of the buffers, the first lies behind the row and what the axes take; an array without gaps needs none.
    size = math.prod(tile) * parts
    room = -(-8 * (1 + len(widths) + 4 * len(tile)) // 64) * 64
    columns = list[int]()
    for width, k, w in zip(widths, inner, walked, strict=True):
        straight = len(extents) == 1 and w[0] == parts
        columns += 0, width, 0 if straight else room, k, *w
        room += 0 if straight else -(-size * width // 64) * 64 + APART
    number = math.prod(-(-n // t) for n, t in zip(extents, tile, strict=True))
    return len(tile), [number, -(-room // 8), len(tile), len(widths), parts, *extents, *tile, *columns]


@cache
def copier(dtype: str) -> Any:
    """Compile a copy of `m` elements, each `parts` real numbers, from some distance to another (in real numbers)."""
    pointer, width = STORAGE[dtype][0], ITEMSIZES[dtype]

    @numba.njit(types.void(*[types.int64] * 6), nogil=True)
    def line(to: Any, a: Any, source: Any, b: Any, m: Any, parts: Any) -> None:
        if a == parts and b == parts:
            new, old = numba.carray(pointer(to), m * parts), numba.carray(pointer(source), m * parts)
            for k in range(m * parts):
                new[k] = old[k]
        elif a == 1 and b == 2 and parts == 1:  # which the compiler turns into shuffles of registers
            new, old = numba.carray(pointer(to), m), numba.carray(pointer(source), 2 * m - 1)
            for k in range(m):
                new[k] = old[2 * k]
        else:
            whole = m - m % 8
            for part in range(parts):
                new, old = pointer(to + part * width), pointer(source + part * width)
                for begin in range(0, whole, 8):
                    for k in range(8):  # which the compiler unrolls
                        new[(begin + k) * a] = old[(begin + k) * b]
                for k in range(whole, m):
                    new[k * a] = old[k * b]

    return line


@cache
def mover() -> Any:
    """Compile ``move(about, tile, room, low, high, back)``: copy a tile's columns from `low` to below `high`.

    It begins the `room` with a row as that of a kernel's table: the tile's size, which it returns, and the addresses
    of the columns. Where it is to copy `back`, it copies all but the gradient. In the description `about` are words:
    the address of this function, the number of tiles, words of room, axes, columns, real numbers of an element; the
    extents of the tensor and of a tile; and for each column its address, the bytes of a number, where in the room its
    buffer begins (0: it is walked where it lies), the axis along which it is contiguous, and its steps.
    """
    half, single, double = copier("float16"), copier("float32"), copier("float64")
    number, words = types.int64, types.CPointer(types.int64)

    @numba.njit(types.void(number, words, number, words, words, words, *[number] * 4), nogil=True)
    def box(
        to: Any, a: Any, source: Any, b: Any, extents: Any, index: Any, ndim: Any, inner: Any, width: Any, parts: Any
    ) -> None:
        """Copy a box, line by line along the axis `inner`."""
        m, lines = extents[inner], 1
        for k in range(ndim):
            index[k] = 0
            lines *= extents[k]
        for _ in range(lines // m):
            # The next lines are far from this one, and the processor does not foresee them.
            if inner < ndim - 1:
                ahead = source + AHEAD * b[ndim - 1] * width
                for at in range(0, m * parts * width, 64):
                    fetch(ahead + at)
            if width == 2:
                half(to, a[inner], source, b[inner], m, parts)
            elif width == 4:
                single(to, a[inner], source, b[inner], m, parts)
            else:
                double(to, a[inner], source, b[inner], m, parts)
            for k in range(ndim - 1, -1, -1):
                if k != inner:
                    index[k] += 1
                    to += a[k] * width
                    source += b[k] * width
                    if index[k] < extents[k]:
                        break
                    to -= extents[k] * a[k] * width
                    source -= extents[k] * b[k] * width
                    index[k] = 0

    @numba.cfunc(number(*[number] * 6), error_model="numpy")
    def move(about: Any, tile: Any, room: Any, low: Any, high: Any, back: Any) -> Any:
        head = long_pointer(about)
        ndim, columns, parts = head[3], head[4], head[5]
        size = parts
        axes, row = long_pointer(about + 8 * HEAD), long_pointer(room)
        made = room + 8 * (1 + columns)
        begin, extents = long_pointer(made), long_pointer(made + 8 * ndim)
        steps, index = long_pointer(made + 16 * ndim), long_pointer(made + 24 * ndim)
        for axis in range(ndim - 1, -1, -1):
            n, t = axes[axis], axes[ndim + axis]
            tiles = -(-n // t)
            begin[axis] = tile % tiles * t
            tile //= tiles
            extents[axis] = min(t, n - begin[axis])
            steps[axis] = size
            size *= extents[axis]
        row[0] = size
        for c in range(low, high):
            at = about + 8 * (HEAD + 2 * ndim + c * (COLUMN + ndim))
            column, there = long_pointer(at), long_pointer(at + 8 * COLUMN)
            place, width, buffer, inner = column[0], column[1], room + column[2], column[3]
            for axis in range(ndim):
                place += begin[axis] * there[axis] * width
            if not back:
                row[1 + c] = buffer if column[2] else place
                if column[2]:
                    box(buffer, steps, place, there, extents, index, ndim, inner, width, parts)
            elif c != 1 and column[2]:
                box(place, there, buffer, steps, extents, index, ndim, inner, width, parts)
        return size

    return move
