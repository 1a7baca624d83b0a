"""Parameters of a group that are updated alike by the engines: their buckets, and whether these still hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import is_, itemgetter
from typing import Any

import torch
from torch import Tensor

from ..backends.protocol import Bucket
from ..binding import Job, Pass, check_gradients, check_params, make_buckets, prepare
from ..rule import ADADELTA
from .shards import local, local_gradients, with_layout_of

__all__ = ["EXACT", "Part", "is_readable"]

#: Tensors whose memory an engine may read: a subclass may mean something else by it.
EXACT = (Tensor, torch.nn.Parameter)


def is_readable(tensor: Tensor) -> bool:
    """Whether an engine may read a tensor's memory."""
    return type(tensor) in EXACT and tensor.layout == torch.strided and tensor.device.type in ("cpu", "cuda")


class Part:
    """Some of a group's parameters, all of them DTensors or none, with gradients of one dtype.

    Parameters
    ----------
    names, params, states, grads : list
        The group's.
    places : list of int
        Where the part's stand in these lists.
    sharded : bool
        Whether they are DTensors.

    Raises
    ------
    RuntimeError
        If a state does not agree with its parameter, or a parameter is neither floating nor complex, or overlaps
        itself.
    TypeError, ValueError
        If a gradient does not agree with its parameter.
    """

    def __init__(
        self,
        names: Sequence[str],
        params: Sequence[Tensor],
        states: Sequence[Any],
        grads: Sequence[Tensor | None],
        places: list[int],
        sharded: bool,
    ) -> None:
        self.places, self.sharded = places, sharded
        self.whole = len(places) == len(params)
        self.params, self.states = [params[j] for j in places], [states[j] for j in places]
        self.names = [names[j] for j in places]
        self.slots: dict[str, list[Tensor]] = {}
        for slot in ADADELTA.slots:
            if sharded:
                for p, own in zip(self.params, self.states, strict=True):
                    own[slot] = with_layout_of(p, own[slot])
            self.slots[slot] = [own[slot] for own in self.states]
        own_grads = [grads[j] for j in places]
        given = next((g.dtype for g in own_grads if g is not None), None)
        self.buckets = list(self._buckets(None if given is None else str(given).removeprefix("torch.")))
        for bucket, _ in self.buckets:
            bucket.watched = True
        self.whereabouts = [self._whereabouts(bucket) for bucket, _ in self.buckets]
        self._take(own_grads)

    def _buckets(self, grad_dtype: str | None) -> Iterator[tuple[Bucket, list[int]]]:
        """Buckets of the local tensors. Those that share memory get one each, to be done one after another."""
        arrays = [self._arrays(self.params), *map(self._arrays, self.slots.values())]
        for name, p, *own in zip(self.names, *arrays, strict=True):
            for slot, held in zip(self.slots, own, strict=True):
                if (
                    type(held) not in EXACT
                    or held.shape != p.shape
                    or held.device != p.device
                    or held.dtype != own[0].dtype
                ):
                    raise RuntimeError(
                        f"{name}: expected a state {slot!r} of shape {tuple(p.shape)} on {p.device}, got "
                        f"a {type(held).__name__} of shape {tuple(held.shape)} and {held.dtype} on {held.device}"
                    )
        alone = [[j] for j in range(len(self.params))]
        try:
            check_params(arrays[0], self.names)
            together = [list(range(len(self.params)))]
        except (TypeError, ValueError):
            together = alone
        for places in together:
            chosen = [arrays[0][j] for j in places]
            try:
                check_params(chosen, [self.names[j] for j in places])
            except (TypeError, ValueError) as error:
                raise RuntimeError(str(error)) from None
            state = [dict(zip(self.slots, [column[j] for column in arrays[1:]], strict=True)) for j in places]
            made = make_buckets(ADADELTA, chosen, [self.names[j] for j in places], state=state, grad_dtype=grad_dtype)
            yield from ((bucket, [places[k] for k in indices]) for bucket, indices in made)

    def _arrays(self, tensors: Sequence[Any]) -> list[Tensor]:
        return [local(tensor) for tensor in tensors] if self.sharded else list(tensors)

    @staticmethod
    def _whereabouts(bucket: Bucket) -> list[Any]:
        backend: Any = bucket.backend
        return [backend.whereabouts(column) for column in bucket.arrays()]

    def take(self, grads: Sequence[Tensor | None]) -> bool:
        """Take in the gradients of another step; False if something has moved."""
        for slot, arrays in self.slots.items():
            if not all(map(is_, arrays, map(itemgetter(slot), self.states))):
                return False
        if self.sharded and not all(
            tensor is array
            for bucket, indices in self.buckets
            for column, tensors in zip(bucket.arrays(), [self.params, *self.slots.values()], strict=True)
            for array, tensor in zip(column, (local(tensors[j]) for j in indices), strict=True)
        ):
            return False
        if [self._whereabouts(bucket) for bucket, _ in self.buckets] != self.whereabouts:
            return False
        try:
            self._take(grads if self.whole else [grads[j] for j in self.places])
        except (TypeError, ValueError, RuntimeError):
            return False
        return True

    def _take(self, grads: Sequence[Tensor | None]) -> None:
        """Lay the gradients beside their buckets."""
        if self.sharded:
            grads = local_gradients(self.params, grads)
        if not {*EXACT, type(None)}.issuperset(map(type, grads)):
            raise TypeError("expected gradients that are plain tensors")
        self.grads: list[list[Tensor | None]] = [
            list(grads) if len(indices) == len(grads) else [grads[j] for j in indices] for _, indices in self.buckets
        ]
        for (bucket, _), own in zip(self.buckets, self.grads, strict=True):
            check_gradients(bucket, own)

    def jobs(self, one_pass: Pass, values: Callable[[torch.device], Mapping[str, Any]]) -> Iterator[Job]:
        """What the engines have to do; `values` gives the pass' numbers for a device."""
        for (bucket, indices), grads in zip(self.buckets, self.grads, strict=True):
            if any(g is not None for g in grads):
                prepare(bucket, one_pass)
                yield Job(bucket, indices, one_pass, grads, values(bucket.params[0].device))
