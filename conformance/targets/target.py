"""Targets: the ways to run multiopt that are judged, each one array library, one engine or one face."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from multiopt import backends

from ..data.case import Case
from ..data.specification import HOLDERS
from .arrays import Arrays
from .protocol import TargetOptimizer


@dataclass(frozen=True)
class Target:
    """One way to run multiopt, on arrays of one array API namespace."""

    name: str
    about: str
    namespace: str
    #: Other modules without which there is nothing to judge.
    needs: tuple[str, ...] = ()
    #: As `multiopt.Adadelta` takes it; or "functional", "jit" (that under jax.jit), "keras", "keras-own" or
    #: "torch-face".
    engine: str = "auto"
    dtypes: tuple[str, ...] = tuple(HOLDERS)
    device: str = "cpu"
    #: Whether it is promised NumPy's bits in float32 and float64.
    bits: bool = True
    #: Those of the library, by name: the reference follows them.
    deviations: tuple[str, ...] = ()
    #: Whether thousands of steps take it more than seconds.
    slow: bool = False
    #: What makes its optimizer, in place of `build.optimizer_of`: for mutants.
    optimizer: Callable[[Case], TargetOptimizer] | None = None

    @property
    def root(self) -> str:
        """Import name of the library."""
        return self.arrays.root

    def absent(self) -> str | None:
        """Say why it cannot run here, or return None."""
        for module in (self.root, *self.needs):
            if not _found(module):
                return f"{module} is not installed"
        if self.device != "cuda":
            return None
        try:
            found = importlib.import_module(self.namespace).cuda.is_available()
        except Exception as error:
            # A GPU library may fail in many ways where there is no GPU or no driver.
            return f"{self.namespace} does not work here: {' '.join(str(error).split())[:120]}"
        return None if found else "there is no CUDA device"

    def lacks(self, dtype: str) -> str | None:
        """Say why it has no such data type, or return None."""
        if dtype not in self.dtypes:
            return f"{self.namespace} has no {dtype}"
        if dtype == "bfloat16" and self.root in ("numpy", "dask", "cupy") and not _found("ml_dtypes"):
            return "NumPy has bfloat16 only with ml_dtypes, which is not installed"
        return None

    @property
    def arrays(self) -> Arrays:
        """Its library's arrays."""
        return Arrays(self.namespace, "cuda" if (self.namespace, self.device) == ("torch", "cuda") else None)


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


_STANDARD = ("float32", "float64", "complex64", "complex128")

#: What is known of the targets of some libraries. A library of the registry that is not here gets one target.
_KNOWN = (
    Target("numpy", "NumPy, compiled by Numba into one loop", "numpy", ("numba",), "host"),
    Target("numpy-eager", "NumPy, operation by operation", "numpy", engine="eager"),
    Target("functional", "multiopt.functional on NumPy arrays", "numpy", engine="functional"),
    Target("keras-face", "multiopt.keras on NumPy arrays", "numpy", engine="keras"),
    Target("keras-own", "multiopt.keras with an update_step of one's own, on NumPy arrays", "numpy",
           engine="keras-own", dtypes=_STANDARD, slow=True),
    Target("torch-face", "multiopt.torch on the CPU", "torch", ("numba",), "torch-face", slow=True),
    Target("torch", "PyTorch on the CPU, compiled by Numba into one loop", "torch", ("numba",), "host"),
    Target("strict", "array-api-strict: nothing but the standard", "array_api_strict", (), "eager", _STANDARD,
           slow=True),
    Target("jax", "JAX on the CPU, compiled by Numba and called by XLA", "jax.numpy", ("numba",), slow=True),
    Target("jax-jit", "multiopt.functional under jax.jit on the CPU, with donated buffers", "jax.numpy", ("numba",),
           "jit"),
    Target("dask", "Dask, one task a chunk", "dask.array", slow=True),
    Target("cupy", "CuPy, traced into CUDA C", "cupy", engine="cuda", device="cuda", dtypes=("float16", *_STANDARD)),
    Target("torch-cuda", "PyTorch on CUDA, traced into CUDA C", "torch", engine="cuda", device="cuda"),
)  # fmt: skip
#: Targets for array API namespaces that somebody asked for by their import names.
_namespaces: dict[str, Target] = {}


def all_targets() -> dict[str, Target]:
    """Return every target by name: those of the registry's libraries, and of the namespaces that `find` was given."""
    libraries = {library.name: library for library in backends.libraries()}
    found = {target.name: target for target in _KNOWN if target.root in libraries}
    roots = {target.root for target in _KNOWN}
    for name, library in libraries.items():
        if name not in roots:
            dtypes = _dtypes(library.namespace)
            found[name] = Target(name, library.title, library.namespace, dtypes=dtypes, slow=True)
    return found | _namespaces


def _dtypes(namespace: str) -> tuple[str, ...]:
    if not _found(namespace.partition(".")[0]):
        return tuple(HOLDERS)
    xp = importlib.import_module(namespace)
    return tuple(dtype for dtype in HOLDERS if hasattr(xp, dtype) and dtype != "bfloat16")


def find(name: str) -> Target:
    """Return the target of this name, or one for the array API namespace of this import name.

    An `ImportError` says that there is no such module; a `ValueError`, that it is no array API namespace, or that its
    arrays say that they belong to another one.
    """
    found = all_targets()
    if name not in found:
        _check_namespace(name, importlib.import_module(name))
        # How long a step takes there nobody knows: no run goes far.
        about = f"the namespace {name}"
        found[name] = _namespaces[name] = Target(name, about, name, (), "eager", _dtypes(name), slow=True)
    return found[name]


def _check_namespace(name: str, xp: Any) -> None:
    missing = [part for part in ("asarray", "float32", "float64", "sqrt", "where") if not hasattr(xp, part)]
    if missing:
        raise ValueError(f"--namespace {name}: expected an array API namespace; it lacks {', '.join(missing)}")
    probe = xp.asarray([1.0], dtype=xp.float32)
    known = ("array_api_compat", *(library.name for library in backends.libraries()))
    # NumPy before 2.0 has no such method, and PyTorch has none: multiopt knows their arrays by their types.
    said = getattr(probe.__array_namespace__(), "__name__", "") if hasattr(probe, "__array_namespace__") else name
    if said != name and name.partition(".")[0] not in known:
        raise ValueError(
            f"--namespace {name}: expected arrays whose __array_namespace__() is {name}, "
            f"got {said or 'something without a name'}: multiopt goes by what arrays say"
        )
