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
from numba import types
from numba.core.compiler_lock import global_compiler_lock as compiling

from ..locate import ITEMSIZES
from ..program import INFIX, KEPT, Code, Program
from .control import default_control, restored_control
from .storage import NAMES, STORAGE, double_bits, float_bits

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


SPACE = {
    "np": np,
    "carray": numba.carray,
    "default_control": default_control,
    "restored_control": restored_control,
    **NAMES,
}


TABLE, NUMBERS = types.int64[:, ::1], types.float64[::1]
#: A program's numbers, a row for each group of tensors, and the row of each tensor.
GROUPS = {"numbers": types.float64[:, ::1], "which": types.int64[::1]}
ZERO_ONE = "zero, one = compute(0), compute(1)"
#: The columns that are moved where the gradient alone is looked at.
GRADIENT = "1, 2"


def build(
    name: str, parameters: dict[str, Any], opening: list[str], body: list[str], tiles: str = "", **names: Any
) -> Any:
    """Compile ``name(table, *parameters, first, start, count)``, which does `body` for the tensors of a table.

    `table` has a row a tensor: its size and the addresses of x, g and the state; an address of g of 0 skips it. The
    kernel walks over `count` elements, from element `start` of tensor `first` on and into the tensors that follow: the
    body over the `n` elements of tensor `i` that begin at `start`, by the addresses in its `row`. `parameters` gives
    types.

    `tiles`, if there may be any, says which columns of these are moved (see `tiles.mover`): then an address of g below
    0 is minus that of a tensor's description, and the body is done for one tile after another.
    """
    work = [
        "row, n = long_at(table.ctypes.data + 8 * table.shape[1] * i), taken",
        *(tiled(tiles, body) if tiles else body),
    ]
    walk = ["taken = min(table[i, 0] - start, count)", "if taken > 0 and table[i, 2] != 0:", *indent(work)]
    walk += ["count -= taken", "start = 0", "i += 1"]
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


def tiled(tiles: str, body: list[str]) -> list[str]:
    """Do a body of `build` for a tensor, or for those of its tiles of which these `taken` elements are."""
    arguments = f"about, tile, boxes.ctypes.data, {tiles}"
    return [
        "tile, end, moves = 0, 1, row[2] < 0",
        "if moves:",
        "    about, size = -row[2], row[0]",
        "    number, boxes = long_at(about)[1], np.empty(long_at(about)[2], np.int64)",
        "    tile, end = -(-start * number // size), -(-(start + taken) * number // size)",
        "while tile < end:",
        "    if moves:",
        f"        start, n, row = 0, moved({arguments}, 0), long_at(boxes.ctypes.data)",
        *indent(body),
        "    if moves:",
        f"        moved({arguments}, 1)",
        "    tile += 1",
    ]


def indent(lines: list[str]) -> list[str]:
    return [" " * 4 + line for line in lines]


def computing_dtype(dtypes: tuple[str, ...]) -> Any:
    return np.float64 if "float64" in dtypes else np.float32


def rounded(code: Code) -> list[str]:
    """Lines that round the numbers of tensor `i` to the computing dtype."""
    return [f"s{k} = compute(numbers[which[i], {k}])" for k in range(len(code.scalars))]


def view(dtype: str, column: int, first: str, length: str) -> str:
    """An expression for elements of tensor `i`, from `first` on."""
    return f"carray({dtype}_at(row[{column}] + {first} * {ITEMSIZES[dtype]}), {length})"


@lru_cache(KEPT)
def update_kernel(program: Program, dtypes: tuple[str, ...], in_place: bool = True) -> Callable[..., None]:
    """Compile ``update(table, scales, numbers, which, first, start, count)``: see `build`.

    `dtypes` are those of x, g and the state. `scales` has one number a tensor, `numbers` the code's scalars in each
    row, and `which` the row of each tensor. Between these and `first`, a program that rounds stochastically takes
    `rounding.tables`, and the step's keys. Where it is not `in_place`, the table has more columns: the addresses that
    the new x and state go to.
    """
    code, new = program.code, "" if in_place else "new_"
    arrays = list(zip(code.inputs, dtypes, strict=True))
    written = [pair for pair in arrays if pair[0] != "g"]
    slots = program.stochastic or (None,) * len(written)
    drawn = sorted({slot // 2 for slot in slots if slot is not None})

    def element(loads: list[str], stores: list[str]) -> list[str]:
        lines = [f"{a} = compute({load})" for (a, _), load in zip(arrays, loads, strict=True)]
        lines += code.render(OPERATIONS)
        return lines + [store.format(t) for store, t in zip(stores, code.outputs, strict=True)]

    def hashes(half: str = "") -> list[str]:
        lines = [f"h{p}{half} = hashed(count{p}, rest{p})" for p in drawn]
        return lines + [f"count{p} = np.uint32(count{p} + np.uint32(1))" for p in drawn]

    stored = [STORAGE[d][2] if slot is None else _drawn(d, slot) for (_, d), slot in zip(written, slots, strict=True)]
    single = hashes() + element(
        [STORAGE[d][1].format(f"{a}_[k]") for a, d in arrays],
        [f"{new}{a}_[k] = {store}" for (a, _), store in zip(written, stored, strict=True)],
    )
    columns = [*arrays, *((f"new_{a}", d) for a, d in (() if in_place else written))]
    views = [f"{a}_ = {view(d, j, 'start', 'n')}" for j, (a, d) in enumerate(columns, 1)]
    loop = ["for k in range(n):", *indent(single)]
    if set(dtypes) == {"bfloat16"}:
        # By pairs, which need no moving between the elements of registers. The NaNs here are the processor's own,
        # those of numbers, and bfloat16's with no more than their quiet bit set: the lower half of each is zero.
        pair = [f"{a}_pair = load_pair({a}_pairs, k)" for a, _ in arrays]
        # Both are computed before one is rounded: what waits for divisions must leave the processor room to go ahead.
        for half in ("low", "high"):
            pair += element([f"{half}_bfloat({a}_pair)" for a, _ in arrays], [f"{a}_{half} = {{}}" for a, _ in written])
        pair += [*hashes("_low"), *hashes("_high")]
        for (a, _), slot in zip(written, slots, strict=True):
            low, high = (_upper(slot, half).format(f"{a}{half}") for half in ("_low", "_high"))
            pair += [f"store_pair({new}{a}_pairs, k, bfloat_pair({low}, {high}))"]
        views += [f"{a}_pairs = pair_at(row[{j}] + start * 2)" for j, (a, _) in enumerate(columns, 1)]
        loop = ["for k in range(n // 2):", *indent(pair), "for k in range(n - n % 2, n):", *indent(single)]
    body, parameters = [*views, *loop], dict[str, Any]({"scales": NUMBERS, **GROUPS})
    if drawn:
        body = _by_runs([line for p in drawn for line in _counted(p)] + body)
        parameters |= {"tensors": TABLE, "runs": TABLE, "key0": types.uint32, "key1": types.uint32}
    body = [*rounded(code), "norm_scale = compute(scales[i])", *body]
    tiles = f"0, {len(arrays)}" if in_place and not drawn else ""
    return build("update", parameters, [ZERO_ONE], body, tiles, compute=computing_dtype(dtypes))


def _drawn(dtype: str, slot: int) -> str:
    """A template of how a value is written that is rounded stochastically."""
    assert dtype == "bfloat16"  # or there would be nothing to round
    return f"np.uint16({_upper(slot).format('tamed({})')} >> np.uint32(16))"


def _upper(slot: int | None, half: str = "") -> str:
    """A template of bits whose upper half is a value in bfloat16, rounded by a slot's half of the hash, or to nearest.

    `half` is what the name of the element's hash ends with.
    """
    if slot is None:
        return "bfloat_rounded({})"
    return (
        f"bfloat_drawn({{}}, np.uint32(h{slot // 2}{half} {'>> np.uint32(16)' if slot % 2 else '& np.uint32(65535)'}))"
    )


def _counted(pair: int) -> list[str]:
    """Begin to count elements for a pair of slots: in 32 bits and with the first key added, which costs less."""
    return [
        f"keys{pair} = absorbed(keys, {pair})",
        f"count{pair}, rest{pair} = np.uint32(low + keys{pair}[0]), (np.uint32(0), keys{pair}[1])",
    ]


def _by_runs(body: list[str]) -> list[str]:
    """Do a body, which takes `n` elements from `start` on, run by run: with `low` and `keys` of each run's elements."""
    return [
        "rest, run, last = n, tensors[i, 1], tensors[i + 1, 1] - 1",
        "while run < last:",  # the first run that ends behind `start`
        "    middle = (run + last) // 2",
        "    if runs[middle, 0] <= start:",
        "        run = middle + 1",
        "    else:",
        "        last = middle",
        "while rest > 0:",
        "    index = start + runs[run, 1]",
        "    n = min(rest, runs[run, 0] - start, 4294967296 - (index & 4294967295))",
        "    low = np.uint32(index)",
        "    keys = absorbed(absorbed((key0, key1), tensors[i, 0]), index >> 32)",
        *indent(body),
        "    rest -= n",
        "    start += n",
        "    if start == runs[run, 0]:",
        "        run += 1",
    ]


def magnitudes(dtype: str) -> dict[str, Any]:
    """Names for kernels: the bits of a number, as an integer, those of its magnitude, and those of infinity."""
    wide = dtype == "float64"
    kind: Any = np.int64 if wide else np.uint32
    infinite: Any = np.float64(np.inf).view(np.int64) if wide else np.float32(np.inf).view(np.uint32)
    magnitude: Any = kind(np.iinfo(np.int64 if wide else np.int32).max)
    bits: Any = double_bits if wide else float_bits
    return {"kind": kind, "bits": bits, "MAGNITUDE": magnitude, "INFINITE": infinite}


@cache
def finite_kernel(dtype: str) -> Callable[..., None]:
    """Compile ``finite(table, bad, first, start, count)``: sets ``bad[i]`` where gradient i is not finite."""
    largest = f"largest = max(largest, kind(bits({STORAGE[dtype][1].format('g_[k]')})) & MAGNITUDE)"
    body = [f"g_ = {view(dtype, 2, 'start', 'n')}", "largest = kind(0)", "for k in range(n):", *indent([largest])]
    body += ["if largest >= INFINITE:", *indent(["bad[i] = 1"])]
    return build("finite", {"bad": types.uint8[::1]}, [], body, GRADIENT, **magnitudes(dtype))
