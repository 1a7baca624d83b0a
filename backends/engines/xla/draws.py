"""What stochastic rounding reads, made from a frame; compiled when a program asks for it."""

from __future__ import annotations

from functools import cache
from typing import Any

import numba
import numpy as np

from ..host.storage import pair_pointer
from .frame import ARGUMENT, DATA, DIMS, RANK, elements_of, set_word, word
from .tables import HYPERS, INTEGER, KEYS, PIECES, PLACES, PLAN, SCALED, TENSORS, WIDTH

__all__ = ["draws"]


@cache
def draws() -> Any:
    """Compile ``draws(request, work, groups, fill)``.

    It writes `rounding.tables` for the tensors of all groups, if told to `fill` them, and returns their pieces. Each
    tensor is a part of its parameter, which the argument behind the keys describes in words of 32 bits: the parameter's
    number, its axes, and for each axis where the part starts and how long the whole is.
    """

    @numba.cfunc(INTEGER(*[INTEGER] * 4), error_model="numpy")
    def write(request: Any, work: Any, groups: Any, fill: Any) -> Any:
        plan, tensors, count = word(work, PLAN), word(work, TENSORS), np.int64(0)
        arguments, places, pieces = word(request, ARGUMENT), word(work, PLACES), word(work, PIECES)
        extra = word(plan, WIDTH) * tensors + word(plan, HYPERS) + word(plan, SCALED)
        records = word(arguments, extra + 1)
        width = elements_of(records, 0) // (groups * tensors)
        set_word(work, KEYS, word(word(arguments, extra), DATA))
        for row in range(groups * tensors):
            buffer, record = (
                word(arguments, row % tensors),
                pair_pointer(word(records, DATA) + 4 * width * (row % tensors)),
            )
            axis = np.int64(record[1])
            local, length, first = word(buffer, DIMS) + 8 * (word(buffer, RANK) - axis), np.int64(1), np.int64(0)
            for k in range(axis):
                first = first * np.int64(record[3 + 2 * k]) + np.int64(record[2 + 2 * k])
            # The last axes that are whole, and the one before, make runs of elements.
            inner = np.int64(1)
            while axis > 0:
                axis -= 1
                length *= word(local, axis)
                inner *= np.int64(record[3 + 2 * axis])
                if word(local, axis) != np.int64(record[3 + 2 * axis]):
                    break
            runs = np.int64(1)
            for k in range(axis):
                runs *= word(local, k)
            if fill != 0:
                set_word(places, 2 * row, np.int64(record[0]))
                set_word(places, 2 * row + 1, count)
                for r in range(runs):
                    rest, stride, index = np.int64(r), inner, first
                    for k in range(axis - 1, -1, -1):
                        index += rest % word(local, k) * stride
                        rest //= word(local, k)
                        stride *= np.int64(record[3 + 2 * k])
                    set_word(pieces, 2 * (count + r), (r + 1) * length)
                    set_word(pieces, 2 * (count + r) + 1, index - r * length)
            count += runs
        if fill != 0:
            set_word(places, 2 * groups * tensors + 1, count)
        return count

    return write
