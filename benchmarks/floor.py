"""The floor: loops that move the bytes of the update and do next to nothing.

They know no tensors: four flat arrays, as long as all tensors together. The threads are the host engine's.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np
from multiopt.backends.engines.host.engine import threads

from .contender import Running, wall
from .workload import Workload

__all__ = ["build"]

#: Elements that a thread takes at a time.
PIECE = 1 << 20
#: Below this many elements a second thread costs more than it saves.
SERIAL = 1 << 17


def compiled() -> tuple[Any, Any]:
    """Compile the loop that reads four arrays and writes three, and one that only reads."""
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
        # As integers, because the order of a floating-point sum would keep it from being vectorised.
        total = g.dtype.type(0)
        for k in range(len(g)):
            total ^= g[k]
        out[0] ^= total

    return move, read


def build(workload: Workload, options: dict[str, Any]) -> Running:
    """Set the floor up; ``options["more_reads"]`` is how often the gradients are read once more before."""
    n, more_reads = workload.elements, options.get("more_reads", 0)
    # Sums of ones stop growing at 2**24 in float32, so that no infinity is ever met. np.full touches every page.
    x, g, v, u = (np.full(n, value, workload.dtype) for value in (0, 1, 0, 0))
    began = perf_counter()
    move, read = compiled()
    size = PIECE if n > SERIAL else max(n, 1)
    pieces = [[a[start : start + size] for a in (x, g, v, u)] for start in range(0, n, size)]
    sink = np.zeros(1, f"i{g.itemsize}")
    reads = [piece[1].view(sink.dtype) for piece in pieces]

    def step() -> None:
        for _ in range(more_reads):
            threads.run(lambda bits: read(bits, sink), reads)
        threads.run(lambda piece: move(*piece), pieces)

    return Running(wall(step), step, lambda: [x, v, u], began)
