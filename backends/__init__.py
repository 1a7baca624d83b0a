"""The registry: which backend serves an array, and which engine a backend's arrays get.

Names only. A library is recognised by its arrays' type and is imported by nobody but its own backend module, when
the first of its arrays is seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import Backend, Engine

__all__ = ["BACKENDS", "ENGINES", "engine", "engine_for", "get", "of"]

#: Library, as its arrays' types name it: the namespace, the module and the class of its backend.
BACKENDS = {
    "numpy": ("array_api_compat.numpy", ".numpy", "NumpyBackend"),
    "cupy": ("array_api_compat.cupy", ".cupy", "CupyBackend"),
    "torch": ("array_api_compat.torch", ".torch", "TorchBackend"),
    "jax": ("jax.numpy", ".jax", "JaxBackend"),
    "dask": ("array_api_compat.dask.array", ".dask", "DaskBackend"),
}
#: Engines, fastest first.
ENGINES = {
    "host": (".engines.host", "HostEngine"),
    "cuda": (".engines.cuda", "CudaEngine"),
    "eager": (".engines.eager", "EagerEngine"),
}
_backends: dict[str, Backend] = {}
_by_type: dict[type, Backend] = {}
_engines: dict[str, Engine] = {}


def get(name: str) -> Backend:
    """The backend of a library, or of any array API namespace, by its import name.

    Raises
    ------
    ImportError
        If the library is not installed.
    """
    if name not in _backends:
        namespace, module, kind = BACKENDS.get(name, (name, ".base", "Backend"))
        xp = import_module(namespace)
        _backends[name] = getattr(import_module(module, __name__), kind)(name, xp)
    return _backends[name]


def of(array: Any) -> Backend:
    """The backend that serves an array.

    Raises
    ------
    TypeError
        If `array` is not an array of a known library or of an array API namespace.
    """
    kind = type(array)
    if kind not in _by_type:
        roots = [base.__module__.partition(".")[0] for base in kind.__mro__]
        roots = ["jax" if root == "jaxlib" else root for root in roots]
        known = next((root for root in roots if root in BACKENDS), None)
        if known is not None and hasattr(kind, "dtype") and hasattr(kind, "ndim"):
            _by_type[kind] = get(known)
        elif hasattr(kind, "__array_namespace__"):
            namespace = array.__array_namespace__()
            _by_type[kind] = get(namespace.__name__)
        else:
            raise TypeError(f"expected an array, got {kind.__module__}.{kind.__qualname__}")
    return _by_type[kind]


def engine(name: str) -> Engine:
    """An engine by name.

    Raises
    ------
    ValueError
        If there is no such engine.
    ImportError
        If what it stands on is not installed.
    """
    if name not in ENGINES:
        raise ValueError(f"engine: expected one of {', '.join(ENGINES)}, got {name!r}")
    if name not in _engines:
        module, kind = ENGINES[name]
        _engines[name] = getattr(import_module(module, __name__), kind)()
    return _engines[name]


def engine_for(
    backend: Backend, device: Any, dtypes: Sequence[str], wanted: str = "auto"
) -> tuple[Engine, dict[str, str]]:
    """The fastest engine that serves such arrays, and why each faster one does not.

    Parameters
    ----------
    backend : Backend
    device : object
        As `Backend.device` says.
    dtypes : sequence of str
        Those of the parameters, their gradients and each state array.
    wanted : str
        ``"auto"``, or the name of the one engine to consider.

    Raises
    ------
    ValueError
        If the engine asked for does not exist or does not serve such arrays.
    """
    reasons: dict[str, str] = {}
    for name in ENGINES if wanted == "auto" else [wanted]:
        try:
            found = engine(name)
        except ImportError as error:
            reasons[name] = str(error)
            continue
        refusal = found.refuses(backend, device, dtypes)
        if refusal is None:
            return found, reasons
        reasons[name] = refusal
    raise ValueError(f"engine: {wanted!r} does not serve {backend.name} arrays here: {reasons[wanted]}")
