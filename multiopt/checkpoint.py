"""Snapshots of an optimizer's state, and checkpoints: the same and the parameters, in one safetensors file.

A checkpoint holds the parameters, every state array, averages and unfinished accumulations, and as JSON in the file's
metadata the options, the counters and a checksum of each array; that text has a checksum too. Nothing is pickled. A
checkpoint written with one array library loads with any other, and training continues bit for bit.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from . import backends, schedules
from .accumulation import Accumulator
from .backends.generic import Array
from .backends.protocol import Bucket
from .binding import Binding
from .memory import backend_of
from .options import OPTIONS, Group, with_settings

__all__ = ["load", "load_state_dict", "save", "state_dict"]

FORMAT = 1
COUNTERS = ("steps", "micro_steps", "skipped")
#: Options of the whole step, which can be assigned.
SETTINGS = tuple(name for name, option in OPTIONS.items() if option.scope == "step")


class Trained(Protocol):
    """What a checkpoint needs of an optimizer."""

    bindings: list[Binding]
    accumulators: list[Accumulator]
    averages: list[Binding]
    groups: list[Group]
    settings: dict[str, Any]
    steps: int
    micro_steps: int
    skipped: int


@dataclass
class Stored:
    """One array to be loaded: as a NumPy array (see `Backend.to_host`), and of its own library if it has one."""

    dtype: str
    shape: tuple[int, ...]
    host: Callable[[], np.ndarray]
    native: Array | None = None

    @classmethod
    def of(cls, key: str, array: Array) -> Stored:
        """Describe an array of any library."""
        backend = backend_of(f"state: {key}", array)
        return cls(backend.dtype(array), tuple(array.shape), lambda: backend.to_host(array), array)


@dataclass
class Place:
    """One array of the optimizer, which can be read and replaced."""

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
            new = backend.from_host(stored.host(), self.dtype, old)
        if backend.mutable:
            backend.write(old, new)
        else:
            self.column[self.j] = new


def places(opt: Trained, params: bool, micro_steps: int | None = None) -> list[Place]:
    """Every array of a checkpoint, with keys such as ``square_avg/params['w']``; `micro_steps` by default now's."""
    micro_steps, found = opt.micro_steps if micro_steps is None else micro_steps, []
    for i, binding in enumerate(opt.bindings):
        columns = [("params", binding, 0)] if params else []
        columns += [(slot, binding, k) for k, slot in enumerate(binding.rule.slots, start=1)]
        columns += [("ema", opt.averages[i], 0)] if opt.averages else []
        columns += [("accumulated", opt.accumulators[i].binding, 0)] if micro_steps else []
        for kind, held, k in columns:
            for bucket in held.buckets:
                arrays, dtype = bucket.arrays()[k], bucket.state_dtype if k else bucket.dtype
                found += [Place(f"{kind}/{name}", bucket, arrays, j, dtype) for j, name in enumerate(bucket.names)]
    return found


def about(opt: Trained, encode: Callable[[Any], Any] = lambda value: value) -> dict[str, Any]:
    """Everything but the arrays."""
    accumulators = zip(opt.accumulators, opt.bindings, strict=False)
    return {
        "format": FORMAT,
        "rule": opt.settings["rule"].name,
        "accumulate": opt.settings["accumulate"],
        **{name: getattr(opt, name) for name in COUNTERS},
        **{name: opt.settings[name] for name in SETTINGS},
        # Which parameters of each bucket have had a gradient in this accumulation.
        "accumulated": [[a.seen[i] for i in own] for a, binding in accumulators for own in binding.places],
        "groups": [
            {"names": list(group.structure.names), **{k: encode(v) for k, v in group.options().items()}}
            for group in opt.groups
        ],
    }


def state_dict(opt: Trained) -> dict[str, Any]:
    """A snapshot: ``{"about": ..., "arrays": {key: array}}``, with copies of the arrays."""
    held = places(opt, params=False)
    return {"about": about(opt), "arrays": {place.key: place.bucket.backend.copy(place.get()) for place in held}}


def load_state_dict(opt: Trained, state: Mapping[str, Any]) -> None:
    """Take over a snapshot, after all of it has been checked."""
    whole = isinstance(state, Mapping) and all(isinstance(state.get(key), Mapping) for key in ("about", "arrays"))
    if not whole:
        raise ValueError("state: expected what state_dict() returns, a dict with the dicts 'about' and 'arrays'")
    arrays = {key: Stored.of(key, array) for key, array in state["arrays"].items()}
    _take(opt, state["about"], arrays, lambda value, current: value)


def _take(
    opt: Trained, loaded: Mapping[str, Any], arrays: Mapping[str, Stored], decode: Callable[[Any, Any], Any]
) -> None:
    """Check everything, then take it over."""
    _check_about(opt, loaded)
    settings = with_settings(opt.settings, opt.groups, {name: loaded[name] for name in SETTINGS}, "state: ")
    groups = []
    for group, saved in zip(opt.groups, loaded["groups"], strict=True):
        options = {name: decode(value, group[name]) for name, value in saved.items() if name != "names"}
        groups.append(group.checked(options))
    targets = _check_arrays(opt, arrays, loaded["micro_steps"])
    for place in targets:
        place.put(arrays[place.key])
    for group, new in zip(opt.groups, groups, strict=True):
        group.update(new)
    opt.settings = settings
    for name in COUNTERS:
        setattr(opt, name, loaded[name])
    seen = iter(loaded["accumulated"])
    for accumulator, binding in zip(opt.accumulators, opt.bindings, strict=False):
        for own in binding.places:
            for i, value in zip(own, next(seen), strict=True):
                accumulator.seen[i] = value
        if not opt.micro_steps:
            accumulator.clear()


def _check_about(opt: Trained, loaded: Mapping[str, Any]) -> None:
    """Check what can be checked without the arrays, except the options' values."""
    own = about(opt)
    if missing := own.keys() - loaded.keys():
        raise ValueError(f"state: missing {sorted(missing)}")
    for name in ("format", "rule", "accumulate"):
        if loaded[name] != own[name]:
            raise ValueError(f"state: {name}: expected {own[name]!r}, got {loaded[name]!r}")
    groups = loaded["groups"]
    if not _is_list_of(groups, Mapping) or not all(_is_list_of(group.get("names"), str) for group in groups):
        raise ValueError(f"state: groups: expected a list of options and parameters' names, got {groups!r:.80}")
    ours, theirs = ([group["names"] for group in side] for side in (own["groups"], groups))
    if ours != theirs:
        raise ValueError(f"state: expected the parameters {_brief(ours)}, got {_brief(theirs)}")
    for i, (mine, other) in enumerate(zip(own["groups"], groups, strict=True)):
        if mine.keys() != other.keys():
            raise ValueError(f"state: groups[{i}]: expected the options {sorted(mine)}, got {sorted(map(str, other))}")
    for name in COUNTERS:
        if type(loaded[name]) is not int or loaded[name] < 0:
            raise ValueError(f"state: {name}: expected a count, got {loaded[name]!r}")
    if loaded["micro_steps"] >= own["accumulate"]:
        raise ValueError(f"state: micro_steps: expected less than {own['accumulate']}, got {loaded['micro_steps']}")
    seen, sizes = loaded["accumulated"], [len(bucket) for bucket in own["accumulated"]]
    if not _is_list_of(seen, list) or [list(map(type, bucket)) for bucket in seen] != [[bool] * n for n in sizes]:
        raise ValueError(f"state: accumulated: expected lists of {sizes} booleans, got {seen!r}")


def _check_arrays(opt: Trained, arrays: Mapping[str, Stored], micro_steps: int) -> list[Place]:
    """Check the arrays, and return the places that they belong to."""
    targets = places(opt, any(str(key).startswith("params/") for key in arrays), micro_steps)
    missing = [place.key for place in targets if place.key not in arrays]
    unknown = sorted(map(str, arrays.keys() - {place.key for place in targets}))
    if missing or unknown:
        raise ValueError(f"state: missing {missing[:5]}, unexpected {unknown[:5]}")
    for place in targets:
        shape, got = tuple(place.get().shape), arrays[place.key]
        if (shape, place.dtype) != (got.shape, got.dtype):
            raise ValueError(
                f"state: {place.key}: expected shape {shape} and dtype {place.dtype}, "
                f"got shape {got.shape} and dtype {got.dtype}"
            )
    return targets


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(entry, kind) for entry in value)


def _brief(names: list[list[str]]) -> str:
    flat = [name for group in names for name in group]
    return f"{len(flat)} in {len(names)} group(s): {', '.join(flat[:4])}{', …' if len(flat) > 4 else ''}"


# --- files ---


def encode(value: Any) -> Any:
    """An option as JSON: a schedule by its name and fields; of another callable, only the name can be stored."""
    if not callable(value):
        return value
    if type(value) is getattr(schedules, type(value).__name__, None):
        fields = {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"schedule": type(value).__name__, "fields": fields}
    return {"callable": getattr(value, "__qualname__", type(value).__name__)}


def decode(value: Any, current: Any) -> Any:
    """The inverse of `encode`; a callable that was not stored stays that of the optimizer that loads."""
    if isinstance(value, dict) and "schedule" in value:
        if value["schedule"] not in schedules.__all__:
            raise ValueError(f"state: expected a schedule of multiopt.schedules, got {value['schedule']!r}")
        fields = {name: decode(field, None) for name, field in value["fields"].items()}
        return getattr(schedules, value["schedule"])(**fields)
    if isinstance(value, dict):
        if not callable(current):
            raise ValueError(f"state: expected the optimizer that loads to have the callable {value['callable']!r}")
        return current
    return tuple(value) if isinstance(value, list) else value


def save(opt: Trained, path: str | Path) -> None:
    """Write a checkpoint to a temporary file beside `path`, and rename it when it is complete on disk."""
    safetensors, path = _safetensors(), Path(path)
    for group in opt.groups:
        group.structure.check_lasting()
    tensors, kept = {}, {}
    for place in places(opt, params=True):
        host = place.bucket.backend.to_host(place.get())
        kept[place.key] = [place.dtype, list(host.shape), zlib.crc32(host.data)]
        # Complex numbers as pairs; bfloat16, which NumPy does not have, stays the bits that `to_host` gives.
        pairs = place.dtype.startswith("complex")
        tensors[place.key] = np.stack([host.real, host.imag], axis=-1) if pairs else host
    text = json.dumps({**about(opt, encode), "arrays": kept})
    # One entry, because safetensors writes several in a random order.
    metadata = {"multiopt": f"{_checksum(text)} {text}"}
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode  # the usual one; safetensors makes files that nobody else may read
        safetensors.numpy.save_file(tensors, temporary, metadata)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(mode)
        os.replace(temporary, path)
    except safetensors.SafetensorError as error:
        raise OSError(f"{path}: could not be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def load(opt: Trained, path: str | Path) -> None:
    """Read a checkpoint, check all of it, and take it over."""
    loaded, arrays = _read(Path(path))
    _take(opt, loaded, arrays, decode)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Stored]]:
    safetensors = _safetensors()
    data = path.read_bytes()
    try:
        tensors = safetensors.numpy.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        checksum, _, text = header["__metadata__"]["multiopt"].partition(" ")
        if checksum != _checksum(text):
            raise ValueError("the checksum of its metadata differs")
        loaded = json.loads(text)
        kept = {key: (dtype, tuple(shape), crc) for key, (dtype, shape, crc) in loaded["arrays"].items()}
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected a complete checkpoint of multiopt ({error})") from None
    arrays = {}
    for key, (dtype, shape, crc) in kept.items():
        content = tensors[key].tobytes() if key in tensors else b""
        if zlib.crc32(content) != crc:
            raise ValueError(f"{path}: damaged: the checksum of {key} differs")
        held = np.frombuffer(content, "uint16" if dtype == "bfloat16" else dtype).reshape(shape)
        arrays[key] = Stored(dtype, shape, held.copy)
    return loaded, arrays


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError('checkpoints need safetensors: pip install "multiopt[checkpoint]"') from None
    return safetensors
