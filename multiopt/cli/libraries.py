"""Which array libraries are installed, their devices, and the engine that each one gets."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import backends
from ..backends import Backend, libraries

__all__ = ["Found", "Place", "find", "problem", "version"]

ACCELERATORS = ("cuda", "gpu", "rocm", "tpu", "xpu", "mps")


@dataclass(frozen=True)
class Place:
    """A device of an array library."""

    backend: Backend
    device: Any  # what ``asarray(..., device=)`` takes; None for the library's default
    name: str
    engine: str
    reasons: dict[str, str]  # why each faster engine does not serve it

    def give(self, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
        """Copy NumPy arrays to the device; a copy, so that no library writes into what another one starts from."""
        return {name: self.backend.xp.asarray(a.copy(), device=self.device) for name, a in arrays.items()}


@dataclass(frozen=True)
class Found:
    """What was found of an array library: its devices, or else a problem."""

    name: str
    version: str
    places: tuple[Place, ...] = ()
    problem: str = ""


def find(name: str) -> Found:
    """Look for an array library, and make an array on each of its devices; say what goes wrong.

    Parameters
    ----------
    name : str
        Its import name: one of the registry's, or that of any array API namespace.
    """
    library = next((library for library in libraries() if library.name == name), None)
    places: dict[str, Place] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a library warns of while it looks for devices
        if reason := problem(name, library.requirement if library else name):
            return Found(name, version(name), problem=reason)
        try:
            backend = backends.get(name)
            for device in (None, *_accelerators(backend.xp)):
                where = backend.device(backend.xp.zeros(1, dtype=backend.xp.float32, device=device))
                engine, reasons = backends.engine_for(backend, where, ["float32", "float32"])
                places.setdefault(str(where), Place(backend, device, str(where), engine.name, reasons))
        except Exception as error:  # a broken library may raise anything
            return Found(name, version(name), problem=_broken(error))
    return Found(name, version(name), tuple(places.values()))


def _accelerators(xp: Any) -> list[Any]:
    try:
        devices = xp.__array_namespace_info__().devices()
    except AttributeError:
        return []
    return [d for d in devices if any(word in str(d).lower() for word in ACCELERATORS)]


def problem(module: str, requirement: str) -> str:
    """Why a module cannot be used here, and what pip would install; empty if it can be used."""
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        return f"is not installed: pip install {requirement}"
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken module may raise anything
        return _broken(error)
    return ""


def _broken(error: Exception) -> str:
    return f"does not work here: {type(error).__name__}: {' '.join(str(error).split())}"


def version(module: str) -> str:
    """The version of an imported module, or nothing."""
    return str(getattr(sys.modules.get(module), "__version__", ""))
