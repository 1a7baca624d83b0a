"""State of Keras' Adadelta: three generations with one configuration, and a layout of the weights each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .. import schedules
from ..keras import schedules as keras_schedules
from .state import Arrays, Converter, State, fitted, only, to_host, whole

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
    return _unpack("legacy", weights, config or {})


def from_tf_keras(weights: Sequence[Any], config: Mapping[str, Any] | None = None) -> State:
    """Read ``variables`` of ``tf_keras.optimizers.Adadelta`` or ``multiopt.keras.Adadelta``, and ``get_config()``.

    Raises
    ------
    ValueError
        If their number does not agree with the configuration, or an accumulation of gradients is not finished.
    """
    return _unpack("tf_keras", weights, config or {})


def from_keras(weights: Sequence[Any], config: Mapping[str, Any] | None = None) -> State:
    """Read ``variables`` of ``keras.optimizers.Adadelta`` (Keras 3), and its ``get_config()``.

    Raises
    ------
    ValueError
        If their number does not agree with the configuration, or an accumulation of gradients is not finished.
    """
    return _unpack("keras", weights, config or {})


def to_tf_keras_legacy(state: State) -> Arrays:
    """Make the weights for ``set_weights`` of ``tf_keras.optimizers.legacy.Adadelta``."""
    return _pack("legacy", state)


def to_tf_keras(state: State) -> Arrays:
    """Make the weights for ``set_weights`` of ``tf_keras.optimizers.Adadelta``."""
    return _pack("tf_keras", state)


def to_keras(state: State) -> Arrays:
    """Make the weights for ``set_weights`` of ``keras.optimizers.Adadelta`` (Keras 3)."""
    return _pack("keras", state)


def _unpack(generation: str, weights: Sequence[Any], config: Mapping[str, Any]) -> State:
    """Read a counter, the learning rate if it is a variable, averages, sums of gradients, and the two slots."""
    arrays, legacy, options = [to_host(weight) for weight in weights], generation == "legacy", _options(config)
    every = 1 if legacy else options.get("accumulate", 1)
    averaged = "ema" in options and not legacy
    per_variable = 2 + averaged + (every > 1)
    if generation == "keras" and len(arrays) > 1 and (len(arrays) - 1) % per_variable and arrays[1].shape == ():
        options["lr"] = float(arrays.pop(1))  # a schedule is not among the variables
    n, rest = divmod(len(arrays) - 1, per_variable)
    if rest or not arrays or arrays[0].shape != ():
        raise ValueError(
            f"weights: expected a counter and {per_variable} arrays for each variable, "
            f"got arrays of the shapes {[array.shape for array in arrays]}"
        )
    steps, unfinished = divmod(int(arrays[0]), every)
    if unfinished:
        raise ValueError(f"weights: expected a multiple of {every} gradients, got {unfinished} more; finish them first")
    slots: list[Any] = arrays[1 + n * (per_variable - 2) :]
    squares, deltas = (slots[:n], slots[n:]) if legacy else (slots[::2], slots[1::2])
    decoupled = {} if legacy else {"decoupled": True}
    return State(steps, squares, deltas, arrays[1 : n + 1] if averaged else None, options | decoupled)


def _pack(generation: str, state: State) -> Arrays:
    """The inverse of `_unpack`."""
    squares, deltas = whole(state.square_avg), whole(state.acc_delta)
    if generation == "legacy":
        return [np.array(state.steps, np.int64), *squares, *deltas]
    every, lr = state.options.get("accumulate", 1), state.options.get("lr", 0.001)
    rate = [np.array(lr, np.float32)] if generation == "keras" and not callable(lr) else []
    sums = [np.zeros_like(array) for array in squares] if every > 1 else []
    pairs = [array for pair in zip(squares, deltas, strict=True) for array in pair]
    return [np.array(state.steps * every, np.int64), *rate, *(state.average or []), *sums, *pairs]


def _read(optimizer: Any) -> State:
    generation = _generation(optimizer) or ""
    return _unpack(generation, _held(generation, optimizer), optimizer.get_config())


def _write(state: State, optimizer: Any) -> Any:
    generation, config = _generation(optimizer) or "", optimizer.get_config()
    target = _unpack(generation, _held(generation, optimizer), config)
    if generation != "legacy" and (state.average is None) == bool(config.get("use_ema")):
        raise ValueError("average: expected averages of the parameters in both optimizers or in neither")
    state = fitted(state, [array.shape for array in whole(target.square_avg)])
    optimizer.set_weights(_pack(generation, replace(state, options=target.options)))  # which say the layout
    return optimizer


def _held(generation: str, optimizer: Any) -> list[Any]:
    if generation == "legacy":
        return list(optimizer.get_weights())
    if not getattr(optimizer, "built", None) and not getattr(optimizer, "_built", None):
        raise ValueError("optimizer: expected one that is built; call build() first")
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
