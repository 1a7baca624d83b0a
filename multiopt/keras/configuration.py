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
    """The object for a dictionary that `store` or Keras has written; `also` is passed to ``from_config``."""
    if not isinstance(config, Mapping) or "class_name" not in config or "config" not in config:
        raise TypeError(f"{what}: expected a mapping with 'class_name' and 'config', got {config!r}")
    name, custom = config["class_name"], custom or {}
    registered = config.get("registered_name") or name
    kind = custom.get(registered) or custom.get(registered.rpartition(">")[2]) or custom.get(name) or built_in.get(name)
    if kind is None:
        known = ", ".join([*custom, *built_in])
        raise ValueError(f"{what}: unknown class {name!r}; expected one of {known}; give others in custom_objects")
    return kind.from_config(dict(config["config"]), **also)
