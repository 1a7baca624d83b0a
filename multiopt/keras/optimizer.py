"""The later optimizer API of Keras: `tf.keras.dtensor.experimental.optimizers.Adadelta`, and what Keras 3 added.

Where tf_keras, whose class that is, and Keras 3 differ, the document decides:

- An average of the weights starts at the weights before the first step (Keras 3: after it), and moves with every call
  for every variable (tf_keras: only for those that have a gradient).
- `learning_rate` shows what the last step used, if it is a schedule (Keras 3: what the next one will use).
- `clipvalue` and a norm may both be set: then values are clipped first (tf_keras forgets `clipvalue`, Keras 3 refuses).
  A bound that is not positive is refused (both ignore it).
- `apply_gradients` returns None (both return the iterations), and does nothing for an empty list.
- An unknown variable is a `KeyError`, as in tf_keras (Keras 3: ValueError).

What the real systems do otherwise than their documents say: tf_keras' DTensor optimizer never moves its averages, and
`finalize_variable_values` then restores the initial weights; it calls a callable learning rate only once; both
round the learning rate to float32. None of that is so here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import functional
from ..backends.protocol import Array
from ..options import WEIGHT_DECAY
from ..rule import ADADELTA, Hyper
from .base import Optimizer
from .fused import Fused
from .variable import Variable

__all__ = ["Adadelta", "Optimizer"]

#: As Keras, this accepts 0, with which nothing moves.
EPSILON = Hyper(1e-7, low=0.0)


class Adadelta(Optimizer):
    """Adadelta with the arguments of Keras: ``x = x - learning_rate * sqrt(u + epsilon) / sqrt(v + epsilon) * g``.

    See `multiopt.Adadelta` for the formula, and this module for where tf_keras and Keras 3 differ.

    Parameters
    ----------
    learning_rate : float, schedule, or callable without arguments
        Adadelta tends to benefit from higher values than other optimizers: the paper's form has 1.0.
    rho : float or 0-d array
        Decay of the accumulators, in [0, 1].
    epsilon : float
        Added under the roots, at least 0.
    weight_decay, clipnorm, clipvalue, global_clipnorm, use_ema, ema_momentum, ema_overwrite_frequency, jit_compile
        See `Optimizer`.
    name : str
        The optimizer's name.
    loss_scale_factor, gradient_accumulation_steps, mesh
        See `Optimizer`.
    **kwargs
        See `Optimizer`.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        rho: Any = 0.95,
        epsilon: Any = 1e-7,
        weight_decay: float | None = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        jit_compile: bool = True,
        name: str = "Adadelta",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            learning_rate,
            name,
            weight_decay,
            clipnorm,
            clipvalue,
            global_clipnorm,
            use_ema,
            ema_momentum,
            ema_overwrite_frequency,
            jit_compile,
            **kwargs,
        )
        self.rho = rho
        self.epsilon = epsilon
        self._hypers()
        self._fused: Fused | None = None

    def _hypers(self) -> dict[str, float]:
        """The rule's hyperparameters but the learning rate, checked: they may have been assigned."""
        return {
            "rho": ADADELTA.hypers["rho"].check("rho", self.rho),
            "eps": EPSILON.check("epsilon", self.epsilon),
        }

    def build(self, var_list: Sequence[Any]) -> None:
        """Make the accumulators; see `Optimizer.build`."""
        if self.built:
            return
        super().build(var_list)
        self._accumulated_grads: list[Variable] = []
        self._accumulated_delta_vars: list[Variable] = []
        for box in self._trainable_variables:
            self._accumulated_grads.append(self.add_variable_from_reference(box, "accumulated_grad"))
            self._accumulated_delta_vars.append(self.add_variable_from_reference(box, "accumulated_delta_var"))

    def _step(self, grads: Sequence[Array | None], rate: Any, count: Any) -> None:
        if type(self).update_step is not Adadelta.update_step:
            super()._step(grads, rate, count)
            return
        decay = 0.0 if self.weight_decay is None else WEIGHT_DECAY.check("weight_decay", self.weight_decay)
        values = {"lr": rate, **self._hypers(), "weight_decay": decay, "scale": self._scale(), "step": count}
        if self._fused is None:
            self._fused = Fused(self)
        self._fused.step(self, grads, {**values, "clip_value": self.clipvalue}, count)
        self._rate.used = rate

    def update_step(self, gradient: Array, variable: Variable, learning_rate: Any = None) -> None:
        """Update a variable and its accumulators, given its gradient; see `Optimizer.update_step`.

        A subclass that overrides this may call it. `learning_rate` is that of this step if it is None.
        """
        place, hypers = self._get_variable_index(variable), self._hypers()
        slots = {
            "square_avg": self._accumulated_grads[place],
            "acc_delta": self._accumulated_delta_vars[place],
        }
        state = functional.State(0, {name: slot.value for name, slot in slots.items()})
        rate = self._rate.at(int(self._iterations.value)) if learning_rate is None else learning_rate
        new, state = functional.update(variable.value, gradient, state, lr=rate, rho=hypers["rho"], eps=hypers["eps"])
        variable.assign(new)
        for name, slot in slots.items():
            slot.assign(state.slots[name])

    def get_config(self) -> dict[str, Any]:
        """The options, as plain data."""
        hypers = self._hypers()
        return {**super().get_config(), "rho": hypers["rho"], "epsilon": hypers["eps"]}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the buckets."""
        return {**super().__getstate__(), "_fused": None}
