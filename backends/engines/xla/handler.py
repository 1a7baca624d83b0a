"""The function that XLA calls for an update: the host engine's kernel, with the tables that it walks made from a frame.

An update is one call for many tensors. Its arguments are the parameters, then their gradients, then each slot's arrays;
then every number that the code reads, and what else the program asks for (`Handler.extras`). Its results are the new
parameters and each slot's new arrays. A result that XLA put where its argument lies is updated in place; any other is
filled first, slice by slice, so that what it is computed from is in the cache.

Under `jax.vmap` everything has the same axes in front: each place along them is a group of tensors with its numbers.
"""

from __future__ import annotations

import ctypes
import hashlib
import linecache
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

import numba
import numpy as np

from ..host import kernels, storage
from ..locate import ITEMSIZES, parts_of, real_dtypes
from ..program import Program
from . import frame
from .draws import draws
from .frame import call, word
from .tables import GIVEN, HANDLE, INTEGER, KEYS, PIECES, PLACES, SCALE, SLICE, TABLE, TENSORS, VALUES, WHICH

__all__ = ["Handler", "handler"]

#: Of errors that XLA raises.
MESSAGES = (
    "multiopt: expected arrays as when this was compiled, got others",
    "multiopt: expected numbers as when this was compiled, got others",
    "multiopt: no memory for the tables of a step",
)


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
    #: each, ``"keys"`` of stochastic rounding, the ``"parts"`` of parameters that the tensors are (`draws`), the most
    #: ``"threads"``.
    extras: tuple[str, ...]
    #: What must not be dropped while XLA may call it.
    held: tuple[Any, ...]


@lru_cache(None)
def handler(program: Program, dtypes: tuple[str, ...]) -> Handler:
    """Compile a program for arrays of these dtypes: those of x, g and the state; the same for equal code."""
    code, real = program.code, real_dtypes(dtypes)
    names = tuple(name for name in program.scalars if name in _hypers(code.scalars))
    extras = ("scales",) * bool(code.per_tensor) + ("keys", "parts") * bool(program.stochastic) + ("threads",)
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
        f"pieces = carray(long_pointer(word(work, {PIECES})), (places[end, 1], 2))",
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
        **kernels.SPACE, "word": word, "long_pointer": storage.long_pointer, "uint32_at": storage.pair_pointer,
        "update": kernels.update_kernel(program, real), "inf": np.inf, "nan": np.nan,
    }  # fmt: skip
    exec(compile(source, filename, "exec"), space)
    runs = numba.cfunc(INTEGER(*[INTEGER] * 4), error_model="numpy")(space["runs"])
    texts = [ctypes.create_string_buffer(what.encode()) for what in MESSAGES]
    read = {*program.code.outputs, *(name for node in program.code.nodes for name in node.args)}
    columns = (
        [frame.DTYPES[d] for d in dtypes],
        [ITEMSIZES[d] for d in real],
        [int(a in read) for a in program.code.inputs],
    )
    counts = [len(dtypes), parts_of(dtypes[0]), len(names), len(extras), len(program.code.scalars)]
    keyed = draws() if "keys" in extras else None
    asked = [int("scales" in extras), int(keyed.address) if keyed else 0, runs.address, *map(ctypes.addressof, texts)]
    plan = np.array([*counts, *asked, *chain(*columns)], np.int64)
    at = plan.ctypes.data

    def answer(request: Any) -> Any:
        return call(HANDLE, request, at, 0, 0)

    whole = numba.cfunc(INTEGER(INTEGER), error_model="numpy")(answer)
    return Handler(name, int(whole.address or 0), names, extras, (runs, whole, plan, texts, keyed))
