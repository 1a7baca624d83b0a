"""Optimizers and schedules as the dictionaries that Keras writes: a configuration of real Keras loads here and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["deserialize", "get", "restore", "serialize", "store"]

#: What only Keras 3 knows, with the default: what it does cannot be left out of a configuration for tf_keras.
_KERAS_3 = {"loss_scale_factor": None, "gradient_accumulation_steps": None}


def store(thing: Any, module: str, built_in: Mapping[str, type]) -> dict[str, Any]:
    """What Keras writes for an object with ``get_config``.

    Parameters
    ----------
    thing : object
    module : str
        Keras' module of the built-in classes.
    built_in : mapping
        Those classes by name; another class is written with its own module.
    """
    kind = type(thing)
    name = kind.__name__
    known = built_in.get(name) is kind
    return {
        "module": module if known else kind.__module__,
        "class_name": name,
        "config": thing.get_config(),
        "registered_name": None if known else name,
    }


def restore(config: Any, built_in: Mapping[str, Any], custom: Mapping[str, Any] | None, what: str, **also: Any) -> Any:
    """Make the object that `store`, or Keras, has written.

    Parameters
    ----------
    config : mapping
        With ``"class_name"`` and ``"config"``; ``"registered_name"`` may be ``"Package>Name"``.
    built_in, custom : mapping of str to class
        Where names are looked up; `custom` first.
    what : str
        What it is, for messages.
    **also
        Handed to ``from_config``.

    Raises
    ------
    TypeError
        If it is no such mapping.
    ValueError
        If the class is not known.
    """
    if not isinstance(config, Mapping) or "class_name" not in config or "config" not in config:
        raise TypeError(f"{what}: expected a mapping with 'class_name' and 'config', got {config!r}")
    name, custom = config["class_name"], custom or {}
    registered = config.get("registered_name") or name
    kind = custom.get(registered) or custom.get(registered.rpartition(">")[2]) or custom.get(name) or built_in.get(name)
    if kind is None:
        known = ", ".join([*custom, *built_in])
        raise ValueError(f"{what}: unknown class {name!r}; expected one of {known}; give others in custom_objects")
    return kind.from_config(dict(config["config"]), **also)


def serialize(optimizer: Any, to: str = "keras") -> dict[str, Any]:
    """An optimizer's configuration, without its state, as Keras writes it.

    Parameters
    ----------
    optimizer : Optimizer
    to : {"keras", "tf_keras"}
        Who shall read it: Keras 3, in which ``jit_compile`` is the model's and is left out, or tf_keras. We read both.

    Returns
    -------
    dict
        ``{"module", "class_name", "config", "registered_name"}``. The module says whether it is legacy.

    Raises
    ------
    TypeError
        If it has no ``get_config``.
    ValueError
        If it has an option that tf_keras does not know.
    """
    from .legacy import Optimizer as Legacy

    if to not in ("keras", "tf_keras"):
        raise ValueError(f"to: expected 'keras' or 'tf_keras', got {to!r}")
    if not hasattr(optimizer, "get_config"):
        raise TypeError(f"optimizer: expected an optimizer of multiopt.keras, got {optimizer!r}")
    legacy = isinstance(optimizer, Legacy)
    stored = store(optimizer, "keras.optimizers.legacy" if legacy else "keras.optimizers", _built_in(legacy))
    config = stored["config"]
    if to == "keras":
        config.pop("jit_compile", None)
    elif not legacy:
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
        With ``"class_name"`` and ``"config"``. It is the legacy optimizer's if its module says so, or if the
        configuration has ``decay``, which only that one has.
    custom_objects : mapping or None
        Classes and functions of your own, by name.

    Raises
    ------
    TypeError, ValueError
        If it is no such dictionary, or names a class or an option that is not known.
    """
    if not isinstance(config, Mapping) or not isinstance(config.get("config"), Mapping):
        raise TypeError(f"optimizer: expected a mapping with 'class_name' and 'config', got {config!r}")
    inner = dict(config["config"])
    inner.pop("is_legacy_optimizer", None)  # tf_keras writes it, and always as False
    legacy = str(config.get("module")).endswith("optimizers.legacy") or "decay" in inner
    also = {"custom_objects": custom_objects} if legacy or custom_objects else {}
    return restore({**config, "config": inner}, _built_in(legacy), custom_objects, "optimizer", **also)


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


def _built_in(legacy: bool) -> dict[str, type]:
    """Classes by name; Keras sometimes writes the name in lower case."""
    if legacy:
        from .legacy import Adadelta as Old

        return {"Adadelta": Old, "adadelta": Old}
    from .optimizer import Adadelta

    return {"Adadelta": Adadelta, "adadelta": Adadelta}
