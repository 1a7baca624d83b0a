"""State of Keras' Adadelta: three generations, three layouts, one configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import schedules
from .state import Arrays, State, only, shapes_of, to_host, whole

__all__ = [
    "from_keras",
    "from_tf_keras",
    "from_tf_keras_legacy",
    "into_keras",
    "keras_config",
    "of_keras",
    "to_keras",
    "to_tf_keras",
    "to_tf_keras_legacy",
]

_KERAS = {
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


def _keras_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of any Keras, by the core's names."""
    options = {ours: config[theirs] for theirs, ours in _KERAS.items() if config.get(theirs) is not None}
    for name, value in options.items():
        if not callable(value) and not isinstance(value, (Mapping, int)):
            options[name] = float(value)  # of NumPy's float32, which a legacy configuration has
    if isinstance(options.get("lr"), Mapping):
        from ..keras import schedules as named

        options["lr"] = named.deserialize(options["lr"])
    if config.get("decay"):
        if callable(options.get("lr")):
            raise ValueError("decay: expected 0 with a schedule; the core has no product of the two")
        options["lr"] = schedules.InverseTime(options.get("lr", 0.001), 1.0, config["decay"])
    if config.get("use_ema"):
        options["ema"] = config.get("ema_momentum", 0.99)
    return {**options, "decoupled": True}


def keras_config(state: State) -> dict[str, Any]:
    """The options as a configuration of Keras: ``Adadelta.from_config(keras_config(state))``.

    Raises
    ------
    ValueError
        If the options mean something that Keras does not have (coupled decay, ascent).
    """
    options = only(state, {*_KERAS.values(), "decoupled", "ema", "maximize"}, "Keras")
    if options.get("weight_decay") and not options.get("decoupled"):
        raise ValueError("weight_decay: expected decoupled decay, which is Keras', got coupled decay")
    if options.get("maximize"):
        raise ValueError("maximize: expected False, Keras does not have it")
    config = {theirs: options[ours] for theirs, ours in _KERAS.items() if ours in options}
    if callable(config.get("learning_rate")):
        from ..keras import schedules as named

        rate = config["learning_rate"]
        rate = rate if isinstance(rate, named.LearningRateSchedule) else named.named(rate)
        config["learning_rate"] = named.serialize(rate)
    if config.get("gradient_accumulation_steps") == 1:
        del config["gradient_accumulation_steps"]
    if options.get("ema") is not None:
        config |= {"use_ema": True, "ema_momentum": options["ema"]}
    return config


def from_tf_keras_legacy(weights: Sequence[Any], config: Mapping[str, Any] | None = None) -> State:
    """From the ``get_weights()`` of ``tf_keras.optimizers.legacy.Adadelta``, and its ``get_config()``.

    The weights stand in TensorFlow's order if all variables were given in one call.
    """
    arrays = [to_host(weight) for weight in weights]
    n, rest = divmod(len(arrays) - 1, 2)
    if rest or not arrays or arrays[0].shape != ():
        raise ValueError(f"weights: expected a counter and two arrays for each variable, got {shapes_of(arrays)}")
    options = _keras_options(config or {})
    options.pop("decoupled")
    return State(int(arrays[0]), [*arrays[1 : n + 1]], [*arrays[n + 1 :]], options=options)


def to_tf_keras_legacy(state: State) -> Arrays:
    """The weights for ``set_weights`` of the legacy optimizer."""
    return [np.array(state.steps, np.int64), *whole(state.square_avg), *whole(state.acc_delta)]


def from_tf_keras(weights: Sequence[Any], config: Mapping[str, Any] | None = None) -> State:
    """From the ``variables`` of ``tf_keras.optimizers.Adadelta`` or ``multiopt.keras.Adadelta``, and ``get_config()``.

    Raises
    ------
    ValueError
        If their number does not agree with the configuration, or a sum of gradients is half done.
    """
    return _from_pairs([to_host(weight) for weight in weights], config or {}, head=1)


def to_tf_keras(state: State) -> Arrays:
    """The weights for ``set_weights`` of ``tf_keras.optimizers.Adadelta``."""
    return _to_pairs(state, [])


def from_keras(weights: Sequence[Any], config: Mapping[str, Any] | None = None) -> State:
    """From the ``variables`` of ``keras.optimizers.Adadelta`` (Keras 3), and its ``get_config()``.

    Raises
    ------
    ValueError
        If their number does not agree with the configuration, or a sum of gradients is half done.
    """
    arrays, config = [to_host(weight) for weight in weights], dict(config or {})
    per = 2 + bool(config.get("use_ema")) + bool(config.get("gradient_accumulation_steps"))
    held = (len(arrays) - 1) % per != 0  # a schedule has no variable
    if held and len(arrays) > 1 and arrays[1].shape == ():
        config["learning_rate"] = float(arrays[1])
    return _from_pairs(arrays, config, head=2 if held else 1)


def to_keras(state: State) -> Arrays:
    """The weights for ``set_weights`` of Keras 3's optimizer."""
    lr = state.options.get("lr", 0.001)
    return _to_pairs(state, [] if callable(lr) else [np.array(lr, np.float32)])


def _from_pairs(arrays: Arrays, config: Mapping[str, Any], head: int) -> State:
    every = config.get("gradient_accumulation_steps") or 1
    sums, averages = every > 1, bool(config.get("use_ema"))
    n, rest = divmod(len(arrays) - head, 2 + averages + sums)
    if rest or n < 0 or arrays[0].shape != ():
        raise ValueError(
            f"weights: expected {head} numbers and {2 + averages + sums} arrays for each variable, "
            f"got {shapes_of(arrays)}"
        )
    steps, half = divmod(int(arrays[0]), every)
    if half:
        raise ValueError(f"weights: expected a whole number of {every} gradients, got {half} more; finish them first")
    pairs = arrays[head + n * (averages + sums) :]
    average = arrays[head : head + n] if averages else None
    return State(steps, [*pairs[::2]], [*pairs[1::2]], average, _keras_options(config))


def _to_pairs(state: State, head: Arrays) -> Arrays:
    every = state.options.get("accumulate", 1)
    squares, deltas = whole(state.square_avg), whole(state.acc_delta)
    sums = [np.zeros_like(v) for v in squares] if every > 1 else []
    pairs = [array for pair in zip(squares, deltas, strict=True) for array in pair]
    return [np.array(state.steps * every, np.int64), *head, *(state.average or []), *sums, *pairs]


def of_keras(optimizer: Any) -> State:
    """From an optimizer of any Keras, or ours."""
    kind, config = _keras_kind(optimizer), optimizer.get_config()
    if kind == "legacy":
        return from_tf_keras_legacy(optimizer.get_weights(), config)
    if not getattr(optimizer, "built", None) and not getattr(optimizer, "_built", None):
        raise ValueError("optimizer: expected one that is built; call build() first")
    return (from_keras if kind == "keras" else from_tf_keras)(_held(optimizer), config)


def _held(optimizer: Any) -> list[Any]:
    store: dict[str, Any] = {}
    optimizer.save_own_variables(store)  # gathers what is sharded
    return [store[str(i)] for i in range(len(store))]


def into_keras(state: State, optimizer: Any) -> None:
    """Into an optimizer of any Keras, or ours."""
    kind, config = _keras_kind(optimizer), optimizer.get_config()
    if kind == "legacy":
        weights, held = to_tf_keras_legacy(state), optimizer.get_weights()
    else:
        options = _keras_options(config)
        layout: dict[str, Any] = {name: options[name] for name in ("lr", "accumulate") if name in options}
        if (state.average is None) == bool(config.get("use_ema")):
            raise ValueError("average: expected averages of the parameters in both optimizers or in neither")
        given = State(state.steps, state.square_avg, state.acc_delta, state.average, layout)
        weights = to_keras(given) if kind == "keras" else to_tf_keras(given)
        held = _held(optimizer)
    shapes = [np.shape(array) for array in held]
    if [w.shape for w in weights] != shapes:
        raise ValueError(f"state: expected arrays of the shapes {shapes}, got {shapes_of(weights)}")
    optimizer.set_weights(weights)


def _keras_kind(optimizer: Any) -> str:
    modules = [base.__module__ for base in type(optimizer).__mro__]
    if any("optimizer_v2" in module or module.startswith("multiopt.keras.legacy") for module in modules):
        return "legacy"
    ours = any(module == "multiopt.keras.later.optimizer" for module in modules)
    return "keras" if not ours and any(module.startswith("keras.") for module in modules) else "tf_keras"
