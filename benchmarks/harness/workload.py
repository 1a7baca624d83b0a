"""Workloads: the shapes of a model's tensors, what fills them, and the bytes of an update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

__all__ = ["DRAWN", "Shapes", "Table", "Workload", "gpt2", "resnet50"]

Shapes = Sequence[tuple[int, ...]]


#: Bytes of a number.
WIDTHS = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
#: Numbers drawn for a tensor; after so many they repeat.
DRAWN = 1 << 20


@dataclass(frozen=True)
class Workload:
    """Tensors to be updated, and what the update must move beside them."""

    shapes: Shapes
    dtype: str = "float32"  # of parameters and gradients
    state: str | None = None  # dtype of the state, if it is another
    reads: int = 1  # times that a gradient must be read
    average: bool = False  # whether an average of the parameters is kept, as wide as the state
    fresh: bool = False  # whether what is written are new arrays
    stride: int = 1  # every so-manyth number in memory is a parameter, or a gradient; the state lies without gaps
    groups: int = 1  # that an optimizer has the tensors in, equally many in each

    @property
    def elements(self) -> int:
        """Parameters in all tensors together."""
        return sum(map(math.prod, self.shapes))

    @property
    def widths(self) -> tuple[int, int]:
        """Bytes of a parameter and of a number of its state."""
        return WIDTHS[self.dtype], WIDTHS[self.state or self.dtype]

    @property
    def array_bytes(self) -> int:
        """Bytes of the parameters alone, in memory."""
        return self.elements * self.widths[0] * self.stride

    @property
    def held(self) -> int:
        """Bytes of all arrays that a step has: parameters, gradients, two states, an average, new ones."""
        states = self.elements * self.widths[1] * (3 if self.average else 2)
        return 2 * self.array_bytes + states + self.fresh * (self.array_bytes + states)

    @property
    def moved(self) -> int:
        """Bytes that the update must move.

        It reads parameter, gradient and two states, and writes all but the gradient. Memory is moved in lines: what
        lies between numbers is moved with them, and where new arrays are written, their lines are fetched before.
        """
        states = self.elements * self.widths[1] * (3 if self.average else 2)
        return self.reads * self.array_bytes + (3 if self.fresh else 2) * (self.array_bytes + states)

    @property
    def needs(self) -> tuple[str, ...]:
        """Modules without which its numbers cannot be made."""
        return ("ml_dtypes",) * ("bfloat16" in (self.dtype, self.state))

    def facts(self) -> dict[str, Any]:
        """What a `Point` tells of it."""
        facts = {"elements": self.elements, "tensors": len(self.shapes), "groups": self.groups, "moved": self.moved}
        return {**facts, "dtype": self.dtype}

    def params(self) -> list[np.ndarray]:
        """Parameters to start from, in memory of their own; the same at every call."""
        return self._normal(1)

    def grads(self) -> list[np.ndarray]:
        """Gradients, likewise; used for every step."""
        return self._normal(2)

    def grouped(self, arrays: Sequence[Any]) -> list[list[Any]]:
        """Parameters or gradients, in groups."""
        size = len(self.shapes) // self.groups
        return [list(arrays[start : start + size]) for start in range(0, len(arrays), size)]

    def _normal(self, seed: int) -> list[np.ndarray]:
        random, kind = np.random.default_rng(seed), np.float64 if self.dtype == "float64" else np.float32
        if self.needs:
            import ml_dtypes  # noqa: F401 - whose dtypes NumPy knows by name from then on
        arrays = []
        for shape in self.shapes:
            drawn = random.standard_normal(min(math.prod(shape), DRAWN), dtype=kind).astype(self.dtype)
            if self.stride == 1:
                arrays.append(np.resize(drawn, shape))
                continue
            wide = np.zeros((*shape[:-1], shape[-1] * self.stride), drawn.dtype)
            arrays.append(wide[..., :: self.stride])
            arrays[-1][...] = np.resize(drawn, shape)
        return arrays


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
