"""Checkpoints: a snapshot and the parameters in one safetensors file.

The file's metadata hold the options, the counters and a checksum of each array as JSON, which has a checksum too.
Nothing is pickled. A checkpoint written with one array library loads with any other, and training continues bit for
bit. Arrays are written and read one after another, so that neither needs memory for a second copy of all.

The layout of a safetensors file: eight bytes for the length of the header; the header, JSON that says of each array
where it begins and ends; the arrays.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import zlib
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from . import schedules
from .backends.generic import Array
from .files import reading, writing
from .restore import check, take
from .snapshot import Place, Trained, about, places

__all__ = ["load", "save"]

#: How each dtype is stored: its name in the file, and the one in NumPy. Complex numbers are pairs of real ones, and
#: bfloat16, which NumPy does not have, is its bits.
STORED = {
    "float64": ("F64", "<f8"),
    "complex128": ("F64", "<f8"),
    "float32": ("F32", "<f4"),
    "complex64": ("F32", "<f4"),
    "float16": ("F16", "<f2"),
    "bfloat16": ("U16", "<u2"),
}
#: By how much the header of a file may be longer than twice the one that the optimizer would write.
SLACK = 2**20
#: The checksum with the most digits.
ANY = 2**32 - 1


def save(opt: Trained, path: str | os.PathLike[str]) -> None:
    """Write a checkpoint.

    It is complete on disk before it gets its name; `multiopt.files.writing` says what is kept of an older file, and
    what becomes of what killed processes left. One array at a time is held in memory.

    Raises
    ------
    OSError
        If there is something else than a regular file at `path`, or it cannot be written. The old file is left as it
        was.
    ValueError
        If a parameter's name holds an address, by which no other process would find it.
    """
    for group in opt.groups:
        group.structure.check_lasting()
    order = {dtype: i for i, dtype in enumerate(STORED)}  # wide elements first, so that each array is aligned
    held = sorted(places(opt, params=True), key=lambda place: order[place.dtype])
    with writing(Path(path)) as file:
        # The header comes first, and tells checksums that are known last.
        room = -(-len(_header(opt, held)) // 8) * 8
        file.seek(8 + room)
        checksums = []
        for place in held:
            content = _content(place)
            file.write(content)
            checksums.append(zlib.crc32(content))
        file.seek(0)
        file.write(room.to_bytes(8, "little") + _header(opt, held, checksums).ljust(room))


def _header(opt: Trained, held: list[Place], checksums: list[int] | None = None) -> bytes:
    """The header; without checksums, one that is as long as with any."""
    kept, header, end = {}, {}, 0
    for place, checksum in zip(held, checksums or [ANY] * len(held), strict=True):
        kept[place.key] = [place.dtype, list(place.shape), checksum]
        header[place.key] = _entry(place.dtype, place.shape, end)
        end = header[place.key]["data_offsets"][1]
    text = json.dumps({**about(opt, encode), "arrays": kept})
    header = {"__metadata__": {"multiopt": f"{_checksum(text)} {text}"}, **header}
    return json.dumps(header, separators=(",", ":")).encode()


def _entry(dtype: str, shape: tuple[int, ...], begin: int) -> dict[str, Any]:
    """What the header says of an array."""
    name, stored = STORED[dtype]
    shape = (*shape, 2) if dtype.startswith("complex") else shape
    return {
        "dtype": name,
        "shape": list(shape),
        "data_offsets": [begin, begin + math.prod(shape) * np.dtype(stored).itemsize],
    }


def _content(place: Place) -> memoryview:
    """The bytes of an array as they are stored."""
    try:
        host = place.checked(place.backend.to_host(place.get()))
    except ValueError as error:
        raise ValueError(f"{place.key}: {error}") from None
    little = host.astype(host.dtype.newbyteorder("<"), copy=False)
    return little.reshape(-1).view(np.uint8).data


def load(opt: Trained, path: str | os.PathLike[str]) -> None:
    """Read a checkpoint, check all of it, and take it over.

    Every array is read twice, the first time to check it. If reading fails the second time, because somebody else
    changes the file in between, or if loading is interrupted there, some arrays of a library with mutable arrays are
    the file's and others as before, and the error's notes say so; options and counters are as before.

    Raises
    ------
    OSError
        If the file is not a regular one, or cannot be read.
    ValueError
        If the file is damaged, it belongs to another rule or other parameters, or an array of the optimizer cannot be
        written to. Nothing has been changed then.
    """
    path, longest = Path(path), 2 * len(_header(opt, places(opt, params=True, unfinished=True))) + SLACK
    with reading(path) as file:
        try:
            loaded, arrays, begin = _read_header(file, longest)
        except (IndexError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{path}: expected a complete checkpoint of multiopt ({error})") from None
        stored = partial(InFile, file, begin)
        take(opt, loaded, arrays, stored, params=True, where=str(path), decode=decode, keep=False)


def _read_header(file: BufferedReader, longest: int) -> tuple[dict[str, Any], dict[str, Any], int]:
    """The metadata; of each array what the metadata and what the header say; and where the arrays begin."""
    size, length = os.fstat(file.fileno()).st_size, int.from_bytes(file.read(8), "little")
    if length > size - 8:
        raise ValueError(f"a file of {size} bytes with a header of {length}")
    if length > longest:
        raise ValueError(f"a header of {length} bytes; one of these parameters has at most {longest}")
    header = _parse(file.read(length))
    check("header", header, {"__metadata__": {"multiopt": str}})
    checksum, _, text = header.pop("__metadata__")["multiopt"].partition(" ")
    if checksum != _checksum(text):
        raise ValueError("the checksum of its metadata differs")
    loaded = _parse(text.encode())
    check("metadata", loaded, {"arrays": {}})
    kept = loaded["arrays"]
    if kept.keys() != header.keys():
        raise ValueError("header and metadata name other arrays")
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if end != size - 8 - length:
        raise ValueError(f"a file of {size} bytes; its arrays end at {8 + length + end}")
    return loaded, {key: (kept[key], entry) for key, entry in header.items()}, 8 + length


def _parse(text: bytes) -> Any:
    return json.loads(text.decode(), object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is given twice")
    return found


class InFile:
    """An array in an open file, described by ``(metadata, header)``; it is read when it is wanted."""

    def __init__(self, file: BufferedReader, start: int, key: str, described: tuple[Any, Any]) -> None:
        kept, entry = described
        check("metadata", kept, [object])
        if len(kept) != 3:
            raise ValueError(f"metadata: expected dtype, shape and checksum, got {len(kept)} values")
        for what, value, schema in zip(("dtype", "shape", "checksum"), kept, (str, [int], int), strict=True):
            check(f"metadata: {what}", value, schema)
        self.dtype, self.shape, self.checksum = kept[0], tuple(kept[1]), kept[2]
        check("header", entry, {"dtype": str, "shape": [int], "data_offsets": [int]})
        begin, end = entry["data_offsets"]
        if self.dtype not in STORED or begin < 0 or entry != _entry(self.dtype, self.shape, begin):
            raise ValueError("header and metadata differ")
        self.file, self.begin, self.size = file, start + begin, end - begin

    def make(self, place: Place) -> Array:
        """Make an array for a place."""
        content = np.empty(self.size, np.uint8)
        self.file.seek(self.begin)
        if self.file.readinto(content.data) != self.size or zlib.crc32(content.data) != self.checksum:
            raise ValueError("damaged: its checksum differs")
        little = np.dtype("uint16" if self.dtype == "bfloat16" else self.dtype).newbyteorder("<")
        host = content.view(little).astype(little.newbyteorder("="), copy=False).reshape(self.shape)
        return place.made(host)


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


# --- options as JSON ---


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
        check("schedule", value, {"schedule": str, "fields": {}})
        if value["schedule"] not in schedules.__all__:
            raise ValueError(f"expected a schedule of multiopt.schedules, got {value['schedule']!r}")
        kind = getattr(schedules, value["schedule"])
        now = current if type(current) is kind else None
        return kind(**{name: decode(field, getattr(now, name, None)) for name, field in value["fields"].items()})
    if isinstance(value, dict):
        check("function", value, {"callable": str})
        if not callable(current):
            raise ValueError(f"expected the optimizer that loads to have the callable {value['callable']!r}")
        return current
    return tuple(value) if isinstance(value, list) else value
