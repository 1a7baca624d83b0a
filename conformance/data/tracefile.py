"""Traces: what one system did in one scenario, step by step, and the files that hold them.

A file is safetensors: numbers and one JSON text, nothing that can run. Tensors are named
``SCENARIO/KIND/TENSOR``; time is their first axis. Kinds:

- ``x``, ``square_avg``, ``acc_delta``, ``average`` — parameters, accumulators and moving average: ``steps + 1``
  entries, the first one before any step. Accumulators that do not exist yet count as zeros.
- ``gradient`` — ``steps`` entries; of a sparse gradient, ``gradient.rows``, ``gradient.values`` and
  ``gradient.starts``.
- ``lr`` — the learning rate each step used; ``iterations`` — the framework's own counters, after each step.
- ``finalized`` — parameters after Keras' ``finalize_variable_values``.

bfloat16 is stored as its 16 bits (uint16) and complex numbers as pairs of reals; the data type in the metadata
says which.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..reference.floats import from_bfloat16_bits, parts, to_bfloat16_bits
from .inputs import Gradient, Sparse
from .specification import HOLDERS, Config

#: Where the recorded traces lie.
FOLDER = Path(__file__).parent.parent / "traces"
#: First line of every file's metadata.
FORMAT = "multiopt-trace 1"
#: Kinds that hold counters and hyperparameters, in a data type of their own.
PLAIN = frozenset({"lr", "iterations", "gradient.rows", "gradient.starts"})
#: Kinds that a step changes, in the order they are judged.
STATES = ("square_avg", "acc_delta", "x", "average")


class TraceError(ValueError):
    """A trace file that is damaged, altered, or not one."""


@dataclass(frozen=True)
class Trace:
    """One system in one scenario.

    Attributes
    ----------
    system, scenario, about : str
    dtype : str
        Data type of parameters and state, one of `HOLDERS`.
    shapes : tuple of shapes
        Of the tensors ``p0``, ``p1``, …
    steps : int
    config : Config
        With lr, rho and eps as the framework had them where the scenario left them to it.
    quirks : tuple of str
        Names of `quirks.QUIRKS` that show here.
    missing : tuple of (step, tensor)
        Where the gradient was None (zeros are stored there).
    refusal : str or None
        Class name of the exception, if the system refused; then there are inputs and nothing else.
    arrays : mapping
        ``"KIND/TENSOR"`` (or ``"KIND"`` alone for ``lr`` and ``iterations``) to array.
    """

    system: str
    scenario: str
    about: str
    dtype: str
    shapes: tuple[tuple[int, ...], ...]
    steps: int
    config: Config
    quirks: tuple[str, ...]
    missing: tuple[tuple[int, int], ...] = ()
    refusal: str | None = None
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors."""
        return tuple(f"p{i}" for i in range(len(self.shapes)))

    @property
    def is_sparse(self) -> bool:
        """Whether the first tensor's gradients are sparse."""
        return "gradient.rows/p0" in self.arrays

    def series(self, kind: str) -> list[NDArray[Any]]:
        """Return ``kind`` for every tensor, each with time as its first axis."""
        return [self.arrays[f"{kind}/{name}"] for name in self.names]

    def at(self, kind: str, step: int) -> list[NDArray[Any]]:
        """Return ``kind`` of every tensor after ``step`` steps."""
        return [values[step] for values in self.series(kind)]

    def has(self, kind: str) -> bool:
        """Tell whether ``kind`` was recorded."""
        return kind in self.arrays or f"{kind}/p0" in self.arrays

    def gradients(self, step: int) -> list[Gradient]:
        """Return the gradients given at ``step`` (from 0): arrays, `Sparse`, or None."""
        given: list[Gradient] = []
        for i, name in enumerate(self.names):
            if (step, i) in self.missing:
                given.append(None)
            elif f"gradient.rows/{name}" in self.arrays:
                starts = self.arrays[f"gradient.starts/{name}"]
                part = slice(int(starts[step]), int(starts[step + 1]))
                rows = self.arrays[f"gradient.rows/{name}"][part]
                given.append(Sparse(rows, self.arrays[f"gradient.values/{name}"][part]))
            else:
                given.append(self.arrays[f"gradient/{name}"][step])
        return given

    def describe(self) -> dict[str, Any]:
        """Return everything but the arrays, as JSON data."""
        return {
            "system": self.system,
            "scenario": self.scenario,
            "about": self.about,
            "dtype": self.dtype,
            "shapes": [list(shape) for shape in self.shapes],
            "steps": self.steps,
            "config": self.config.as_json(),
            "quirks": list(self.quirks),
            "missing": [list(pair) for pair in self.missing],
            "refusal": self.refusal,
        }

    def digest(self, versions: Mapping[str, str]) -> str:
        """Return the SHA-256 of description, framework versions and arrays. Machine and Python do not enter."""
        sha = hashlib.sha256(_canonical({**self.describe(), "versions": dict(versions)}))
        for key in sorted(self.arrays):
            stored = _stored(key, self.arrays[key], self.dtype)
            sha.update(_canonical([key, stored.dtype.str, list(stored.shape)]))
            sha.update(stored.tobytes())
        return sha.hexdigest()


@dataclass(frozen=True)
class TraceFile:
    """All traces of one system, with where they come from.

    ``versions`` names distributions and their versions; ``provenance`` the machine: Python, device, processor.
    """

    system: str
    versions: Mapping[str, str]
    provenance: Mapping[str, str]
    traces: Mapping[str, Trace]

    def digest(self) -> str:
        """Return one SHA-256 for the whole content."""
        return _sum(trace.digest(self.versions) for trace in self.traces.values())


def gradient_arrays(gradients: Sequence[Sequence[Gradient]], start: Sequence[NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the arrays that hold ``gradients[step][tensor]`` in a trace."""
    arrays: dict[str, NDArray[Any]] = {}
    for i, initial in enumerate(start):
        column = [row[i] for row in gradients]
        sparse = [g for g in column if isinstance(g, Sparse)]
        if sparse:
            if len(sparse) != len(column):
                raise ValueError(f"tensor p{i}: expected sparse gradients at every step or at none")
            arrays[f"gradient.rows/p{i}"] = np.concatenate([g.indices for g in sparse])
            arrays[f"gradient.values/p{i}"] = np.concatenate([g.values for g in sparse])
            arrays[f"gradient.starts/p{i}"] = np.cumsum([0, *(len(g.indices) for g in sparse)], dtype=np.int64)
        else:
            dense = [g if isinstance(g, np.ndarray) else np.zeros_like(initial) for g in column]
            arrays[f"gradient/p{i}"] = np.stack(dense)
    return arrays


def without_nan_payload(values: NDArray[Any]) -> NDArray[Any]:
    """Return a copy in which every NaN has the same bits: sign and payload of a NaN mean nothing."""
    values = np.array(values, order="C")
    if values.dtype.kind in "fc":
        real = parts(values)
        real[np.isnan(real)] = np.nan
        if values.dtype.kind == "c":
            return np.ascontiguousarray(real).view(values.dtype).reshape(values.shape)
        return real
    return values


def _canonical(data: Any) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _sum(digests: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()


def _stored(key: str, values: NDArray[Any], dtype: str) -> NDArray[Any]:
    if key.split("/")[0] not in PLAIN:
        if dtype == "bfloat16":
            values = to_bfloat16_bits(values)
        values = parts(values)
    return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).reshape(values.shape)


def _held(key: str, stored: NDArray[Any], dtype: str) -> NDArray[Any]:
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
    """Write ``content`` to ``path``: safetensors, with the metadata under one key."""
    from safetensors.numpy import save as to_bytes

    tensors = {
        f"{name}/{key}": _stored(key, values, trace.dtype)
        for name, trace in content.traces.items()
        for key, values in trace.arrays.items()
    }
    metadata = {
        "format": FORMAT,
        "system": content.system,
        "versions": dict(content.versions),
        "provenance": dict(content.provenance),
        "digest": content.digest(),
        "traces": {
            name: {**trace.describe(), "digest": trace.digest(content.versions)}
            for name, trace in content.traces.items()
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(to_bytes(tensors, metadata={"multiopt": _canonical(metadata).decode()}))


def load(path: Path) -> TraceFile:
    """Read ``path`` and check every hash in it.

    Raises
    ------
    TraceError
        If it is no trace file, or its numbers or its configuration are not what was recorded.
    """
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
    traces = {}
    claimed = 0
    for name, description in metadata["traces"].items():
        said = description.pop("digest")
        arrays = {
            key.removeprefix(f"{name}/"): _held(key.removeprefix(f"{name}/"), values, description["dtype"])
            for key, values in tensors.items()
            if key.startswith(f"{name}/")
        }
        claimed += len(arrays)
        trace = _trace(description, arrays)
        if trace.digest(metadata["versions"]) != said:
            raise TraceError(f"{path}: scenario {name!r}: content differs from its recorded hash {said[:12]}…")
        traces[name] = trace
    if claimed != len(tensors):
        raise TraceError(f"{path}: expected {claimed} tensors, got {len(tensors)}")
    content = TraceFile(metadata["system"], metadata["versions"], metadata["provenance"], traces)
    if content.digest() != metadata["digest"]:
        raise TraceError(f"{path}: the set of scenarios differs from its recorded hash {metadata['digest'][:12]}…")
    return content


def _trace(description: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Trace:
    values = dict(description)
    values["config"] = Config.from_json(values["config"])
    values["shapes"] = tuple(tuple(shape) for shape in values["shapes"])
    values["missing"] = tuple(tuple(pair) for pair in values["missing"])
    values["quirks"] = tuple(values["quirks"])
    return Trace(**values, arrays=arrays)


def load_all(folder: Path = FOLDER) -> dict[str, TraceFile]:
    """Read every trace file in ``folder``: system name to content."""
    files = (load(path) for path in sorted(folder.glob("*.safetensors")))
    return {content.system: content for content in files}
