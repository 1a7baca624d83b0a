"""Threads for kernels that release the GIL: the caller does its share, and a fork leaves nothing behind.

Numba's own threading layers abort on concurrent calls (workqueue) or are terminated in a forked child (GNU OpenMP);
a pool of our own has neither trap and was as fast when measured.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

__all__ = ["run", "thread_count"]

Piece = TypeVar("Piece")
_pool: ThreadPoolExecutor | None = None


def thread_count() -> int:
    """Threads a step may use: ``MULTIOPT_NUM_THREADS``, else the processors that this process may use.

    Raises
    ------
    ValueError
        If the variable is set to something that is not a positive integer.
    """
    text = os.environ.get("MULTIOPT_NUM_THREADS")
    if not text:
        affinity = getattr(os, "sched_getaffinity", None)
        return len(affinity(0)) if affinity else os.cpu_count() or 1
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"MULTIOPT_NUM_THREADS: expected a positive integer, got {text!r}")
    return int(text)


def run(kernel: Callable[[Piece], Any], pieces: Sequence[Piece]) -> None:
    """Call `kernel` once on each piece, from as many threads as are allowed; return when all are done."""
    count = min(thread_count(), len(pieces))
    if count <= 1:
        for piece in pieces:
            kernel(piece)
        return
    ticket = itertools.count()  # next() on it is atomic: whoever is free takes the next piece

    def work() -> None:
        while (index := next(ticket)) < len(pieces):
            kernel(pieces[index])

    helpers: list[Future[None]] = []
    try:
        # Where no thread can be had any more, as when the interpreter ends, the caller does it all.
        with suppress(RuntimeError):
            helpers += (_executor(count - 1).submit(work) for _ in range(count - 1))
        work()
    finally:
        for helper in helpers:
            # One that has not started found no free thread, and nothing is left for it to do.
            if not helper.cancel():
                helper.result()


def _executor(size: int) -> ThreadPoolExecutor:
    global _pool
    if _pool is None or _pool._max_workers < size:
        # An older, smaller pool ends by itself once whoever uses it lets go.
        _pool = ThreadPoolExecutor(size, thread_name_prefix="multiopt")
    return _pool


def _forget() -> None:
    global _pool
    _pool = None  # a forked child has the object but not its threads


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
