"""Recorder of tf.compat.v1.train.AdadeltaOptimizer and of the raw operations beneath it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
from numpy.typing import NDArray

from ..data.inputs import Gradient
from ..data.specification import Scenario
from .tf_keras import to_gradient, to_numpy, to_tensor


class V1Driver:
    """tf.compat.v1.train.AdadeltaOptimizer with its variables, run eagerly."""

    def __init__(self, system: str, scenario: Scenario, start: Sequence[NDArray[Any]]) -> None:
        c = scenario.config
        self.dtype = scenario.dtype
        self.variables = [tf.Variable(to_tensor(x, self.dtype)) for x in start]
        hypers = {} if c.defaults else {"learning_rate": c.lr, "rho": c.rho, "epsilon": c.eps}
        self.optimizer = tf.compat.v1.train.AdadeltaOptimizer(**hypers)

    def hyperparameters(self) -> dict[str, float | None]:
        """Return lr, rho and eps as given."""
        o = self.optimizer
        return {"lr": o._lr, "rho": o._rho, "eps": o._epsilon}

    def step(self, step: int, gradients: Sequence[Gradient]) -> float:
        """Apply the gradients."""
        given = [to_gradient(g, v.shape, self.dtype) for g, v in zip(gradients, self.variables, strict=True)]
        self.optimizer.apply_gradients(zip(given, self.variables, strict=True))
        return float(to_numpy(tf.cast(self.optimizer._lr_t, self.dtype)).real)

    def snapshot(self) -> Mapping[str, Sequence[Any]]:
        """Return variables and slots; slots that do not exist yet count as zeros."""
        shot = {"x": [to_numpy(v) for v in self.variables]}
        for kind, name in (("square_avg", "accum"), ("acc_delta", "accum_update")):
            slots = [self.optimizer.get_slot(v, name) for v in self.variables]
            shot[kind] = [
                to_numpy(tf.zeros_like(v) if slot is None else slot)
                for v, slot in zip(self.variables, slots, strict=True)
            ]
        return shot

    def iterations(self) -> list[int]:
        """Return nothing: it counts only if given a global step."""
        return []

    def finalize(self) -> None:
        """Do nothing: it has no such thing."""


class RawDriver:
    """tf.raw_ops.ResourceApplyAdadelta and its sparse form, with hyperparameters of the variables' data type."""

    def __init__(self, system: str, scenario: Scenario, start: Sequence[NDArray[Any]]) -> None:
        c = scenario.config
        self.dtype = scenario.dtype
        self.variables = [tf.Variable(to_tensor(x, self.dtype)) for x in start]
        self.squares = [tf.Variable(tf.zeros_like(v)) for v in self.variables]
        self.deltas = [tf.Variable(tf.zeros_like(v)) for v in self.variables]
        self.lr, self.rho, self.eps = (tf.constant(value, dtype=self.dtype) for value in (c.lr, c.rho, c.eps))

    def hyperparameters(self) -> dict[str, float | None]:
        """Return nothing: the operations have no defaults."""
        return {}

    def step(self, step: int, gradients: Sequence[Gradient]) -> float:
        """Run the operation once for each variable."""
        for var, square, delta, gradient in zip(self.variables, self.squares, self.deltas, gradients, strict=True):
            given = to_gradient(gradient, var.shape, self.dtype)
            common = {
                "var": var.handle, "accum": square.handle, "accum_update": delta.handle,
                "lr": self.lr, "rho": self.rho, "epsilon": self.eps,
            }  # fmt: skip
            if isinstance(given, tf.IndexedSlices):
                tf.raw_ops.ResourceSparseApplyAdadelta(grad=given.values, indices=given.indices, **common)
            else:
                tf.raw_ops.ResourceApplyAdadelta(grad=given, **common)
        return float(to_numpy(self.lr).real)

    def snapshot(self) -> Mapping[str, Sequence[Any]]:
        """Return variables and both accumulators."""
        return {
            "x": [to_numpy(v) for v in self.variables],
            "square_avg": [to_numpy(v) for v in self.squares],
            "acc_delta": [to_numpy(v) for v in self.deltas],
        }

    def iterations(self) -> list[int]:
        """Return nothing: the operations keep no counter."""
        return []

    def finalize(self) -> None:
        """Do nothing: there is no such thing."""


def driver(system: str, scenario: Scenario, start: Sequence[NDArray[Any]]) -> V1Driver | RawDriver:
    """Make the driver of ``system``."""
    kind = RawDriver if system == "tf-raw" else V1Driver
    return kind(system, scenario, start)
