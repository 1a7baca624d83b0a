"""Tensors that the kernels cannot walk where they lie, tile by tile through the cache.

A tile is a box of a tensor, small enough for the cache. It is copied into buffers, a kernel runs on these as on any
tensors, and what it has written is copied back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numba
import numpy as np
from numba import types

from ...generic import Place
from ..locate import ITEMSIZES
from .kernels import STORAGE, TABLE, fetch

__all__ = ["TILES", "Tensor", "Tiles"]

#: Real numbers of the tiles that are worked on together: 2 MiB of four arrays of float32, in the last cache. With less,
#: in a nearer one, a thread was faster, but two were not: between tiles they wait for Python, that is, for each other.
ROOM = 1 << 17
#: Elements of a tile along an axis on which some array is contiguous, if another one is not: a few cache lines.
NARROW = 64
#: Tiles that are worked on together.
TILES = 1024
#: Real numbers that one thread takes at a time, about.
PIECE = 1 << 18
#: Axes that an array may have.
AXES = 64
#: Lines of a copy, across the axis that is contiguous, that are fetched ahead.
AHEAD = 8
#: Bytes between two buffers, so that they do not begin on the same lines of the cache.
APART = 320

#: A tensor's number in its bucket, its shape, and where its x, g and state lie.
Tensor = tuple[int, tuple[int, ...], Sequence[Place]]


class Tiles:
    """Tensors that are walked in tiles, which a kernel sees as rows of a table.

    Parameters
    ----------
    tensors : sequence of Tensor
        None of them empty.
    dtypes : sequence of str
        The real dtypes of x, g and each state array.
    parts : int
        Real numbers that make up an element.
    """

    def __init__(self, tensors: Sequence[Tensor], dtypes: Sequence[str], parts: int) -> None:
        self.widths, self.parts = np.array([ITEMSIZES[dtype] for dtype in dtypes], np.int64), parts
        axes, heads, count = list[int](), list[tuple[int, int, int, int]](), 0
        known: dict[Any, tuple[int, int, int]] = {}
        self.places = np.array([[place.address for place in places] for *_, places in tensors], np.int64)
        for i, shape, places in tensors:
            steps = tuple(place.steps for place in places)
            if (shape, steps) not in known:
                extents, tile, made = plan(shape, steps, parts)
                known[shape, steps] = len(extents), len(axes), math.prod(map(_ceil, extents, tile))
                axes += [*extents, *tile, *made]
            ndim, offset, tiles = known[shape, steps]
            heads.append((ndim, offset, count := count + tiles, i))
        self.axes, self.heads, self.count = np.array(axes, np.int64), np.array(heads, np.int64).reshape(-1, 4), count
        self.move, self.tensors = mover(), {i for i, *_ in tensors}
        self.size = sum(math.prod(shape) for _, shape, _ in tensors) * parts

    def pieces(self) -> list[tuple[int, int]]:
        """Ranges of tiles for the threads."""
        number = min(self.count, max(1, self.size // PIECE))
        edges = [self.count * k // number for k in range(number + 1)]
        return list(pairwise(edges))

    def walk(self, piece: tuple[int, int], kernel: Callable[..., None], *, own: bool) -> None:
        """Call ``kernel(table, tensors, first, start, count)`` on tables of tiles; `tensors` has each row's tensor.

        `own` says whether x and the state are read and written, and not the gradient alone.
        """
        (tile, end), columns = piece, len(self.widths)
        low, high = (0, columns) if own else (1, 2)
        span = ROOM * int(self.widths.max()) + APART
        memory = np.empty(span * columns, np.uint8)
        buffers = memory.ctypes.data + span * np.arange(columns)
        table, tensors = np.zeros((TILES, 1 + columns), np.int64), np.zeros(TILES, np.int64)
        about = self.heads, self.axes, self.places, self.widths, self.parts, ROOM, buffers, table, tensors
        while tile < end:
            rows = self.move(*about, tile, end, low, high, False)
            kernel(table[:rows], tensors[:rows], 0, 0, int(table[:rows, 0].sum()))
            if own:
                self.move(*about, tile, tile + rows, low, high, True)
            tile += rows


def _ceil(n: int, size: int) -> int:
    return -(-n // size)


def plan(
    shape: tuple[int, ...], steps: Sequence[tuple[int, ...]], parts: int
) -> tuple[list[int], list[int], list[int]]:
    """How a tensor is cut: its extents and those of a tile, along as few axes as will do, and what `mover` asks for.

    `steps` are those of x, g and the state.
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
    tile, room = [1] * len(extents), max(1, ROOM // parts)
    if len(set(inner)) > 1:
        room = room * 15 // 16  # or lines of the buffer would lie a power of two apart, and share the cache's sets
    for axis, most in [*((k, NARROW) for k in sorted(set(inner))), *((k, room) for k in reversed(range(len(tile))))]:
        others = math.prod(tile) // tile[axis]
        tile[axis] = max(tile[axis], min(extents[axis], most, room // others))
    # What is walked where it lies: of the parameter and the state all or none, because an interrupt may come before the
    # buffers are copied back, and then all of a tile must be old.
    straight = [len(extents) == 1 and w[0] == parts for w in walked]
    both = all(straight[:1] + straight[2:])
    return extents, tile, [int(both), int(straight[1]), *inner, *(step for w in walked for step in w)]


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
            a *= width
            b *= width
            while parts > 0:
                parts -= 1
                at, there = to + parts * width, source + parts * width
                for _ in range(m):
                    numba.carray(pointer(at), 1)[0] = numba.carray(pointer(there), 1)[0]
                    at += a
                    there += b

    return line


@cache
def mover() -> Callable[..., int]:
    """Compile what copies tiles into buffers and back; it returns how many tiles the buffers take."""
    half, single, double = copier("float16"), copier("float32"), copier("float64")
    number, flat = types.int64, types.int64[::1]

    @numba.njit(types.void(number, flat, number, flat, flat, flat, *[number] * 3), nogil=True)
    def box(to: Any, a: Any, source: Any, b: Any, extents: Any, index: Any, inner: Any, width: Any, parts: Any) -> None:
        """Copy a box, line by line along the axis `inner`."""
        m, lines = extents[inner], 1
        for k in range(len(extents)):
            index[k] = 0
            lines *= extents[k]
        for _ in range(lines // m):
            if (
                inner < len(extents) - 1
            ):  # the next lines are far from this one, and the processor does not foresee them
                ahead = source + AHEAD * b[len(extents) - 1] * width
                for at in range(0, m * parts * width, 64):
                    fetch(ahead + at)
            if width == 2:
                half(to, a[inner], source, b[inner], m, parts)
            elif width == 4:
                single(to, a[inner], source, b[inner], m, parts)
            else:
                double(to, a[inner], source, b[inner], m, parts)
            for k in range(len(extents) - 1, -1, -1):
                if k != inner:
                    index[k] += 1
                    to += a[k] * width
                    source += b[k] * width
                    if index[k] < extents[k]:
                        break
                    to -= extents[k] * a[k] * width
                    source -= extents[k] * b[k] * width
                    index[k] = 0

    signature = number(TABLE, flat, TABLE, flat, number, number, flat, TABLE, flat, *[number] * 4, types.boolean)

    @numba.njit(signature, nogil=True)
    def move(
        heads: Any, axes: Any, places: Any, widths: Any, parts: Any, room: Any, buffers: Any, table: Any, tensors: Any,
        tile: Any, end: Any, low: Any, high: Any, back: Any,
    ) -> int:  # fmt: skip
        columns, used = len(widths), 0
        k = np.searchsorted(heads[:, 2], tile, side="right")
        made = np.empty((4, AXES), np.int64)
        begin, extents, steps, index = made[0], made[1], made[2], made[3]
        for row in range(min(end - tile, len(table))):
            while heads[k, 2] <= tile + row:
                k += 1
            ndim, offset = heads[k, 0], heads[k, 1]
            rest, size = tile + row - (heads[k - 1, 2] if k else 0), parts
            for axis in range(ndim - 1, -1, -1):
                n, t = axes[offset + axis], axes[offset + ndim + axis]
                tiles = -(-n // t)
                begin[axis] = rest % tiles * t
                rest //= tiles
                extents[axis] = min(t, n - begin[axis])
                steps[axis] = size
                size *= extents[axis]
            if used + size > room and row:
                return row
            table[row, 0], tensors[row] = size, heads[k, 3]
            about = offset + 2 * ndim
            for c in range(low, high):
                width = widths[c]
                inner, there = axes[about + 2 + c], axes[about + 2 + columns + c * ndim :][:ndim]
                place, at = places[k, c], buffers[c] + used * width
                for axis in range(ndim):
                    place += begin[axis] * there[axis] * width
                straight = axes[about + (c == 1)]
                if not back:
                    if straight:
                        at = place
                    else:
                        box(at, steps, place, there, extents[:ndim], index, inner, width, parts)
                    table[row, 1 + c] = at
                elif c != 1 and not straight:
                    box(place, there, at, steps, extents[:ndim], index, inner, width, parts)
            used += size
        return min(end - tile, len(table))

    return move
