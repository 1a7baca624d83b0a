"""The structures that XLA hands over: where their members stand is read from the header that jaxlib ships."""

import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("jax")
pytest.importorskip("numba")

import jax
from multiopt.backends.engines.xla import calls, frame

from multiopt import functional

HEADER = Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h").read_text()
ENUMS = ("DataType", "ExecutionStage", "Extension_Type", "Handler_Traits", "Error_Code")
#: Bytes of what members are, where they are not 8.
SIZES = {"int": 4, **{f"XLA_FFI_{name}": 4 for name in ENUMS}}
#: Structures that stand within others.
INNER = [f"XLA_FFI_{name}" for name in ("Args", "Rets", "Attrs", "Api_Version", "Extension_Base")]


def plain(text):
    """A text of C without comments."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.S)


def members(name):
    """Each member of a structure, and where it stands, in bytes; and the bytes of all."""
    body = re.search(rf"struct {name} {{(.*?)\n}}", plain(HEADER), re.S)[1]
    body = re.sub(r"_XLA_FFI_API_STRUCT_FIELD\((\w+)\)", r"void* \1", body)
    at, found = 0, {}
    for line in filter(None, (line.strip() for line in body.split(";"))):
        kind, label = re.fullmatch(r"(?:const |struct )*(.+?)(\w+)", line, re.S).groups()
        kind = kind.strip()
        inner = kind in (
            "XLA_FFI_Args",
            "XLA_FFI_Rets",
            "XLA_FFI_Attrs",
            "XLA_FFI_Api_Version",
            "XLA_FFI_Extension_Base",
        )
        size = members(kind)[1] if inner else 8 if kind.endswith("*") else SIZES.get(kind, 8)
        unit = 8 if inner else min(size, 8)
        at = -(-at // unit) * unit
        found[label] = at
        at += size
    return found, -(-at // 8) * 8


def enum(name):
    return int(re.search(rf"\b{name} = (\d+)", HEADER)[1])


def test_the_version_is_one_that_is_known():
    major, minor = (int(re.search(rf"define XLA_FFI_API_{what} (\d+)", HEADER)[1]) for what in ("MAJOR", "MINOR"))
    assert (frame.MAJOR, frame.MINOR) in calls.KNOWN
    assert (major, minor) in calls.KNOWN
    assert calls.unknown() is None


@pytest.mark.parametrize(
    ("structure", "places"),
    [
        ("XLA_FFI_CallFrame", {"extension_start": "EXTENSION", "api": "API", "ctx": "CONTEXT", "stage": "STAGE"}),
        ("XLA_FFI_Buffer", {"dtype": "DTYPE", "data": "DATA", "rank": "RANK", "dims": "DIMS"}),
        ("XLA_FFI_Metadata_Extension", {"metadata": "METADATA"}),
        ("XLA_FFI_Extension_Base", {"type": "KIND"}),
        ("XLA_FFI_Metadata", {"traits": "TRAITS"}),
        (
            "XLA_FFI_Api",
            {
                "XLA_FFI_Error_Create": "CREATE_ERROR",
                "XLA_FFI_Error_Destroy": "DESTROY_ERROR",
                "XLA_FFI_ThreadPool_Schedule": "SCHEDULE",
                "XLA_FFI_ThreadPool_NumThreads": "COUNT_THREADS",
            },
        ),
    ],
)
def test_members_stand_where_they_are_read(structure, places):
    found, _ = members(structure)
    assert {label: 8 * getattr(frame, place) for label, place in places.items()}.items() <= found.items()


def test_members_of_members_stand_where_they_are_read():
    outer = members("XLA_FFI_CallFrame")[0]
    for label, kind, inner, places in (
        ("args", "XLA_FFI_Args", "args", (frame.ARGUMENTS, frame.ARGUMENT)),
        ("rets", "XLA_FFI_Rets", "rets", (frame.RESULTS, frame.RESULT)),
    ):
        within = members(kind)[0]
        assert tuple(outer[label] + within[name] for name in ("size", inner)) == tuple(8 * place for place in places)
    version = members("XLA_FFI_Metadata")[0]["api_version"] + members("XLA_FFI_Api_Version")[0]["major_version"]
    assert version == 8 * frame.VERSION


def test_structures_that_are_handed_over_are_as_large_as_is_said():
    for name, words in (
        ("XLA_FFI_Error_Create_Args", 4),
        ("XLA_FFI_Error_Destroy_Args", 3),
        ("XLA_FFI_ThreadPool_Schedule_Args", 5),
        ("XLA_FFI_ThreadPool_NumThreads_Args", 4),
    ):
        assert members(name)[1] == 8 * words <= 8 * frame.ROOM


def test_numbers_of_dtypes_and_stages():
    short = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}
    short |= {"complex64": "C64", "complex128": "C128"}
    assert {name: enum(f"XLA_FFI_DataType_{short[name]}") for name in frame.DTYPES} == frame.DTYPES
    assert [enum(f"XLA_FFI_DataType_{name}") for name in ("U32", "S32", "S64")] == [frame.RAW, frame.INT32, frame.INT64]
    assert enum("XLA_FFI_ExecutionStage_EXECUTE") == frame.EXECUTE
    assert enum("XLA_FFI_Extension_Metadata") == frame.IS_METADATA
    assert enum("XLA_FFI_Error_Code_INVALID_ARGUMENT") == frame.INVALID


def test_a_version_that_is_not_known_gets_operations(tmp_path, monkeypatch):
    header = tmp_path / "xla" / "ffi" / "api" / "c_api.h"
    header.parent.mkdir(parents=True)
    header.write_text("#define XLA_FFI_API_MAJOR 1\n#define XLA_FFI_API_MINOR 0\n")
    monkeypatch.setattr(jax.ffi, "include_dir", lambda: str(tmp_path))
    calls.unknown.cache_clear()
    try:
        assert calls.unknown() == "it does not know XLA's interface for calls in version 1.0"
        x = jax.numpy.linspace(-1, 1, 5)
        step = jax.jit(lambda x: functional.update(x, x, functional.init(x)))
        assert "custom_call" not in step.lower(x).as_text()
        # XLA contracts to FMA: a rounding or two.
        want, _ = functional.update(np.asarray(x), np.asarray(x), functional.init(np.asarray(x)))
        np.testing.assert_allclose(step(x)[0], want, rtol=4 * np.finfo(np.float32).eps)
    finally:
        calls.unknown.cache_clear()
