"""An update as calls in a program of JAX's: how they are registered, batched, split over devices and differentiated."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.custom_partitioning import ArrayMapping, SdyShardingRule, custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from ...generic import Array, Backend, wider
from ...rounding import Draws, Elements, Rounding
from ..eager import Elementwise, applied
from ..host.threads import thread_count
from ..locate import mixes
from ..program import Program

__all__ = ["calls", "lowered", "raw", "unknown", "words"]

#: Tensors of one call: XLA's compiler takes a time that grows with the third power of a call's operands.
TENSORS = 32
#: The versions of XLA's interface whose structures `frame` knows.
KNOWN = {(0, 3)}


@cache
def unknown() -> str | None:
    """Say why XLA cannot call the compiled kernels, or return None."""
    try:
        header = Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h").read_text()
    except (AttributeError, OSError) as error:
        return f"it needs a JAX with jax.ffi, and jaxlib's headers ({error})"
    found = re.findall(r"#define XLA_FFI_API_(?:MAJOR|MINOR) (\d+)", header)
    if tuple(map(int, found)) not in KNOWN:
        return f"it does not know XLA's interface for calls in version {'.'.join(found)}"
    try:
        from ..host import kernels
    except ImportError as error:
        return f'it needs Numba: pip install "multiopt[numba]" ({error})'
    return kernels.disabled()


def raw(number: float) -> np.ndarray:
    """A float64 as two words of 32 bits, because JAX may have none."""
    return np.array([number], np.float64).view(np.uint32)


@cache
def _register(name: str, address: int) -> None:
    make = ctypes.pythonapi.PyCapsule_New
    make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    jax.ffi.register_ffi_target(name, make(address, None, None), platform="cpu")


# --- calls ---


def calls(
    program: Program,
    dtypes: tuple[str, ...],
    columns: Sequence[Sequence[Array]],
    scalars: Mapping[str, Any],
    *,
    scales: Array | None = None,
    keys: Array | None = None,
    parameters: Sequence[int] = (),
    threads: int | None = None,
    in_place: Sequence[int] | None = None,
) -> list[list[Array]]:
    """New parameters and state, by as few calls as is good.

    `columns` are the parameters, their gradients and each slot's arrays; `scalars` the numbers that the program reads,
    of Python or 0-d arrays. `scales`, uint32 of shape (2 n,), are a float64 for each tensor; `keys`, uint32 of shape
    (2,), and the `parameters`' numbers are for stochastic rounding. `in_place` says which columns are updated in
    place: if whoever calls still has such an array, XLA copies it before. By default all, but for parameters to which
    an update is to be added. `threads` is the most that may work; by default what `thread_count` says now.
    """
    from .handler import handler

    made = handler(program, dtypes)
    _register(made.name, made.address)
    numbers = [_operand(scalars[name]) for name in made.numbers]
    news: list[list[Array]] = [[] for _ in range(len(columns) - 1)]
    for start in range(0, len(columns[0]), TENSORS):
        some = [list(column[start : start + TENSORS]) for column in columns]
        extras: list[Any] = []
        for what in made.extras:
            if what == "scales":
                assert scales is not None
                extras.append(scales[2 * start : 2 * (start + TENSORS)])
            elif what == "keys":
                extras.append(keys)
            elif what == "threads":
                extras.append(np.array([threads or thread_count()], np.uint32))
            else:
                extras.append(_parts(parameters[start : start + TENSORS], some[0]))
        kinds = tuple(range(int(program.returns_update), len(columns)) if in_place is None else in_place)
        form = _Form(made.name, len(some[0]), len(columns), kinds, "parts" in made.extras)
        found = _batched(form, 0)(*chain(*some), *numbers, *extras)
        for k, column in enumerate(news):
            column += found[k * len(some[0]) : (k + 1) * len(some[0])]
    return news


def _operand(number: Any) -> Any:
    """A number as the compiled function reads it."""
    if isinstance(number, (int, float)):
        return raw(number)
    kind = number.dtype.name
    if kind in ("int32", "int64", "float32", "float64") or number.ndim:  # one of `raw` is as it should be
        return number
    wide = np.int64 if jax.config.read("jax_enable_x64") else np.int32
    return number.astype(wide if number.dtype.kind in "iub" else np.float32)


def _parts(parameters: Sequence[int], arrays: Sequence[Array]) -> np.ndarray:
    """Which part of its parameter each array is, as the compiled function reads it: the whole of it."""
    rows = np.zeros((len(arrays), 2 + 2 * max(a.ndim for a in arrays)), np.uint32)
    for row, number, a in zip(rows, parameters, arrays, strict=True):
        row[:2] = number, a.ndim
        row[3 : 3 + 2 * a.ndim : 2] = a.shape
    return rows.ravel()


class _Form(NamedTuple):
    """How a call looks."""

    #: Of the function that is called.
    name: str
    tensors: int
    #: Columns of arrays, the gradients among them.
    width: int
    #: Columns that are updated in place.
    in_place: tuple[int, ...]
    #: Whether the last operand but one says which `_parts` of their parameters the tensors are.
    parted: bool

    def call(self, *operands: Array) -> list[Array]:
        """One call, on arrays as they lie on one device."""
        varying = frozenset[str]().union(*(getattr(jax.typeof(a), "vma", ()) for a in operands))
        if varying:  # within `jax.shard_map`, all must vary over the same axes of the mesh
            operands = tuple(_varied(a, varying) for a in operands)
        made, aliases = list[Any](), dict[int, int]()
        for column in range(self.width):
            for i in range(self.tensors if column != 1 else 0):
                place = column * self.tensors + i
                if column in self.in_place:
                    aliases[place] = len(made)
                made.append(jax.typeof(operands[place]))
        return list(jax.ffi.ffi_call(self.name, made, input_output_aliases=aliases)(*operands))


def _varied(array: Any, axes: frozenset[str]) -> Any:
    missing = tuple(axes - jax.typeof(array).vma)
    return jax.lax.pcast(array, missing, to="varying") if missing else array


@cache
def _batched(form: _Form, axes: int) -> Callable[..., Any]:
    """A call whose operands have so many axes in front, over each of which it is a call by itself."""

    @jax.custom_batching.custom_vmap
    def call(*operands: Array) -> list[Array]:
        return _split(form, axes)(*operands)

    @call.def_vmap
    def rule(size: int, batched: list[bool], *operands: Array) -> tuple[list[Array], list[bool]]:
        whole = [
            a if has else jax.numpy.broadcast_to(a, (size, *a.shape)) for a, has in zip(operands, batched, strict=True)
        ]
        return _batched(form, axes + 1)(*whole), [True] * (form.tensors * (form.width - 1))

    return call


@cache
def _split(form: _Form, axes: int) -> Any:
    """The same on arrays that lie on several devices: each does its own part, and nothing is sent."""
    call, arrays = custom_partitioning(form.call), form.tensors * form.width

    def follow(shapes: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Shardings of operands and results: those of the parameters; numbers are everywhere."""
        own = [shape.sharding for shape in shapes[: form.tensors]]
        if all(isinstance(sharding, NamedSharding) for sharding in own):
            front = own[0].spec[:axes]
            own = [NamedSharding(s.mesh, PartitionSpec(*front, *s.spec[axes:])) for s in own]
            number = NamedSharding(own[0].mesh, PartitionSpec(*front))
        else:  # of no mesh that has a name
            number = type(own[0]).get_replicated(tuple(own[0]._device_assignment))
            own = [number] * form.tensors if axes or form.parted else own
        return [*own * form.width, *[number] * (len(shapes) - arrays)], own * (form.width - 1)

    def partition(mesh: Any, shapes: Sequence[Any], results: Any) -> tuple[Any, Any, Any, Any]:
        operands, made = follow(shapes)

        def on_device(*own: Array) -> list[Array]:
            if form.parted and isinstance(operands[0], NamedSharding):
                starts = _starts(mesh, [s.spec[axes:] for s in operands[: form.tensors]], [a.shape[axes:] for a in own])
                own = (*own[:-2], own[-2] + starts, own[-1])
            return form.call(*own)

        return mesh, on_device, made, tuple(operands)

    def infer(mesh: Any, shapes: Sequence[Any], results: Any) -> Any:
        return follow(shapes)[1]

    def rule(mesh: Any, operands: Sequence[Any], results: Sequence[Any]) -> SdyShardingRule:
        front, ranks = [f"batch{k}" for k in range(axes)], [len(kind.shape) for kind in operands]
        own, numbers = (
            [[*front, *(f"{what}{i}_{k}" for k in range(axes, rank))] for i, rank in enumerate(some)]
            for what, some in (("x", ranks[: form.tensors]), ("n", ranks[arrays:]))
        )
        maps = [ArrayMapping(*names) for names in own]
        whole = tuple(name for names in numbers for name in names[axes:])
        return SdyShardingRule(
            (*maps * form.width, *(ArrayMapping(*names) for names in numbers)),
            tuple(maps * (form.width - 1)),
            need_replication_factors=whole,
        )

    call.def_partition(partition, infer_sharding_from_operands=infer, sharding_rule=rule)
    return call


def _starts(mesh: Any, specs: Sequence[Sequence[Any]], shapes: Sequence[tuple[int, ...]]) -> Array:
    """What is to be added to `_parts` on each device: where its parts start."""
    rows, width = list[Any](), 2 + 2 * max(map(len, shapes[: len(specs)]))
    for spec, shape in zip(specs, shapes, strict=False):
        row: list[Any] = [0] * width
        for axis, (names, length) in enumerate(zip(spec, shape, strict=False)):
            place: Any = 0
            for name in (names,) if isinstance(names, str) else names or ():
                place = place * mesh.shape[name] + jax.lax.axis_index(name)
            row[2 + 2 * axis] = place * length
        rows += row
    return jax.numpy.stack([jax.numpy.asarray(value, np.uint32) for value in rows])


# --- an update that may be traced ---


def lowered(
    backend: Backend,
    program: Program,
    columns: Sequence[Sequence[Array]],
    scalars: Mapping[str, Any],
    rounding: Rounding | None,
    parameters: Sequence[int],
) -> list[list[Array]] | None:
    """New parameters and state of arrays, traced or not: by calls on the CPU, by XLA's own operations elsewhere.

    `columns` are shaped alike, and those of a column have one dtype. None if there is nothing here that helps: arrays
    that nobody traces and that do not lie on the CPU, or a version of JAX that is not known.
    """
    dtypes = tuple(backend.dtype(column[0]) for column in columns)
    if unknown() is not None or mixes(dtypes) is not None:
        return None
    _ = program.code  # a `TraceError` comes here
    step = () if rounding is None or isinstance(rounding.step, int) else rounding.step
    free = [*chain(*columns), *scalars.values(), *step]
    if not any(isinstance(value, jax.core.Tracer) for value in free):
        if next(iter(columns[0][0].devices())).platform != "cpu":
            return None
        inner = {name: raw(value) if isinstance(value, (int, float)) else value for name, value in scalars.items()}
        keys = None if rounding is None else words(rounding)
        return _whole(program, dtypes, tuple(parameters))(columns, inner, keys)
    traced = {name: value for name, value in scalars.items() if not isinstance(value, (int, float))}
    halves = [half for half in step if not isinstance(half, int)]
    count, width = len(columns[0]), len(columns)

    def unpacked(flat: Sequence[Array]) -> tuple[list[list[Array]], dict[str, Any], Rounding | None]:
        own = [list(flat[k * count : (k + 1) * count]) for k in range(width)]
        rest = iter(flat[width * count :])
        numbers = {**scalars, **{name: next(rest) for name in traced}}
        if rounding is None or not step:
            return own, numbers, rounding
        low, high = (half if isinstance(half, int) else next(rest) for half in step)
        return own, numbers, Rounding(rounding.seed, (low, high))

    def by_calls(*flat: Array) -> list[Array]:
        own, numbers, draws = unpacked(flat)
        keys = None if draws is None else words(draws)
        return list(chain(*calls(program, dtypes, own, numbers, keys=keys, parameters=parameters)))

    def by_operations(*flat: Array) -> list[Array]:
        own, numbers, draws = unpacked(flat)
        news = []
        for number, arrays in zip(parameters, zip(*own, strict=True), strict=True):
            drawn = None if draws is None else Draws(draws, Elements(number), tuple(arrays[0].shape))
            function = Elementwise(program, numbers, wider([dtypes[0], *dtypes[2:]]), drawn)
            news.append(applied(backend, function, arrays))
        return list(chain(*zip(*news, strict=True)))

    @jax.custom_jvp
    def both(*flat: Array) -> list[Array]:
        return jax.lax.platform_dependent(*flat, cpu=by_calls, default=by_operations)

    @both.defjvp
    def derivative(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[list[Array], list[Array]]:
        return both(*primals), jax.jvp(by_operations, primals, tangents)[1]

    new = both(*chain(*columns), *traced.values(), *halves)
    return [new[k * count : (k + 1) * count] for k in range(width - 1)]


def words(rounding: Rounding) -> Any:
    """The keys of a step as the compiled function reads them."""
    keys = rounding.keys
    if isinstance(keys[0], int):
        return np.array([key & 0xFFFFFFFF for key in keys], np.uint32)
    return jax.lax.bitcast_convert_type(jax.numpy.stack(keys), np.uint32)


@cache
def _whole(program: Program, dtypes: tuple[str, ...], parameters: tuple[int, ...]) -> Callable[..., Any]:
    """What is run on arrays that nobody traces."""

    def compute(columns: Any, scalars: Any, keys: Any) -> Any:
        return calls(program, dtypes, columns, scalars, keys=keys, parameters=parameters, in_place=())

    return jax.jit(compute)
