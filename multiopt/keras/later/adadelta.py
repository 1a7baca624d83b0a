"""Adadelta of the later API: `tf.keras.dtensor.experimental.optimizers.Adadelta`, and what Keras 3 added.

Where tf_keras, whose class that is, and Keras 3 differ, its documentation decides:

- An average of the weights starts at the weights before the first step (Keras 3: after it), and moves with every call
  for every variable (tf_keras: only for those that have a gradient).
- If it is a schedule, `learning_rate` shows what the last step used (Keras 3: what the next one will use).
- `clipvalue` and a norm may both be set: values are clipped first (tf_keras ignores `clipvalue`, Keras 3 raises).
  A threshold that is not positive raises (both ignore it).
- `apply_gradients` returns None (both return the iterations), and does nothing for an empty list.
- An unknown variable is a `KeyError`, as in tf_keras (Keras 3: ValueError).
- `lr=` is ignored with a warning and ``decay=`` is a ValueError, as in tf_keras (Keras 3: the other way round); `lr` as
  an attribute, a call of `variables`, and `iterations` that are set are tf_keras', too, but `variables` has the new
  iterations then (tf_keras: the old ones).
- Where the loss does not depend on a variable, its gradient is None on JAX, too, and the variable is left as it is
  (Keras 3 on JAX: zeros, by which state and variable decay; so in `for_keras`, where JAX' gradients are Keras').
- With `gradient_accumulation_steps`, a variable without a gradient in the last of the calls is updated by what came in
  the others (Keras 3 on TensorFlow and PyTorch forgets that, on JAX adds it to the next update).
- `apply_gradients` sums over threads (`multiopt.keras.distribute.Replicas`), not over processes, in which gradients
  have been reduced already or are those of the whole batch (tf_keras: over all that its strategy spans).
- A learning rate that Keras 3 has written as a lambda's bytecode is not run, but refused (Keras 3: after
  ``enable_unsafe_deserialization``); a function is looked up by its name.

Where the real systems deviate from their documentation, this class does not: tf_keras' DTensor optimizer never updates
its averages, so that `finalize_variable_values` restores the initial weights, and calls a callable learning rate only
once; both systems round the learning rate to float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from ... import functional
from ...adadelta import ADADELTA
from ...backends.generic import Array
from ..binding import EPSILON, KERAS_ADADELTA, AdadeltaStep
from ..variables.variable import Variable
from .optimizer import Optimizer
from .state import unchanged_by_errors

__all__ = ["Adadelta"]


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
    weight_decay, clipnorm, …, **kwargs
        See `Optimizer`.
    """

    option_checks: ClassVar[Mapping[str, Callable[[str, Any], Any]]] = {
        **Optimizer.option_checks,
        "rho": ADADELTA.hypers["rho"].check,
        "epsilon": EPSILON.check,
    }

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
        averages = use_ema, ema_momentum, ema_overwrite_frequency
        clips = clipnorm, clipvalue, global_clipnorm
        super().__init__(learning_rate, name, weight_decay, *clips, *averages, jit_compile, **kwargs)
        self.rho = rho
        self.epsilon = epsilon
        self._steps: AdadeltaStep | None = None

    def _hypers(self) -> dict[str, Any]:
        """The rule's hyperparameters except the learning rate."""
        return {"rho": self.rho, "eps": self.epsilon}

    def build(self, var_list: Sequence[Any]) -> None:
        """Create the accumulators; see `Optimizer.build`."""
        if self.built:
            return
        with unchanged_by_errors(self):
            super().build(var_list)
            names = "accumulated_grad", "accumulated_delta_var"
            rows = [[self.add_variable_from_reference(v, name) for name in names] for v in self._trainable_variables]
            self._accumulated_grads, self._accumulated_delta_vars = map(list, zip(*rows, strict=True))

    def _adadelta_step(self) -> AdadeltaStep:
        if self._steps is None:
            decayed = [self._use_weight_decay(variable) for variable in self._trainable_variables]
            columns = self._trainable_variables, self._accumulated_grads, self._accumulated_delta_vars
            self._steps = AdadeltaStep(columns, decayed, self._engine())
        return self._steps

    def _values(self, rate: Any) -> dict[str, Any]:
        options = {"weight_decay": self.weight_decay or 0.0, "scale": self._scale(), "clip_value": self.clipvalue}
        return {"lr": rate, **self._hypers(), **options}

    def _is_fused(self, traced: bool) -> bool:
        """Whether a step is one pass over memory; else `update_step` is called for each variable."""
        return type(self).update_step is Adadelta.update_step and not traced

    def _check_update(self, grads: Sequence[Array | None], rate: Any, traced: bool) -> None:
        if self._is_fused(traced):
            values = self._values(rate)
            self._adadelta_step().plan(grads, lambda variable: values, self.clipnorm, self.global_clipnorm)

    def _update(self, grads: Sequence[Array | None], rate: Any, traced: bool) -> None:
        if not self._is_fused(traced):
            super()._update(grads, rate, traced)
            return
        values = self._values(rate)
        self._adadelta_step().step(grads, lambda variable: values, self.clipnorm, self.global_clipnorm)
        self._rate.used = rate

    def update_step(self, gradient: Array, variable: Variable, learning_rate: Any = None) -> None:
        """Update a variable and its accumulators, given its gradient; see `Optimizer.update_step`.

        Subclasses that override this may call it. None stands for the learning rate of this step.
        """
        place, hypers = self._get_variable_index(variable), self._hypers()
        slots = {"square_avg": self._accumulated_grads[place], "acc_delta": self._accumulated_delta_vars[place]}
        state = functional.State(0, {name: slot.value for name, slot in slots.items()})
        rate = self._rate.at(int(self._iterations.value)) if learning_rate is None else learning_rate
        new, state = functional.update(variable.value, gradient, state, rule=KERAS_ADADELTA, lr=rate, **hypers)
        variable.assign(new)
        for name, slot in slots.items():
            slot.assign(state.slots[name])

    def get_config(self) -> dict[str, Any]:
        """The options, as plain data."""
        return {**super().get_config(), "rho": self.rho, "epsilon": self.epsilon}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what can be made again."""
        return {**super().__getstate__(), "_steps": None}
