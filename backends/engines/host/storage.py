"""Memory and numbers in kernels: pointers, how each dtype is read and stored, and what else Numba's language lacks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ...rounding import STEPS

__all__ = [
    "LOADS", "NAMES", "STORAGE", "bits_double", "bits_float", "double_bits", "fetch", "float_bits", "identity",
    "instruction", "long_pointer", "pair_pointer", "pointer",
]  # fmt: skip


def _cast(source: Any, target: Any, convert: Callable[[Any, Any, Any], Any]) -> Any:
    """A kernel's function from one type to another; `convert` writes its instructions."""

    @intrinsic
    def cast(typingctx: Any, value: Any) -> Any:
        return target(source), lambda context, builder, signature, args: convert(context, builder, args[0])

    return cast


instruction: Any = intrinsic  # whose own types know nothing of the typing context


def pointer(dtype: Any) -> Any:
    """Make an integer address a pointer to elements of `dtype`."""
    result = types.CPointer(dtype)
    return _cast(types.intp, result, lambda c, b, v: b.inttoptr(v, c.get_value_type(result)))


float_bits = _cast(types.float32, types.uint32, lambda c, b, v: b.bitcast(v, ir.IntType(32)))
bits_float = _cast(types.uint32, types.float32, lambda c, b, v: b.bitcast(v, ir.FloatType()))
double_bits = _cast(types.float64, types.int64, lambda c, b, v: b.bitcast(v, ir.IntType(64)))
bits_double = _cast(types.int64, types.float64, lambda c, b, v: b.bitcast(v, ir.DoubleType()))
half_load = _cast(types.uint16, types.float32, lambda c, b, v: b.fpext(b.bitcast(v, ir.HalfType()), ir.FloatType()))
half_store = _cast(types.float32, types.uint16, lambda c, b, v: b.bitcast(b.fptrunc(v, ir.HalfType()), ir.IntType(16)))
long_pointer, pair_pointer = pointer(types.int64), pointer(types.uint32)


@intrinsic
def load_pair(typingctx: Any, pointer: Any, k: Any) -> Any:
    """Two neighbours of 16 bits at once, which need not lie as a number of 32 bits does."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.gep(args[0], [args[1]]), align=2)

    return types.uint32(types.CPointer(types.uint32), types.intp), generate


@intrinsic
def store_pair(typingctx: Any, pointer: Any, k: Any, pair: Any) -> Any:
    """Write what `load_pair` reads."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], builder.gep(args[0], [args[1]]), align=2)
        return context.get_dummy_value()

    return types.void(types.CPointer(types.uint32), types.intp, types.uint32), generate


@instruction
def fetch(typingctx: Any, address: Any) -> Any:
    """Have the memory at an address brought near, if there is any; wait for nothing."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
        builder.call(function, [builder.inttoptr(args[0], pointer), number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@instruction
def moved(typingctx: Any, about: Any, tile: Any, room: Any, low: Any, high: Any, back: Any) -> Any:
    """Call what moves a tile, whose address is the first word of a description: see `tiles.mover`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(64)
        function = ir.FunctionType(word, [word] * len(args)).as_pointer()
        called = builder.load(builder.inttoptr(args[0], function.as_pointer()))
        return builder.call(called, args)

    return types.int64(*[types.int64] * 6), generate


@numba.njit(inline="always")
def identity(x: Any) -> Any:
    """How a number is read that is computed with as it is stored."""
    return x


# Of bfloat16, written as instructions: as functions of Numba's, inlined, they would take most of a kernel's compiling.
HALF, WORD, SINGLE = ir.IntType(16), ir.IntType(32), ir.FloatType()
NAN, SIXTEEN, UPPER = SINGLE(math.nan), WORD(16), WORD(0xFFFF0000)


def _tamed(b: Any, v: Any) -> Any:
    return b.select(b.fcmp_unordered("uno", v, v), NAN, v)


def _rounded(b: Any, v: Any) -> Any:
    u = b.bitcast(v, WORD)
    return b.add(b.add(u, WORD(0x7FFF)), b.and_(b.lshr(u, SIXTEEN), WORD(1)))


bfloat_load = _cast(types.uint16, types.float32, lambda c, b, v: b.bitcast(b.shl(b.zext(v, WORD), SIXTEEN), SINGLE))
bfloat_store = _cast(
    types.float32, types.uint16, lambda c, b, v: b.trunc(b.lshr(_rounded(b, _tamed(b, v)), SIXTEEN), HALF)
)
#: A number, or a NaN with nothing in the lower half of its bits.
tamed = _cast(types.float32, types.float32, lambda c, b, v: _tamed(b, v))
#: The bits of x, of which the upper half are x in bfloat16; not for a NaN with anything in its lower half.
bfloat_rounded = _cast(types.float32, types.uint32, lambda c, b, v: _rounded(b, v))
low_bfloat = _cast(types.uint32, types.float32, lambda c, b, v: b.bitcast(b.shl(v, SIXTEEN), SINGLE))
high_bfloat = _cast(types.uint32, types.float32, lambda c, b, v: b.bitcast(b.and_(v, UPPER), SINGLE))


@instruction
def bfloat_pair(typingctx: Any, low: Any, high: Any) -> Any:
    """Two numbers of which the upper halves are these."""

    def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
        return b.or_(b.lshr(args[0], SIXTEEN), b.and_(args[1], UPPER))

    return types.uint32(types.uint32, types.uint32), generate


@instruction
def bfloat_drawn(typingctx: Any, x: Any, random: Any) -> Any:
    """The same as `bfloat_rounded`, rounded stochastically."""

    def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
        return b.add(b.bitcast(args[0], WORD), args[1])

    return types.uint32(types.float32, types.uint32), generate


KEYS = types.UniTuple(types.uint32, 2)


def _hashed(b: Any, h: Any, keys: Any) -> Any:
    """Write the hash of stochastic rounding, `rounding.STEPS`."""
    for what, operand in STEPS:
        if what == "shift":
            h = b.xor(h, b.lshr(h, WORD(operand)))
        else:
            h = getattr(b, what)(h, WORD(operand) if what == "mul" else keys[operand])
    return h


@instruction
def hashed(typingctx: Any, h: Any, keys: Any) -> Any:
    def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
        return _hashed(b, args[0], [b.extract_value(args[1], i) for i in (0, 1)])

    return types.uint32(types.uint32, KEYS), generate


@instruction
def absorbed(typingctx: Any, keys: Any, word: Any) -> Any:
    """As in `rounding`."""

    def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
        keys, word = [b.extract_value(args[0], i) for i in (0, 1)], b.trunc(args[1], WORD)
        first = _hashed(b, word, keys)
        return context.make_tuple(b, KEYS, [first, _hashed(b, b.not_(word), [keys[1], first])])

    return KEYS(KEYS, types.int64), generate


#: For each dtype: a pointer to it, and how an element is read and written. The half types are handled as bits.
STORAGE = {
    "float16": (pointer(types.uint16), "half_load({})", "half_store({})"),
    "bfloat16": (pointer(types.uint16), "bfloat_load({})", "bfloat_store({})"),
    "float32": (pointer(types.float32), "{}", "{}"),
    "float64": (pointer(types.float64), "{}", "{}"),
}
#: The same reading as functions.
LOADS = {"float16": half_load, "bfloat16": bfloat_load, "float32": identity, "float64": identity}
#: What generated code may name of this.
NAMES = {
    "double_bits": double_bits,
    "half_load": half_load,
    "half_store": half_store,
    "bfloat_load": bfloat_load,
    "bfloat_store": bfloat_store,
    "bfloat_rounded": bfloat_rounded,
    "bfloat_drawn": bfloat_drawn,
    "tamed": tamed,
    "hashed": hashed,
    "absorbed": absorbed,
    "low_bfloat": low_bfloat,
    "high_bfloat": high_bfloat,
    "bfloat_pair": bfloat_pair,
    "pair_at": pair_pointer,
    "load_pair": load_pair,
    "store_pair": store_pair,
    "long_at": long_pointer,
    "moved": moved,
    **{f"{dtype}_at": pointer for dtype, (pointer, _, _) in STORAGE.items()},
}
