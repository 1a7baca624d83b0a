"""Parameters of a group that are updated alike by the engines: their buckets, and whether these still hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from operator import is_, itemgetter
from typing import Any

import torch
from torch import Tensor

from ..adadelta import ADADELTA
from ..backends import get
from ..binding import Binding, Plan
from ..update import FusedUpdate
from .shards import is_sharded, local, local_gradients, with_layout_of

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
        self.grad_dtype = next((g.dtype for g in own_grads if g is not None), self.params[0].dtype)
        self.bindings = list(self._bindings())
        for binding, _ in self.bindings:
            for bucket in binding.buckets:
                bucket.watched = True
        self.fingerprints = [self._fingerprint(binding) for binding, _ in self.bindings]
        self._take(own_grads)

    def _bindings(self) -> Iterator[tuple[Binding, list[int]]]:
        """Bind the local tensors. Those that share memory are bound one by one, to be updated one after another."""
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
        extents = sorted(get("torch").extent(array) for array in arrays[0])
        everything = list(range(len(self.params)))
        shared = any(one[1] > other[0] for one, other in pairwise(e for e in extents if e[0] < e[1]))
        for places in [[j] for j in everything] if shared else [everything]:
            names = [self.names[j] for j in places]
            state = [dict(zip(self.slots, [column[j] for column in arrays[1:]], strict=True)) for j in places]
            dtypes = [str(self.grad_dtype).removeprefix("torch.")] * len(places)
            try:
                binding = Binding(ADADELTA, [arrays[0][j] for j in places], names, state=state, grad_dtypes=dtypes)
            except (TypeError, ValueError) as error:
                raise RuntimeError(str(error)) from None
            yield binding, places

    def _arrays(self, tensors: Sequence[Any]) -> list[Tensor]:
        return [local(tensor) for tensor in tensors] if self.sharded else list(tensors)

    @staticmethod
    def _fingerprint(binding: Binding) -> list[Any]:
        backend: Any = binding.backend
        return [backend.memory_fingerprint(column) for bucket in binding.buckets for column in bucket.arrays()]

    def take(self, grads: Sequence[Tensor | None]) -> bool:
        """Take in the gradients of another step; False if something has moved."""
        for slot, arrays in self.slots.items():
            if not all(map(is_, arrays, map(itemgetter(slot), self.states))):
                return False
        if self.sharded and not all(
            binding.column(k)[i] is local(tensors[j])
            for binding, places in self.bindings
            for k, tensors in enumerate([self.params, *self.slots.values()])
            for i, j in enumerate(places)
        ):
            return False
        if [self._fingerprint(binding) for binding, _ in self.bindings] != self.fingerprints:
            return False
        own = grads if self.whole else [grads[j] for j in self.places]
        if any(g is not None and (g.dtype != self.grad_dtype or not _is_plain(g, self.sharded)) for g in own):
            return False
        self._take(own)
        return True

    def _take(self, grads: Sequence[Tensor | None]) -> None:
        """Lay the gradients beside their buckets."""
        if self.sharded:
            grads = local_gradients(self.params, grads)
        self.grads: list[list[Tensor | None]] = [[grads[j] for j in places] for _, places in self.bindings]

    def plans(self, update: FusedUpdate, values: Callable[[torch.device], Mapping[str, Any]]) -> Iterator[Plan]:
        """What the engines have to do; `values` gives the update's numbers for a device."""
        for (binding, _), grads in zip(self.bindings, self.grads, strict=True):
            if any(g is not None for g in grads):
                yield binding.plan(update, grads, values(binding.params[0].device))


def _is_plain(grad: Any, sharded: bool) -> bool:
    return is_sharded(grad) if sharded else type(grad) in EXACT and grad.layout == torch.strided
