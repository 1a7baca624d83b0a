"""What is asked of an optimizer: options, initial parameters and gradients."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .rates import update_rate
from .specification import Config

Array = NDArray[Any]


@dataclass(frozen=True)
class Sparse:
    """Rows of a gradient: ``values[i]`` belongs to row ``indices[i]``; a row may occur more than once."""

    indices: NDArray[np.int64]
    values: Array


Gradient = Array | Sparse | None


@dataclass(frozen=True, eq=False)
class Case:
    """What is asked of an optimizer, in the scenario of this name or in none.

    ``start`` are the initial parameters, the tensors ``p0``, ``p1``, …; ``gradients`` come by step and tensor, and are
    empty where they are not known. ``rates``, one for each update, take the place of the learning rates of ``config``.
    """

    scenario: str
    dtype: str
    config: Config
    start: Sequence[Array]
    gradients: Sequence[Sequence[Gradient]]
    about: str = ""
    rates: tuple[float, ...] | None = None

    @property
    def steps(self) -> int:
        """Number of gradients for each tensor."""
        return len(self.gradients)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the tensors."""
        return tuple(tuple(values.shape) for values in self.start)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors."""
        return tuple(f"p{i}" for i in range(len(self.start)))

    @property
    def missing(self) -> tuple[tuple[int, int], ...]:
        """Step and tensor of each gradient that is None."""
        return tuple((t, i) for t, row in enumerate(self.gradients) for i, g in enumerate(row) if g is None)

    @property
    def is_sparse(self) -> bool:
        """Whether the first tensor's gradients are sparse."""
        return "gradient.rows/p0" in self.inputs

    @cached_property
    def inputs(self) -> Mapping[str, Array]:
        """The gradients as a trace file holds them, by ``"KIND/TENSOR"``; zeros where they are None."""
        arrays: dict[str, Array] = {}
        for i, initial in enumerate(self.start if self.gradients else ()):
            column = [row[i] for row in self.gradients]
            sparse = [g for g in column if isinstance(g, Sparse)]
            if not sparse:
                dense = [np.zeros_like(initial) if g is None else np.asarray(g) for g in column]
                arrays[f"gradient/p{i}"] = np.stack(dense)
                continue
            if len(sparse) != len(column):
                raise ValueError(f"tensor p{i}: expected sparse gradients at every step or at none")
            arrays[f"gradient.rows/p{i}"] = np.concatenate([g.indices for g in sparse])
            arrays[f"gradient.values/p{i}"] = np.concatenate([g.values for g in sparse])
            arrays[f"gradient.starts/p{i}"] = np.cumsum([0, *(len(g.indices) for g in sparse)], dtype=np.int64)
        return arrays

    @cached_property
    def key(self) -> str:
        """A hash of all that is asked."""
        sha = hashlib.sha256(repr((self.dtype, self.config, self.rates, self.missing)).encode())
        for name in sorted(self.inputs):
            sha.update(name.encode() + self.inputs[name].tobytes())
        for values in self.start:
            sha.update(repr(values.shape).encode() + values.tobytes())
        return sha.hexdigest()

    def rate(self, update: int) -> float:
        """Return the learning rate of an update, counted from 0: of `rates`, or by the published formulas."""
        rate = update_rate(self.config, update) if self.rates is None else self.rates[update]
        return 1.0 if rate is None else rate

    def update_rates(self) -> list[float]:
        """Return the learning rate of every update."""
        return [self.rate(update) for update in range(-(-self.steps // self.config.accumulate))]

    def first(self, steps: int) -> Case:
        """Return the case with no more than this many of its steps."""
        return self if self.steps <= steps else replace(self, gradients=self.gradients[:steps])

    def with_options(self, **options: object) -> Case:
        """Return the case with other options."""
        return replace(self, config=replace(self.config, **options))  # type: ignore[arg-type]

    def published(self) -> Case:
        """Return the case without the options that only some frameworks have: defaults of their own, and floatx."""
        return self.with_options(defaults=False, floatx=None)
