"""The floor: loops that move the bytes of a workload's update and do next to nothing.

They know no tensors: flat arrays, as long as all tensors together, on as many threads as multiopt uses. Numbers are
unsigned integers of the width of the workload's own, which wrap and are never infinite.
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


def floor(workload: Workload, new: str = "numpy") -> Running:
    """Read parameters, gradients and two states, and write all but the gradients; and what else the workload says.

    `new` is the library whose memory new arrays lie in, where the workload asks for new ones.
    """
    import numba

    stride = workload.stride

    @numba.njit(nogil=True)
    def read(g: Any, sink: Any) -> None:
        total = g.dtype.type(0)
        for k in range(len(g)):
            total ^= g[k]
        sink[0] ^= total

    @numba.njit(nogil=True)
    def move(x: Any, g: Any, v: Any, u: Any) -> None:
        one = v.dtype.type(1)
        for k in range(len(v)):
            x[stride * k] += g[stride * k]
            v[k] += one
            u[k] += one

    @numba.njit(nogil=True)
    def average(x: Any, g: Any, v: Any, u: Any, a: Any) -> None:
        one = v.dtype.type(1)
        for k in range(len(v)):
            x[k] += g[k]
            v[k] += one
            u[k] += one
            a[k] += g[k]

    @numba.njit(nogil=True)
    def renew(x: Any, g: Any, v: Any, u: Any, y: Any, w: Any, z: Any) -> None:
        one = v.dtype.type(1)
        for k in range(len(v)):
            y[k] = x[k] + g[k]
            w[k] = v[k] + one
            z[k] = u[k] + one

    n, pool = workload.elements, ThreadPoolExecutor(thread_count())
    own, state = (f"u{width}" for width in workload.widths)
    # np.full touches every page.
    x, g = (np.full(n * stride, value, own) for value in (0, 1))
    held = [x, *(np.full(n, 0, state) for _ in range(3 if workload.average else 2))]
    sink = np.zeros(1, own)
    began = perf_counter()

    def pieces(*arrays: np.ndarray) -> list[list[np.ndarray]]:
        steps = [PIECE * (len(a) // n) for a in arrays]
        return [
            [a[i * step : (i + 1) * step] for a, step in zip(arrays, steps, strict=True)] for i in range(-(-n // PIECE))
        ]

    def on_threads(loop: Callable[..., None], arguments: Sequence[Sequence[Any]]) -> None:
        if len(arguments) == 1:
            loop(*arguments[0])
        else:
            list(pool.map(lambda given: loop(*given), arguments))

    def empty(like: np.ndarray) -> np.ndarray:
        if new == "numpy":
            return np.empty_like(like)
        import torch

        return torch.empty(like.nbytes, dtype=torch.uint8).numpy().view(like.dtype)

    reads = [(piece, sink) for (piece,) in pieces(g)] * (workload.reads - 1)
    loop, moves = average if workload.average else move, pieces(held[0], g, *held[1:])

    def step() -> None:
        if reads:
            on_threads(read, reads)
        on_threads(loop, moves)

    def step_anew() -> None:
        made = [empty(a) for a in held]
        on_threads(renew, pieces(held[0], g, *held[1:], *made))
        held[:] = made

    return Running(step_anew if workload.fresh else step, lambda: [held[0][::stride], *held[1:]], began)
