"""Objects as the dictionaries that Keras writes, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["restore", "store"]


def store(thing: Any, module: str, built_in: Mapping[str, type]) -> dict[str, Any]:
    """The dictionary that Keras writes for an object; its module of built-in classes is `module`."""
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
    """The object for a dictionary that `store` or Keras has written; `also` is passed to ``from_config``.

    A function that Keras has written by its name is one of the custom objects.
    """
    if not isinstance(config, Mapping) or "class_name" not in config or "config" not in config:
        raise TypeError(f"{what}: expected a mapping with 'class_name' and 'config', got {config!r}")
    name, custom = config["class_name"], custom or {}
    if name == "__lambda__":
        raise ValueError(
            f"{what}: Keras writes a lambda as bytecode, and to run that would be to trust whoever wrote it; put a "
            "number, a schedule's dictionary or a function in its place, as learning_rate"
        )
    if name == "function":
        function = config["config"]
        found = custom.get(function) or custom.get(str(function).rpartition(">")[2])
        if found is None:
            raise ValueError(f"{what}: unknown function {function!r}; give it in custom_objects")
        return found
    registered = config.get("registered_name") or name
    kind = custom.get(registered) or custom.get(registered.rpartition(">")[2]) or custom.get(name) or built_in.get(name)
    if kind is None:
        known = ", ".join([*custom, *built_in])
        raise ValueError(f"{what}: unknown class {name!r}; expected one of {known}; give others in custom_objects")
    return kind.from_config(dict(config["config"]), **also)
