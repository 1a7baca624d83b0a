"""The CPU's floating-point control register, around arithmetic that is not ours to compile.

See ``host/control.py`` for what may have been set in it. Here it is C's library that sets the default and restores.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

__all__ = ["with_default_control"]

Result = TypeVar("Result")


def with_default_control(compute: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function that rounds to nearest and keeps subnormals, in this thread, whatever was set before.

    On Linux and macOS; elsewhere it is merely called.
    """
    found = _environment()
    if found is None:
        return compute(*arguments)
    save, restore, default, room = found
    before = room()
    save(before)
    try:
        restore(default)
        return compute(*arguments)
    finally:
        restore(before)


@cache
def _environment() -> tuple[Callable[[Any], int], Callable[[Any], int], Any, Any] | None:
    """``fegetenv``, ``fesetenv``, ``FE_DFL_ENV`` and room for an environment; None where they are not known."""
    import ctypes

    if sys.platform not in ("linux", "darwin"):
        return None
    library = ctypes.PyDLL(None)
    if not hasattr(library, "fesetenv"):
        library = ctypes.PyDLL("libm.so.6")
    mac = sys.platform == "darwin"
    default = ctypes.addressof(ctypes.c_char.in_dll(library, "_FE_DFL_ENV")) if mac else -1
    for function in (library.fegetenv, library.fesetenv):
        function.argtypes = [ctypes.c_void_p]
    # C knows the size, we do not: at most 32 bytes where it was looked up.
    return library.fegetenv, library.fesetenv, ctypes.c_void_p(default), ctypes.c_uint64 * 32
