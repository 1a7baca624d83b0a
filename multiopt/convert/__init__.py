"""Adadelta's state, moved between frameworks as plain data: what one began, another continues.

`State` is that data: NumPy arrays and numbers. ``State.of(source)`` reads it from an Adadelta of multiopt, PyTorch,
Keras 3 or tf_keras (legacy or not), or from optax' state; ``state.into(target)`` writes it into any of these
optimizers, and returns what goes on: the optimizer, or for optax a new state. The functions do the same for what these
libraries save: PyTorch's ``state_dict``, Keras' lists of weights and configurations, optax' tuples.
No framework is imported unless its objects are given.

==========================  =================================================================================
PyTorch                     ``state[i] = {step, square_avg, acc_delta}``; weight decay is coupled
tf_keras, legacy            iter, every accum_grad, every accum_var; no weight decay
tf_keras                    iteration, averages, then grad, delta of each variable; weight decay is decoupled
Keras 3                     iteration, learning rate (unless scheduled), averages, sums of gradients, grad, delta
optax                       ``ScaleByAdaDeltaState(e_g, e_x)``, and a ``count`` where there is a schedule
==========================  =================================================================================
"""

from . import core, keras, optax, torch
from .keras import (
    from_keras,
    from_tf_keras,
    from_tf_keras_legacy,
    keras_config,
    to_keras,
    to_tf_keras,
    to_tf_keras_legacy,
)
from .optax import from_optax, to_optax
from .state import CONVERTERS, State
from .torch import from_torch, to_torch

__all__ = [
    "State",
    "from_keras",
    "from_optax",
    "from_tf_keras",
    "from_tf_keras_legacy",
    "from_torch",
    "keras_config",
    "to_keras",
    "to_optax",
    "to_tf_keras",
    "to_tf_keras_legacy",
    "to_torch",
]

CONVERTERS[:] = [core.CONVERTER, keras.CONVERTER, torch.CONVERTER, optax.CONVERTER]
