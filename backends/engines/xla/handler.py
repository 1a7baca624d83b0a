"""The function that XLA calls for an update: the host engine's kernel, with the tables that it walks made from a frame.

An update is one call for many tensors. Its arguments are the parameters, then their gradients, then each slot's arrays;
then every number that the code reads, and what else the program asks for (`Handler.extras`). Its results are the new
parameters and each slot's new arrays. A result that XLA put where its argument lies is updated in place; any other is
filled first, slice by slice, so that what it is computed from is in the cache.

Under `jax.vmap` everything has the same axes in front: each place along them is a group of tensors with its numbers.

Numba takes long, so little is compiled for each program: its kernel, and what calls that on a slice (`_runs`). The rest
is compiled once, works on words at addresses alone, and reads what it must know of a program from its `plan`.
"""

from __future__ import annotations

import ctypes
import hashlib
import linecache
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numba
import numpy as np
from numba import types

from ..host import kernels
from ..locate import ITEMSIZES, parts_of, real_dtypes
from ..program import Program
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
    set_word,
    spread,
    word,
)  # fmt: skip

__all__ = ["Handler", "handler"]

#: Elements of a slice, which one thread takes at a time: what is filled is read again while it is in a near cache.
SLICE = 1 << 15
MESSAGE = "multiopt: expected {} as when this was compiled, got others"
FLOAT32, FLOAT64, LOW = frame.DTYPES["float32"], frame.DTYPES["float64"], 0xFFFFFFFF
INTEGER = types.int64
#: The bits of 1.0.
ONE = 0x3FF << 52
double_bits = kernels.double_bits
float_at, double_at, int_at = (kernels.pointer(kind) for kind in (types.float32, types.float64, types.int32))

#: Words of a plan: the columns of arrays (x, g and the state), real numbers an element, hyperparameters, extras,
#: scalar expressions, whether there are scales and keys, the function that runs a slice, two messages; then each
#: column's dtype, and then the bytes of its real elements.
WIDTH, PARTS, HYPERS, EXTRAS, SCALARS, SCALED, KEYED, RUNS, ARRAYS, NUMBERS, COLUMNS = range(11)
#: Words of what a call's slices are handed: its plan, tensors, the slices of a group, whether results must be filled,
#: and the addresses of tables: each tensor's size and addresses in each group, and what its results are filled from;
#: where the tensors of a group end; their scales; each group's scalars; each tensor's group; the groups'
#: hyperparameters; the tensors' numbers and runs (`rounding.tables`) and the groups' keys.
PLAN, TENSORS, SLICES, FILLED, TABLE, ENDS, SCALE, VALUES, WHICH, GIVEN, PLACES, PIECES, KEYS, HEADER = range(14)


@dataclass(frozen=True, eq=False)
class Handler:
    """A compiled function, which XLA knows by its name."""

    #: Made from all that it does: in another process, the same name is the same function.
    name: str
    #: Its address in this one.
    address: int
    #: Names of the numbers that it takes, in order.
    numbers: tuple[str, ...]
    #: What it takes after them, in words of 32 bits without a sign: ``"scales"`` of the tensors, two words of a float64
    #: each, ``"keys"`` of stochastic rounding, the numbers of the ``"parameters"``, and the most ``"threads"``.
    extras: tuple[str, ...]
    #: What must not be dropped while XLA may call it.
    held: tuple[Any, ...]


# --- what all programs share ---


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
        for buffer in (source, target):
            if (word(buffer, DTYPE) & LOW) != word(plan, COLUMNS + column) or elements_of(buffer, 0) != total:
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
                    if source != target:
                        copied(target + at * size, source + at * size, n * size)
            left -= n
            at = 0
            row += 16 * width
    return call(word(plan, RUNS), work, first, start, count)


SLICE_OF = slice_of.address


@compiled(INTEGER(INTEGER, INTEGER, INTEGER))
def room_for(work: Any, groups: Any, tensors: Any) -> Any:
    """Give the tables their places behind the header, if there is one; the words of all."""
    plan, rows, at = word(work, PLAN), groups * tensors, np.int64(HEADER)
    width, keyed = word(plan, WIDTH), word(plan, KEYED)
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
            at += keyed * (2 * rows + 2)
    return at


@compiled(types.void(INTEGER, INTEGER, INTEGER))
def draw_by(request: Any, work: Any, rows: Any) -> None:
    """Write what stochastic rounding reads: each tensor holds the whole of its parameter, one run of elements."""
    plan = word(work, PLAN)
    behind = word(plan, WIDTH) * word(work, TENSORS) + word(plan, HYPERS) + word(plan, SCALED)
    keys, numbers = word(word(request, ARGUMENT), behind), word(word(request, ARGUMENT), behind + 1)
    set_word(work, KEYS, word(keys, DATA))
    for row in range(rows):
        set_word(word(work, PLACES), 2 * row, np.int64(int_at(word(numbers, DATA))[row]) & LOW)
        set_word(word(work, PLACES), 2 * row + 1, row)
        set_word(word(work, PIECES), 2 * row, word(word(work, TABLE), row * 2 * word(plan, WIDTH)))
        set_word(word(work, PIECES), 2 * row + 1, 0)
    set_word(word(work, PLACES), 2 * rows + 1, rows)


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
    header = np.empty(HEADER, np.int64)
    header[PLAN] = plan
    memory = np.empty(room_for(header.ctypes.data, groups, tensors), np.int64)
    work = memory.ctypes.data
    set_word(work, PLAN, plan)
    set_word(work, TENSORS, tensors)
    set_word(work, FILLED, 0)
    room_for(work, groups, tensors)
    end = np.int64(0)
    for i in range(tensors):
        size = placed(request, work, i, groups)
        if size < 0:
            return failed(request, word(plan, ARRAYS))
        end += size
        set_word(word(work, ENDS), i, end)
    if end == 0:
        return 0
    for row in range(groups * tensors):
        set_word(word(work, WHICH), row, row // tensors)
        set_word(word(work, SCALE), row, ONE)
    if word(plan, SCALED) != 0:
        set_word(work, SCALE, word(word(arguments, hypers), DATA))
    if word(plan, KEYED) != 0:
        draw_by(request, work, groups * tensors)
    for group in range(groups):
        for j in range(hypers):
            set_word(word(work, GIVEN), group * hypers + j, double_bits(number(word(arguments, j), group)))
        call(word(plan, RUNS), work, group, 0, 0)
    slices = (end + SLICE - 1) // SLICE
    set_word(work, SLICES, slices)
    most = word(word(word(arguments, numbers - 1), DATA), 0) & LOW
    spread(request, SLICE_OF, work, slices * groups, most)
    # What is not named again is freed as soon as its address was taken.
    return 0 if memory.size + header.size > 0 else 1


HANDLE = handle.address


# --- a program ---


@lru_cache(None)
def handler(program: Program, dtypes: tuple[str, ...]) -> Handler:
    """Compile a program for arrays of these dtypes: those of x, g and the state; the same for equal code."""
    code, real = program.code, real_dtypes(dtypes)
    names = tuple(name for name in program.scalars if name in _hypers(code.scalars))
    extras = ("scales",) * bool(code.per_tensor) + ("keys", "parameters") * bool(program.stochastic) + ("threads",)
    source = _runs(program, real, names)
    facts = source, dtypes, names, extras, code.nodes, code.outputs, program.stochastic, frame.MAJOR, frame.MINOR, SLICE
    name = f"multiopt_update_{hashlib.sha256(repr(facts).encode()).hexdigest()[:32]}"
    with kernels.compiling:
        if name not in _made:
            _made[name] = _compiled(name, source, program, dtypes, names, extras)
        return _made[name]


#: By name: XLA keeps the address of each.
_made: dict[str, Handler] = {}
#: How scalar expressions are written.
OPERATIONS = {op: kernels.OPERATIONS[op] for op in ("add", "sub", "mul", "div", "neg", "abs")} | {"pow": "{0} ** {1}"}


def _expression(value: tuple, names: tuple[str, ...]) -> str:
    """One of a code's scalar expressions, in float64."""
    kind = value[0]
    if kind == "const":
        return f"np.float64({value[1]!r})"
    if kind == "hyper":
        return f"h{names.index(value[1])}"
    return "(" + OPERATIONS[kind].format(*(_expression(part, names) for part in value[1:])) + ")"


def _hypers(expressions: Iterable[tuple]) -> set[str]:
    """The names that scalar expressions read."""
    found: set[str] = set()
    for kind, *rest in expressions:
        if kind != "const":
            found |= {rest[0]} if kind == "hyper" else _hypers(rest)
    return found


def _runs(program: Program, real: tuple[str, ...], names: tuple[str, ...]) -> str:
    """Source of ``runs(work, row, start, count)``: the kernel on a slice, or, of 0 elements, a group's scalars."""
    code, hypers, scalars = program.code, len(names), len(program.code.scalars)
    numbers = [f"h{j} = given[row * {hypers} + {j}]" for j in range(hypers)]
    numbers += [f"values[row * {scalars} + {k}] = {_expression(value, names)}" for k, value in enumerate(code.scalars)]
    keys = [
        f"keys = carray(uint32_at(word(work, {KEYS})), 2 * group + 2)",
        f"places = carray(long_pointer(word(work, {PLACES})), (end + 1, 2))",
        f"pieces = carray(long_pointer(word(work, {PIECES})), (end, 2))",
    ]
    drawn = ", places, pieces, keys[2 * group], keys[2 * group + 1]"
    lines = [
        "if count == 0:",
        f"    given = float64_at(word(work, {GIVEN}))",
        f"    values = carray(float64_at(word(work, {VALUES})), {scalars} * row + {scalars})",
        "    control = default_control()",
        *kernels.indent(numbers),
        "    restored_control(control)",
        "    return 0",
        f"end = row + word(work, {TENSORS})",
        f"group = word(word(work, {WHICH}), row)",
        f"table = carray(long_pointer(word(work, {TABLE})), (end, {2 * len(real)}))",
        f"scales = carray(float64_at(word(work, {SCALE})), end)",
        f"values = carray(float64_at(word(work, {VALUES})), (group + 1, {scalars}))",
        f"which = carray(long_pointer(word(work, {WHICH})), end)",
        *(keys if program.stochastic else []),
        f"update(table, scales, values, which{drawn if program.stochastic else ''}, row, start, count)",
        "return 0",
    ]
    return "\n".join(["def runs(work, row, start, count):", *kernels.indent(lines), ""])


def _compiled(
    name: str, source: str, program: Program, dtypes: tuple[str, ...], names: tuple[str, ...], extras: tuple[str, ...]
) -> Handler:
    filename, real = f"<{name}>", real_dtypes(dtypes)
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    space: dict[str, Any] = {
        **kernels.SPACE, "word": word, "long_pointer": kernels.long_pointer, "uint32_at": kernels.pair_pointer,
        "update": kernels.update_kernel(program, real), "inf": np.inf, "nan": np.nan,
    }  # fmt: skip
    exec(compile(source, filename, "exec"), space)
    runs = numba.cfunc(INTEGER(*[INTEGER] * 4), error_model="numpy")(space["runs"])
    texts = [ctypes.create_string_buffer(MESSAGE.format(what).encode()) for what in ("arrays", "numbers")]
    columns = [frame.DTYPES[d] for d in dtypes], [ITEMSIZES[d] for d in real]
    counts = [len(dtypes), parts_of(dtypes[0]), len(names), len(extras), len(program.code.scalars)]
    asked = [int("scales" in extras), int("keys" in extras), runs.address, *map(ctypes.addressof, texts)]
    plan = np.array([*counts, *asked, *columns[0], *columns[1]], np.int64)
    at = plan.ctypes.data

    def answer(request: Any) -> Any:
        return call(HANDLE, request, at, 0, 0)

    whole = numba.cfunc(INTEGER(INTEGER), error_model="numpy")(answer)
    return Handler(name, int(whole.address or 0), names, extras, (runs, whole, plan, texts))
