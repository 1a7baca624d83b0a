"""Recorder of tf_keras.optimizers.Adadelta and of its legacy form, TensorFlow's own up to 2.10."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from ..data.case import Array, Case, Gradient, Sparse
from ..targets.arguments import keras_options
from ..targets.arrays import Arrays
from ..targets.optimizers import SLOTS, Steps
from .keras_family import RecordedKeras


def to_tensor(values: Array, dtype: str) -> tf.Tensor:
    """Return ``values`` as a TensorFlow tensor; bfloat16 comes in float32, exactly."""
    return tf.cast(tf.constant(values), dtype) if dtype == "bfloat16" else tf.constant(values, dtype=dtype)


def to_numpy(values: Any) -> Array:
    """Return a tensor's values; bfloat16 in float32, exactly."""
    tensor = tf.convert_to_tensor(values)
    return (tf.cast(tensor, tf.float32) if tensor.dtype == tf.bfloat16 else tensor).numpy()


class WithTensors(Steps):
    """An optimizer whose gradients and states are TensorFlow's."""

    variables: list[Any]

    def gradient(self, g: Gradient, i: int) -> Any:
        if not isinstance(g, Sparse):
            return None if g is None else to_tensor(g, self.dtype)
        shape = tf.constant(list(self.variables[i].shape), dtype=tf.int64)
        return tf.IndexedSlices(to_tensor(g.values, self.dtype), tf.constant(g.indices), shape)

    def read(self, arrays: Sequence[Any]) -> list[Array]:
        return [to_numpy(array) for array in arrays]


class WithSlots(WithTensors):
    """One of TensorFlow's optimizers that keep their state in slots of these names; or other variables."""

    names: tuple[str, str]

    def __init__(self, name: str, case: Case, variables: Sequence[Any], optimizer: Any = None) -> None:
        super().__init__(name, case.dtype, Arrays("numpy"))
        self.variables, self.opt = list(variables), optimizer

    def columns(self) -> Mapping[str, Sequence[Any]]:
        names = zip(SLOTS, self.names, strict=True)
        return {"x": self.variables, **{kind: [self._slot(v, name) for v in self.variables] for kind, name in names}}

    def _slot(self, variable: tf.Variable, name: str) -> Any:
        # A slot that does not exist yet counts as zeros.
        with contextlib.suppress(KeyError):
            if (slot := self.opt.get_slot(variable, name)) is not None:
                return slot
        return tf.zeros_like(variable)


class RecordedLegacy(WithSlots):
    """tf_keras.optimizers.legacy.Adadelta with its variables."""

    names = ("accum_grad", "accum_var")

    def __init__(self, case: Case, variables: Sequence[Any], optimizer: Any, clock: list[int]) -> None:
        super().__init__("tf-keras-legacy", case, variables, optimizer)
        self.clock = clock

    def hyperparameters(self) -> dict[str, float | None]:
        config = self.opt.get_config()
        return {"lr": config["learning_rate"], "rho": config["rho"], "eps": config["epsilon"]}

    def update(self, number: int, gradients: list[Any]) -> float:
        self.clock[0] = number
        used = float(to_numpy(self.opt._decayed_lr(tf.as_dtype(self.dtype))).real)
        self.opt.apply_gradients(zip(gradients, self.variables, strict=True))
        return used

    def columns(self) -> Mapping[str, Sequence[Any]]:
        return {**super().columns(), "iterations": [self.opt.iterations]}


class RecordedNew(WithTensors, RecordedKeras):
    """tf_keras.optimizers.Adadelta with its variables."""

    def update(self, number: int, gradients: list[Any]) -> float:
        """Apply the gradients; afterwards the optimizer still holds the learning rate it used."""
        self.clock[0] = number
        self.opt.apply_gradients(zip(gradients, self.variables, strict=True))
        return self.rate()


def make(system: str, case: Case) -> RecordedLegacy | RecordedNew:
    """Make the optimizer of ``system``."""
    c, clock = case.config, [0]
    constraint = tf_keras.constraints.NonNeg() if c.constraint is not None else None
    variables = [
        tf.Variable(to_tensor(x, case.dtype), constraint=None if i else constraint) for i, x in enumerate(case.start)
    ]
    legacy = system == "tf-keras-legacy"
    options = keras_options(c, tf_keras.optimizers.schedules, clock, legacy=legacy)
    if legacy:
        optimizer = tf_keras.optimizers.legacy.Adadelta(**options)
    else:
        tf_keras.backend.set_floatx(c.floatx or "float32")
        optimizer = tf_keras.optimizers.Adadelta(**options)
        optimizer.build(variables)
    if c.first_iteration:
        optimizer.iterations.assign(c.first_iteration)
    if legacy:
        return RecordedLegacy(case, variables, optimizer, clock)
    return RecordedNew(optimizer, variables, tf_keras, case.dtype, clock)
