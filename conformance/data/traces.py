"""Traces: files that hold what one system did in every scenario.

A file is safetensors: numbers and one JSON text, nothing that can run. Tensors are named
``SCENARIO/KIND/TENSOR``; time is their first axis. Kinds:

- ``x``, ``square_avg``, ``acc_delta``, ``average`` — parameters, accumulators and moving average: ``steps + 1``
  entries, the first one before any step. Accumulators that do not exist yet count as zeros.
- ``gradient`` — ``steps`` entries; of a sparse gradient, ``gradient.rows``, ``gradient.values`` and
  ``gradient.starts``.
- ``lr`` — the learning rate each step used; ``iterations`` — the framework's own counters, after each step.
- ``finalized`` — parameters after Keras' ``finalize_variable_values``.

bfloat16 is stored as its 16 bits (uint16) and complex numbers as pairs of reals; the data type in the metadata
says which. The metadata calls deviations ``quirks``, as it did when the first file was written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .case import Array, Case, Gradient, Sparse
from .floats import from_bfloat16_bits, parts, to_bfloat16_bits
from .specification import HOLDERS, Config, Schedule
from .trajectory import Trajectory

#: Where the recorded traces lie.
FOLDER = Path(__file__).parent.parent / "traces"
#: First line of every file's metadata.
FORMAT = "multiopt-trace 1"
#: Kinds that hold counters and hyperparameters, in a data type of their own.
PLAIN = frozenset({"lr", "iterations", "gradient.rows", "gradient.starts"})


class TraceError(ValueError):
    """A trace file that is damaged, altered, or not one."""


@dataclass(frozen=True)
class TraceFile:
    """All traces of one system, with the versions of its distributions, and the machine: Python, device, processor."""

    system: str
    versions: Mapping[str, str]
    provenance: Mapping[str, str]
    traces: Mapping[str, Trajectory]

    def digest(self) -> str:
        """Return one SHA-256 for the whole content."""
        digests = sorted(digest_of(trace, self.versions) for trace in self.traces.values())
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def describe(trace: Trajectory) -> dict[str, Any]:
    """Return everything but the arrays, as JSON data."""
    return {
        "system": trace.name,
        "scenario": trace.scenario,
        "about": trace.case.about,
        "dtype": trace.dtype,
        "shapes": [list(shape) for shape in trace.case.shapes],
        "steps": trace.steps,
        "config": asdict(trace.config),
        "quirks": list(trace.deviations),
        "missing": [list(pair) for pair in trace.case.missing],
        "refusal": trace.refusal,
    }


def digest_of(trace: Trajectory, versions: Mapping[str, str]) -> str:
    """Return the SHA-256 of description, framework versions and arrays. Reference and Python do not enter."""
    sha = hashlib.sha256(_canonical({**describe(trace), "versions": dict(versions)}))
    for key, values in sorted(trace.arrays.items()):
        stored = _stored(key, values, trace.dtype)
        sha.update(_canonical([key, stored.dtype.str, list(stored.shape)]))
        sha.update(stored.tobytes())
    return sha.hexdigest()


def _canonical(data: Any) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _stored(key: str, values: Array, dtype: str) -> Array:
    if key.split("/")[0] not in PLAIN:
        values = to_bfloat16_bits(values) if dtype == "bfloat16" else parts(values)
    return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).reshape(values.shape)


def _held(key: str, stored: Array, dtype: str) -> Array:
    if key.split("/")[0] in PLAIN:
        return stored
    if dtype == "bfloat16":
        return from_bfloat16_bits(stored)
    if dtype.startswith("complex"):
        return np.ascontiguousarray(stored).view(HOLDERS[dtype]).reshape(stored.shape[:-1])
    return stored


def path_of(system: str, folder: Path = FOLDER) -> Path:
    """Return where the traces of ``system`` lie."""
    return folder / f"{system}.safetensors"


def save(content: TraceFile, path: Path) -> None:
    """Write ``content`` to ``path``."""
    from safetensors.numpy import save as to_bytes

    tensors = {
        f"{name}/{key}": _stored(key, values, trace.dtype)
        for name, trace in content.traces.items()
        for key, values in trace.arrays.items()
    }
    versions = dict(content.versions)
    metadata = {
        "format": FORMAT,
        "system": content.system,
        "versions": versions,
        "provenance": dict(content.provenance),
        "digest": content.digest(),
        "traces": {name: {**describe(t), "digest": digest_of(t, versions)} for name, t in content.traces.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(to_bytes(tensors, metadata={"multiopt": _canonical(metadata).decode()}))


def load(path: Path) -> TraceFile:
    """Read ``path`` and check every hash in it; a `TraceError` tells what is not as it was recorded."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as opened:
            text = (opened.metadata() or {}).get("multiopt")
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise TraceError(f"{path}: expected a safetensors file, got: {error}") from error
    metadata = json.loads(text) if text is not None else {}
    if metadata.get("format") != FORMAT:
        raise TraceError(f"{path}: expected format {FORMAT!r}, got {metadata.get('format')!r}")
    stored: dict[str, dict[str, Array]] = {name: {} for name in metadata["traces"]}
    for name, _, key in (path_in_file.partition("/") for path_in_file in tensors):
        if name not in stored:
            raise TraceError(f"{path}: expected no tensors of a scenario {name!r}")
        stored[name][key] = tensors[f"{name}/{key}"]
    traces = {}
    for name, description in metadata["traces"].items():
        arrays = {key: _held(key, values, description["dtype"]) for key, values in stored[name].items()}
        traces[name] = _trace(description, arrays)
        if digest_of(traces[name], metadata["versions"]) != description["digest"]:
            said = description["digest"][:12]
            raise TraceError(f"{path}: scenario {name!r}: content differs from its recorded hash {said}…")
    content = TraceFile(metadata["system"], metadata["versions"], metadata["provenance"], traces)
    if content.digest() != metadata["digest"]:
        raise TraceError(f"{path}: the set of scenarios differs from its recorded hash {metadata['digest'][:12]}…")
    return content


def _trace(description: Mapping[str, Any], arrays: Mapping[str, Array]) -> Trajectory:
    names = [f"p{i}" for i in range(len(description["shapes"]))]
    missing, config = {tuple(pair) for pair in description["missing"]}, dict(description["config"])
    if config["schedule"] is not None:
        config["schedule"] = Schedule(**config["schedule"])

    def gradient(step: int, i: int) -> Gradient:
        name = names[i]
        if (step, i) in missing:
            return None
        if f"gradient.rows/{name}" not in arrays:
            return arrays[f"gradient/{name}"][step]
        begin, end = arrays[f"gradient.starts/{name}"][step : step + 2]
        return Sparse(arrays[f"gradient.rows/{name}"][begin:end], arrays[f"gradient.values/{name}"][begin:end])

    case = Case(
        description["scenario"],
        description["dtype"],
        Config(**config),
        [arrays[f"x/{name}"][0] for name in names],
        [[gradient(step, i) for i in range(len(names))] for step in range(description["steps"])],
        description["about"],
    )
    kinds = dict.fromkeys(kind for key in arrays for kind, _, tensor in [key.partition("/")] if tensor)
    return Trajectory(
        description["system"],
        case,
        {kind: [arrays[f"{kind}/{name}"] for name in names] for kind in kinds if not kind.startswith("gradient")},
        arrays.get("lr"),
        arrays.get("iterations"),
        tuple(description["quirks"]),
        description["refusal"],
    )


def load_all(folder: Path = FOLDER) -> dict[str, TraceFile]:
    """Read every trace file in ``folder``: system name to content."""
    files = (load(path) for path in sorted(folder.glob("*.safetensors")))
    return {content.system: content for content in files}
