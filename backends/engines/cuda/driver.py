"""Compiling by NVRTC and launching through the CUDA driver.

Both are called through NVIDIA's own bindings, `cuda.bindings`, which were weighed against ctypes. They are not slower:
a launch with its arguments and context takes 5.7 µs either way, the bare call 0.3 µs where ctypes takes 0.9 µs
(cuda-bindings 13.5, on a driver that does nothing). The tests put their stand-in for libcuda under them, so that
nothing is tested less. What a layer of our own has to do, NVIDIA does: find the libraries, declare arguments, name
errors. The price: PyTorch's CUDA wheels for Linux bring cuda-bindings from 2.10 on, CuPy does not, so that its users
(and PyTorch's on Windows) install one more wheel of 8 MB. `cuda.core`, the layer above, was not taken: no library
brings it along, and it makes a device current for the whole thread, where a step leaves the caller's context alone.

CuPy and PyTorch both work in a device's primary context, so one launcher serves the arrays of both. It allocates
nothing and never waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import c_uint64
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from ..program import KEPT
from .plan import BLOCK

__all__ = ["OPTIONS", "Driver", "Nvrtc"]

#: What keeps the bits, said to the compiler once more; the source does not leave it to flags.
OPTIONS = (b"--fmad=false", b"--ftz=false", b"--prec-div=true", b"--prec-sqrt=true", b"--std=c++17")


def call(function: Any, *arguments: Any) -> Any:
    """Call a function of `cuda.bindings`: what it returns beside the status, or an exception that names the error."""
    status, *results = function(*arguments)
    if status:
        raise RuntimeError(f"{function.__name__}: {status.name}")
    return results[0] if len(results) == 1 else results


class Nvrtc:
    """CUDA's run-time compiler; `ImportError` if it, or NVIDIA's bindings to it, are not installed."""

    def __init__(self) -> None:
        try:
            from cuda.bindings import nvrtc

            self.version: tuple[int, int] = tuple(call(nvrtc.nvrtcVersion))
            #: Compute capabilities that it compiles for, such as 90, ascending.
            self.supported: list[int] = sorted(call(nvrtc.nvrtcGetSupportedArchs))
        except ImportError as error:
            raise ImportError("NVIDIA's bindings to CUDA were not found: pip install cuda-bindings") from error
        except RuntimeError as error:
            raise ImportError(
                "CUDA's run-time compiler (NVRTC) was not found: pip install nvidia-cuda-nvrtc, or cupy-cuda13x[ctk]"
            ) from error
        self.nvrtc: Any = nvrtc

    def compile(self, source: str, capability: int, ptx: bool = False) -> bytes:
        """Compile a source for a compute capability, to machine code where that is possible, else to PTX."""
        exact = capability in self.supported and not ptx
        known = capability if capability in self.supported else max(s for s in self.supported if s <= capability)
        options = [f"--gpu-architecture={'sm' if exact else 'compute'}_{known}".encode(), *OPTIONS]
        program = call(self.nvrtc.nvrtcCreateProgram, source.encode(), b"multiopt.cu", 0, None, None)
        try:
            (status,) = self.nvrtc.nvrtcCompileProgram(program, len(options), options)
            if status:
                log = self._read(program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
                raise RuntimeError(f"NVRTC: {log or status.name}")
            return self._read(program, "CUBIN" if exact else "PTX")
        finally:
            self.nvrtc.nvrtcDestroyProgram(program)

    def _read(self, program: Any, kind: str) -> bytes:
        text = bytes(call(getattr(self.nvrtc, f"nvrtcGet{kind}Size"), program))
        call(getattr(self.nvrtc, f"nvrtcGet{kind}"), program, text)  # it writes into the bytes
        return text


class ByValue:
    """An array that a kernel gets by value: `cuda.bindings` asks such an object for its address."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def getPtr(self) -> int:  # noqa: N802
        """The address of the first element."""
        return self.array.ctypes.data


class Driver:
    """The CUDA driver, and the kernels loaded into its devices."""

    def __init__(self) -> None:
        self.code: Callable[[str, int], bytes] = lru_cache(KEPT)(lambda *given: self.nvrtc.compile(*given))
        #: Kernels that are loaded. They stay: a CUDA graph may hold any of them, and nobody can ask.
        self.functions: dict[tuple[str, str, int], Any] = {}
        self.contexts: dict[int, Any] = {}

    @cached_property
    def nvrtc(self) -> Nvrtc:
        """The run-time compiler."""
        return Nvrtc()

    @cached_property
    def cuda(self) -> Any:
        """NVIDIA's bindings to the driver, initialised; an error if there is no driver, or it finds no device."""
        from cuda.bindings import driver

        call(driver.cuInit, 0)
        return driver

    def rejects(self, ordinal: int) -> str | None:
        """Say why kernels cannot be made for a device, or return None."""
        try:
            major, oldest = self.nvrtc.version[0], self.nvrtc.supported[0]
            count, version = call(self.cuda.cuDeviceGetCount), call(self.cuda.cuDriverGetVersion)
            if ordinal >= count:
                return f"there is no CUDA device {ordinal}, the driver sees {count}"
            if major * 1000 > version:
                return f"NVRTC {major} needs a newer driver than this one, of CUDA {version // 1000}"
            if (capability := self.capability(ordinal)) < oldest:
                return f"NVRTC {major} no longer compiles for compute capability {capability}"
        except ImportError as error:
            return str(error)
        except RuntimeError as error:
            return f"no CUDA driver that works was found ({error})"
        return None

    def capability(self, ordinal: int) -> int:
        """The compute capability of a device, such as 90."""
        kinds, device = self.cuda.CUdevice_attribute, call(self.cuda.cuDeviceGet, ordinal)
        major = call(self.cuda.cuDeviceGetAttribute, kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device)
        minor = call(self.cuda.cuDeviceGetAttribute, kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device)
        return 10 * major + minor

    @contextmanager
    def context(self, ordinal: int) -> Iterator[None]:
        """Make a device's primary context current, as the driver's calls want it."""
        if ordinal not in self.contexts:
            device = call(self.cuda.cuDeviceGet, ordinal)
            self.contexts[ordinal] = call(self.cuda.cuDevicePrimaryCtxRetain, device)
        call(self.cuda.cuCtxPushCurrent, self.contexts[ordinal])
        try:
            yield
        finally:
            call(self.cuda.cuCtxPopCurrent)

    def compile(self, source: str) -> None:
        """Compile a source for every device at hand, so that a mistake in it shows before anything is written."""
        for ordinal in range(call(self.cuda.cuDeviceGetCount)):
            self.compiled(source, self.capability(ordinal))

    def compiled(self, source: str, capability: int) -> bytes:
        """The code of a source, compiled once while it is among those that are kept."""
        return self.code(source, capability)

    def kernel(self, source: str, name: str, ordinal: int) -> Any:
        """A kernel of a source, loaded into a device once."""
        key = source, name, ordinal
        found = self.functions.get(key)
        if found is None:
            with self.context(ordinal):
                module = call(self.cuda.cuModuleLoadData, self.compiled(source, self.capability(ordinal)))
                found = self.functions[key] = call(self.cuda.cuModuleGetFunction, module, name.encode())
        return found

    def launch(self, kernel: Any, ordinal: int, stream: int, grid: int, arguments: Sequence[Any]) -> None:
        """Launch a kernel on a stream. Its arguments: integers of up to 8 bytes, addresses too; arrays by value."""
        values = tuple(a if isinstance(a, int) else ByValue(a) for a in arguments)
        types = tuple(c_uint64 if isinstance(a, int) else None for a in arguments)
        with self.context(ordinal):
            call(self.cuda.cuLaunchKernel, kernel, grid, 1, 1, BLOCK, 1, 1, 0, stream, (values, types), 0)

    def zero(self, address: int, size: int, ordinal: int, stream: int) -> None:
        """Set `size` bytes, a multiple of 4, to zero on a stream."""
        with self.context(ordinal):
            call(self.cuda.cuMemsetD32Async, address, 0, size // 4, stream)

    def capturing(self, ordinal: int, stream: int) -> bool:
        """Whether what is put on a stream goes into a CUDA graph instead of being done."""
        with self.context(ordinal):
            status = call(self.cuda.cuStreamIsCapturing, stream)
        return status == self.cuda.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_ACTIVE
