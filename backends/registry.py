"""The registry: the one list of array libraries, which backend serves an array, and which engine its arrays get.

Names only. A library is recognised by its arrays' type and is imported by nobody but its own backend module, when
the first of its arrays is seen. What else needs a list of libraries (``multiopt info``, the command line, the
conformance suite, the tests) takes this one.
"""

from __future__ import annotations

import copyreg
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from .generic import Backend
from .protocol import Engine

__all__ = ["ENGINES", "Library", "engine", "engine_for", "get", "libraries", "of", "register"]


@dataclass(frozen=True)
class Library:
    """An array library, as the registry lists it.

    Attributes
    ----------
    name : str
        What the modules of its arrays' types begin with, such as ``"numpy"``; it is also what users call it.
    title : str
        How it is written, such as ``"NumPy"``.
    namespace : str
        Import name of its array API namespace.
    backend : str
        ``"module:class"`` of its backend, a `Backend`.
    extra : str or None
        The extra of multiopt that installs it.
    roots : tuple of str
        Other packages that its arrays' types come from.
    """

    name: str
    title: str
    namespace: str
    backend: str = "multiopt.backends.generic:Backend"
    extra: str | None = None
    roots: tuple[str, ...] = ()

    def installed(self) -> bool:
        """Whether it can be imported."""
        return find_spec(self.name) is not None

    @property
    def requirement(self) -> str:
        """What ``pip install`` takes."""
        return f'"multiopt[{self.extra}]"' if self.extra else self.name.replace("_", "-")


#: Engines, fastest first.
ENGINES = {
    "host": ("multiopt.backends.engines.host.engine", "HostEngine"),
    "cuda": ("multiopt.backends.engines.cuda.engine", "CudaEngine"),
    "xla": ("multiopt.backends.engines.xla.engine", "XlaEngine"),
    "eager": ("multiopt.backends.engines.eager", "EagerEngine"),
}
_libraries: dict[str, Library] = {}
_backends: dict[str, Backend] = {}
_by_type: dict[type, Backend] = {}
_engines: dict[str, Engine] = {}


def register(library: Library) -> None:
    """Add an array library: from then on its arrays are recognised everywhere.

    A package does so for its users by an entry point of the group ``multiopt.backends`` that names its `Library`.

    Raises
    ------
    ValueError
        If another library of this name is registered.
    """
    if _libraries.setdefault(library.name, library) != library:
        raise ValueError(f"library: expected a name that is not taken, got {library.name!r}")
    _by_type.clear()


for _library in (
    Library("numpy", "NumPy", "array_api_compat.numpy", "multiopt.backends.numpy:NumpyBackend"),
    Library("cupy", "CuPy", "array_api_compat.cupy", "multiopt.backends.cupy:CupyBackend", "cupy"),
    Library("torch", "PyTorch", "array_api_compat.torch", "multiopt.backends.torch:TorchBackend", "torch"),
    Library("jax", "JAX", "jax.numpy", "multiopt.backends.jax:JaxBackend", "jax", ("jaxlib",)),
    Library("dask", "Dask", "array_api_compat.dask.array", "multiopt.backends.dask:DaskBackend", "dask"),
    Library("array_api_strict", "array-api-strict", "array_api_strict"),
):
    register(_library)


def libraries() -> tuple[Library, ...]:
    """All array libraries that are known by name; arrays of any other array API namespace are served too."""
    _register_installed()
    return tuple(_libraries.values())


@cache
def _register_installed() -> None:
    from importlib.metadata import entry_points

    for point in entry_points(group="multiopt.backends"):
        register(point.load())


def get(name: str) -> Backend:
    """The backend of a library, or of any array API namespace, by its import name.

    Raises
    ------
    ImportError
        If the library is not installed.
    """
    if name not in _backends:
        if name not in _libraries:
            _register_installed()
        library = _libraries.get(name, Library(name, name, name))
        module, _, kind = library.backend.partition(":")
        xp = import_module(library.namespace)
        # The same for all threads: backends are compared by identity.
        backend = _backends.setdefault(name, getattr(import_module(module), kind)(name, xp))
        copyreg.pickle(type(backend), lambda backend: (get, (backend.name,)))
    return _backends[name]


def of(array: Any) -> Backend:
    """The backend that serves an array.

    Raises
    ------
    TypeError
        If `array` is not an array of a known library or of an array API namespace.
    """
    kind = type(array)
    backend = _by_type.get(kind)
    if backend is None:
        found = _library_of(kind)
        if found is None and hasattr(kind, "__array_namespace__"):
            _register_installed()
            found = _library_of(kind) or array.__array_namespace__().__name__
        if found is None:
            raise TypeError(f"expected an array, got {kind.__module__}.{kind.__qualname__}")
        backend = _by_type[kind] = get(found)
    return backend


def _library_of(kind: type) -> str | None:
    """The registered library whose array type this is, or is derived from."""
    if not (hasattr(kind, "dtype") and hasattr(kind, "ndim")):
        return None
    owners = {root: library.name for library in _libraries.values() for root in (library.name, *library.roots)}
    roots = (base.__module__.partition(".")[0] for base in kind.__mro__)
    return next((owners[root] for root in roots if root in owners), None)


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
        _engines.setdefault(name, getattr(import_module(module), kind)())
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
        reason = found.rejects(backend, device, dtypes)
        if reason is None:
            return found, reasons
        reasons[name] = reason
    raise ValueError(f"engine: {wanted!r} does not serve {backend.name} arrays here: {reasons[wanted]}")
