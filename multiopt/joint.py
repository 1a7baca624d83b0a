"""Groups of parameters that are updated alike share one plan and one call of an engine, each with its own numbers.

A group has a binding of its own, which makes its state and by which it is saved. For a step, the arrays of several
are bound together: what a step asks, checks and calls is then asked, checked and called once, however many groups
there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from .backends.generic import Array
from .backends.protocol import Bucket
from .backends.rounding import Rounding
from .binding import Binding
from .plan import Plan
from .update import FusedUpdate

__all__ = ["Joint", "JointBinding"]


class JointBinding(Binding):
    """The arrays of several bindings, which are of one rule and one mutable library, bound together.

    Its parameters are theirs, one binding's after the other's, and each of them is a group with numbers of its own. Of
    their buckets, those of one kind become one, where the engine takes several groups.
    """

    def __init__(self, bindings: Sequence[Binding]) -> None:
        first = bindings[0]
        self.rule, self.engine, self.backend, self.memory = first.rule, first.engine, first.backend, bindings[-1].memory
        self.names = list(chain.from_iterable(binding.names for binding in bindings))
        self.elements = first.elements and list(chain.from_iterable(b.elements or () for b in bindings))
        self._params = list(chain.from_iterable(binding.params for binding in bindings))
        self.buckets, self.places, self.groups = [], [], []
        by_kind: dict[tuple[Any, ...], list[tuple[int, Bucket, list[int]]]] = {}
        start = 0
        for i, binding in enumerate(bindings):
            for bucket, places in zip(binding.buckets, binding.places, strict=True):
                alone = None if bucket.engine.takes_groups else i
                kind = id(bucket.engine), bucket.device, bucket.dtype, bucket.grad_dtype, bucket.state_dtype, alone
                by_kind.setdefault(kind, []).append((i, bucket, [start + place for place in places]))
            start += len(binding.names)
        for parts in by_kind.values():
            several, sizes = len(parts) > 1, [len(own) for _, _, own in parts]
            self.buckets.append(_joined([bucket for _, bucket, _ in parts]) if several else parts[0][1])
            self.places.append([place for _, _, own in parts for place in own])
            which = np.repeat(np.arange(len(parts)), sizes) if several else None
            self.groups.append(([i for i, _, _ in parts], which))


class Joint:
    """Plans bindings together: those of mutable arrays whose updates are equal."""

    def __init__(self) -> None:
        self._bindings: list[Binding] = []
        self._updates: list[FusedUpdate] = []
        #: For each update, the bindings that it is for, and what binds their arrays together.
        self._joined: list[tuple[FusedUpdate, tuple[int, ...], Binding]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return Joint, ()  # a copy finds its own

    def plan(
        self,
        bindings: Sequence[Binding],
        updates: Sequence[FusedUpdate],
        grads: Sequence[Sequence[Array | None]],
        values: Sequence[Mapping[str, Any]],
        rounding: Rounding | None = None,
        alike: Sequence[FusedUpdate] | None = None,
    ) -> list[Plan]:
        """Check a step of several bindings, each with its update, gradients and numbers; nothing is written.

        See `Binding.plan`. Where arrays are immutable, there is a plan for each binding. Updates that are equal are
        done together, or if `alike` is given, those where that is equal.
        """
        alike = updates if alike is None else alike
        if len(bindings) < 2 or not bindings[0].backend.mutable:
            rows = zip(bindings, updates, grads, values, strict=True)
            return [binding.plan(update, own, numbers, rounding=rounding) for binding, update, own, numbers in rows]
        if self._bindings != bindings or self._updates != alike:
            self._join(list(bindings), updates, list(alike))
        plans = []
        for _, which, binding in self._joined:
            own = list(chain.from_iterable(grads[i] for i in which))
            plans.append(binding.plan(updates[which[0]], own, *(values[i] for i in which), rounding=rounding))
        return plans

    def _join(self, bindings: list[Binding], updates: Sequence[FusedUpdate], alike: list[FusedUpdate]) -> None:
        for binding, update in zip(bindings, updates, strict=True):
            binding.check(update)  # what a joint binding takes for good, it takes from here
        together: dict[FusedUpdate, list[int]] = {}
        for i, update in enumerate(alike):
            together.setdefault(update, []).append(i)
        known = {which: binding for _, which, binding in self._joined} if self._bindings == bindings else {}
        joined: list[tuple[FusedUpdate, tuple[int, ...], Binding]] = []
        for update, places in together.items():
            which, own = tuple(places), [bindings[i] for i in places]
            one = known.get(which) or (JointBinding(own) if len(own) > 1 else own[0])
            joined.append((update, which, one))
        self._bindings, self._updates, self._joined = bindings, alike, joined


def _joined(buckets: Sequence[Bucket]) -> Bucket:
    first = buckets[0]
    joined = Bucket(
        first.backend, first.engine, first.device, first.dtype, first.grad_dtype, first.state_dtype,
        list(chain.from_iterable(bucket.names for bucket in buckets)),
        list(chain.from_iterable(bucket.params for bucket in buckets)),
        {slot: list(chain.from_iterable(bucket.state[slot] for bucket in buckets)) for slot in first.state},
        first.wanted,
    )  # fmt: skip
    if first.elements is not None:
        joined.elements = list(chain.from_iterable(bucket.elements or () for bucket in buckets))
    return joined
