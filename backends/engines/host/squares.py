"""The host engine's exact sums of squares: rows of integers as `norms` describes them, at the speed of the memory.

Squares are added in blocks. Within one, an anchored sum counts how many units, a power of two, each square is worth,
and a second one what that left: each level counts as many bits as its arithmetic holds. A look at the largest and the
smallest element of a block tells whether the levels take all; then their sums are exact, whatever the unit, and go
into the row's digits. The next block is fetched meanwhile.

Where the levels do not suffice, exponents near the ends of the range would get in the way, or something is not finite,
the block is taken in float64 from the largest elements down, scaled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from llvmlite.binding import add_symbol
from numba import types

from .. import norms
from ..locate import ITEMSIZES
from ..program import KEPT, Program
from .kernels import (
    GRADIENT,
    GROUPS,
    NUMBERS,
    OPERATIONS,
    TABLE,
    ZERO_ONE,
    build,
    computing_dtype,
    indent,
    magnitudes,
    rounded,
    view,
)  # fmt: skip
from .storage import (
    LOADS,
    STORAGE,
    bits_double,
    bits_float,
    double_bits,
    fetch,
    float_bits,
    identity,
    instruction,
    long_pointer,
)  # fmt: skip

__all__ = ["ROOM", "square_kernel"]

#: Elements of a block: its levels' sums are put into digits together.
BLOCK = 2048
#: Numbers of a block that are kept beside it: magnitudes in float64, and what was made of the gradient.
ROOM = 2 * BLOCK
#: Elements of a run: few enough that a float32 level's counts do not overflow 32 bits.
RUN = 512
#: Bits that a level counts: in float32, and in float64.
NARROW, WIDE = 22, norms.BITS
#: Elements below this part of the largest wait for the next round, so that three levels of float64 take the others.
PART = 2.0**-48


@numba.njit(inline="always")
def fetched(address: Any, lines: Any) -> Any:
    """Have some lines of the memory from an address on brought near, unless it is 0; the address behind them."""
    if address:
        for _ in range(lines):
            fetch(address)
            address += 64
    return address


@instruction
def exact_square_plus(typingctx: Any, x: Any, y: Any) -> Any:
    """``x * x + y`` for an x whose square is exact: in one operation where the processor has it, else in two."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = args[0].type
        function = builder.module.declare_intrinsic("llvm.fmuladd", [kind], ir.FunctionType(kind, [kind] * 3))
        return builder.call(function, [args[0], args[0], args[1]])

    return x(x, x), generate


@instruction
def rounded_square_plus(typingctx: Any, x: Any, y: Any) -> Any:
    """The same for an x whose square is to be rounded."""
    return x(x, x), lambda c, builder, s, args: builder.fadd(builder.fmul(args[0], args[0]), args[1])


@numba.njit(inline="always")
def narrow_anchor(exponent: Any) -> Any:
    """``1.5 * 2**exponent`` in float32."""
    return bits_float(np.uint32(((exponent + 127) << 23) | (1 << 22)))


@numba.njit(inline="always")
def wide_anchor(exponent: Any) -> Any:
    """``1.5 * 2**exponent`` in float64."""
    return bits_double(np.int64(((exponent + 1023) << 52) | (1 << 51)))


MASK = np.int64(norms.MASK)
FIRST, SECOND, THIRD = (1.5 * 2.0 ** (52 - WIDE * level) for level in (1, 2, 3))


@numba.njit(nogil=True)
def put(a: Any, b: Any, c: Any, above: Any, bits: Any, row: Any) -> None:
    """Add three levels' counts to the digits of a row.

    The first counts units of ``2**(above - bits)`` times that of the lowest digit; each other, units of 2**-bits of
    those before it. It may be negative, but not all together.
    """
    b += c >> bits
    a += b >> bits
    rest = (np.int64(1) << bits) - 1
    for count in (a, b & rest, c & rest):
        above -= bits
        exponent = above
        if exponent < 0:  # what is below the lowest digit is zeros
            count >>= min(-exponent, 63)
            exponent = 0
        k, shift = exponent >> 5, exponent & 31
        low = (count & MASK) << shift
        high = (low >> 32) + ((count >> 32) << shift)
        row[k] += low & MASK
        row[k + 1] += high & MASK
        row[k + 2] += high >> 32


@numba.njit(nogil=True, error_model="numpy")
def put_slowly(magnitudes: Any, m: Any, start: Any, row: Any) -> None:
    """Add the squares of any `m` magnitudes to a row, whose lowest digit has the unit ``2**start``."""
    infinite, nan = np.int64(0), np.int64(0)
    for k in range(m):
        infinite += np.int64(magnitudes[k] == np.inf)
        nan += np.int64(magnitudes[k] != magnitudes[k])
    row[len(row) - 2] += infinite
    row[len(row) - 1] += nan
    ceiling = np.inf
    while True:
        # By bits, which are ordered as the magnitudes are.
        most, below = np.int64(0), double_bits(ceiling)
        for k in range(m):
            u = double_bits(magnitudes[k])
            most = max(most, u if u < below else np.int64(0))
        if most == 0:
            return
        largest = bits_double(most)
        exponent = math.frexp(largest)[1]
        floor, half = math.ldexp(PART, exponent), -exponent // 2
        # Two factors, as the scale itself may be beyond float64's range.
        once, again = math.ldexp(1.0, half), math.ldexp(1.0, -exponent - half)
        a, b, c = np.int64(0), np.int64(0), np.int64(0)
        for k in range(m):
            x = magnitudes[k] * once * again if floor <= magnitudes[k] < ceiling else 0.0
            s = x * x
            total = s + FIRST
            a += double_bits(total) - double_bits(FIRST)
            s -= total - FIRST
            total = s + SECOND
            b += double_bits(total) - double_bits(SECOND)
            c += double_bits(s - (total - SECOND) + THIRD) - double_bits(THIRD)
        put(a, b, c, 2 * exponent - start, np.int64(WIDE), row)
        ceiling = floor


#: The compiled functions that kernels call by their addresses.
CALLED: dict[str, Any] = {}


@cache
def adder(dtype: str) -> Any:
    """Compile ``add(g, m, ahead, room, row)``: adds the squares of `m` elements to a row, and fetches what is next.

    The other arguments are addresses, `ahead` possibly 0; in the `room` are `m` float64. Kernels call it as they would
    a library's function, so that it is compiled once for each dtype.
    """
    size = ITEMSIZES[dtype]
    narrow = size == 2
    fraction = {"float16": 10, "bfloat16": 7, "float32": 23, "float64": 52}[dtype]
    bias = {"float16": 15, "float64": 1023}.get(dtype, 127)
    unsigned: Any = {2: np.uint16, 4: np.uint32, 8: np.uint64}[size]
    none, one, all_ones = unsigned(0), unsigned(1), unsigned(2 ** (8 * size) - 1)
    magnitude, infinite = unsigned(2 ** (8 * size - 1) - 1), unsigned((2 * bias + 1) << fraction)
    load, raw = LOADS[dtype], {2: identity, 4: float_bits, 8: double_bits}[size]
    square_plus = rounded_square_plus if dtype == "float64" else exact_square_plus
    # What squares are computed in; integers for sums of its bits; the exponents of its least number, and of one that
    # leaves room for anchors; the bits of its fraction and of a level; those of a square below its power of two.
    wide: Any = np.float32 if narrow else np.float64
    kind: Any = np.uint32 if narrow else np.int64
    signed: Any = np.int32 if narrow else np.int64
    bits, anchor = (float_bits, narrow_anchor) if narrow else (double_bits, wide_anchor)
    least_unit, most, places, level = (-149, 126, 23, NARROW) if narrow else (-1074, 1022, 52, WIDE)
    below = min(2 * fraction, 52)
    computing = "float64" if dtype == "float64" else "float32"
    # As numbers of that type, not as constants, for each of which Numba would compile the functions anew.
    start, counted = np.int64(norms.DIGITS[computing][0]), np.int64(level)
    columns = norms.columns(computing)
    lines = RUN * size // 64 // 2  # half of a run's while it is looked at, half while it is added

    elements_at, doubles_at = STORAGE[dtype][0], STORAGE["float64"][0]

    def add(g_at: Any, m: Any, ahead: Any, room_at: Any, row_at: Any) -> None:
        g = numba.carray(elements_at(g_at), m)
        row = numba.carray(long_pointer(row_at), columns)
        largest: Any = none
        least: Any = all_ones
        for begin in range(0, m, RUN):
            ahead = fetched(ahead, lines)
            part = g[begin : begin + RUN]
            for k in range(len(part)):
                u = unsigned(unsigned(raw(part[k])) & magnitude)
                largest = max(largest, u)
                least = min(least, unsigned(u - one))  # 0 becomes the largest of all
        if largest == none:
            return
        # Exponents: above all squares, of the last place of the smallest, and of the lowest level's unit.
        top = 2 * (max(np.int64(largest >> unsigned(fraction)), np.int64(1)) - bias + 1)
        bottom = 2 * (max(np.int64(unsigned(least + one) >> unsigned(fraction)), np.int64(1)) - bias) - below
        levels = 2 if top - bottom <= 2 * level else 3
        unit = top - levels * level
        if largest >= infinite or unit > bottom or unit < least_unit or top + 2 > most:
            magnitudes = numba.carray(doubles_at(room_at), m)
            for k in range(m):
                magnitudes[k] = abs(np.float64(load(g[k])))
            put_slowly(magnitudes, m, start, row)
            return
        first = anchor(np.int64(top - level + places))
        second = anchor(np.int64(top - 2 * level + places))
        third = anchor(np.int64(unit + places))
        a_count, b_count, c_count = np.int64(0), np.int64(0), np.int64(0)
        for begin in range(0, m, RUN):
            ahead = fetched(ahead, lines)
            part = g[begin : begin + RUN]
            a, b, c, n = kind(0), kind(0), kind(0), kind(len(part))
            # Within an anchor's binade, the bits of a sum count its units.
            if levels == 2:
                both = first + second
                for k in range(len(part)):
                    x = wide(load(part[k]))
                    total = square_plus(x, first)
                    a = kind(a + kind(bits(total)))
                    # What the first level left, plus the second anchor: rounded once.
                    b = kind(b + kind(bits(square_plus(x, both - total))))
            else:
                both = second + third
                for k in range(len(part)):
                    x = wide(load(part[k]))
                    total = square_plus(x, first)
                    a = kind(a + kind(bits(total)))
                    left = square_plus(x, first - total)
                    total = left + second
                    b = kind(b + kind(bits(total)))
                    c = kind(c + kind(bits(left + (both - total))))
                c_count += np.int64(signed(kind(c - kind(n * kind(bits(third))))))
            a_count += np.int64(signed(kind(a - kind(n * kind(bits(first))))))
            b_count += np.int64(signed(kind(b - kind(n * kind(bits(second))))))
        put(a_count, b_count, c_count, top - start, counted, row)

    name, shape = f"multiopt_add_squares_{dtype}", types.void(*[types.intp] * 5)
    CALLED[dtype] = numba.cfunc(shape, error_model="numpy")(add)
    add_symbol(name, CALLED[dtype].address)
    return types.ExternalFunction(name, shape)


@lru_cache(KEPT)
def square_kernel(program: Program, dtype: str) -> Callable[..., None]:
    """Compile ``squares(table, numbers, which, room, out, first, start, count)``: see `build`, `norms.square_sums`.

    Adds to one row of `out` for each tensor that is walked over, the first row for the first of them. The gradient
    is scaled and clipped by value on the way; if it is, and was not finite before, one is added to the row's last
    number, behind the sums. `room` is for `ROOM` float64.
    """
    return _plain_kernel(dtype) if program.code.measured == "g" else _measuring_kernel(program, dtype)


@cache
def _plain_kernel(dtype: str) -> Callable[..., None]:
    """The kernel of all programs that measure the gradient as it is."""
    size = ITEMSIZES[dtype]
    block = [
        f"at = row[2] + (start + begin) * {size}",
        f"add(at, m, at + m * {size} if m == BLOCK else 0, room.ctypes.data, out[i - first].ctypes.data)",
    ]
    return _built([], [], block, dtype)


def _measuring_kernel(program: Program, dtype: str) -> Callable[..., None]:
    code, computing = program.code, np.dtype(computing_dtype((dtype,))).name
    element = [f"g = compute({STORAGE[dtype][1].format('g_[k]')})", *code.render(OPERATIONS, only=(code.measured,))]
    block = [
        f"g_ = {view(dtype, 2, '(start + begin)', 'm')}",
        "largest = kind(0)",
        "for k in range(m):",
        *indent([*element, f"measured[k] = {code.measured}", "largest = max(largest, kind(bits(g)) & MAGNITUDE)"]),
        "if largest >= INFINITE:",
        *indent(["out[i - first, out.shape[1] - 1] += 1"]),
        f"ahead = row[2] + (start + begin + m) * {ITEMSIZES[dtype]} if m == BLOCK else 0",
        "add(measured_at, m, ahead, room.ctypes.data, out[i - first].ctypes.data)",
    ]
    opening = ["measured_at = room.ctypes.data + 8 * BLOCK", f"measured = carray({computing}_at(measured_at), BLOCK)"]
    return _built([*opening, ZERO_ONE], rounded(code), block, computing)


def _built(opening: list[str], before: list[str], block: list[str], dtype: str) -> Callable[..., None]:
    body = [*before, "for begin in range(0, n, BLOCK):", *indent(["m = min(BLOCK, n - begin)", *block])]
    parameters = {**GROUPS, "room": NUMBERS, "out": TABLE}
    names = {"BLOCK": BLOCK, "add": adder(dtype), "compute": computing_dtype((dtype,)), **magnitudes(dtype)}
    return build("squares", parameters, opening, body, GRADIENT, **names)
