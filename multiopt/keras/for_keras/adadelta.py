"""The class behind `multiopt.keras.for_keras`. Only this module imports Keras."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import keras

from ... import functional
from ...adadelta import ADADELTA
from ...lock import Lock, locked
from .. import schedules
from ..binding import EPSILON, KERAS_ADADELTA, AdadeltaStep
from ..variables.variable import Variable

__all__ = ["Adadelta"]

_NAMES = ("sqrt", "square", "abs", "minimum", "maximum", "clip", "where", "sign", "exp", "log")
#: What a rule may call, as operations of Keras: TensorFlow's tensors have no array API namespace.
OPS = SimpleNamespace(**{name: getattr(keras.ops, name) for name in _NAMES})


@keras.saving.register_keras_serializable(package="multiopt", name="Adadelta")
class Adadelta(keras.optimizers.Optimizer):
    """`multiopt`'s Adadelta as Keras' optimizer; see `multiopt.keras.for_keras` for its arguments."""

    def __init__(
        self,
        learning_rate: Any = 0.001,
        rho: float = 0.95,
        epsilon: float = 1e-7,
        name: str | None = None,
        **options: Any,
    ) -> None:
        if isinstance(learning_rate, schedules.LearningRateSchedule):
            learning_rate = keras.optimizers.schedules.deserialize(schedules.serialize(learning_rate))
        rate = float(learning_rate) if isinstance(learning_rate, int) else learning_rate
        super().__init__(learning_rate=rate, name=name, **options)
        self.rho = ADADELTA.hypers["rho"].check("rho", rho)
        self.epsilon = EPSILON.check("epsilon", epsilon)
        self._tensors: _Tensors | None = None
        self._step_lock = Lock()

    def build(self, variables: Sequence[Any]) -> None:
        """Create the accumulators, in the order of Keras' own Adadelta."""
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
        """Update a variable by the rule, in the operations of TensorFlow, which may be tracing them."""
        targets = self._row(variable)
        dtype, wide = keras.backend.standardize_dtype(variable.dtype), _wide(variable)
        given = (variable, gradient, *targets[1:], learning_rate)
        x, g, v, u, rate = (keras.ops.cast(array, wide) for array in given)
        new = ADADELTA.function(OPS, x, g, v, u, lr=rate, rho=self.rho, eps=self.epsilon)
        for target, value in zip(targets, new, strict=True):
            self.assign(target, keras.ops.cast(value, dtype))

    @locked
    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> Any:
        """Do one step; that of another thread comes before it or after it."""
        # Before anything else: Keras neither accumulates nor clips sparse gradients on JAX, nor sums or unscales them
        # on TensorFlow.
        dense = grads if _on_torch() else [_dense(g) for g in grads]
        return super().apply(dense, trainable_variables)

    def get_config(self) -> dict[str, Any]:
        """The options, as Keras writes them."""
        return {**super().get_config(), "rho": self.rho, "epsilon": self.epsilon}

    # --- one pass of our engines does all three: on PyTorch; on JAX too, except for norms, which XLA sums before ---

    def _clip_gradients(self, grads: list[Any]) -> list[Any]:
        fused = _on_torch() or (_on_jax() and _positive(self.clipvalue) is not None)
        return grads if fused else super()._clip_gradients(grads)

    def _apply_weight_decay(self, variables: Sequence[Any]) -> None:
        if not (_on_torch() or _on_jax()):
            super()._apply_weight_decay(variables)

    def _backend_update_step(self, grads: list[Any], trainable_variables: Sequence[Any], learning_rate: Any) -> None:
        if _on_jax():
            self._update_arrays(grads, trainable_variables, learning_rate)
        elif not _on_torch():
            super()._backend_update_step(grads, trainable_variables, learning_rate)
        else:
            if self._tensors is None:
                self._tensors = _Tensors(self)
            self._tensors.step(self, grads, trainable_variables, float(learning_rate))

    def _update_arrays(self, grads: Sequence[Any], variables: Sequence[Any], learning_rate: Any) -> None:
        """Decay, clip by value and update JAX arrays, which Keras' training step traces."""
        groups: dict[tuple[bool, str], list[tuple[Any, Any]]] = {}
        for g, variable in zip(grads, variables, strict=True):
            groups.setdefault((self._use_weight_decay(variable), _wide(variable)), []).append((g, variable))
        for (decayed, wide), pairs in groups.items():
            rows = [self._row(variable) for _, variable in pairs]
            params, *slots = ([target.value for target in column] for column in zip(*rows, strict=True))
            new, state = functional.update(
                params,
                [keras.ops.cast(g, variable.dtype) for g, variable in pairs],
                functional.State(0, dict(zip(ADADELTA.slots, slots, strict=True))),
                rule=KERAS_ADADELTA,
                lr=keras.ops.cast(learning_rate, wide),
                rho=self.rho,
                eps=self.epsilon,
                weight_decay=(self.weight_decay or 0.0) if decayed else 0.0,
                decoupled=True,
                clip_value=_positive(self.clipvalue),
            )
            for row, values in zip(rows, zip(new, *state.slots.values(), strict=True), strict=True):
                for target, value in zip(row, values, strict=True):
                    self.assign(target, value)

    def _row(self, variable: Any) -> tuple[Any, Any, Any]:
        """A variable and its accumulators."""
        place = self._get_variable_index(variable)
        return variable, self._accumulated_grads[place], self._accumulated_delta_vars[place]


def _on_torch() -> bool:
    return keras.backend.backend() == "torch"


def _on_jax() -> bool:
    return keras.backend.backend() == "jax"


def _wide(variable: Any) -> str:
    """The dtype that a variable is computed in."""
    return "float64" if keras.backend.standardize_dtype(variable.dtype) == "float64" else "float32"


def _dense(gradient: Any) -> Any:
    """The gradient, or None; TensorFlow's ``IndexedSlices`` and sparse arrays as dense ones, repeated rows added up."""
    if type(gradient).__name__ == "IndexedSlices":  # for Keras, these are tensors
        import tensorflow as tf

        return tf.convert_to_tensor(gradient)
    return None if gradient is None else keras.ops.convert_to_tensor(gradient, sparse=False)


def _positive(threshold: float | None) -> float | None:
    """A threshold for clipping; 0 and less mean none in Keras."""
    return threshold if threshold and threshold > 0 else None


class _Tensors:
    """The model's tensors and their accumulators."""

    def __init__(self, opt: Adadelta) -> None:
        columns = opt._trainable_variables, opt._accumulated_grads, opt._accumulated_delta_vars
        #: Variables of ours, each with that of Keras; those that Keras gave no accumulator are left out.
        rows = [row for row in zip(*columns, strict=True) if row[1] is not None]
        self.boxes = [[(_box(variable), variable) for variable in row] for row in rows]
        own = [[box for box, _ in column] for column in zip(*self.boxes, strict=True)]
        self.update = AdadeltaStep(own, [opt._use_weight_decay(row[0]) for row in rows])

    def step(self, opt: Adadelta, grads: Sequence[Any], variables: Sequence[Any], rate: float) -> None:
        """Decay, clip and update the variables that have a gradient."""
        for box, variable in (pair for row in self.boxes for pair in row):
            box.value = variable.value
        given = {id(variable): g.to(variable.value.dtype) for g, variable in zip(grads, variables, strict=True)}
        values = {
            "lr": rate,
            "rho": opt.rho,
            "eps": opt.epsilon,
            "weight_decay": opt.weight_decay or 0.0,
            "clip_value": _positive(opt.clipvalue),
        }
        own = [given.get(id(row[0][1])) for row in self.boxes]
        self.update.step(own, lambda variable: values, _positive(opt.clipnorm), _positive(opt.global_clipnorm))


def _box(variable: Any) -> Variable:
    return Variable(variable.value, trainable=variable.value.requires_grad, name=variable.path)
