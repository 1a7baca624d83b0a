"""NumPy's arrays made into those of another library, and read back.

This is the array API standard, DLPack and NumPy's own protocol, and the little that some libraries need besides. It is
not taken from `multiopt.backends`, so that a mistake there cannot hide itself.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..data.case import Array


def _computed(arrays: Sequence[Any]) -> Sequence[Any]:
    # What is computed already needs no pool of threads.
    compute = importlib.import_module("dask").compute
    return list(compute(*arrays, scheduler="synchronous", optimize_graph=False))


def _to_cpu(arrays: Sequence[Any]) -> Sequence[Any]:
    return [(a.float() if str(a.dtype) == "torch.bfloat16" else a).detach().cpu() for a in arrays]


@contextmanager
def _with_64_bits() -> Iterator[None]:
    jax = importlib.import_module("jax")
    holder = jax if hasattr(jax, "enable_x64") else importlib.import_module("jax.experimental")
    with holder.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        yield


#: The way to the CPU, where the standard has none.
_TO_HOST: dict[str, Callable[[Sequence[Any]], Sequence[Any]]] = {
    "torch": _to_cpu,
    "cupy": lambda arrays: [array.get() for array in arrays],
    "dask": _computed,
}


@dataclass(frozen=True)
class Arrays:
    """Arrays of the library with this array API namespace (an import name), on a device or the default one."""

    namespace: str
    device: str | None = None

    @property
    def root(self) -> str:
        """Import name of the library."""
        return self.namespace.partition(".")[0]

    @cached_property
    def xp(self) -> Any:
        """The namespace, imported."""
        # JAX would take most of a GPU's memory, which other libraries need too.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        return importlib.import_module(self.namespace)

    def make(self, values: Any, dtype: str) -> Any:
        """Return values as an array of the library, with memory of its own."""
        fresh = np.array(values)
        if hasattr(self.xp, dtype):
            given = getattr(self.xp, dtype)
        else:
            # NumPy has bfloat16 from ml_dtypes.
            fresh = fresh.astype(importlib.import_module("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype)
            given = fresh.dtype
        options: dict[str, Any] = {} if self.device is None else {"device": self.device}
        if self.root == "dask":
            # The last chunk smaller; a single one would hide mistakes.
            options["chunks"] = tuple(max(1, -(-n * 2 // 3)) for n in fresh.shape)
        return self.xp.asarray(fresh, dtype=given, **options)

    def read(self, arrays: Sequence[Any]) -> list[Array]:
        """Return copies as NumPy arrays; bfloat16 in float32. Of a lazy library, all are computed in one go."""
        return [_read(array) for array in _TO_HOST.get(self.root, list)(arrays)]

    def active(self) -> AbstractContextManager[Any]:
        """Return what must be entered around all work."""
        return _with_64_bits() if self.root == "jax" else nullcontext()


def _read(array: Any) -> Array:
    try:
        values = np.array(np.from_dlpack(array) if hasattr(array, "__dlpack__") else np.asarray(array))
    except (BufferError, RuntimeError, TypeError):  # DLPack has no such data type, or NumPy has not
        values = np.array(np.asarray(array))
    return values.astype(np.float32) if values.dtype.name == "bfloat16" else values


def arrays_like(array: Any) -> Arrays:
    """Return how arrays like this one are made and read."""
    root = type(array).__module__.partition(".")[0]
    known = {"numpy": "numpy", "jax": "jax.numpy", "jaxlib": "jax.numpy", "dask": "dask.array", "cupy": "cupy"}
    if root == "torch":
        return Arrays("torch", str(array.device))
    return Arrays(known[root] if root in known else array.__array_namespace__().__name__)
