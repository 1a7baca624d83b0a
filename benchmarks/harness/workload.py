"""Workloads: the shapes of a model's tensors, what fills them, and the bytes of an update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

__all__ = ["Shapes", "Table", "Workload", "gpt2", "resnet50"]

Shapes = Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class Workload:
    """Tensors to be updated, of float32 or float64."""

    shapes: Shapes
    dtype: str = "float32"

    @property
    def elements(self) -> int:
        """Parameters in all tensors together."""
        return sum(map(math.prod, self.shapes))

    @property
    def array_bytes(self) -> int:
        """Bytes of the parameters alone."""
        return self.elements * np.dtype(self.dtype).itemsize

    @property
    def moved(self) -> int:
        """Bytes that the update must move: it reads parameter, gradient and two states, and writes three of them."""
        return 7 * self.array_bytes

    def facts(self) -> dict[str, Any]:
        """What a `Point` tells of it."""
        return {"elements": self.elements, "tensors": len(self.shapes), "moved": self.moved, "dtype": self.dtype}

    def params(self) -> list[np.ndarray]:
        """Parameters to start from, in memory of their own; the same at every call."""
        return self._normal(1)

    def grads(self) -> list[np.ndarray]:
        """Gradients, likewise; used for every step."""
        return self._normal(2)

    def _normal(self, seed: int) -> list[np.ndarray]:
        random, dtype = np.random.default_rng(seed), np.dtype(self.dtype)
        return [random.standard_normal(shape, dtype=dtype) for shape in self.shapes]


@dataclass(frozen=True)
class Table(Workload):
    """One table, whose gradient has some of its rows: other ones in each turn, so that they are not in the cache."""

    rows: int = 1

    @property
    def moved(self) -> int:
        """Bytes that the update must move: as of any tensor, of these rows."""
        return 7 * self.array_bytes // self.shapes[0][0] * self.rows

    def grads(self) -> list[np.ndarray]:
        """The gradient of the rows of a turn; used for every step."""
        return replace(self, shapes=[(self.rows, *self.shapes[0][1:])])._normal(2)

    def turns(self) -> np.ndarray:
        """Row numbers, a row a turn; no row of the table occurs twice, and most of it does not occur at all."""
        total = self.shapes[0][0]
        turns = min(64, total // self.rows)
        return np.random.default_rng(3).permutation(total)[: turns * self.rows].reshape(turns, self.rows)


def gpt2() -> Shapes:
    """List the 148 tensors of GPT-2 small, 124 M parameters: embeddings, 12 blocks, a normalization."""
    width = 768
    block = [(width,), (width,), (width, 3 * width), (3 * width,), (width, width), (width,)]
    block += [(width,), (width,), (width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [(50257, width), (1024, width), *(block * 12), (width,), (width,)]


def resnet50() -> Shapes:
    """List the 161 tensors of ResNet-50, 25.6 M parameters: normalized convolutions and the last layer."""
    shapes: list[tuple[int, ...]] = []

    def convolution(channels_out: int, channels_in: int, size: int) -> None:
        shapes.extend([(channels_out, channels_in, size, size), (channels_out,), (channels_out,)])

    convolution(64, 3, 7)
    channels = 64
    for width, count in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(count):
            convolution(width, channels, 1)
            convolution(width, width, 3)
            convolution(4 * width, width, 1)
            if block == 0:
                convolution(4 * width, channels, 1)
            channels = 4 * width
    return [*shapes, (1000, 2048), (1000,)]
