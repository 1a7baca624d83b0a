"""Recorder of tf.compat.v1.train.AdadeltaOptimizer and of the raw operations beneath it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from ..data.case import Case
from .tf_keras import WithSlots, to_numpy, to_tensor


class RecordedV1(WithSlots):
    """tf.compat.v1.train.AdadeltaOptimizer with its variables, run eagerly. It counts only if given a global step."""

    names = ("accum", "accum_update")

    def hyperparameters(self) -> dict[str, float | None]:
        return {"lr": self.opt._lr, "rho": self.opt._rho, "eps": self.opt._epsilon}

    def update(self, number: int, gradients: list[Any]) -> float:
        self.opt.apply_gradients(zip(gradients, self.variables, strict=True))
        return float(to_numpy(tf.cast(self.opt._lr_t, self.dtype)).real)


class RecordedRaw(WithSlots):
    """tf.raw_ops.ResourceApplyAdadelta and its sparse form, with hyperparameters of the variables' data type."""

    def __init__(self, name: str, case: Case, variables: Sequence[Any]) -> None:
        super().__init__(name, case, variables)
        self.squares, self.deltas = ([tf.Variable(tf.zeros_like(v)) for v in self.variables] for _ in "vu")
        c = case.config
        self.lr, self.rho, self.eps = (tf.constant(value, dtype=self.dtype) for value in (c.lr, c.rho, c.eps))

    def update(self, number: int, gradients: list[Any]) -> float:
        for var, square, delta, g in zip(self.variables, self.squares, self.deltas, gradients, strict=True):
            common = {
                "var": var.handle, "accum": square.handle, "accum_update": delta.handle,
                "lr": self.lr, "rho": self.rho, "epsilon": self.eps,
            }  # fmt: skip
            if isinstance(g, tf.IndexedSlices):
                tf.raw_ops.ResourceSparseApplyAdadelta(grad=g.values, indices=g.indices, **common)
            else:
                tf.raw_ops.ResourceApplyAdadelta(grad=g, **common)
        return float(to_numpy(self.lr).real)

    def columns(self) -> Mapping[str, Sequence[Any]]:
        return {"x": self.variables, "square_avg": self.squares, "acc_delta": self.deltas}


def make(system: str, case: Case) -> WithSlots:
    """Make the optimizer of ``system``."""
    c = case.config
    variables = [tf.Variable(to_tensor(x, case.dtype)) for x in case.start]
    if system == "tf-raw":
        return RecordedRaw(system, case, variables)
    hypers = {} if c.defaults else {"learning_rate": c.lr, "rho": c.rho, "epsilon": c.eps}
    return RecordedV1(system, case, variables, tf.compat.v1.train.AdadeltaOptimizer(**hypers))
