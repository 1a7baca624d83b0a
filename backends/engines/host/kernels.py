"""Kernels for the host engine, generated from a traced program and compiled by Numba.

A kernel walks over tables of addresses and sizes, so that a thousand small tensors cost one call. It releases the
GIL and uses no fast-math: division and square root are correctly rounded, nothing is contracted to FMA, subnormals
are kept, whatever the caller's control register says.
"""

from __future__ import annotations

import linecache
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any
from weakref import finalize

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.compiler_lock import global_compiler_lock as compiling
from numba.extending import intrinsic

from ..locate import ITEMSIZES
from ..program import INFIX, KEPT, Code, Program
from .control import default_control, restored_control

__all__ = ["compiling", "disabled", "finite_kernel", "update_kernel"]

OPERATIONS = {
    **INFIX,
    "sqrt": "np.sqrt({0})",
    "exp": "np.exp({0})",
    "log": "np.log({0})",
    "abs": "abs({0})",
    # NaN in either argument comes through, as the array API says.
    "min": "({0} if {0} < {1} or {0} != {0} else {1})",
    "max": "({0} if {0} > {1} or {0} != {0} else {1})",
    "sign": "(one if {0} > 0 else (-one if {0} < 0 else {0} + zero))",
    "where": "({1} if {0} else {2})",
    "and": "{0} and {1}",
    "or": "{0} or {1}",
    "not": "not {0}",
}


def disabled() -> str | None:
    """Say why nothing can be compiled, or return None."""
    return "Numba's compiler is off: NUMBA_DISABLE_JIT is set" if numba.config.DISABLE_JIT else None  # type: ignore[attr-defined]


def _cast(source: Any, target: Any, convert: Callable[[Any, Any, Any], Any]) -> Any:
    """A kernel's function from one type to another; `convert` writes its instructions."""

    @intrinsic
    def cast(typingctx: Any, value: Any) -> Any:
        return target(source), lambda context, builder, signature, args: convert(context, builder, args[0])

    return cast


def _pointer(dtype: Any) -> Any:
    """Make an integer address a pointer to elements of `dtype`."""
    result = types.CPointer(dtype)
    return _cast(types.intp, result, lambda c, b, v: b.inttoptr(v, c.get_value_type(result)))


float_bits = _cast(types.float32, types.uint32, lambda c, b, v: b.bitcast(v, ir.IntType(32)))
bits_float = _cast(types.uint32, types.float32, lambda c, b, v: b.bitcast(v, ir.FloatType()))
double_bits = _cast(types.float64, types.int64, lambda c, b, v: b.bitcast(v, ir.IntType(64)))
bits_double = _cast(types.int64, types.float64, lambda c, b, v: b.bitcast(v, ir.DoubleType()))
half_load = _cast(types.uint16, types.float32, lambda c, b, v: b.fpext(b.bitcast(v, ir.HalfType()), ir.FloatType()))
half_store = _cast(types.float32, types.uint16, lambda c, b, v: b.bitcast(b.fptrunc(v, ir.HalfType()), ir.IntType(16)))
long_pointer = _pointer(types.int64)


@numba.njit(inline="always")
def identity(x: Any) -> Any:
    return x


@numba.njit(inline="always")
def bfloat_load(u: Any) -> Any:
    return bits_float(np.uint32(np.uint32(u) << np.uint32(16)))


@numba.njit(inline="always")
def bfloat_store(x: Any) -> Any:
    u = float_bits(x)
    # A NaN stays a NaN, whatever its payload. Chosen before the arithmetic: a blend of registers, where a branch on
    # what is stored took twice the time.
    u = u if x == x else np.uint32((u & np.uint32(0xFFFF0000)) | np.uint32(0x400000))
    return np.uint16(np.uint32(u + np.uint32(0x7FFF) + ((u >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


#: For each dtype: a pointer to it, and how an element is read and written. The half types are handled as bits.
STORAGE = {
    "float16": (_pointer(types.uint16), "half_load({})", "half_store({})"),
    "bfloat16": (_pointer(types.uint16), "bfloat_load({})", "bfloat_store({})"),
    "float32": (_pointer(types.float32), "{}", "{}"),
    "float64": (_pointer(types.float64), "{}", "{}"),
}
#: The same reading as functions.
LOADS = {"float16": half_load, "bfloat16": bfloat_load, "float32": identity, "float64": identity}

SPACE = {
    "np": np,
    "default_control": default_control,
    "restored_control": restored_control,
    "carray": numba.carray,
    "double_bits": double_bits,
    "half_load": half_load,
    "half_store": half_store,
    "bfloat_load": bfloat_load,
    "bfloat_store": bfloat_store,
    **{f"{dtype}_at": pointer for dtype, (pointer, _, _) in STORAGE.items()},
}


TABLE, NUMBERS = types.int64[:, ::1], types.float64[::1]


def build(name: str, parameters: dict[str, Any], opening: list[str], body: list[str], **names: Any) -> Any:
    """Compile ``name(table, *parameters, first, start, count)``, which does `body` for the tensors of a table.

    `table` has a row a tensor: its size and the addresses of x, g and the state; an address of g of 0 skips it. The
    kernel walks over `count` elements, from element `start` of tensor `first` on and into the tensors that follow: the
    body over the `n` elements of tensor `i` that begin at `start`. `parameters` gives types.
    """
    walk = ["n = min(table[i, 0] - start, count)", "if n > 0 and table[i, 2] != 0:", *indent(body)]
    walk += ["count -= n", "start = 0", "i += 1"]
    lines = [*opening, "i = first", "while count > 0:", *indent(walk)]
    lines = ["control = default_control()", *lines, "restored_control(control)"]
    source = "\n".join([f"def {name}(table, {', '.join(parameters)}, first, start, count):", *indent(lines), ""])
    # So that a traceback shows its lines.
    filename = f"<multiopt {name} {abs(hash(source)):x}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    space: dict[str, Any] = {**SPACE, **names}
    exec(compile(source, filename, "exec"), space)
    signature = types.void(TABLE, *parameters.values(), types.int64, types.int64, types.int64)
    kernel = numba.njit(signature, nogil=True, error_model="numpy")(space[name])
    finalize(kernel, linecache.cache.pop, filename, None).atexit = False
    return kernel


def indent(lines: list[str]) -> list[str]:
    return [" " * 4 + line for line in lines]


def computing_dtype(dtypes: tuple[str, ...]) -> Any:
    return np.float64 if "float64" in dtypes else np.float32


def rounded(code: Code) -> list[str]:
    """Lines that round the numbers to the computing dtype."""
    return ["zero, one = compute(0), compute(1)", *(f"s{k} = compute(numbers[{k}])" for k in range(len(code.scalars)))]


def view(dtype: str, column: int, first: str, length: str) -> str:
    """An expression for elements of tensor `i`, from `first` on."""
    return f"carray({dtype}_at(table[i, {column}] + {first} * {ITEMSIZES[dtype]}), {length})"


@lru_cache(KEPT)
def update_kernel(program: Program, dtypes: tuple[str, ...], in_place: bool = True) -> Callable[..., None]:
    """Compile ``update(table, scales, numbers, first, start, count)``: see `build`.

    `dtypes` are those of x, g and the state. `scales` has one number a tensor, `numbers` the code's scalars. Where it
    is not `in_place`, the table has more columns: the addresses that the new x and state go to.
    """
    code = program.code
    arrays = list(zip(code.inputs, dtypes, strict=True))
    written = [pair for pair in arrays if pair[0] != "g"]
    element = [f"{a} = compute({STORAGE[d][1].format(f'{a}_[k]')})" for a, d in arrays]
    element += code.render(OPERATIONS)
    new = "" if in_place else "new_"
    element += [f"{new}{a}_[k] = {STORAGE[d][2].format(t)}" for (a, d), t in zip(written, code.outputs, strict=True)]
    views = [f"{a}_ = {view(d, j, 'start', 'n')}" for j, (a, d) in enumerate(arrays, 1)]
    if not in_place:
        views += [f"new_{a}_ = {view(d, j, 'start', 'n')}" for j, (a, d) in enumerate(written, 1 + len(arrays))]
    body = ["norm_scale = compute(scales[i])", *views, "for k in range(n):", *indent(element)]
    parameters = {"scales": NUMBERS, "numbers": NUMBERS}
    return build("update", parameters, rounded(code), body, compute=computing_dtype(dtypes))


@cache
def finite_kernel(dtype: str) -> Callable[..., None]:
    """Compile ``finite(table, bad, first, start, count)``: sets ``bad[i]`` where gradient i is not finite."""
    load, double = STORAGE[dtype][1], dtype == "float64"
    largest = f"largest = max(largest, kind(bits({load.format('g_[k]')})) & MAGNITUDE)"
    body = [f"g_ = {view(dtype, 2, 'start', 'n')}", "largest = kind(0)", "for k in range(n):", *indent([largest])]
    return build(
        "finite",
        {"bad": types.uint8[::1]},
        [],
        [*body, "if largest >= INFINITE:", *indent(["bad[i] = 1"])],
        kind=np.int64 if double else np.uint32,
        bits=double_bits if double else float_bits,
        MAGNITUDE=np.int64(0x7FFFFFFFFFFFFFFF) if double else np.uint32(0x7FFFFFFF),
        INFINITE=np.float64(np.inf).view(np.int64) if double else np.float32(np.inf).view(np.uint32),
    )
