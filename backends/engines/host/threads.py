"""Threads for kernels that release the GIL: the caller does its share, and a fork leaves nothing behind.

Numba's own threading layers abort on concurrent calls (workqueue) or are terminated in a forked child (GNU OpenMP);
a pool of our own has neither trap and was as fast when measured.

An exception may come in the caller at any time, because signal handlers may raise (Ctrl-C does). No helper may go on
then, unseen, in memory that the caller believes to be its own again. What the standard library offers for waiting can
itself be interrupted, so that a second signal would end the wait for the first; and a future that was submitted may not
have been recorded yet. So helpers enter a `Team` through a door before they take a piece, and the caller, whatever
happens, closes it in one call of C that no signal ends and that returns when nobody is inside.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

__all__ = ["run", "thread_count"]

Piece = TypeVar("Piece")

# Python's own locks of C. Called through `CDLL`, which lets go of the GIL, they are waited for whatever signals come:
# Python's handlers run after the call.
_c = ctypes.CDLL("python", handle=ctypes.pythonapi._handle)
_new_lock, _acquire, _release = _c.PyThread_allocate_lock, _c.PyThread_acquire_lock, _c.PyThread_release_lock
_new_lock.restype, _new_lock.argtypes = ctypes.c_void_p, []
_acquire.restype, _acquire.argtypes = ctypes.c_int, [ctypes.c_void_p, ctypes.c_int]
_release.restype, _release.argtypes = None, [ctypes.c_void_p]
WAIT, TRY = 1, 0


def thread_count(library: int | None = None) -> int:
    """Threads a step may use: what ``MULTIOPT_NUM_THREADS`` says.

    Where it says nothing, as many as processors that this process may use, or fewer: what the arrays' `library` has
    been told (`Backend.threads`), or else OpenMP's ``OMP_NUM_THREADS``, by which launchers of many processes on one
    host give each its share.

    Raises
    ------
    ValueError
        If ``MULTIOPT_NUM_THREADS`` is set to something that is not a positive integer.
    """
    if asked := _asked_count():
        return asked
    affinity = getattr(os, "sched_getaffinity", None)
    processors = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(processors, library or _openmp_count() or processors)


def _asked_count() -> int | None:
    text = os.environ.get("MULTIOPT_NUM_THREADS")
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"MULTIOPT_NUM_THREADS: expected a positive integer, got {text!r}")
    return int(text)


def _openmp_count() -> int | None:
    """What ``OMP_NUM_THREADS`` says; None where OpenMP would not heed it either."""
    # One number for each level of nesting; ours is the outermost.
    text = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(text) or None if text.isascii() and text.isdecimal() else None


def run(kernel: Callable[[Piece], Any], pieces: Sequence[Piece], library: int | None = None) -> None:
    """Call `kernel` once on each piece, from as many threads as are allowed; return when all are done.

    `library` is what `thread_count` takes.

    If a call raises, or the caller is interrupted, no more pieces are begun; when those that have been are done, the
    exception goes on. One that comes in the meantime goes on in its place, with the first as its context.
    """
    _asked_count()  # a bad one is refused where there is a single piece, too: a bucket of many may follow
    count = min(thread_count(library), len(pieces)) if len(pieces) > 1 else 1
    if count == 1:
        for piece in pieces:
            kernel(piece)
        return
    team = _pool.team()
    team.kernel, team.pieces, team.error, team.ticket = kernel, pieces, None, itertools.count()
    try:
        team.over = False
        _pool.call(team, count - 1)
        team.work()
    finally:
        # Between an exception above and this call no signal's handler runs: there is neither a call nor a loop.
        team.over = True
        _acquire(team.door, WAIT)
        _release(team.door)
        error, team.kernel, team.pieces, team.error = team.error, None, (), None
        _pool.idle.append(team)
    if error is not None:
        raise error


class Team:
    """A caller and its helpers, at one task after another.

    Who holds the door, a lock, keeps it: the helpers, the first that enters for all of them; or, for a moment, the
    caller that has ended the task. An interrupted caller may leave a team behind, its door closed or not, which nobody
    uses again; of that, only the lock remains, a few bytes.
    """

    def __init__(self) -> None:
        self.door: int = _new_lock()
        if not self.door:
            raise MemoryError("no memory for a lock")
        #: Held while the number of helpers within changes.
        self.guard = threading.Lock()
        self.inside = 0
        #: Whether there is nothing to do, or no more: no piece is begun.
        self.over = True
        self.kernel: Any = None
        self.pieces: Sequence[Any] = ()
        #: ``next()`` on it is atomic: whoever is free takes the next piece.
        self.ticket: Iterator[int] = itertools.count()
        #: What a call in a helper raised.
        self.error: BaseException | None = None

    def work(self) -> None:
        """Do what pieces are left."""
        kernel, pieces, ticket = self.kernel, self.pieces, self.ticket
        while not self.over and (index := next(ticket)) < len(pieces):
            kernel(pieces[index])

    def help(self) -> None:
        """Enter and work, unless the task is over: a helper may have been called to one that was long ago."""
        with self.guard:
            if not self.inside and not _acquire(self.door, TRY):
                return
            self.inside += 1
        try:
            self.work()
        except BaseException as error:
            self.over, self.error = True, error
        finally:
            with self.guard:
                self.inside -= 1
                if not self.inside:
                    _release(self.door)


class Pool:
    """Threads that wait to be called; as many as any caller has asked for."""

    def __init__(self) -> None:
        self.calls: SimpleQueue[Team] = SimpleQueue()
        self.threads: list[threading.Thread] = []
        self.growing = threading.Lock()
        #: Teams that have no task.
        self.idle: list[Team] = []

    def team(self) -> Team:
        """One that has no task."""
        try:
            return self.idle.pop()
        except IndexError:
            return Team()

    def call(self, team: Team, count: int) -> None:
        """Call helpers; fewer if no thread can be had any more, as when the interpreter ends."""
        if len(self.threads) < count:
            with self.growing, suppress(RuntimeError):
                while len(self.threads) < count:
                    name = f"multiopt_{len(self.threads)}"
                    # A daemon: at the end of the interpreter it waits for a call, and nobody waits for it.
                    thread = threading.Thread(target=self.serve, name=name, daemon=True)
                    thread.start()
                    self.threads.append(thread)
        for _ in range(min(count, len(self.threads))):
            self.calls.put(team)

    def serve(self) -> None:
        """Help one team after another."""
        while True:
            self.calls.get().help()


_pool = Pool()


def _forget() -> None:
    global _pool
    _pool = Pool()  # a forked child has the object but not its threads


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
