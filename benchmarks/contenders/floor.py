"""The floor: loops that move the bytes of the update and do next to nothing.

They know no tensors: four flat arrays, as long as all tensors together, on as many threads as multiopt uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any

import numpy as np
from multiopt.backends import thread_count

from ..harness.contender import Running
from ..harness.workload import Workload

__all__ = ["floor"]

#: Elements that a thread takes at a time.
PIECE = 1 << 20


def floor(workload: Workload, more_reads: int = 0) -> Running:
    """Read four arrays and write three; before that, read the gradients `more_reads` times."""
    import numba

    @numba.njit(nogil=True)
    def move(x: Any, g: Any, v: Any, u: Any) -> None:
        for k in range(len(x)):
            t = g[k]
            x[k] += t
            v[k] += t
            u[k] += t

    @numba.njit(nogil=True)
    def read(g: Any, out: Any) -> None:
        # As integers, because the order of a floating-point sum would keep it from being vectorized.
        total = g.dtype.type(0)
        for k in range(len(g)):
            total ^= g[k]
        out[0] ^= total

    n, pool = workload.elements, ThreadPoolExecutor(thread_count())
    # Sums of ones stop growing at 2**24 in float32, so that no infinity is ever met. np.full touches every page.
    x, g, v, u = (np.full(n, value, workload.dtype) for value in (0, 1, 0, 0))
    began = perf_counter()
    pieces = [[a[start : start + PIECE] for a in (x, g, v, u)] for start in range(0, n, PIECE)]
    sink = np.zeros(1, f"i{g.itemsize}")
    reads = [(piece[1].view(sink.dtype), sink) for piece in pieces]

    def on_threads(loop: Callable[..., None], arguments: Sequence[Any]) -> None:
        if len(arguments) == 1:
            loop(*arguments[0])
        else:
            list(pool.map(lambda given: loop(*given), arguments))

    def step() -> None:
        for _ in range(more_reads):
            on_threads(read, reads)
        on_threads(move, pieces)

    return Running(step, lambda: [x, v, u], began)
