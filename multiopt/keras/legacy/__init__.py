"""The optimizers of TensorFlow 2.1 to 2.4, later called ``tf.keras.optimizers.legacy``, on any library's arrays."""

from .adadelta import Adadelta
from .optimizer import Operation, Optimizer

__all__ = ["Adadelta", "Operation", "Optimizer"]
