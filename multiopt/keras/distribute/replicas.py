"""Replicas: several workers that step together, each with the gradients of its part of the batch.

There are two kinds: the processes of ``torch.distributed``, once it is initialized, each with its own variables; and
threads of one process (`Replicas`), which share variables of any array library, as the replicas of a TensorFlow
strategy on one machine do. Without either, there is one replica.
"""

from __future__ import annotations

import operator
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from functools import reduce
from typing import Any

import numpy as np

from ... import backends
from ...backends.generic import Array
from ..variables.slices import IndexedSlices

__all__ = ["ReplicaContext", "Replicas", "get_replica_context"]

_OPERATIONS = ("sum", "mean")


class ReplicaContext:
    """What a replica knows of the others. This class is for a single replica."""

    #: The number of replicas, and the number of this one.
    num_replicas_in_sync: int = 1
    replica_id_in_sync_group: int = 0
    #: Whether the others, in threads of this process, update the same variables.
    shares_variables: bool = False

    def all_reduce(self, operation: str, gradients: Any) -> Any:
        """The sum, or mean, over all replicas of a gradient, or of each of a list.

        Parameters
        ----------
        operation : {"sum", "mean"}
        gradients : array, IndexedSlices or None, or list of them
            Every replica must give as many, of the same shapes, with None at the same places. The rows of
            `IndexedSlices` are concatenated, not added; replicas may give different numbers of rows.

        Returns
        -------
        like gradients
            New arrays; the given ones are not changed.

        Raises
        ------
        ValueError
            If the operation is unknown, or the replicas' lists differ.
        """
        if operation not in _OPERATIONS:
            raise ValueError(f"operation: expected one of {', '.join(_OPERATIONS)}, got {operation!r}")
        single = not isinstance(gradients, (list, tuple))
        given = [gradients] if single else list(gradients)
        reduced = given if self.num_replicas_in_sync == 1 else self._sums(given)
        if operation == "mean" and self.num_replicas_in_sync > 1:
            reduced = [_scaled(g, 1 / self.num_replicas_in_sync) for g in reduced]
        return reduced[0] if single else reduced

    def merge_call(self, function: Callable[[], Any]) -> Any:
        """Call `function` once for all replicas that share variables, and return its result to each."""
        return function()

    def _sums(self, gradients: list[Any]) -> list[Any]:
        return gradients


def _scaled(gradient: Any, factor: float) -> Any:
    if isinstance(gradient, IndexedSlices):
        return IndexedSlices(gradient.values * factor, gradient.indices, gradient.dense_shape)
    return None if gradient is None else gradient * factor


# --- threads ---


class Replicas:
    """Several replicas in one process, one thread each, that share their variables.

    Parameters
    ----------
    count : int
        The number of replicas.

    Examples
    --------
    >>> replicas = Replicas(2)
    >>> replicas.run(step, [(batch[:32],), (batch[32:],)])  # doctest: +SKIP
    """

    def __init__(self, count: int) -> None:
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"count: expected a positive integer, got {count!r}")
        self.count = count

    @contextmanager
    def scope(self) -> Iterator[Replicas]:
        """The cross-replica context, in which there is no current replica, and so no gradients to apply."""
        token = _context.set(None)
        try:
            yield self
        finally:
            _context.reset(token)

    def run(self, function: Callable[..., Any], args: Sequence[Sequence[Any]] | None = None) -> list[Any]:
        """Call `function` in all replicas at the same time.

        Parameters
        ----------
        function : callable
        args : sequence of sequences, or None
            The arguments of each replica.

        Returns
        -------
        list
            What each replica returned.

        Raises
        ------
        Exception
            What a replica raised. The others are stopped where they wait for it.
        RuntimeError
            If one ended while another waited for it: all must step the same number of times.
        """
        each = [()] * self.count if args is None else list(args)
        if len(each) != self.count:
            raise ValueError(f"args: expected the arguments of {self.count} replicas, got {len(each)}")
        meeting = _Meeting(self.count)
        results: list[Any] = [None] * self.count
        errors: list[BaseException | None] = [None] * self.count

        def work(i: int) -> None:
            _context.set(_Thread(meeting, i))
            try:
                results[i] = function(*each[i])
            except BaseException as error:
                errors[i] = error
            finally:
                meeting.end()

        threads = [threading.Thread(target=copy_context().run, args=(work, i)) for i in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # The cause first: those that waited for a replica that has raised come last.
        found = sorted((e for e in errors if e is not None), key=lambda e: isinstance(e, _AloneError))
        if found:
            raise found[0]
        return results


class _AloneError(RuntimeError):
    """A replica waited for others that had ended."""


class _Meeting:
    """Where the threads of a run wait for each other and exchange one object each."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.table: dict[int, Any] = {}
        self.result: list[Any] = []
        self.round = 0
        self.ended = False
        self.condition = threading.Condition()

    def exchange(self, number: int, mine: Any) -> list[Any]:
        """The objects of all replicas, once all have called this."""
        with self.condition:
            now = self.round
            self.table[number] = mine
            if len(self.table) == self.count:
                # No thread can finish the next round before all have returned from this one.
                self.result = [self.table.pop(i) for i in range(self.count)]
                self.round += 1
                self.condition.notify_all()
            self.condition.wait_for(lambda: self.round != now or self.ended)
            if self.round == now:
                raise _AloneError(
                    "replicas: one ended while another waited for it; all must step the same number of times"
                )
            return self.result

    def end(self) -> None:
        """One replica has ended."""
        with self.condition:
            self.ended = True
            self.condition.notify_all()


class _Thread(ReplicaContext):
    shares_variables = True

    def __init__(self, meeting: _Meeting, number: int) -> None:
        self.meeting = meeting
        self.replica_id_in_sync_group = number
        self.num_replicas_in_sync = meeting.count

    def _exchange(self, mine: Any) -> list[Any]:
        return self.meeting.exchange(self.replica_id_in_sync_group, mine)

    def _sums(self, gradients: list[Any]) -> list[Any]:
        everyone = self._exchange(gradients)
        if len({tuple(map(_kind, one)) for one in everyone}) > 1:
            raise ValueError("gradients: expected the same gradients in every replica, None at the same places")
        return [_added(list(column)) for column in zip(*everyone, strict=True)]

    def merge_call(self, function: Callable[[], Any]) -> Any:
        self._exchange(None)
        return self._exchange(function() if self.replica_id_in_sync_group == 0 else None)[0]


def _kind(gradient: Any) -> Any:
    if gradient is None:
        return None
    return "rows" if isinstance(gradient, IndexedSlices) else tuple(gradient.shape)


def _added(column: list[Any]) -> Any:
    first = column[0]
    if first is None:
        return None
    if isinstance(first, IndexedSlices):
        xp = backends.of(first.values).xp
        values = xp.concat([g.values for g in column], axis=0)
        return IndexedSlices(values, np.concatenate([g.indices for g in column]), first.dense_shape)
    return reduce(operator.add, column)


# --- processes ---


class _Process(ReplicaContext):
    """A process of ``torch.distributed``'s default group."""

    def __init__(self, torch: Any) -> None:
        self.torch = torch
        self.num_replicas_in_sync = torch.distributed.get_world_size()
        self.replica_id_in_sync_group = torch.distributed.get_rank()

    def _sums(self, gradients: list[Any]) -> list[Any]:
        everyone: list[Any] = [None] * self.num_replicas_in_sync
        self.torch.distributed.all_gather_object(everyone, list(map(_kind, gradients)))
        if any(one != everyone[0] for one in everyone):
            raise ValueError("gradients: expected the same gradients in every process, None at the same places")
        return [self._rows(g) if isinstance(g, IndexedSlices) else self._sum(g) for g in gradients]

    def _sum(self, gradient: Array | None) -> Array | None:
        if gradient is None:
            return None
        backend = backends.of(gradient)
        if backend.name == "torch":
            total = gradient.detach().clone()
            self.torch.distributed.all_reduce(total)
            return total
        # Other libraries' arrays pass through the CPU.
        dtype, tensors = backend.dtype(gradient), backends.get("torch")
        total = tensors.from_host(backend.to_host(gradient), dtype).clone()
        self.torch.distributed.all_reduce(total)
        return backend.from_host(tensors.to_host(total).reshape(tuple(gradient.shape)), dtype, gradient)

    def _rows(self, slices: IndexedSlices) -> IndexedSlices:
        backend = backends.of(slices.values)
        mine = backend.to_host(slices.values), slices.indices
        everyone: list[Any] = [None] * self.num_replicas_in_sync
        self.torch.distributed.all_gather_object(everyone, mine)
        values = np.concatenate([values for values, _ in everyone])
        indices = np.concatenate([indices for _, indices in everyone])
        dtype = backend.dtype(slices.values)
        return IndexedSlices(backend.from_host(values, dtype, slices.values), indices, slices.dense_shape)


_ALONE = ReplicaContext()
_context: ContextVar[ReplicaContext | None] = ContextVar("multiopt replica", default=_ALONE)


def get_replica_context() -> ReplicaContext | None:
    """The current replica; None in a cross-replica context: under `Replicas.scope`, outside of `Replicas.run`."""
    context = _context.get()
    if context is _ALONE:
        torch = sys.modules.get("torch")
        if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
            return _Process(torch)
    return context
