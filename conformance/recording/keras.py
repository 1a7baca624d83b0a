"""Recorder of keras.optimizers.Adadelta (Keras 3), on the backend that KERAS_BACKEND names."""

from __future__ import annotations

from typing import Any

import keras

from ..data.case import Case, Gradient, Sparse
from ..targets.arguments import keras_options
from .keras_family import RecordedKeras


class RecordedKeras3(RecordedKeras):
    """keras.optimizers.Adadelta with its variables."""

    def gradient(self, g: Gradient, i: int) -> Any:
        if isinstance(g, Sparse):
            import tensorflow as tf

            shape = tf.constant(list(self.variables[i].shape), dtype=tf.int64)
            return tf.IndexedSlices(super().gradient(g.values, i), tf.constant(g.indices), shape)
        return super().gradient(g, i)

    def update(self, number: int, gradients: list[Any]) -> float:
        """Apply the gradients; the learning rate is read first, since it moves on with the counter."""
        self.clock[0] = number
        used = self.rate()
        self.opt.apply(gradients, self.variables)
        return used


def make(system: str, case: Case) -> RecordedKeras3:
    """Make the optimizer."""
    c, clock = case.config, [0]
    keras.config.set_floatx(c.floatx or "float32")
    tensors = [keras.ops.convert_to_tensor(x, dtype=case.dtype) for x in case.start]
    variables = [keras.Variable(tensor, dtype=case.dtype) for tensor in tensors]
    if c.constraint is not None:
        variables[0].constraint = keras.constraints.NonNeg()
    options = keras_options(c, keras.optimizers.schedules, clock)
    if c.accumulate > 1:
        options["gradient_accumulation_steps"] = c.accumulate
    optimizer = keras.optimizers.Adadelta(**options)
    optimizer.build(variables)
    if c.first_iteration:
        optimizer._iterations.assign(c.first_iteration)
    return RecordedKeras3(optimizer, variables, keras, case.dtype, clock)
