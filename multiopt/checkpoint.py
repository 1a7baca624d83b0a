"""State that moves between worlds: snapshots, and checkpoints in one safetensors file.

A checkpoint holds the parameters, every state array, averages and half-done accumulations, and as JSON in the file's
metadata the options, the counters and a checksum of each array. No pickle. A checkpoint written with one array
library loads with any other, and training goes on bit for bit.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import backends, schedules
from .backends.base import Array, Bucket

if TYPE_CHECKING:
    from .optimizer import Optimizer

__all__ = ["load", "load_state_dict", "save", "state_dict"]

FORMAT = 1
COUNTERS = ("steps", "micro_steps", "skipped")


@dataclass
class Stored:
    """One array to be loaded: in memory as NumPy holds it (`Backend.to_host`), and of its own library if it has one."""

    dtype: str
    shape: tuple[int, ...]
    host: Callable[[], np.ndarray]
    native: Array | None = None

    @classmethod
    def of(cls, key: str, array: Array) -> Stored:
        """Describe an array of any library."""
        try:
            backend = backends.of(array)
        except TypeError as error:
            raise TypeError(f"state: {key}: {error}") from None
        return cls(backend.dtype(array), tuple(array.shape), lambda: backend.to_host(array), array)


@dataclass
class Place:
    """Where one array of the optimizer stands: it can be read and replaced there."""

    key: str
    bucket: Bucket
    column: list[Array]
    j: int
    dtype: str

    def get(self) -> Array:
        return self.column[self.j]

    def put(self, stored: Stored) -> None:
        """Take over a value that has been checked."""
        backend, old = self.bucket.backend, self.get()
        if stored.native is not None and backends.of(stored.native) is backend and backend.mutable:
            new = stored.native
        else:
            new = backend.from_host(stored.host(), old, self.dtype)
        if backend.mutable:
            backend.write(old, new)
        else:
            self.column[self.j] = new


def places(opt: Optimizer, params: bool) -> list[Place]:
    """Every array that a checkpoint holds, under keys such as ``square_avg/params['w']``."""
    found = []
    averages = opt._averages.arrays() if opt._averages is not None else []
    for k, bucket in enumerate(opt._every()):
        columns = [("params", bucket.params, bucket.dtype)] if params else []
        columns += [(slot, arrays, bucket.state_dtype) for slot, arrays in bucket.state.items()]
        columns += [("ema", averages[k], bucket.state_dtype)] if averages else []
        if opt._accumulators and opt.micro_steps:
            columns.append(("accumulated", opt._accumulators[k].bucket.params, bucket.state_dtype))
        for kind, arrays, dtype in columns:
            found += [Place(f"{kind}/{name}", bucket, arrays, j, dtype) for j, name in enumerate(bucket.names)]
    return found


def about(opt: Optimizer, encode: Callable[[Any], Any]) -> dict[str, Any]:
    """All that is not an array."""
    return {
        "format": FORMAT,
        "rule": opt.rule.name,
        **{name: getattr(opt, name) for name in COUNTERS},
        "accumulated": [a.seen for a in opt._accumulators],
        "groups": [
            {"names": group.structure.names, **{k: encode(v) for k, v in group.options().items()}}
            for group in opt.groups
        ],
    }


def state_dict(opt: Optimizer) -> dict[str, Any]:
    """A snapshot: ``{"about": ..., "arrays": {key: array}}``, with copies of the arrays."""
    arrays = {place.key: place.bucket.backend.copy(place.get()) for place in places(opt, params=False)}
    return {"about": about(opt, lambda value: value), "arrays": arrays}


def load_state_dict(opt: Optimizer, state: Mapping[str, Any]) -> None:
    """Take over a snapshot, after all of it has been checked."""
    if not isinstance(state, Mapping) or not {"about", "arrays"} <= state.keys():
        raise ValueError("state: expected what state_dict() returns, a dict with 'about' and 'arrays'")
    arrays = {key: Stored.of(key, array) for key, array in state["arrays"].items()}
    _take(opt, state["about"], arrays, lambda value, current: value)


def _take(
    opt: Optimizer, told: Mapping[str, Any], arrays: Mapping[str, Stored], decode: Callable[[Any, Any], Any]
) -> None:
    if told.get("format") != FORMAT:
        raise ValueError(f"state: expected format {FORMAT}, got {told.get('format')!r}")
    if told["rule"] != opt.rule.name:
        raise ValueError(f"state: expected the state of rule {opt.rule.name!r}, got that of {told['rule']!r}")
    own = [group.structure.names for group in opt.groups]
    theirs = [group["names"] for group in told["groups"]]
    if own != theirs:
        raise ValueError(f"state: expected the parameters {_brief(own)}, got {_brief(theirs)}")
    if bool(told["accumulated"]) != bool(opt._accumulators):
        raise ValueError("state: expected accumulation of gradients to be on in both optimizers or in neither")
    before = opt.micro_steps
    opt.micro_steps = told["micro_steps"]  # decides whether sums are part of the state
    try:
        targets = places(opt, params=any(key.startswith("params/") for key in arrays))
        missing = [place.key for place in targets if place.key not in arrays]
        unknown = sorted(arrays.keys() - {place.key for place in targets})
        if missing or unknown:
            raise ValueError(f"state: missing {missing[:5]}, unexpected {unknown[:5]}")
        for place in targets:
            expected, got = (
                (tuple(place.get().shape), place.dtype),
                (arrays[place.key].shape, arrays[place.key].dtype),
            )
            if expected != got:
                raise ValueError(
                    f"state: {place.key}: expected shape {expected[0]} and dtype {expected[1]}, "
                    f"got shape {got[0]} and dtype {got[1]}"
                )
        # Options are checked on throw-away groups before any is taken over.
        options = [
            {name: decode(value, group[name]) for name, value in saved.items() if name != "names"}
            for group, saved in zip(opt.groups, told["groups"], strict=True)
        ]
        for group, new in zip(opt.groups, options, strict=True):
            type(group)(group.rule, group.where, group.structure, new)
        for name in COUNTERS:
            if not isinstance(told[name], int) or told[name] < 0:
                raise ValueError(f"state: {name}: expected a count, got {told[name]!r}")
    except BaseException:
        opt.micro_steps = before
        raise
    for place in targets:
        place.put(arrays[place.key])
    for group, new in zip(opt.groups, options, strict=True):
        group.update(new)
    for name in COUNTERS:
        setattr(opt, name, told[name])
    for accumulator, seen in zip(opt._accumulators, told["accumulated"], strict=True):
        accumulator.seen = list(seen)
        if not opt.micro_steps:
            accumulator.clear()
    opt._collect()


def _brief(names: list[list[str]]) -> str:
    flat = [name for group in names for name in group]
    return f"{len(flat)} in {len(names)} group(s): {', '.join(flat[:4])}{', …' if len(flat) > 4 else ''}"


# --- files ---


def encode(value: Any) -> Any:
    """An option as JSON: a schedule by its name and fields; another callable cannot be written down."""
    if not callable(value):
        return value
    if type(value) is getattr(schedules, type(value).__name__, None):
        fields = {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"schedule": type(value).__name__, "fields": fields}
    return {"callable": getattr(value, "__qualname__", type(value).__name__)}


def decode(value: Any, current: Any) -> Any:
    """The inverse of `encode`; what could not be written down stays what it is in the optimizer that loads."""
    if isinstance(value, dict) and "schedule" in value:
        fields = {name: decode(field, None) for name, field in value["fields"].items()}
        return getattr(schedules, value["schedule"])(**fields)
    if isinstance(value, dict):
        if not callable(current):
            raise ValueError(f"state: expected the optimizer that loads to have the callable {value['callable']!r}")
        return current
    return tuple(value) if isinstance(value, list) else value


def save(opt: Optimizer, path: str | Path) -> None:
    """Write a checkpoint to a temporary file beside `path`, and rename it when it is complete on disk."""
    safetensors, path = _safetensors(), Path(path)
    tensors, kept = {}, {}
    for place in places(opt, params=True):
        host = place.bucket.backend.to_host(place.get())
        kept[place.key] = [place.dtype, list(host.shape), zlib.crc32(host.tobytes())]
        # Complex numbers as pairs; bfloat16, which NumPy does not have, stays the bits that `to_host` gives.
        tensors[place.key] = _pairs(host) if place.dtype.startswith("complex") else host
    metadata = {"multiopt": json.dumps({**about(opt, encode), "arrays": kept})}
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        os.close(handle)
        safetensors.numpy.save_file(tensors, temporary, metadata)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load(opt: Optimizer, path: str | Path) -> None:
    """Read a checkpoint, check all of it, and take it over."""
    told, arrays = _read(Path(path))
    _take(opt, told, arrays, decode)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Stored]]:
    safetensors = _safetensors()
    data = path.read_bytes()
    try:
        tensors = safetensors.numpy.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        told = json.loads(header["__metadata__"]["multiopt"])
        kept = {key: (dtype, tuple(shape), crc) for key, (dtype, shape, crc) in told["arrays"].items()}
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected a checkpoint of multiopt, whole; got a file that is not ({error})"
        ) from None
    arrays = {}
    for key, (dtype, shape, crc) in kept.items():
        content = tensors[key].tobytes() if key in tensors else b""
        if zlib.crc32(content) != crc:
            raise ValueError(f"{path}: damaged: the checksum of {key} does not agree")
        held = np.frombuffer(content, "uint16" if dtype == "bfloat16" else dtype).reshape(shape)
        arrays[key] = Stored(dtype, shape, held.copy)
    return told, arrays


def _pairs(array: np.ndarray) -> np.ndarray:
    return np.stack([array.real, array.imag], axis=-1)


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError('checkpoints need safetensors: pip install "multiopt[checkpoint]"') from None
    return safetensors
