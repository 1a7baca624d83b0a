"""The CUDA engine without a GPU: its very kernels, compiled by g++ and run on NumPy arrays."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import array_api_compat.numpy
import numpy as np
import pytest
from multiopt.backends.engines.cuda.driver import Driver
from multiopt.backends.numpy import NumpyBackend

HEADER = Path(__file__).with_name("cuda_host.h")
GXX = shutil.which("g++")


def _missing() -> str | None:
    """Why the kernels cannot be run on the CPU, or None."""
    if GXX is None:
        return "there is no g++ to compile the kernels with"
    if find_spec("cuda") is None or find_spec("cuda.bindings") is None:
        return "cuda-bindings is not installed"
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return "this machine has a CUDA driver: see test_gpu.py"


MISSING = _missing()


@cache
def _folder() -> Any:
    return tempfile.TemporaryDirectory(prefix="kernels")


@cache
def library(text: str) -> str:
    """Compile C++ to a shared library; return its path."""
    stem = hashlib.sha256(text.encode()).hexdigest()[:16]
    folder = Path(_folder().name)
    (folder / f"{stem}.cpp").write_text(text)
    options = ["-O2", "-std=c++17", "-ffp-contract=off", "-fno-strict-aliasing", "-shared", "-fPIC", "-w"]
    command = [str(GXX), *options, "-o", f"{stem}.so", f"{stem}.cpp", "-ldl"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return str(folder / f"{stem}.so")


@cache
def stand_in() -> ctypes.CDLL:
    """The stand-in for libcuda, which `cuda.bindings` gets in place of NVIDIA's."""
    from cuda.bindings._internal import driver

    made = ctypes.CDLL(library(HEADER.with_name("cuda_host_driver.cpp").read_text()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "load_nvidia_dynamic_lib", lambda name: SimpleNamespace(_handle_uint=made._handle))
        assert Driver().cuda  # they look for it once
    return made


class HostDriver(Driver):
    """The driver's caller, on a libcuda of one device that is the CPU. What was launched is kept in `launches`."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[tuple[str, int]] = []
        self.graph: list[Any] = []
        self.names: dict[int, str] = {}
        self.captures = False

    def rejects(self, ordinal: int) -> str | None:
        return None

    def compiled(self, source: str, capability: int) -> bytes:
        (name,) = re.findall(r"^KERNEL\((\w+)\)", source, re.MULTILINE)
        meets = str("sync_block();" in source.partition("KERNEL(")[2]).lower()
        return library(f'#define HOST\n#include "{HEADER}"\n{source}\nEXPORT({name}, {meets})\n').encode()

    def kernel(self, source: str, name: str, ordinal: int) -> Any:
        function = super().kernel(source, name, ordinal)
        self.names[int(function)] = name
        return function

    def launch(self, kernel: Any, ordinal: int, stream: int, grid: int, arguments: Sequence[Any]) -> None:
        self.launches.append((self.names[int(kernel)], grid))
        held = [a if isinstance(a, int) else a.copy() for a in arguments]
        self._do(lambda: super(HostDriver, self).launch(kernel, ordinal, stream, grid, held))

    def zero(self, address: int, size: int, ordinal: int, stream: int) -> None:
        self._do(lambda: super(HostDriver, self).zero(address, size, ordinal, stream))

    def _do(self, action: Any) -> None:
        if self.captures:
            self.graph.append(action)
        else:
            action()

    @property
    def captures(self) -> bool:
        """Whether launches go into a graph."""
        return self.capturing(0, 0)

    @captures.setter
    def captures(self, value: bool) -> None:
        stand_in().set_capturing(int(value))

    def replay(self) -> None:
        """Run the captured graph."""
        for action in self.graph:
            action()

    def accesses(self) -> tuple[int, int]:
        """Count 16-byte accesses so far, by all drivers: those that were not aligned, and all."""
        counts = (ctypes.c_int64 * 2)()
        stand_in().count_accesses(counts)
        return counts[0], counts[1]


class CudaArray(np.ndarray):
    """An array that is taken for one on a CUDA device."""


class HostBackend(NumpyBackend):
    """NumPy's backend, for arrays on the CUDA device that is the CPU."""

    def __init__(self) -> None:
        super().__init__("cupy", array_api_compat.numpy)

    def rejects(self, array: Any) -> None:
        return None

    def host_memory(self, device: str) -> None:
        return None

    def cuda_memory(self, device: str) -> Any:
        return self

    def device(self, array: Any) -> str:
        return "cuda:0"

    def full_like(self, array: Any, value: float, dtype: str) -> Any:
        return super().full_like(array, value, dtype).view(CudaArray)

    def from_host(self, array: np.ndarray, dtype: str, like: Any = None) -> Any:
        return super().from_host(array, dtype, like).view(CudaArray)

    def ordinal(self, device: str) -> int:
        return 0

    def on(self, device: str) -> Any:
        return contextlib.nullcontext()

    def is_current(self, device: str) -> bool:
        return True

    def stream(self, device: str) -> int:
        return 0
