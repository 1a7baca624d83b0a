"""The class behind `multiopt.keras.for_keras`. This module alone imports Keras; see there for what it does."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import keras

from ..binding import Job, Pass, run
from ..rule import ADADELTA, Hyper
from . import schedules
from .bound import Bound
from .variable import Variable

__all__ = ["Adadelta"]

_NAMES = ("sqrt", "square", "abs", "minimum", "maximum", "clip", "where", "sign", "exp", "log")
#: What a rule may call, from Keras: a namespace that TensorFlow's tensors do not have of their own.
OPS = SimpleNamespace(**{name: getattr(keras.ops, name) for name in _NAMES})
EPSILON = Hyper(1e-7, low=0.0)


@keras.saving.register_keras_serializable(package="multiopt", name="Adadelta")
class Adadelta(keras.optimizers.Optimizer):
    """`multiopt`'s Adadelta as Keras' optimizer; made by `multiopt.keras.for_keras`, which says what it takes."""

    def __init__(
        self,
        learning_rate: Any = 0.001,
        rho: float = 0.95,
        epsilon: float = 1e-7,
        name: str = "adadelta",
        **options: Any,
    ) -> None:
        if isinstance(learning_rate, schedules.LearningRateSchedule):
            learning_rate = keras.optimizers.schedules.deserialize(schedules.serialize(learning_rate))
        rate = float(learning_rate) if isinstance(learning_rate, int) else learning_rate
        super().__init__(learning_rate=rate, name=name, **options)
        self.rho = ADADELTA.hypers["rho"].check("rho", rho)
        self.epsilon = EPSILON.check("epsilon", epsilon)
        self._engines: _Engines | None = None

    def build(self, variables: Sequence[Any]) -> None:
        """Make the accumulators, in the order of Keras' own Adadelta."""
        if self.built:
            return
        for variable in variables:
            if "complex" in keras.backend.standardize_dtype(variable.dtype):
                raise TypeError(f"{variable.path}: expected a real dtype, got {variable.dtype}")
        super().build(variables)
        self._accumulated_grads, self._accumulated_delta_vars = self.add_optimizer_variables(
            variables, ["accumulated_grad", "accumulated_delta_var"]
        )

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update a variable by the rule, in the operations of Keras' backend, which may be tracing them."""
        place = self._get_variable_index(variable)
        targets = variable, self._accumulated_grads[place], self._accumulated_delta_vars[place]
        dtype = keras.backend.standardize_dtype(variable.dtype)
        wide = "float64" if dtype == "float64" else "float32"
        given = (variable, gradient, *targets[1:], learning_rate)
        x, g, v, u, rate = (keras.ops.cast(array, wide) for array in given)
        new = ADADELTA.function(OPS, x, g, v, u, lr=rate, rho=self.rho, eps=self.epsilon)
        for target, value in zip(targets, new, strict=True):
            self.assign(target, keras.ops.cast(value, dtype))

    def get_config(self) -> dict[str, Any]:
        """The options, as Keras writes them."""
        return {**super().get_config(), "rho": self.rho, "epsilon": self.epsilon}

    def _backend_apply_gradients(self, grads: list[Any], trainable_variables: Sequence[Any]) -> None:
        # Before accumulation and clipping, so that rows that occur more than once count as what they add up to.
        super()._backend_apply_gradients([_dense(g) for g in grads], trainable_variables)

    # --- on PyTorch, one pass of our engines does these three ---

    def _clip_gradients(self, grads: list[Any]) -> list[Any]:
        return grads if _on_torch() else super()._clip_gradients(grads)

    def _apply_weight_decay(self, variables: Sequence[Any]) -> None:
        if not _on_torch():
            super()._apply_weight_decay(variables)

    def _backend_update_step(self, grads: list[Any], trainable_variables: Sequence[Any], learning_rate: Any) -> None:
        if not _on_torch():
            super()._backend_update_step(grads, trainable_variables, learning_rate)
            return
        if self._engines is None:
            self._engines = _Engines(self)
        self._engines.step(self, grads, trainable_variables, float(learning_rate))


def _on_torch() -> bool:
    return keras.backend.backend() == "torch"


def _dense(gradient: Any) -> Any:
    """The gradient, with the rows of TensorFlow's ``IndexedSlices`` added up in their places."""
    if type(gradient).__name__ != "IndexedSlices":
        return gradient
    import tensorflow as tf

    return tf.convert_to_tensor(gradient)


def _positive(bound: float | None) -> float | None:
    """A bound for clipping; Keras takes 0 and less for none."""
    return bound if bound and bound > 0 else None


class _Engines:
    """The model's tensors and their accumulators, in buckets."""

    def __init__(self, opt: Adadelta) -> None:
        self.updates: list[tuple[bool, Bound]] = []
        self.boxes: list[tuple[Variable, Any]] = []
        columns = (opt._trainable_variables, opt._accumulated_grads, opt._accumulated_delta_vars)
        for decayed in (True, False):
            places = [
                i
                for i, (v, held) in enumerate(zip(columns[0], columns[1], strict=True))
                if held is not None and opt._use_weight_decay(v) is decayed
            ]
            if places:
                own = [[self._box(column[i]) for i in places] for column in columns]
                slots = dict(zip(ADADELTA.slots, own[1:], strict=True))
                self.updates.append((decayed, Bound(ADADELTA, own[0], slots, places, "auto")))

    def _box(self, variable: Any) -> Variable:
        tensor = variable.value
        made = Variable(tensor, trainable=tensor.requires_grad, name=variable.path)
        self.boxes.append((made, variable))
        return made

    def step(self, opt: Adadelta, grads: Sequence[Any], variables: Sequence[Any], rate: float) -> None:
        """Decay, clip and update, for the variables that have a gradient."""
        for box, variable in self.boxes:
            if box.value is not variable.value:
                box.value = variable.value
        given: list[Any] = [None] * len(opt._trainable_variables)
        for g, variable in zip(grads, variables, strict=True):
            given[opt._get_variable_index(variable)] = g.to(variable.value.dtype)
        own, total, value = (_positive(bound) for bound in (opt.clipnorm, opt.global_clipnorm, opt.clipvalue))
        values = {
            "lr": rate,
            "rho": opt.rho,
            "eps": opt.epsilon,
            "weight_decay": opt.weight_decay,
            "clip_value": value,
        }
        jobs: list[Job] = []
        for decayed, bound in self.updates:
            one_pass = Pass(
                ADADELTA,
                clipped=value is not None,
                normed=own is not None or total is not None,
                decoupled=decayed and bool(opt.weight_decay),
            )
            jobs += bound.jobs(one_pass, given, values, own)
        run(jobs, total)
