"""The rule bound to tensors that may get other memory at any time, and to DTensors' local shards."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping, Sequence
from itertools import chain
from operator import is_, itemgetter
from typing import Any, cast

import torch
from torch import Tensor

from ..adadelta import ADADELTA
from ..backends import engine_for, get
from ..backends.generic import Described
from ..backends.rounding import Elements
from ..backends.torch import PLAIN, TorchBackend, local, with_layout_of
from ..binding import Binding
from ..plan import Plan

__all__ = ["BACKEND", "TensorBinding", "is_readable", "same", "takes_groups"]

BACKEND = cast(TorchBackend, get("torch"))


def same(old: Sequence[Any], new: Iterable[Any]) -> bool:
    """Whether two lists hold the very same objects."""
    new = list(new)
    return len(old) == len(new) and all(map(is_, old, new))


def is_readable(tensor: Tensor) -> bool:
    """Whether an engine may read a tensor's memory."""
    return type(tensor) in PLAIN and tensor.layout == torch.strided and tensor.device.type in ("cpu", "cuda")


def takes_groups(device: torch.device) -> bool:
    """Whether one binding takes tensors of several groups: the eager engine does, so the dtypes do not matter."""
    return engine_for(BACKEND, str(device), ["float32"] * 3)[0].takes_groups


class TensorBinding(Binding):
    """The rule bound to some parameters and their states: all of one device and of the same dtypes.

    All of them are DTensors, whose local shards are bound, or none. `members` are the groups that they are of, and
    `groups` says for each which of those. A RuntimeError says what cannot be updated.
    """

    def __init__(
        self,
        names: Sequence[str],
        tensors: Sequence[Tensor],
        states: Sequence[MutableMapping[str, Any]],
        groups: Sequence[int],
        grad_dtype: torch.dtype,
        sharded: bool,
        elements: Sequence[Elements] | None = None,
    ) -> None:
        self.tensors, self.states, self.grad_dtype, self.sharded = tensors, states, grad_dtype, sharded
        self.members, self.group_of = sorted(set(groups)), groups
        place = {group: k for k, group in enumerate(self.members)}
        own_groups = [place[group] for group in groups] if len(place) > 1 else None
        if sharded:
            for p, own in zip(tensors, states, strict=True):
                own.update({slot: with_layout_of(p, own[slot]) for slot in ADADELTA.slots})
        params, *columns = self._arrays()
        state = [dict(zip(ADADELTA.slots, own, strict=True)) for own in zip(*columns, strict=True)]
        for name, own in zip(names, state, strict=True):
            for slot, tensor in own.items():
                if type(tensor) not in PLAIN:
                    raise RuntimeError(f"{slot} of {name}: expected a plain tensor, got a {torch.typename(tensor)}")
        dtypes = [str(grad_dtype).removeprefix("torch.")] * len(params)
        try:
            options: Any = {"grad_dtypes": dtypes, "groups": own_groups, "elements": elements}
            super().__init__(ADADELTA, params, names, state=state, **options)
        except (TypeError, ValueError) as error:
            raise RuntimeError(str(error)) from None
        (self.bucket,) = self.buckets
        self.grad_fingerprint: Any = None

    def is_current(self) -> bool:
        """Whether the parameters and the state are still those tensors, in the same memory."""
        self.bucket.asked = BACKEND.memory_fingerprint(list(chain.from_iterable(self._arrays())))
        return self.bucket.asked == self.bucket.good

    def binds(
        self,
        names: Sequence[str],
        tensors: Sequence[Tensor],
        states: Sequence[MutableMapping[str, Any]],
        groups: Sequence[int],
        grad_dtype: torch.dtype,
        sharded: bool,
        elements: Sequence[Elements] | None,
    ) -> bool:
        """Whether it was made of these, and they have not moved."""
        return (
            (self.names, self.group_of, self.grad_dtype, self.sharded) == (names, groups, grad_dtype, sharded)
            and _numbers(self.elements) == _numbers(elements)
            and same(self.tensors, tensors)
            and same(self.states, states)
            and self.is_current()
        )

    def plan(self, *args: Any, **options: Any) -> Plan:
        """Check a step; see `Binding.plan`."""
        try:
            return super().plan(*args, **options)
        except (TypeError, ValueError) as error:
            raise RuntimeError(str(error)) from None

    def local_grads(self, grads: Sequence[Tensor | None]) -> Sequence[Tensor | None] | None:
        """The gradients as `plan` takes them; None if one is of another kind than was bound."""
        if self.sharded:
            pairs = zip(self.tensors, grads, strict=True)
            grads = [None if g is None else local(with_layout_of(p, g)) for p, g in pairs]
        own = BACKEND.described(grads)
        kinds = own.kinds if isinstance(own, Described) else map(type, own)
        found = BACKEND.fingerprint(own) if PLAIN.issuperset(kinds) else None
        if found is None or found != self.grad_fingerprint:
            if not all(g is None or (is_readable(g) and g.dtype == self.grad_dtype) for g in own):
                return None
            self.grad_fingerprint = found
        return own

    def _arrays(self) -> list[list[Tensor]]:
        """The local parameters, and those of each slot, as they are now."""
        columns: list[Any] = [self.tensors, *(list(map(itemgetter(slot), self.states)) for slot in ADADELTA.slots)]
        return [[local(tensor) for tensor in column] for column in columns] if self.sharded else columns


def _numbers(elements: Sequence[Elements] | None) -> list[int] | None:
    """The parameters' numbers; which elements of them are here goes with the tensors."""
    return None if elements is None else [own.parameter for own in elements]
