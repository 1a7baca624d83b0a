"""The CUDA engine without a GPU: its very kernels, compiled by g++ and run on NumPy arrays."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import array_api_compat.numpy
import numpy as np
from multiopt.backends.base import Bucket
from multiopt.backends.engines.cuda import CudaEngine
from multiopt.backends.engines.cuda_plan import BLOCK
from multiopt.backends.numpy import NumpyBackend

HEADER = Path(__file__).with_name("cuda_host.h")
GXX = shutil.which("g++")
WITHOUT_GXX = "there is no g++ to compile the kernels with"


@cache
def _folder() -> Any:
    return tempfile.TemporaryDirectory(prefix="kernels")


@cache
def compiled(source: str, name: str) -> Any:
    """The function ``run(arguments, grid, block, counts)`` for a kernel of a source."""
    folder = Path(_folder().name)
    stem = hashlib.sha256(f"{name}{source}".encode()).hexdigest()[:16]
    text = f'#define HOST\n#include "{HEADER}"\n{source}\nEXPORT({name}, {str("sync_block();" in source).lower()})\n'
    (folder / f"{stem}.cpp").write_text(text)
    options = ["-O2", "-std=c++17", "-ffp-contract=off", "-fno-strict-aliasing", "-shared", "-fPIC", "-w"]
    command = [str(GXX), *options, "-o", f"{stem}.so", f"{stem}.cpp"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(folder / f"{stem}.so")).run


class HostDriver:
    """Does with the CPU what `Driver` does with a device. What was launched is kept in `launches`."""

    def __init__(self) -> None:
        self.functions: dict[Any, Any] = {}
        self.launches: list[tuple[str, int]] = []
        self.misaligned = self.wide_accesses = 0
        self.captures = False
        self.graph: list[Any] = []

    def refuses(self, ordinal: int) -> str | None:
        return None

    def compile(self, source: str) -> None:
        pass

    def kernel(self, source: str, name: str, ordinal: int) -> Any:
        self.functions[source, name, ordinal] = name, compiled(source, name)
        return self.functions[source, name, ordinal]

    def launch(self, kernel: Any, ordinal: int, stream: int, grid: int, arguments: Sequence[Any]) -> None:
        name, run = kernel
        self.launches.append((name, grid))
        held = [np.array([a % 2**64], np.uint64) if isinstance(a, int) else a.copy() for a in arguments]
        pointers = (ctypes.c_void_p * len(held))(*(a.ctypes.data for a in held))

        def go() -> None:
            counts = np.zeros(2, np.int64)
            run(pointers, ctypes.c_int64(grid), ctypes.c_int64(BLOCK), ctypes.c_void_p(counts.ctypes.data))
            self.misaligned += int(counts[0])
            self.wide_accesses += int(counts[1])
            assert held is not None  # the arguments live as long as the graph

        self._do(go)

    def zero(self, address: int, size: int, ordinal: int, stream: int) -> None:
        self._do(lambda: ctypes.memset(address, 0, size))

    def _do(self, action: Any) -> None:
        if self.captures:
            self.graph.append(action)
        else:
            action()

    def capturing(self, ordinal: int, stream: int) -> bool:
        return self.captures

    def replay(self) -> None:
        """Run the captured graph."""
        for action in self.graph:
            action()


class FakeBackend(NumpyBackend):
    """NumPy arrays that say they are CuPy's, on a CUDA device."""

    name = "cupy"

    def device(self, array: Any) -> str:
        return "cuda:0"

    def layout(self, array: Any) -> Any:
        flags = array.flags
        return "C" if flags.c_contiguous else "F" if flags.f_contiguous else None

    def addresses(self, arrays: Sequence[Any], layouts: Sequence[Any], out: np.ndarray) -> int:
        for i, (array, layout) in enumerate(zip(arrays, layouts, strict=True)):
            right = array.flags.c_contiguous if layout == "C" else layout == "F" and array.flags.f_contiguous
            out[i] = array.ctypes.data if right else -1
        return int((out < 0).sum())

    def on(self, device: str) -> Any:
        return contextlib.nullcontext()

    def is_current(self, device: str) -> bool:
        return True

    def stream(self, device: str) -> int:
        return 0


def bucket(params: list[Any], state: dict[str, list[Any]], grad_dtype: str | None = None) -> Bucket:
    """A bucket of NumPy arrays for the CUDA engine on the CPU."""
    backend = FakeBackend("numpy", array_api_compat.numpy)
    dtype = backend.dtype(params[0])
    held = backend.dtype(next(iter(state.values()))[0]) if state else dtype
    names = [f"params[{i}]" for i in range(len(params))]
    engine: Any = CudaEngine(HostDriver())  # type: ignore[arg-type]
    return Bucket(backend, engine, "cuda:0", dtype, grad_dtype or dtype, held, names, params, state)
