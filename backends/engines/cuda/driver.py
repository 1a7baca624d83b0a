"""Compiling by NVRTC and launching through the CUDA driver: the two C libraries, called with ctypes.

CuPy and PyTorch both work in a device's primary context, so one launcher serves the arrays of both. It allocates
nothing and never waits.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import byref, c_char_p, c_int, c_int64, c_size_t, c_uint, c_void_p
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .plan import BLOCK

__all__ = ["OPTIONS", "Driver", "Nvrtc", "nvrtc"]

WINDOWS = sys.platform == "win32"
#: What keeps the bits, said to the compiler once more; the source does not leave it to flags.
OPTIONS = ("--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true", "--std=c++17")
MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


class Nvrtc:
    """The run-time compiler: a library that may be of any CUDA version from 12 on."""

    def __init__(self, library: Any) -> None:
        self.library = library
        library.nvrtcGetErrorString.restype = c_char_p
        major, minor = c_int(), c_int()
        self.check(library.nvrtcVersion(byref(major), byref(minor)))
        self.version = major.value, minor.value
        count = c_int()
        self.check(library.nvrtcGetNumSupportedArchs(byref(count)))
        supported = (c_int * count.value)()
        self.check(library.nvrtcGetSupportedArchs(supported))
        #: Compute capabilities that it compiles for, such as 90, ascending.
        self.supported = sorted(supported)

    def check(self, status: int) -> None:
        """Raise if a call failed."""
        if status:
            raise RuntimeError(f"NVRTC: {self.library.nvrtcGetErrorString(status).decode()}")

    def compile(self, source: str, capability: int, ptx: bool = False) -> bytes:
        """Compile a source for a compute capability, to machine code where that is possible, else to PTX.

        Raises
        ------
        RuntimeError
            If it does not compile; the message is the compiler's.
        """
        exact = capability in self.supported and not ptx
        known = capability if capability in self.supported else max(s for s in self.supported if s <= capability)
        options = [f"--gpu-architecture={'sm' if exact else 'compute'}_{known}", *OPTIONS]
        program, size = c_void_p(), c_size_t()
        self.check(self.library.nvrtcCreateProgram(byref(program), source.encode(), b"multiopt.cu", 0, None, None))
        try:
            encoded = (c_char_p * len(options))(*(option.encode() for option in options))
            status = self.library.nvrtcCompileProgram(program, len(options), encoded)
            if status:
                self.check(self.library.nvrtcGetProgramLogSize(program, byref(size)))
                log = ctypes.create_string_buffer(size.value)
                self.check(self.library.nvrtcGetProgramLog(program, log))
                raise RuntimeError(f"NVRTC: {log.value.decode(errors='replace')}")
            kind = "CUBIN" if exact else "PTX"
            self.check(getattr(self.library, f"nvrtcGet{kind}Size")(program, byref(size)))
            code = ctypes.create_string_buffer(size.value)
            self.check(getattr(self.library, f"nvrtcGet{kind}")(program, code))
            return code.raw
        finally:
            self.library.nvrtcDestroyProgram(byref(program))


def candidates() -> Iterator[str]:
    """Where NVRTC may be: as NVIDIA's own finder says, on the loader's path, in one of NVIDIA's wheels."""
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib  # CuPy and PyTorch bring it with them

        yield load_nvidia_dynamic_lib("nvrtc").abs_path
    except (ImportError, RuntimeError, OSError):
        # Not installed, or it found nothing.
        yield from ()
    for major in (13, 12):
        yield f"nvrtc64_{major}0_0.dll" if WINDOWS else f"libnvrtc.so.{major}"
    wheels = find_spec("nvidia")
    pattern = "*/bin/**/nvrtc64_*_0.dll" if WINDOWS else "*/lib/libnvrtc.so.*"
    for place in wheels.submodule_search_locations or () if wheels else ():
        yield from sorted(map(str, Path(place).glob(pattern)), reverse=True)


def load(path: str) -> Any:
    """Load the library, and before it the one that it looks for by name when it compiles."""
    for companion in Path(path).parent.glob("libnvrtc-builtins.so.*") if Path(path).is_absolute() else ():
        ctypes.CDLL(str(companion))
    return ctypes.CDLL(path)


@lru_cache(maxsize=1)
def nvrtc() -> Nvrtc:
    """The run-time compiler.

    Raises
    ------
    ImportError
        If it is nowhere to be found.
    """
    for path in candidates():
        try:
            return Nvrtc(load(path))
        except (OSError, AttributeError):
            continue
    raise ImportError(
        "CUDA's run-time compiler (NVRTC) was not found: pip install nvidia-cuda-nvrtc, or cupy-cuda13x[ctk]"
    )


class Driver:
    """The CUDA driver, and the kernels loaded into its devices."""

    def __init__(self) -> None:
        self.code: dict[tuple[str, int], bytes] = {}
        self.functions: dict[tuple[str, str, int], c_void_p] = {}
        self.contexts: dict[int, c_void_p] = {}

    @cached_property
    def library(self) -> Any:
        """The driver's library, initialised.

        Raises
        ------
        OSError
            If there is none.
        RuntimeError
            If it finds no device.
        """
        library = ctypes.CDLL("nvcuda.dll" if WINDOWS else "libcuda.so.1")
        self._declare(library)
        if library.cuInit(0):
            raise RuntimeError("the CUDA driver found no device")
        return library

    @staticmethod
    def _declare(library: Any) -> None:
        """Say which arguments are wider than ctypes assumes."""
        library.cuLaunchKernel.argtypes = [c_void_p, *[c_uint] * 7, c_void_p, c_void_p, c_void_p]
        library.cuMemsetD32Async.argtypes = [c_void_p, c_uint, c_size_t, c_void_p]
        library.cuStreamIsCapturing.argtypes = [c_void_p, c_void_p]

    def check(self, status: int) -> None:
        """Raise if a call failed."""
        if status:
            text = c_char_p()
            self.library.cuGetErrorString(status, byref(text))
            raise RuntimeError(f"CUDA: {(text.value or b'unknown error').decode()} ({status})")

    def rejects(self, ordinal: int) -> str | None:
        """Say why kernels cannot be made for a device, or return None."""
        try:
            count, version = c_int(), c_int()
            self.check(self.library.cuDeviceGetCount(byref(count)))
            self.check(self.library.cuDriverGetVersion(byref(version)))
            if ordinal >= count.value:
                return f"there is no CUDA device {ordinal}, the driver sees {count.value}"
            compiler = nvrtc()
            if compiler.version[0] * 1000 > version.value:
                return (
                    f"NVRTC {compiler.version[0]} needs a newer driver than this one, of CUDA {version.value // 1000}"
                )
            if self.capability(ordinal) < compiler.supported[0]:
                return (
                    f"NVRTC {compiler.version[0]} no longer compiles for compute capability {self.capability(ordinal)}"
                )
        except OSError:
            return "there is no CUDA driver (NVIDIA's libcuda) on this machine"
        except (RuntimeError, ImportError) as error:
            return str(error)
        return None

    def capability(self, ordinal: int) -> int:
        """The compute capability of a device, such as 90."""
        device, major, minor = c_int(), c_int(), c_int()
        self.check(self.library.cuDeviceGet(byref(device), ordinal))
        self.check(self.library.cuDeviceGetAttribute(byref(major), MAJOR, device))
        self.check(self.library.cuDeviceGetAttribute(byref(minor), MINOR, device))
        return 10 * major.value + minor.value

    @contextmanager
    def context(self, ordinal: int) -> Iterator[None]:
        """Make a device's primary context current, as the driver's calls want it."""
        if ordinal not in self.contexts:
            device, made = c_int(), c_void_p()
            self.check(self.library.cuDeviceGet(byref(device), ordinal))
            self.check(self.library.cuDevicePrimaryCtxRetain(byref(made), device))
            self.contexts[ordinal] = made
        self.check(self.library.cuCtxPushCurrent_v2(self.contexts[ordinal]))
        try:
            yield
        finally:
            self.check(self.library.cuCtxPopCurrent_v2(byref(c_void_p())))

    def compile(self, source: str) -> None:
        """Compile a source for every device at hand, so that a mistake in it shows before anything is written."""
        count = c_int()
        self.check(self.library.cuDeviceGetCount(byref(count)))
        for ordinal in range(count.value):
            self.compiled(source, self.capability(ordinal))

    def compiled(self, source: str, capability: int) -> bytes:
        """The code of a source, compiled once."""
        key = source, capability
        if key not in self.code:
            self.code[key] = nvrtc().compile(source, capability)
        return self.code[key]

    def kernel(self, source: str, name: str, ordinal: int) -> Any:
        """A kernel of a source, loaded into a device once."""
        key = source, name, ordinal
        if key not in self.functions:
            module, function = c_void_p(), c_void_p()
            with self.context(ordinal):
                self.check(
                    self.library.cuModuleLoadData(byref(module), self.compiled(source, self.capability(ordinal)))
                )
                self.check(self.library.cuModuleGetFunction(byref(function), module, name.encode()))
            self.functions[key] = function
        return self.functions[key]

    def launch(self, kernel: Any, ordinal: int, stream: int, grid: int, arguments: Sequence[Any]) -> None:
        """Launch a kernel on a stream. Its arguments: integers of up to 8 bytes, addresses too; arrays by value."""
        words = (c_int64 * len(arguments))(*[a if isinstance(a, int) else 0 for a in arguments])
        first = ctypes.addressof(words)
        places = [first + 8 * k if isinstance(a, int) else a.ctypes.data for k, a in enumerate(arguments)]
        pointers = (c_void_p * len(places))(*places)
        with self.context(ordinal):
            self.check(self.library.cuLaunchKernel(kernel, grid, 1, 1, BLOCK, 1, 1, 0, stream, pointers, None))

    def zero(self, address: int, size: int, ordinal: int, stream: int) -> None:
        """Set `size` bytes, a multiple of 4, to zero on a stream."""
        with self.context(ordinal):
            self.check(self.library.cuMemsetD32Async(address, 0, size // 4, stream))

    def capturing(self, ordinal: int, stream: int) -> bool:
        """Whether what is put on a stream goes into a CUDA graph instead of being done."""
        status = c_int()
        with self.context(ordinal):
            self.check(self.library.cuStreamIsCapturing(stream, byref(status)))
        return status.value == 1
