"""Who is judged: multiopt on one array library, one engine or one face. Arrays go in and come out as NumPy's.

A player makes a `Stage`: an optimizer with its parameters, ready to be stepped. Conversions are written here and not
taken from `multiopt.backends`, so that a mistake there cannot hide itself.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..data.inputs import Gradient
from ..data.specification import HOLDERS

Array = NDArray[Any]


class Stage(Protocol):
    """An optimizer at work."""

    def step(self, number: int, gradients: Sequence[Gradient]) -> None:
        """Take one step; `number` counts them from 0."""

    def states(self) -> Mapping[str, Sequence[Array]]:
        """Return every state, by kind: one array per tensor, in the data type that `HOLDERS` names."""


class Library:
    """How arrays of one library are made of NumPy's, and read. This class serves any array API namespace."""

    def __init__(self, name: str, device: str | None = None) -> None:
        self.name, self.device = name, device
        self.xp: Any = importlib.import_module(name)

    def make(self, values: Array, dtype: str) -> Any:
        """Return `values` as an array of the library, with memory of its own."""
        return self.xp.asarray(values, dtype=getattr(self.xp, dtype), copy=True)

    def read(self, arrays: Sequence[Any]) -> list[Array]:
        """Return copies as NumPy arrays; bfloat16 in float32."""
        return [np.array(np.from_dlpack(array)) for array in arrays]

    def active(self) -> AbstractContextManager[Any]:
        """Return what must be entered around all work."""
        return nullcontext()


def _native(dtype: str) -> Any:
    """Return NumPy's dtype of this name."""
    return np.dtype(importlib.import_module("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype)


def _held(values: Array) -> Array:
    return values.astype(np.float32) if values.dtype.name == "bfloat16" else values


class NumPy(Library):
    """NumPy; its bfloat16 comes from ml_dtypes."""

    def make(self, values: Array, dtype: str) -> Any:
        """Return `values` as an array with memory of its own."""
        return np.array(values, dtype=_native(dtype))

    def read(self, arrays: Sequence[Any]) -> list[Array]:
        """Return copies as NumPy arrays."""
        return [_held(np.array(array)) for array in arrays]


class Torch(Library):
    """PyTorch, on the CPU or on CUDA."""

    def make(self, values: Array, dtype: str) -> Any:
        """Return `values` as a tensor with memory of its own."""
        return self.xp.tensor(values, device=self.device).to(getattr(self.xp, dtype))

    def read(self, arrays: Sequence[Any]) -> list[Array]:
        """Return copies as NumPy arrays."""
        host = [array.detach().cpu() for array in arrays]
        return [(t.float() if t.dtype == self.xp.bfloat16 else t).numpy().copy() for t in host]


class Jax(Library):
    """JAX on the CPU, with 64-bit numbers in the meantime."""

    def __init__(self, name: str, device: str | None = None) -> None:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # other players need a GPU's memory too
        super().__init__(name, device)
        self.jax = importlib.import_module("jax")

    def make(self, values: Array, dtype: str) -> Any:
        """Return `values` as an array."""
        return self.xp.array(values, dtype=dtype)

    def read(self, arrays: Sequence[Any]) -> list[Array]:
        """Return copies as NumPy arrays."""
        return [_held(np.array(array)) for array in arrays]

    def active(self) -> AbstractContextManager[Any]:
        """Return a context with 64-bit numbers on the CPU."""
        stack = ExitStack()
        old = not hasattr(self.jax, "enable_x64")
        stack.enter_context((importlib.import_module("jax.experimental") if old else self.jax).enable_x64(True))
        stack.enter_context(self.jax.default_device(self.jax.devices("cpu")[0]))
        return stack


class Dask(Library):
    """Dask, in several chunks where there is something to divide: a single one would hide mistakes."""

    def make(self, values: Array, dtype: str) -> Any:
        """Return `values` as an array of chunks, the last one smaller."""
        chunks = tuple(max(1, -(-n * 2 // 3)) for n in values.shape)
        return self.xp.from_array(np.array(values, dtype=_native(dtype)), chunks=chunks)

    def read(self, arrays: Sequence[Any]) -> list[Array]:
        """Return copies as NumPy arrays."""
        import dask

        # What is computed already needs no pool of threads.
        return [
            _held(np.array(array)) for array in dask.compute(*arrays, scheduler="synchronous", optimize_graph=False)
        ]


class CuPy(Library):
    """CuPy."""

    def make(self, values: Array, dtype: str) -> Any:
        """Return `values` on the GPU."""
        return self.xp.asarray(values, dtype=_native(dtype))

    def read(self, arrays: Sequence[Any]) -> list[Array]:
        """Return copies as NumPy arrays."""
        return [_held(array.get()) for array in arrays]


@dataclass(frozen=True)
class Player:
    """One way to run multiopt.

    Attributes
    ----------
    name, about : str
        Its name here, and what it is.
    library : type, and module : str
        The library of its arrays, and what is imported for it.
    needs : tuple of str
        Modules without which there is nothing to judge.
    engine : str
        As `multiopt.Adadelta` takes it; or ``"functional"`` for `multiopt.functional`, ``"jit"`` for the same under
        ``jax.jit``, ``"keras"`` for `multiopt.keras`.
    dtypes : tuple of str
        What its library has.
    device : str
        ``"cpu"`` or ``"cuda"``.
    bits : bool
        Whether it is promised NumPy's bits in float32 and float64.
    quirks : tuple of str
        Habits of the library, as `quirks` names them: the oracle follows them.
    slow : bool
        Whether thousands of steps take it more than seconds.
    stage : callable or None
        What makes its `Stage` of a `Question`, in place of `stages.stage_of`: for mutants.
    """

    name: str
    about: str
    library: type[Library]
    module: str
    needs: tuple[str, ...] = ()
    engine: str = "auto"
    dtypes: tuple[str, ...] = tuple(HOLDERS)
    device: str = "cpu"
    bits: bool = True
    quirks: tuple[str, ...] = ()
    slow: bool = False
    stage: Callable[[Any], Stage] | None = None

    def absent(self) -> str | None:
        """Say why it cannot play here, or return None."""
        for module in (self.module.partition(".")[0], *self.needs):
            if not _found(module):
                return f"{module} is not installed"
        if self.device != "cuda":
            return None
        try:
            xp = importlib.import_module(self.module)
            found = xp.cuda.is_available()
        except Exception as error:
            # A GPU library may fail in many ways where there is no GPU or no driver.
            return f"{self.module} does not work here: {' '.join(str(error).split())[:120]}"
        return None if found else "there is no CUDA device"

    def lacks(self, dtype: str) -> str | None:
        """Say why it has no such data type, or return None."""
        if dtype not in self.dtypes:
            return f"{self.module} has no {dtype}"
        if dtype == "bfloat16" and self.library in (NumPy, Dask, CuPy) and not _found("ml_dtypes"):
            return "NumPy has bfloat16 only with ml_dtypes, which is not installed"
        return None

    def load(self) -> Library:
        """Return its library, imported."""
        return self.library(self.module, "cuda" if self.device == "cuda" else None)


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


_STANDARD = ("float32", "float64", "complex64", "complex128")
_FLUSHES = ("flushes-subnormals",)

PLAYERS: dict[str, Player] = {
    player.name: player
    for player in (
        Player("numpy", "NumPy, compiled by Numba into one loop", NumPy, "numpy", ("numba",), "host"),
        Player("numpy-eager", "NumPy, operation by operation", NumPy, "numpy", engine="eager"),
        Player("functional", "multiopt.functional on NumPy arrays", NumPy, "numpy", engine="functional"),
        Player("keras-face", "multiopt.keras on NumPy arrays", NumPy, "numpy", engine="keras"),
        Player("torch", "PyTorch on the CPU, compiled by Numba into one loop", Torch, "torch", ("numba",), "host"),
        Player("strict", "array-api-strict: nothing but the standard", Library, "array_api_strict", (), "eager",
               _STANDARD, slow=True),
        Player("jax", "JAX on the CPU, operation by operation", Jax, "jax.numpy", quirks=_FLUSHES, slow=True),
        Player("jax-jit", "multiopt.functional under jax.jit", Jax, "jax.numpy", engine="jit", bits=False,
               quirks=_FLUSHES),
        Player("dask", "Dask, one task a chunk", Dask, "dask.array", slow=True),
        Player("cupy", "CuPy, traced into CUDA C", CuPy, "cupy", engine="cuda", device="cuda",
               dtypes=("float16", *_STANDARD)),
        Player("torch-cuda", "PyTorch on CUDA, traced into CUDA C", Torch, "torch", engine="cuda", device="cuda"),
    )
}  # fmt: skip
