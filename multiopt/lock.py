"""One at a time: the lock of an optimizer, for those who step it from several threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast
from weakref import WeakSet

__all__ = ["Lock", "locked"]

Method = TypeVar("Method", bound=Callable[..., Any])
_locks: WeakSet[Lock] = WeakSet()


class Lock(type(threading.RLock())):  # type: ignore[misc]
    """A lock that its thread may take again, as user code does that is called within a step.

    A copy, or what a pickle of it gives, is another one. In a forked child it is free, unless the thread that forked
    holds it: another thread, which does not exist there, will never release it.
    """

    def __init__(self) -> None:
        super().__init__()
        _locks.add(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return Lock, ()


def locked(method: Method) -> Method:
    """A method of an object that has a `Lock` as its ``_step_lock``, which is held while the method runs."""

    @wraps(method)
    def one_at_a_time(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        with self._step_lock:
            return method(self, *args, **kwargs)

    return cast(Method, one_at_a_time)


def _free() -> None:
    for lock in list(_locks):
        if lock.acquire(blocking=False):
            lock.release()
        else:
            lock._at_fork_reinit()  # as `threading` and `logging` do with theirs


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_free)
