"""What XLA calls, of an update, that all programs share: a frame is checked, tables are made of it, slices are done.

Little is compiled for each program, because Numba takes long: its kernel, and what calls that on a slice (`handler`).
This is compiled once, works on words at addresses alone, and reads what it must know of a program from its plan.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numba
import numpy as np
from numba import types

from ..host import storage
from . import frame
from .frame import (
    ARGUMENT,
    ARGUMENTS,
    DATA,
    DTYPE,
    INT32,
    INT64,
    RANK,
    RAW,
    RESULT,
    RESULTS,
    call,
    compiled,
    copied,
    described,
    elements_of,
    failed,
    room,
    set_word,
    spread,
    word,
)

#: Elements of a slice, which one thread takes at a time: what is filled is read again while it is in a near cache.
SLICE = 1 << 15
FLOAT32, FLOAT64, LOW = frame.DTYPES["float32"], frame.DTYPES["float64"], 0xFFFFFFFF
INTEGER = types.int64
#: Python's own functions for memory, which any thread may call.
ALLOCATE, FREE = (
    ctypes.cast(function, ctypes.c_void_p).value
    for function in (ctypes.pythonapi.PyMem_RawMalloc, ctypes.pythonapi.PyMem_RawFree)
)
#: The bits of 1.0.
ONE = 0x3FF << 52
double_bits = storage.double_bits
float_at, double_at, int_at = (storage.pointer(kind) for kind in (types.float32, types.float64, types.int32))

#: Words of a plan: the columns of arrays (x, g and the state), real numbers an element, hyperparameters, extras,
#: scalar expressions, whether there are scales, the function that writes what stochastic rounding reads, or 0
#: (`draws`), the function that runs a slice, three messages; then each column's dtype; the bytes of each one's real
#: elements; and whether the code reads each.
WIDTH, PARTS, HYPERS, EXTRAS, SCALARS, SCALED, KEYED, RUNS, ARRAYS, NUMBERS, MEMORY, COLUMNS = range(12)
#: Words of what a call's slices are handed: its plan, tensors, the slices of a group, whether results must be filled,
#: and the addresses of tables: each tensor's size and addresses in each group, and what its results are filled from;
#: where the tensors of a group end; their scales; each group's scalars; each tensor's group; the groups'
#: hyperparameters; the tensors' numbers and runs (`rounding.tables`) and the groups' keys.
PLAN, TENSORS, SLICES, FILLED, TABLE, ENDS, SCALE, VALUES, WHICH, GIVEN, PLACES, PIECES, KEYS, HEADER = range(14)


@compiled(types.float64(INTEGER, INTEGER))
def number(buffer: Any, group: Any) -> Any:
    """A group's number, in float64."""
    dtype, address = word(buffer, DTYPE) & LOW, word(buffer, DATA)
    if dtype == FLOAT32:
        return np.float64(float_at(address)[group])
    if dtype == INT32:
        return np.float64(int_at(address)[group])
    if dtype == INT64:
        return np.float64(word(address, group))
    return double_at(address)[group]


@compiled(types.boolean(INTEGER, INTEGER, INTEGER))
def good_numbers(request: Any, plan: Any, tensors: Any) -> Any:
    """Whether the arguments behind the arrays are numbers, as many in each as there are groups."""
    arguments = word(request, ARGUMENT) + 8 * word(plan, WIDTH) * tensors
    count, groups = word(plan, HYPERS), np.int64(-1)
    for j in range(count + word(plan, EXTRAS)):
        b = word(arguments, j)
        dtype = word(b, DTYPE) & LOW
        if dtype != RAW and (
            j >= count or (dtype != FLOAT64 and dtype != FLOAT32 and dtype != INT32 and dtype != INT64)
        ):
            return False
        if dtype == RAW and word(b, RANK) < 1:
            return False
        found = elements_of(b, np.int64(dtype == RAW))
        if groups >= 0 and found != groups:
            return False
        groups = found
    return True


@compiled(INTEGER(*[INTEGER] * 4))
def placed(request: Any, work: Any, i: Any, groups: Any) -> Any:
    """Write the rows of the i-th tensor; its real elements in each group, -1 if it is not as it should be."""
    plan, tensors = word(work, PLAN), word(work, TENSORS)
    width = word(plan, WIDTH)
    total = elements_of(word(word(request, ARGUMENT), i), 0)
    size, old = total // groups * word(plan, PARTS), width + 1
    for column in range(width):
        source = word(word(request, ARGUMENT), column * tensors + i)
        target = source
        if column != 1:
            target = word(word(request, RESULT), (column - np.int64(column > 1)) * tensors + i)
        dtype = word(plan, COLUMNS + column)
        if (word(source, DTYPE) & LOW) != dtype or elements_of(source, 0) != total:
            return -1
        if (word(target, DTYPE) & LOW) != dtype or elements_of(target, 0) != total:
            return -1
        source, target = word(source, DATA), word(target, DATA)
        if source != target:
            set_word(work, FILLED, 1)
        for group in range(groups):
            row = word(work, TABLE) + 16 * width * (group * tensors + i)
            offset = group * size * word(plan, COLUMNS + width + column)
            set_word(row, 0, size)
            set_word(row, column + 1, target + offset)
            if column != 1:
                set_word(row, old, source + offset)
        old += np.int64(column != 1)
    return size


@numba.cfunc(INTEGER(INTEGER, INTEGER), error_model="numpy")
def slice_of(work: Any, k: Any) -> Any:
    """Do one slice."""
    plan, tensors, slices, ends = word(work, PLAN), word(work, TENSORS), word(work, SLICES), word(work, ENDS)
    group, width = k // slices, word(plan, WIDTH)
    begin = (k - group * slices) * SLICE
    count = min(SLICE, word(ends, tensors - 1) - begin)
    low, high = np.int64(0), tensors - 1
    while low < high:  # the first tensor that ends behind `begin`
        middle = (low + high) // 2
        if word(ends, middle) <= begin:
            low = middle + 1
        else:
            high = middle
    first = group * tensors + low
    row = word(work, TABLE) + 16 * width * first
    start = begin - (word(ends, low) - word(row, 0))
    if word(work, FILLED) != 0:
        at, left = start, count
        while left > 0:
            n, old = min(word(row, 0) - at, left), width + 1
            for column in range(width):
                if column != 1:
                    size, source, target = word(plan, COLUMNS + width + column), word(row, old), word(row, column + 1)
                    old += 1
                    if source != target and word(plan, COLUMNS + 2 * width + column) != 0:
                        copied(target + at * size, source + at * size, n * size)
            left -= n
            at = 0
            row += 16 * width
    return call(word(plan, RUNS), work, first, start, count)


SLICE_OF = slice_of.address


@compiled(INTEGER(INTEGER, INTEGER, INTEGER))
def room_for(work: Any, groups: Any, pieces: Any) -> Any:
    """Give the tables their places behind the header; the words of all, even where there is nothing yet but that."""
    plan, tensors, at = word(work, PLAN), word(work, TENSORS), np.int64(HEADER)
    rows = groups * tensors
    width, keyed = word(plan, WIDTH), np.int64(word(plan, KEYED) != 0)
    for table in range(TABLE, KEYS):
        set_word(work, table, work + 8 * at)
        if table == TABLE:
            at += rows * 2 * width
        elif table == ENDS:
            at += tensors
        elif table in (SCALE, WHICH):
            at += rows
        elif table == VALUES:
            at += groups * word(plan, SCALARS)
        elif table == GIVEN:
            at += groups * word(plan, HYPERS)
        else:
            at += keyed * (2 * rows + 2) if table == PLACES else 2 * pieces
    return at


@compiled(INTEGER(INTEGER, INTEGER, INTEGER))
def filled_in(request: Any, work: Any, groups: Any) -> Any:
    """Write the tables; an error for XLA, or 0."""
    plan, tensors, end = word(work, PLAN), word(work, TENSORS), np.int64(0)
    hypers, arguments = word(plan, HYPERS), word(request, ARGUMENT) + 8 * word(plan, WIDTH) * tensors
    for i in range(tensors):
        size = placed(request, work, i, groups)
        if size < 0:
            return failed(request, word(plan, ARRAYS))
        end += size
        set_word(word(work, ENDS), i, end)
    set_word(work, SLICES, (end + SLICE - 1) // SLICE)
    for row in range(groups * tensors):
        set_word(word(work, WHICH), row, row // tensors)
        set_word(word(work, SCALE), row, ONE)
    if word(plan, SCALED) != 0:
        set_word(work, SCALE, word(word(arguments, hypers), DATA))
    if word(plan, KEYED) != 0:
        call(word(plan, KEYED), request, work, groups, 1)
    for group in range(groups):
        for j in range(hypers):
            set_word(word(work, GIVEN), group * hypers + j, double_bits(number(word(arguments, j), group)))
        call(word(plan, RUNS), work, group, 0, 0)
    return 0


@numba.cfunc(INTEGER(INTEGER, INTEGER), error_model="numpy")
def handle(request: Any, plan: Any) -> Any:
    """Answer XLA: check what the call brings, make tables of it, and have its slices done."""
    if described(request):
        return 0
    results, hypers = word(plan, WIDTH) - 1, word(plan, HYPERS)
    tensors = word(request, RESULTS) // results
    behind = word(plan, WIDTH) * tensors
    numbers = word(request, ARGUMENTS) - behind
    if word(request, RESULTS) != results * tensors or numbers != hypers + word(plan, EXTRAS):
        return failed(request, word(plan, ARRAYS))
    if not good_numbers(request, plan, tensors):
        return failed(request, word(plan, NUMBERS))
    arguments = word(request, ARGUMENT) + 8 * behind
    groups = elements_of(word(arguments, numbers - 1), 1)
    if groups * tensors == 0:
        return 0
    header, pieces = room(), np.int64(0)
    set_word(header, PLAN, plan)
    set_word(header, TENSORS, tensors)
    set_word(header, FILLED, 0)
    if word(plan, KEYED) != 0:
        pieces = call(word(plan, KEYED), request, header, groups, 0)
    work = call(ALLOCATE, 8 * room_for(header, groups, pieces), 0, 0, 0)
    if work == 0:
        return failed(request, word(plan, MEMORY))
    copied(work, header, 8 * HEADER)
    room_for(work, groups, pieces)
    error = filled_in(request, work, groups)
    if error == 0 and word(work, SLICES) > 0:
        most = word(word(word(arguments, numbers - 1), DATA), 0) & LOW
        spread(request, SLICE_OF, work, word(work, SLICES) * groups, most)
    call(FREE, work, 0, 0, 0)
    return error


HANDLE = handle.address
