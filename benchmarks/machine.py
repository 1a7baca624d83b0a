"""What kind of machine this is, and the versions of what runs on it: no names, no paths."""

from __future__ import annotations

import ctypes
import os
import platform
from importlib import metadata
from pathlib import Path

from multiopt.backends.engines.host.threads import thread_count

__all__ = ["describe", "gpus", "memory_available", "memory_on_gpu"]

DISTRIBUTIONS = (
    "multiopt",
    "numpy",
    "numba",
    "torch",
    "jax",
    "jaxlib",
    "optax",
    "keras",
    "cupy",
    "cupy-cuda12x",
    "cupy-cuda13x",
)


def _driver() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return None


def gpus() -> list[str]:
    """Name the NVIDIA GPUs that this process sees; the driver itself is asked."""
    cuda, count, name = _driver(), ctypes.c_int(0), ctypes.create_string_buffer(256)
    if cuda is None or cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return []
    found = []
    for i in range(count.value):
        device = ctypes.c_int(0)
        cuda.cuDeviceGet(ctypes.byref(device), i)
        cuda.cuDeviceGetName(name, len(name), device)
        found.append(name.value.decode())
    return found


def newest_cuda() -> str:
    """Ask the driver for the newest CUDA that it serves, such as ``"13.0"``."""
    cuda, version = _driver(), ctypes.c_int(0)
    if cuda is not None:
        cuda.cuDriverGetVersion(ctypes.byref(version))
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def memory_on_gpu() -> float:
    """Ask the driver for the free bytes of the first GPU; what the asking takes is given back at once."""
    cuda, device, context = _driver(), ctypes.c_int(0), ctypes.c_void_p()
    free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
    if cuda is None or cuda.cuInit(0) or cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device):
        return float("inf")
    try:
        if cuda.cuCtxSetCurrent(context) or cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)):
            return float("inf")
        return float(free.value)
    finally:
        cuda.cuDevicePrimaryCtxRelease_v2(device)


def memory_available() -> float:
    """Return how many bytes of memory can still be had; infinite where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    return next((int(line.split()[1]) * 1024.0 for line in lines if line.startswith("MemAvailable:")), float("inf"))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def describe(device: str) -> dict[str, str]:
    """Describe the machine's kind and the versions, for the top of a table."""
    facts = {
        "processor": f"{_processor()}, {os.cpu_count()} logical cores, {thread_count()} threads used",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    if hasattr(os, "getloadavg"):
        facts["load before"] = f"{os.getloadavg()[0]:.1f}"  # figures taken beside other work are worth little
    if device == "cuda":
        facts["gpu"] = f"{gpus()[0]}, driver for CUDA {newest_cuda()}"
    found = {name: _version(name) for name in DISTRIBUTIONS}
    return facts | {name: version for name, version in found.items() if version is not None}
