"""One Adadelta for every array library: NumPy, CuPy, PyTorch, JAX, Dask, with the same bits.

>>> import numpy as np
>>> from multiopt import Adadelta
>>> weights = np.ones(3, np.float32)
>>> opt = Adadelta(weights, lr=0.5)
>>> opt.step(np.array([1.0, 0.0, -1.0], np.float32)) is weights
True
"""

from . import functional, schedules
from .adadelta import ADADELTA, Adadelta
from .optimizer import Optimizer
from .rule import Hyper, Rule

__all__ = ["ADADELTA", "Adadelta", "Hyper", "Optimizer", "Rule", "__version__", "functional", "schedules"]
__version__ = "0.1.0"
