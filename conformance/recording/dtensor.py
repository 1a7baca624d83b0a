"""Recorder of tf_keras.dtensor.experimental.optimizers.Adadelta, on a 2 × 2 mesh of virtual CPU devices.

Each tensor is split along the first dimensions that 2 divides; the others are kept whole on every device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras
from tensorflow.experimental import dtensor

from ..data.case import Array, Case, Gradient
from ..targets.arguments import keras_options
from .tf_keras import RecordedNew, to_numpy, to_tensor

DEVICES = 4
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * DEVICES
)
MESH = dtensor.create_mesh([("x", 2), ("y", 2)], devices=[f"CPU:{i}" for i in range(DEVICES)])


def _layout(shape: Sequence[int]) -> Any:
    # An empty tensor stays whole: there is nothing to split, and DTensor aborts when gathering it.
    free = ["x", "y"] if 0 not in shape else []
    axes = [free.pop(0) if free and n % 2 == 0 else dtensor.UNSHARDED for n in shape]
    return dtensor.Layout(axes, MESH)


def _spread(tensor: tf.Tensor) -> Any:
    replicated = dtensor.Layout.replicated(MESH, rank=tensor.shape.rank)
    return dtensor.relayout(dtensor.copy_to_mesh(tensor, replicated), _layout(tensor.shape))


def _gathered(values: Any) -> Any:
    tensor = tf.convert_to_tensor(values)
    whole = dtensor.relayout(tensor, dtensor.Layout.replicated(MESH, rank=tensor.shape.rank))
    return dtensor.unpack(whole)[0]


class RecordedDTensor(RecordedNew):
    """The DTensor optimizer with its DVariables."""

    def gradient(self, g: Gradient, i: int) -> Any:
        return None if g is None else _spread(super().gradient(g, i))

    def read(self, arrays: Sequence[Any]) -> list[Array]:
        return [to_numpy(_gathered(array)) for array in arrays]


def make(system: str, case: Case) -> RecordedDTensor:
    """Make the optimizer."""
    c, clock = case.config, [0]
    variables = [dtensor.DVariable(_spread(to_tensor(x, case.dtype))) for x in case.start]
    tf_keras.backend.set_floatx(c.floatx or "float32")
    optimizer = tf_keras.dtensor.experimental.optimizers.Adadelta(
        mesh=MESH, **keras_options(c, tf_keras.optimizers.schedules, clock)
    )
    optimizer.build(variables)
    if c.first_iteration:
        count = tf.constant(c.first_iteration, tf.int64)
        optimizer.iterations.assign(dtensor.copy_to_mesh(count, dtensor.Layout.replicated(MESH, rank=0)))
    return RecordedDTensor(optimizer, variables, tf_keras, case.dtype, clock)
