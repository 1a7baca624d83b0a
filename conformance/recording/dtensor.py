"""Recorder of tf_keras.dtensor.experimental.optimizers.Adadelta, on a 2 × 2 mesh of virtual CPU devices.

Each tensor is split along the first dimensions that 2 divides; the others are kept whole on every device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras
from numpy.typing import NDArray
from tensorflow.experimental import dtensor

from ..data.inputs import Gradient
from ..data.specification import Scenario
from .keras_arguments import arguments
from .tf_keras import to_gradient, to_tensor

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


def _to_numpy(values: Any) -> NDArray[Any]:
    tensor = tf.convert_to_tensor(values)
    whole = dtensor.relayout(tensor, dtensor.Layout.replicated(MESH, rank=tensor.shape.rank))
    piece = dtensor.unpack(whole)[0]
    return (tf.cast(piece, tf.float32) if piece.dtype == tf.bfloat16 else piece).numpy()


class DTensorDriver:
    """The DTensor optimizer with its DVariables."""

    def __init__(self, system: str, scenario: Scenario, start: Sequence[NDArray[Any]]) -> None:
        self.config = c = scenario.config
        self.dtype = scenario.dtype
        self.clock = [0]
        self.variables = [dtensor.DVariable(_spread(to_tensor(x, self.dtype))) for x in start]
        tf_keras.backend.set_floatx(c.floatx or "float32")
        self.optimizer = tf_keras.dtensor.experimental.optimizers.Adadelta(
            mesh=MESH, **arguments(c, tf_keras.optimizers.schedules, self.clock)
        )
        self.optimizer.build(self.variables)
        if c.first_iteration:
            self.optimizer.iterations.assign(
                dtensor.copy_to_mesh(tf.constant(c.first_iteration, tf.int64), dtensor.Layout.replicated(MESH, rank=0))
            )

    def hyperparameters(self) -> dict[str, float | None]:
        """Return lr, rho and eps; lr as the float32 variable that it has become."""
        o = self.optimizer
        return {"lr": float(_to_numpy(o.learning_rate)), "rho": o.rho, "eps": o.epsilon}

    def step(self, step: int, gradients: Sequence[Gradient]) -> float:
        """Apply the gradients; afterwards the optimizer still holds the learning rate it used."""
        self.clock[0] = step
        given = [
            None if g is None else _spread(to_gradient(g, v.shape, self.dtype))
            for g, v in zip(gradients, self.variables, strict=True)
        ]
        self.optimizer.apply_gradients(zip(given, self.variables, strict=True))
        return float(_to_numpy(self.optimizer.learning_rate))

    def snapshot(self) -> Mapping[str, Sequence[Any]]:
        """Return variables, accumulators and averages, gathered from the devices."""
        o = self.optimizer
        shot = {
            "x": [_to_numpy(v) for v in self.variables],
            "square_avg": [_to_numpy(v) for v in o._accumulated_grads],
            "acc_delta": [_to_numpy(v) for v in o._accumulated_delta_vars],
        }
        if self.config.ema_momentum is not None:
            shot["average"] = [_to_numpy(v) for v in o._model_variables_moving_average]
        return shot

    def iterations(self) -> list[int]:
        """Return its one counter."""
        return [int(_to_numpy(self.optimizer.iterations))]

    def finalize(self) -> Sequence[Any] | None:
        """Put the averages into the variables, as Keras does after training."""
        if self.config.ema_momentum is None:
            return None
        self.optimizer.finalize_variable_values(self.variables)
        return [_to_numpy(v) for v in self.variables]


driver = DTensorDriver
