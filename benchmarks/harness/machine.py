"""What kind of machine this is, and the versions of what runs on it: no names, no paths."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from multiopt.backends import thread_count

__all__ = ["describe", "gpu", "memory"]

DISTRIBUTIONS = "multiopt numpy numba torch jax jaxlib optax keras cupy cupy-cuda12x cupy-cuda13x"


def gpu() -> list[str]:
    """Name, driver and free MiB of the first NVIDIA GPU that this process may use; empty if there is none."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.free", "--format=csv,noheader,nounits"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    command += [] if visible is None else ["-i", visible]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return []
    return lines[0].split(", ") if lines and visible != "" else []


def memory(device: str) -> float:
    """Bytes of memory that can still be had on a device; infinite where nobody says."""
    if device == "cuda":
        free = gpu()[-1]
        return int(free) * 2.0**20 if free.isdecimal() else float("inf")
    kib = _proc("meminfo", "MemAvailable")
    return float("inf") if kib is None else int(kib.split()[0]) * 1024.0


def _proc(file: str, name: str) -> str | None:
    """Find the first value of a name in a file of Linux's ``/proc``."""
    with suppress(OSError):
        for line in Path("/proc", file).read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    return None


def describe(device: str) -> dict[str, str]:
    """Describe the machine's kind and the versions, for the top of a table."""
    processor = _proc("cpuinfo", "model name") or platform.processor() or platform.machine()
    facts = {
        "processor": f"{processor}, {os.cpu_count()} logical cores, {thread_count()} threads used",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    if hasattr(os, "getloadavg"):
        facts["load before"] = f"{os.getloadavg()[0]:.1f}"  # figures taken beside other work are worth little
    if device == "cuda":
        facts["gpu"] = ", driver ".join(gpu()[:2])
    for name in DISTRIBUTIONS.split():
        with suppress(metadata.PackageNotFoundError):
            facts[name] = metadata.version(name)
    return facts
