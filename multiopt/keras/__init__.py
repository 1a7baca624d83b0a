"""The optimizer API of TensorFlow and Keras, on NumPy, CuPy, PyTorch and JAX arrays, without TensorFlow.

`Adadelta` and `Optimizer` are those of Keras 3, of tf_keras and of DTensor; `legacy` has those of TensorFlow 2.1 to
2.4, `distribute` replicas, and `schedules` learning rates. `for_keras` makes an optimizer for real Keras 3.
"""

from . import distribute, legacy, schedules
from .for_keras import for_keras
from .later.adadelta import Adadelta
from .later.optimizer import Optimizer
from .serialization import deserialize, get, serialize
from .variables.differentiate import GradientTape
from .variables.slices import IndexedSlices, take
from .variables.variable import Variable

__all__ = [
    "Adadelta",
    "GradientTape",
    "IndexedSlices",
    "Optimizer",
    "Variable",
    "deserialize",
    "distribute",
    "for_keras",
    "get",
    "legacy",
    "schedules",
    "serialize",
    "take",
]
