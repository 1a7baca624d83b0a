"""Recorder of tf_keras.optimizers.Adadelta and of its legacy form, TensorFlow's own up to 2.10."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras
from numpy.typing import NDArray

from ..data.inputs import Gradient, Sparse
from ..data.specification import Scenario
from .keras_arguments import arguments


def to_tensor(values: NDArray[Any], dtype: str) -> tf.Tensor:
    """Return ``values`` as a TensorFlow tensor; bfloat16 comes in float32, exactly."""
    return tf.cast(tf.constant(values), dtype) if dtype == "bfloat16" else tf.constant(values, dtype=dtype)


def to_numpy(values: Any) -> NDArray[Any]:
    """Return a tensor's values; bfloat16 in float32, exactly."""
    tensor = tf.convert_to_tensor(values)
    return (tf.cast(tensor, tf.float32) if tensor.dtype == tf.bfloat16 else tensor).numpy()


def to_gradient(gradient: Gradient, shape: Sequence[int], dtype: str) -> Any:
    """Return a gradient in TensorFlow's terms: tensor, IndexedSlices or None."""
    if isinstance(gradient, Sparse):
        values = to_tensor(gradient.values, dtype)
        return tf.IndexedSlices(values, tf.constant(gradient.indices), tf.constant(list(shape), dtype=tf.int64))
    return None if gradient is None else to_tensor(gradient, dtype)


class LegacyDriver:
    """tf_keras.optimizers.legacy.Adadelta with its variables."""

    def __init__(self, system: str, scenario: Scenario, start: Sequence[NDArray[Any]]) -> None:
        c = scenario.config
        self.dtype = scenario.dtype
        self.clock = [0]
        constraint = tf_keras.constraints.NonNeg() if c.constraint is not None else None
        self.variables = [
            tf.Variable(to_tensor(x, self.dtype), constraint=constraint if i == 0 else None)
            for i, x in enumerate(start)
        ]
        namespace = tf_keras.optimizers.schedules
        self.optimizer = tf_keras.optimizers.legacy.Adadelta(**arguments(c, namespace, self.clock, legacy=True))
        if c.first_iteration:
            self.optimizer.iterations.assign(c.first_iteration)

    def hyperparameters(self) -> dict[str, float | None]:
        """Return lr, rho and eps from its configuration."""
        config = self.optimizer.get_config()
        return {"lr": config["learning_rate"], "rho": config["rho"], "eps": config["epsilon"]}

    def step(self, step: int, gradients: Sequence[Gradient]) -> float:
        """Apply the gradients."""
        self.clock[0] = step
        used = float(to_numpy(self.optimizer._decayed_lr(tf.as_dtype(self.dtype))).real)
        given = [to_gradient(g, v.shape, self.dtype) for g, v in zip(gradients, self.variables, strict=True)]
        self.optimizer.apply_gradients(zip(given, self.variables, strict=True))
        return used

    def snapshot(self) -> Mapping[str, Sequence[Any]]:
        """Return variables and slots; slots that do not exist yet count as zeros."""
        names = self.optimizer.get_slot_names()
        shot = {"x": [to_numpy(v) for v in self.variables]}
        for kind, name in (("square_avg", "accum_grad"), ("acc_delta", "accum_var")):
            shot[kind] = [
                to_numpy(self.optimizer.get_slot(v, name)) if name in names and self._has(v, name)
                else to_numpy(tf.zeros_like(v)) for v in self.variables
            ]  # fmt: skip
        return shot

    def _has(self, variable: tf.Variable, name: str) -> bool:
        try:
            self.optimizer.get_slot(variable, name)
        except KeyError:
            return False
        return True

    def iterations(self) -> list[int]:
        """Return its one counter."""
        return [int(self.optimizer.iterations.numpy())]

    def finalize(self) -> None:
        """Do nothing: it has no such thing."""


class NewDriver:
    """tf_keras.optimizers.Adadelta with its variables."""

    def __init__(self, system: str, scenario: Scenario, start: Sequence[NDArray[Any]]) -> None:
        self.config = c = scenario.config
        self.dtype = scenario.dtype
        self.clock = [0]
        constraint = tf_keras.constraints.NonNeg() if c.constraint is not None else None
        self.variables = [
            tf.Variable(to_tensor(x, self.dtype), constraint=constraint if i == 0 else None)
            for i, x in enumerate(start)
        ]
        tf_keras.backend.set_floatx(c.floatx or "float32")
        self.optimizer = tf_keras.optimizers.Adadelta(**arguments(c, tf_keras.optimizers.schedules, self.clock))
        self.optimizer.build(self.variables)
        if c.first_iteration:
            self.optimizer.iterations.assign(c.first_iteration)

    def hyperparameters(self) -> dict[str, float | None]:
        """Return lr, rho and eps; lr as the float32 variable that it has become."""
        o = self.optimizer
        return {"lr": float(to_numpy(o.learning_rate)), "rho": o.rho, "eps": o.epsilon}

    def step(self, step: int, gradients: Sequence[Gradient]) -> float:
        """Apply the gradients; afterwards the optimizer still holds the learning rate it used."""
        self.clock[0] = step
        given = [to_gradient(g, v.shape, self.dtype) for g, v in zip(gradients, self.variables, strict=True)]
        self.optimizer.apply_gradients(zip(given, self.variables, strict=True))
        return float(to_numpy(self.optimizer.learning_rate))

    def snapshot(self) -> Mapping[str, Sequence[Any]]:
        """Return variables, accumulators and averages."""
        o = self.optimizer
        shot = {
            "x": [to_numpy(v) for v in self.variables],
            "square_avg": [to_numpy(v) for v in o._accumulated_grads],
            "acc_delta": [to_numpy(v) for v in o._accumulated_delta_vars],
        }
        if self.config.ema_momentum is not None:
            shot["average"] = [to_numpy(v) for v in o._model_variables_moving_average]
        return shot

    def iterations(self) -> list[int]:
        """Return its one counter."""
        return [int(to_numpy(self.optimizer.iterations))]

    def finalize(self) -> Sequence[Any] | None:
        """Put the averages into the variables, as Keras does after training."""
        if self.config.ema_momentum is None:
            return None
        self.optimizer.finalize_variable_values(self.variables)
        return [to_numpy(v) for v in self.variables]


def driver(system: str, scenario: Scenario, start: Sequence[NDArray[Any]]) -> LegacyDriver | NewDriver:
    """Make the driver of ``system``."""
    kind = LegacyDriver if system == "tf-keras-legacy" else NewDriver
    return kind(system, scenario, start)
