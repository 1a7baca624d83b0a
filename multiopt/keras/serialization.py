"""Optimizers as the dictionaries that Keras writes: configurations of real Keras load here, and ours load there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import legacy
from .configuration import restore, store
from .later.adadelta import Adadelta

__all__ = ["deserialize", "get", "serialize"]

#: Options that only Keras 3 has, with their defaults: another value cannot be written for tf_keras.
_KERAS_3 = {"loss_scale_factor": None, "gradient_accumulation_steps": None}


def serialize(optimizer: Any, to: str = "keras") -> dict[str, Any]:
    """An optimizer's configuration, without its state, as Keras writes it.

    Parameters
    ----------
    optimizer : Optimizer
    to : {"keras", "tf_keras"}
        What the configuration is for: Keras 3, where ``jit_compile`` is an option of the model and is left out, or
        tf_keras. Both load here.

    Returns
    -------
    dict
        ``{"module", "class_name", "config", "registered_name"}``. The module tells legacy optimizers from later ones.

    Raises
    ------
    TypeError
        If it has no ``get_config``.
    ValueError
        If it has an option that tf_keras does not know.
    """
    if to not in ("keras", "tf_keras"):
        raise ValueError(f"to: expected 'keras' or 'tf_keras', got {to!r}")
    if not hasattr(optimizer, "get_config"):
        raise TypeError(f"optimizer: expected an optimizer of multiopt.keras, got {optimizer!r}")
    is_legacy = isinstance(optimizer, legacy.Optimizer)
    stored = store(optimizer, "keras.optimizers.legacy" if is_legacy else "keras.optimizers", _built_in(is_legacy))
    config = stored["config"]
    if to == "keras":
        config.pop("jit_compile", None)
    elif not is_legacy:
        config["is_legacy_optimizer"] = False  # without it, tf_keras makes the legacy optimizer
        for name, default in _KERAS_3.items():
            if config.pop(name, default) != default:
                raise ValueError(f"{name}: expected {default}, as tf_keras has no such option, got another value")
    return stored


def deserialize(config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None) -> Any:
    """An optimizer from a dictionary of `serialize`, of Keras 3, or of tf_keras, legacy or not.

    Parameters
    ----------
    config : mapping
        With ``"class_name"`` and ``"config"``. It is for the legacy optimizer if its module says so, or if the
        configuration has ``decay``, which only that one has.
    custom_objects : mapping or None
        Classes and functions of your own, by name.

    Raises
    ------
    TypeError, ValueError
        If it is not such a dictionary, or names a class or an option that is not known.
    """
    if not isinstance(config, Mapping) or not isinstance(config.get("config"), Mapping):
        raise TypeError(f"optimizer: expected a mapping with 'class_name' and 'config', got {config!r}")
    inner = dict(config["config"])
    inner.pop("is_legacy_optimizer", None)  # tf_keras writes it, and always as False
    is_legacy = str(config.get("module")).endswith("optimizers.legacy") or "decay" in inner
    also = {"custom_objects": custom_objects} if is_legacy or custom_objects else {}
    return restore({**config, "config": inner}, _built_in(is_legacy), custom_objects, "optimizer", **also)


def get(identifier: Any) -> Any:
    """An optimizer from its name, such as ``"adadelta"``, from a dictionary, or itself.

    Raises
    ------
    TypeError, ValueError
        If it is none of these, or the name is not known.
    """
    if isinstance(identifier, str):
        by_name = {name.lower(): kind for name, kind in _built_in(False).items()}
        if identifier.lower() not in by_name:
            raise ValueError(f"optimizer: expected one of {', '.join(by_name)}, got {identifier!r}")
        return by_name[identifier.lower()]()
    if isinstance(identifier, Mapping):
        return deserialize(identifier)
    if hasattr(identifier, "apply_gradients") and hasattr(identifier, "get_config"):
        return identifier
    raise TypeError(f"optimizer: expected a name, a configuration or an optimizer, got {identifier!r}")


def _built_in(is_legacy: bool) -> dict[str, type]:
    """Classes by name; Keras sometimes writes the name in lower case."""
    kind: type = legacy.Adadelta if is_legacy else Adadelta
    return {"Adadelta": kind, "adadelta": kind}
