"""Recorder of keras.optimizers.Adadelta (Keras 3), on the backend that KERAS_BACKEND names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from ..data.inputs import Gradient, Sparse
from ..data.specification import Scenario
from .keras_arguments import arguments


def _to_tensor(values: NDArray[Any], dtype: str) -> Any:
    return keras.ops.convert_to_tensor(values, dtype=dtype)


def _to_numpy(values: Any) -> NDArray[Any]:
    values = keras.ops.convert_to_tensor(values)
    if keras.backend.standardize_dtype(values.dtype) == "bfloat16":
        values = keras.ops.cast(values, "float32")
    return np.array(keras.ops.convert_to_numpy(values))


class KerasDriver:
    """keras.optimizers.Adadelta with its variables."""

    def __init__(self, system: str, scenario: Scenario, start: Sequence[NDArray[Any]]) -> None:
        self.config = c = scenario.config
        self.dtype = scenario.dtype
        self.clock = [0]
        keras.config.set_floatx(c.floatx or "float32")
        self.variables = [keras.Variable(_to_tensor(x, self.dtype), dtype=self.dtype) for x in start]
        if c.constraint is not None:
            self.variables[0].constraint = keras.constraints.NonNeg()
        options = arguments(c, keras.optimizers.schedules, self.clock)
        if c.accumulate > 1:
            options["gradient_accumulation_steps"] = c.accumulate
        self.optimizer = keras.optimizers.Adadelta(**options)
        self.optimizer.build(self.variables)
        if c.first_iteration:
            self.optimizer._iterations.assign(c.first_iteration)

    def hyperparameters(self) -> dict[str, float | None]:
        """Return lr, rho and eps; lr as the float32 variable that it has become."""
        o = self.optimizer
        return {"lr": float(_to_numpy(o.learning_rate)), "rho": o.rho, "eps": o.epsilon}

    def _gradient(self, gradient: Gradient, variable: Any) -> Any:
        if isinstance(gradient, Sparse):
            import tensorflow as tf

            shape = tf.constant(list(variable.shape), dtype=tf.int64)
            return tf.IndexedSlices(_to_tensor(gradient.values, self.dtype), tf.constant(gradient.indices), shape)
        return None if gradient is None else _to_tensor(gradient, self.dtype)

    def step(self, step: int, gradients: Sequence[Gradient]) -> float:
        """Apply the gradients; the learning rate is read first, since it moves on with the counter."""
        self.clock[0] = step
        used = float(_to_numpy(self.optimizer.learning_rate))
        given = [self._gradient(g, v) for g, v in zip(gradients, self.variables, strict=True)]
        self.optimizer.apply(given, self.variables)
        return used

    def snapshot(self) -> Mapping[str, Sequence[Any]]:
        """Return variables, accumulators and averages."""
        o = self.optimizer
        shot = {
            "x": [_to_numpy(v.value) for v in self.variables],
            "square_avg": [_to_numpy(v.value) for v in o._accumulated_grads],
            "acc_delta": [_to_numpy(v.value) for v in o._accumulated_delta_vars],
        }
        if self.config.ema_momentum is not None:
            shot["average"] = [_to_numpy(v.value) for v in o._model_variables_moving_average]
        return shot

    def iterations(self) -> list[int]:
        """Return the counter that Keras shows: under accumulation it counts updates."""
        return [int(_to_numpy(self.optimizer.iterations))]

    def finalize(self) -> Sequence[Any] | None:
        """Put the averages into the variables, as Keras does after training."""
        if self.config.ema_momentum is None:
            return None
        self.optimizer.finalize_variable_values(self.variables)
        return [_to_numpy(v.value) for v in self.variables]


driver = KerasDriver
