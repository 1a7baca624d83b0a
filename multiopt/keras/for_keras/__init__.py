"""Our Adadelta as an optimizer of real Keras 3, on each of its backends: TensorFlow, JAX and PyTorch.

Keras is imported when one of these functions is called.
"""

from __future__ import annotations

from typing import Any

__all__ = ["for_keras", "register"]


def for_keras(learning_rate: Any = 0.001, rho: float = 0.95, epsilon: float = 1e-7, **options: Any) -> Any:
    """An optimizer for ``model.compile(optimizer=...)`` of Keras 3.

    On PyTorch the whole update (weight decay, clipping, the rule) is one pass over the model's tensors by our engines.
    On JAX the training step, which Keras traces, holds one call of `multiopt.functional.update` for weight decay,
    clipping by value and the rule. On TensorFlow the rule is traced with the rest of the training step.
    All else is Keras' own: schedules, accumulation of gradients, averages, loss scale, saving; on JAX clipping by
    norm, and on TensorFlow all clipping: norms are exact on PyTorch only. The state has the order and the names of
    ``keras.optimizers.Adadelta``, so that each of the two can continue what the other began. Sparse gradients
    (TensorFlow's ``IndexedSlices``, JAX's ``BCOO``) are taken as dense ones, with repeated rows added up.

    Parameters
    ----------
    learning_rate : float, schedule of Keras or of `multiopt.keras.schedules`, or callable without arguments
    rho : float
        In [0, 1].
    epsilon : float
        At least 0.
    **options
        Those of ``keras.optimizers.Adadelta``: ``weight_decay``, ``clipnorm``, ``use_ema``, ``name`` (by default
        ``adadelta``, ``adadelta_1``, … as Keras numbers its own), …

    Returns
    -------
    keras.optimizers.Optimizer

    Raises
    ------
    ImportError
        If Keras 3 is not installed.
    TypeError, ValueError
        If `rho` or `epsilon` is out of range, or Keras does not accept an option.
    """
    return register()(learning_rate, rho, epsilon, **options)


def register() -> type:
    """Register the class with Keras; needed before ``keras.models.load_model`` loads a model that was saved with it.

    Returns
    -------
    type
        The class, a ``keras.optimizers.Optimizer``, registered as ``"multiopt>Adadelta"``.

    Raises
    ------
    ImportError
        If Keras 3 is not installed.
    """
    try:
        from .adadelta import Adadelta
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("keras", "tensorflow"):
            raise
        raise ImportError(f"for_keras needs Keras 3 and its backend: pip install keras ({error})") from error
    return Adadelta
