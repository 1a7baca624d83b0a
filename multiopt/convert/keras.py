"""State of Keras' Adadelta: three generations, three layouts, one configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .. import schedules
from ..keras import schedules as keras_schedules
from .state import Arrays, Converter, State, only, to_host, whole

__all__ = [
    "CONVERTER",
    "from_keras",
    "from_tf_keras",
    "from_tf_keras_legacy",
    "keras_config",
    "to_keras",
    "to_tf_keras",
    "to_tf_keras_legacy",
]

#: Options by Keras' names, and by the core's.
_OPTIONS = {
    "learning_rate": "lr",
    "rho": "rho",
    "epsilon": "eps",
    "weight_decay": "weight_decay",
    "clipvalue": "clip_value",
    "clipnorm": "clip_norm",
    "global_clipnorm": "clip_global_norm",
    "gradient_accumulation_steps": "accumulate",
    "loss_scale_factor": "loss_scale",
}


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of any Keras, by the core's names."""
    options = {ours: config[theirs] for theirs, ours in _OPTIONS.items() if config.get(theirs) is not None}
    for name, value in options.items():
        if not callable(value) and not isinstance(value, (Mapping, int)):
            options[name] = float(value)  # of NumPy's float32, which a legacy configuration has
    if isinstance(options.get("lr"), Mapping):
        options["lr"] = keras_schedules.deserialize(options["lr"])
    if config.get("decay"):
        if callable(options.get("lr")):
            raise ValueError("decay: expected 0 with a schedule; the core has no product of the two")
        options["lr"] = schedules.InverseTime(options.get("lr", 0.001), 1.0, config["decay"])
    if config.get("use_ema"):
        options["ema"] = config.get("ema_momentum", 0.99)
    return options


def keras_config(state: State) -> dict[str, Any]:
    """The options as a configuration of Keras: ``Adadelta.from_config(keras_config(state))``.

    Raises
    ------
    ValueError
        If the options mean something that Keras does not have (coupled decay, maximization).
    """
    options = only(state, {*_OPTIONS.values(), "decoupled", "ema", "maximize"}, "Keras")
    if options.get("weight_decay") and not options.get("decoupled"):
        raise ValueError("weight_decay: expected decoupled decay, which is Keras', got coupled decay")
    if options.get("maximize"):
        raise ValueError("maximize: expected False, Keras does not have it")
    config = {theirs: options[ours] for theirs, ours in _OPTIONS.items() if ours in options}
    if callable(config.get("learning_rate")):
        config["learning_rate"] = keras_schedules.serialize(config["learning_rate"])
    if config.get("gradient_accumulation_steps") == 1:
        del config["gradient_accumulation_steps"]
    return config | ({"use_ema": True, "ema_momentum": options["ema"]} if "ema" in options else {})


def from_tf_keras_legacy(weights: Sequence[Any], config: Mapping[str, Any] | None = None) -> State:
    """Read ``get_weights()`` of ``tf_keras.optimizers.legacy.Adadelta``, and its ``get_config()``.

    TensorFlow orders the weights like this if all variables were given in one call.

    Raises
    ------
    ValueError
        If there are not a counter and two arrays for each variable.
    """
    state, arrays = from_tf_keras(weights), [to_host(weight) for weight in weights[1:]]
    n = len(state.square_avg)
    return State(state.steps, [*arrays[:n]], [*arrays[n:]], options=_options(config or {}))


def to_tf_keras_legacy(state: State) -> Arrays:
    """Make the weights for ``set_weights`` of ``tf_keras.optimizers.legacy.Adadelta``."""
    return [np.array(state.steps, np.int64), *whole(state.square_avg), *whole(state.acc_delta)]


def from_tf_keras(weights: Sequence[Any], config: Mapping[str, Any] | None = None) -> State:
    """Read ``variables`` of ``tf_keras.optimizers.Adadelta`` or ``multiopt.keras.Adadelta``, and ``get_config()``.

    Raises
    ------
    ValueError
        If their number does not agree with the configuration, or an accumulation of gradients is not finished.
    """
    arrays, config = [to_host(weight) for weight in weights], config or {}
    every, per_variable = _layout(config)
    n, rest = divmod(len(arrays) - 1, per_variable)
    if rest or not arrays or arrays[0].shape != ():
        raise ValueError(
            f"weights: expected a counter and {per_variable} arrays for each variable, "
            f"got arrays of the shapes {[array.shape for array in arrays]}"
        )
    steps, half = divmod(int(arrays[0]), every)
    if half:
        raise ValueError(f"weights: expected a multiple of {every} gradients, got {half} more; finish them first")
    pairs: list[Any] = arrays[1 + n * (per_variable - 2) :]
    average = arrays[1 : n + 1] if config.get("use_ema") else None
    return State(steps, pairs[::2], pairs[1::2], average, {**_options(config), "decoupled": True})


def to_tf_keras(state: State) -> Arrays:
    """Make the weights for ``set_weights`` of ``tf_keras.optimizers.Adadelta``."""
    every = state.options.get("accumulate", 1)
    squares, deltas = whole(state.square_avg), whole(state.acc_delta)
    sums = [np.zeros_like(array) for array in squares] if every > 1 else []
    pairs = [array for pair in zip(squares, deltas, strict=True) for array in pair]
    return [np.array(state.steps * every, np.int64), *(state.average or []), *sums, *pairs]


def from_keras(weights: Sequence[Any], config: Mapping[str, Any] | None = None) -> State:
    """Read ``variables`` of ``keras.optimizers.Adadelta`` (Keras 3), and its ``get_config()``.

    Raises
    ------
    ValueError
        If their number does not agree with the configuration, or an accumulation of gradients is not finished.
    """
    arrays, config = [to_host(weight) for weight in weights], dict(config or {})
    if (len(arrays) - 1) % _layout(config)[1] and len(arrays) > 1 and arrays[1].shape == ():
        config["learning_rate"] = float(arrays.pop(1))  # a schedule is not among the variables
    return from_tf_keras(arrays, config)


def to_keras(state: State) -> Arrays:
    """Make the weights for ``set_weights`` of ``keras.optimizers.Adadelta`` (Keras 3)."""
    steps, *arrays = to_tf_keras(state)
    lr = state.options.get("lr", 0.001)
    return [steps, *([] if callable(lr) else [np.array(lr, np.float32)]), *arrays]


def _layout(config: Mapping[str, Any]) -> tuple[int, int]:
    """How many gradients make an update, and the number of arrays for each variable."""
    every = config.get("gradient_accumulation_steps") or 1
    return every, 2 + bool(config.get("use_ema")) + (every > 1)


def _read(optimizer: Any) -> State:
    generation, config = _generation(optimizer), optimizer.get_config()
    if generation == "legacy":
        return from_tf_keras_legacy(optimizer.get_weights(), config)
    if not getattr(optimizer, "built", None) and not getattr(optimizer, "_built", None):
        raise ValueError("optimizer: expected one that is built; call build() first")
    return (from_keras if generation == "keras" else from_tf_keras)(_variables(optimizer), config)


def _write(state: State, optimizer: Any) -> None:
    generation, config = _generation(optimizer), optimizer.get_config()
    if generation == "legacy":
        weights, held = to_tf_keras_legacy(state), optimizer.get_weights()
    else:
        if (state.average is None) == bool(config.get("use_ema")):
            raise ValueError("average: expected averages of the parameters in both optimizers or in neither")
        given = replace(state, options=_options(config))  # what the target has counts for the layout
        weights = to_keras(given) if generation == "keras" else to_tf_keras(given)
        held = _variables(optimizer)
    expected, got = ([np.shape(array) for array in arrays] for arrays in (held, weights))
    if expected != got:
        raise ValueError(f"state: expected arrays of the shapes {expected}, got {got}")
    optimizer.set_weights(weights)


def _variables(optimizer: Any) -> list[Any]:
    store: dict[str, Any] = {}
    optimizer.save_own_variables(store)  # gathers what is sharded
    return [store[str(i)] for i in range(len(store))]


def _generation(thing: Any) -> str | None:
    """Which layout an optimizer's weights have; None if it is not one of Keras, or ours for Keras."""
    modules = [base.__module__ for base in type(thing).__mro__] if hasattr(thing, "get_config") else []
    if any("optimizer_v2" in module or module.startswith("multiopt.keras.legacy") for module in modules):
        return "legacy"
    if any(module == "multiopt.keras.later.optimizer" for module in modules):
        return "tf_keras"
    if any(module.startswith("keras.") for module in modules):
        return "keras"
    return "tf_keras" if any(module.startswith("tf_keras.") for module in modules) else None


CONVERTER = Converter(lambda thing: _generation(thing) is not None, _read, _write)
