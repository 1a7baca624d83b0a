"""The rule bound to tensors that may get other memory at any time, and to DTensors' local shards."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any, cast

import torch
from torch import Tensor

from ..adadelta import ADADELTA
from ..backends import get
from ..backends.generic import Described
from ..backends.torch import PLAIN, TorchBackend, local, with_layout_of
from ..binding import Binding
from ..plan import Plan

__all__ = ["BACKEND", "TensorBinding", "is_readable"]

BACKEND = cast(TorchBackend, get("torch"))


def is_readable(tensor: Tensor) -> bool:
    """Whether an engine may read a tensor's memory."""
    return type(tensor) in PLAIN and tensor.layout == torch.strided and tensor.device.type in ("cpu", "cuda")


class TensorBinding(Binding):
    """The rule bound to some of a group's parameters and their states: all of one device and of the same dtypes.

    All of them are DTensors, whose local shards are bound, or none. A RuntimeError says what cannot be updated.
    """

    def __init__(
        self,
        names: Sequence[str],
        tensors: Sequence[Tensor],
        states: Sequence[MutableMapping[str, Any]],
        grad_dtype: torch.dtype,
        sharded: bool,
    ) -> None:
        self.tensors, self.states, self.grad_dtype, self.sharded = tensors, states, grad_dtype, sharded
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
            super().__init__(ADADELTA, params, names, state=state, grad_dtypes=dtypes)
        except (TypeError, ValueError) as error:
            raise RuntimeError(str(error)) from None
        (self.bucket,) = self.buckets
        self.grad_fingerprint: Any = None

    def is_current(self) -> bool:
        """Whether the parameters and the state are still those tensors, in the same memory."""
        self.bucket.asked = BACKEND.memory_fingerprint(list(chain.from_iterable(self._arrays())))
        return self.bucket.asked == self.bucket.good

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
