"""The plan of a launch: which block of threads works on which part of which tensor. Plain data, made without a GPU.

Tensors are cut into chunks of one size, so that a block's share does not depend on the tensors' sizes: a thousand
small tensors and one of three thousand million elements are the same launch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

__all__ = ["BLOCK", "CHUNK", "MOST_BLOCKS", "WORDS", "Plan", "changes", "make_plan"]

#: Threads of a block.
BLOCK = 256
#: Elements of a chunk: 16 a thread. A multiple of every pack, so that a chunk of an aligned array is aligned.
CHUNK = 4096
#: Blocks of a grid; beyond 2**32 elements a block takes several chunks.
MOST_BLOCKS = 1 << 20
#: Words of 8 bytes that fit into the arguments of one launch (4 KiB on every device) beside an address and a count.
WORDS = 500


@dataclass(frozen=True)
class Plan:
    """How the elements of some tensors are shared out."""

    #: Real elements of each tensor, int64.
    sizes: np.ndarray
    #: The chunk with which each begins, int64.
    firsts: np.ndarray
    #: The tensor to which each chunk belongs, int32.
    owners: np.ndarray
    #: Blocks to launch; 0 where there is nothing to do. Block b takes the chunks b, b + grid, b + 2 grid, ...
    grid: int

    @property
    def rows(self) -> np.ndarray:
        """`sizes` and `firsts` one after the other, as the kernels read them."""
        return np.concatenate([self.sizes, self.firsts])


def make_plan(sizes: np.ndarray) -> Plan:
    """Cut tensors of these sizes into chunks."""
    sizes = np.asarray(sizes, np.int64)
    counts = -(-sizes // CHUNK)
    ends = np.cumsum(counts)
    owners = np.repeat(np.arange(len(sizes), dtype=np.int32), counts)
    return Plan(sizes, ends - counts, owners, min(len(owners), MOST_BLOCKS))


def changes(held: np.ndarray, now: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Say what to write so that a table holding `held` holds `now`: places in the flat table, and words for each."""
    for row, (before, after) in enumerate(zip(held, now, strict=True)):
        different = np.flatnonzero(before != after)
        if len(different):
            start, stop = int(different[0]), int(different[-1]) + 1
            yield row * len(after) + start, after[start:stop]
