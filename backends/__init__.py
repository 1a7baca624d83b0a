"""Array libraries and engines: which backend serves an array, and what computes on it."""

from .engines.host.threads import thread_count
from .generic import Backend, CudaMemory, HostMemory
from .registry import ENGINES, Library, engine, engine_for, get, libraries, of, register

__all__ = [
    "ENGINES",
    "Backend",
    "CudaMemory",
    "HostMemory",
    "Library",
    "engine",
    "engine_for",
    "get",
    "libraries",
    "of",
    "register",
    "thread_count",
]
