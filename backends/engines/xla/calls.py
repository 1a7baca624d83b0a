"""An update as calls in a program of JAX's: how they are registered, batched, split over devices and differentiated."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

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
    place: if whoever calls still has such an array, XLA copies it before. All by default. `threads` is the most that
    may work; by default what `thread_count` says now.
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
                extras.append(np.array(parameters[start : start + TENSORS], np.uint32))
        kinds = tuple(range(len(columns)) if in_place is None else in_place)
        found = _batched(made.name, len(some[0]), len(columns), kinds, 0)(*chain(*some), *numbers, *extras)
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


def _call(name: str, tensors: int, width: int, in_place: tuple[int, ...], *operands: Array) -> list[Array]:
    """One call, on arrays as they lie on one device."""
    varying = frozenset[str]().union(*(getattr(jax.typeof(a), "vma", ()) for a in operands))
    if varying:  # within `jax.shard_map`, all must vary over the same axes of the mesh
        operands = tuple(_varied(a, varying) for a in operands)
    made, aliases = list[Any](), dict[int, int]()
    for column in range(width):
        for i in range(tensors if column != 1 else 0):
            place = column * tensors + i
            a = operands[place]
            if column in in_place:
                aliases[place] = len(made)
            made.append(jax.typeof(a))
    call = jax.ffi.ffi_call(name, made, input_output_aliases=aliases)
    return list(call(*operands))


def _varied(array: Any, axes: frozenset[str]) -> Any:
    missing = tuple(axes - jax.typeof(array).vma)
    return jax.lax.pcast(array, missing, to="varying") if missing else array


@cache
def _batched(name: str, tensors: int, width: int, in_place: tuple[int, ...], axes: int) -> Callable[..., Any]:
    """A call whose operands have so many axes in front, over each of which it is a call by itself."""

    @jax.custom_batching.custom_vmap
    def call(*operands: Array) -> list[Array]:
        return _split(name, tensors, width, in_place, axes)(*operands)

    @call.def_vmap
    def rule(size: int, batched: list[bool], *operands: Array) -> tuple[list[Array], list[bool]]:
        whole = [
            a if has else jax.numpy.broadcast_to(a, (size, *a.shape)) for a, has in zip(operands, batched, strict=True)
        ]
        return _batched(name, tensors, width, in_place, axes + 1)(*whole), [True] * (tensors * (width - 1))

    return call


@cache
def _split(name: str, tensors: int, width: int, in_place: tuple[int, ...], axes: int) -> Any:
    """The same on arrays that lie on several devices: each does its own part, and nothing is sent."""
    call = custom_partitioning(partial(_call, name, tensors, width, in_place))
    arrays = tensors * width

    def follow(shapes: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Shardings of operands and results: those of the parameters; numbers are everywhere."""
        own = [shape.sharding for shape in shapes[:tensors]]
        front = own[0].spec[:axes] if isinstance(own[0], NamedSharding) else None
        if axes and front is not None:
            own = [NamedSharding(s.mesh, PartitionSpec(*front, *s.spec[axes:])) for s in own]
        numbers = [
            NamedSharding(own[0].mesh, PartitionSpec(*front))
            if front is not None
            else type(own[0]).get_replicated(own[0]._device_assignment)
            for _ in shapes[arrays:]
        ]
        return [*own * width, *numbers], own * (width - 1)

    def partition(mesh: Any, shapes: Sequence[Any], results: Any) -> tuple[Any, Any, Any, Any]:
        operands, made = follow(shapes)
        return mesh, partial(_call, name, tensors, width, in_place), made, tuple(operands)

    def infer(mesh: Any, shapes: Sequence[Any], results: Any) -> Any:
        return follow(shapes)[1]

    def rule(mesh: Any, operands: Sequence[Any], results: Sequence[Any]) -> SdyShardingRule:
        front = [f"batch{k}" for k in range(axes)]

        def factors(place: int, axis_names: str, rank: int) -> list[str]:
            return [*front, *(f"{axis_names}{place}_{k}" for k in range(axes, rank))]

        ranks = [len(kind.shape) for kind in operands]
        own = [ArrayMapping(*factors(i, "x", rank)) for i, rank in enumerate(ranks[:tensors])]
        rest = [factors(i, "n", rank) for i, rank in enumerate(ranks[arrays:])]
        whole = tuple(name for names in rest for name in names[axes:])
        numbers = [ArrayMapping(*names) for names in rest]
        return SdyShardingRule((*own * width, *numbers), tuple(own * (width - 1)), need_replication_factors=whole)

    call.def_partition(partition, infer_sharding_from_operands=infer, sharding_rule=rule)
    return call


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
