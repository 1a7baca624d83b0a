"""Memory and numbers in kernels: pointers, how each dtype is read and stored, and what else Numba's language lacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ...rounding import rendered

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


@numba.njit(inline="always")
def bfloat_load(u: Any) -> Any:
    return bits_float(np.uint32(np.uint32(u) << np.uint32(16)))


@numba.njit(inline="always")
def tamed(x: Any) -> Any:
    """A number, or a NaN with nothing in the lower half of its bits."""
    return x if x == x else np.float32(np.nan)


@numba.njit(inline="always")
def bfloat_rounded(x: Any) -> Any:
    """The bits of x, of which the upper half are x in bfloat16; not for a NaN with anything in its lower half."""
    u = float_bits(x)
    return np.uint32(u + np.uint32(0x7FFF) + ((u >> np.uint32(16)) & np.uint32(1)))


@numba.njit(inline="always")
def bfloat_store(x: Any) -> Any:
    return np.uint16(bfloat_rounded(tamed(x)) >> np.uint32(16))


@numba.njit(inline="always")
def low_bfloat(pair: Any) -> Any:
    return bits_float(np.uint32(pair << np.uint32(16)))


@numba.njit(inline="always")
def high_bfloat(pair: Any) -> Any:
    return bits_float(np.uint32(pair & np.uint32(0xFFFF0000)))


@numba.njit(inline="always")
def bfloat_pair(low: Any, high: Any) -> Any:
    """Two numbers of which the upper halves are these."""
    return (low >> np.uint32(16)) | (high & np.uint32(0xFFFF0000))


def _hash() -> Any:
    """The hash of stochastic rounding, `rounding.STEPS`, as a kernel's function of a word and a pair of keys."""
    templates = {
        "add": "h = np.uint32(h + keys[{0}])",
        "xor": "h = np.uint32(h ^ keys[{0}])",
        "shift": "h = np.uint32(h ^ (h >> np.uint32({0})))",
        "mul": "h = np.uint32(h * np.uint32({0}))",
    }
    space: dict[str, Any] = {"np": np}
    exec("\n    ".join(["def hashed(h, keys):", *rendered(templates), "return h"]), space)
    return numba.njit(inline="always")(space["hashed"])


hashed = _hash()


@numba.njit(inline="always")
def absorbed(keys: Any, word: Any) -> Any:
    """As in `rounding`."""
    first = hashed(np.uint32(word), keys)
    return first, hashed(np.uint32(~np.uint32(word)), (keys[1], first))


@numba.njit(inline="always")
def bfloat_drawn(x: Any, random: Any) -> Any:
    """The same as `bfloat_rounded`, rounded stochastically."""
    return np.uint32(float_bits(x) + random)


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
