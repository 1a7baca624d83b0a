"""What a step needs to know about the parameter groups: found out once, and anew when something has moved.

A step over a thousand small tensors, or hundreds of groups, is as fast as the questions that are asked of each, so what
has to be asked in every step is asked of whole lists, in C, and of all groups together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from itertools import chain, pairwise, repeat
from operator import is_, itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import _get_capturable_supported_devices

from ..adadelta import ADADELTA
from ..backends.rounding import Draws, Elements, Rounding
from ..backends.torch import is_sharded, is_whole, local
from ..plan import Plan
from ..update import FusedUpdate
from .operations import update_by_operations
from .state import State, StateKind
from .tensors import BACKEND, TensorBinding, is_readable, same, takes_groups

__all__ = ["GroupsCache"]

Grads = Sequence[Tensor | None]
Group = Mapping[str, Any]
#: Gives a group's numbers as an engine wants them on a device; as PyTorch's operations want them for None.
Values = Callable[[int, torch.device | None], Mapping[str, Any]]
SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
#: Dtypes whose tensors PyTorch adds 1 to, in place.
COUNTING = {
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.complex32, torch.complex64, torch.complex128),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
}
_step, _params_of = itemgetter("step"), itemgetter("params")
_switches = itemgetter("capturable", "foreach", "differentiable")
_in_inference = torch.is_inference_mode_enabled


class GroupsCache:
    """The parameters of all groups that have a gradient or a state, bound to their state.

    `grads` are those of all groups, one after another; `updates` and `by_operations` have an entry for each group: what
    is done to its parameters, and whether by PyTorch's operations, as those are updated that no engine reads. `states`
    are the optimizer's, and are not changed before `keep_new_states`; new ones are of a kind. What `old` has bound, and
    holds still, is taken over: a CUDA graph may hold what it keeps on the device.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        grads: Grads,
        states: Mapping[Tensor, State],
        updates: Sequence[FusedUpdate],
        by_operations: Sequence[bool],
        kind_of_state: StateKind,
        old: GroupsCache | None,
    ) -> None:
        self.options, self.updates = _options(groups, by_operations), list(updates)
        self.all_params = list(_params(groups))
        where = [f"groups[{k}].params" for k in range(len(groups))] if len(groups) > 1 else ["params"]
        places = [(k, i) for k, group in enumerate(groups) for i in range(len(group["params"]))]
        if any(group["foreach"] and group["differentiable"] for group in groups):
            raise AssertionError("_foreach ops don't support autograd")
        if _any_sparse(grads):
            raise RuntimeError("Adadelta does not support sparse gradients")
        for (k, i), *tensors in zip(places, self.all_params, grads, strict=True):
            if any(tensor is not None and tensor.is_nested for tensor in tensors):
                raise RuntimeError(f"{where[k]}[{i}]: expected tensors with one shape, got a nested one")
        self.indices = [i for i, p in enumerate(self.all_params) if grads[i] is not None or states.get(p)]
        self.idle = sorted(set(range(len(grads))) - set(self.indices))
        self.params = [self.all_params[i] for i in self.indices]
        #: The group of each.
        self.group_of = [places[i][0] for i in self.indices]
        self.new_states: dict[Tensor, State] = {}
        self.states = [
            states.get(p)
            or self.new_states.get(p)
            or self.new_states.setdefault(p, kind_of_state.new(p, groups[k]["capturable"]))
            for k, p in zip(self.group_of, self.params, strict=True)
        ]
        self.steps = list(map(_step, self.states))
        if not all(isinstance(step, Tensor) for step in self.steps):
            raise RuntimeError("API has changed, `state_steps` argument must contain a list of singleton tensors")
        capturable = [j for j, k in enumerate(self.group_of) if groups[k]["capturable"]]
        _check_capturable([self.params[j] for j in capturable], [self.steps[j] for j in capturable])
        self.plain_steps = not any(by_operations) and all(type(step) is Tensor for step in self.steps)
        given = [group.get("param_names") for group in groups]
        self.names = names = [
            f"{where[k]}[{i}]" + (f" ({own[i]})" if (own := given[k]) else "")
            for k, i in (places[i] for i in self.indices)
        ]
        for row in zip(names, self.params, self.states, strict=True):
            _check_writable(*row)
        #: Which elements of which parameter each has, where state is rounded stochastically.
        self.elements: list[Elements] | None = None
        if kind_of_state.stochastic:
            self.elements = list(map(kind_of_state.elements, names, self.indices, self.params))
        rows = zip(self.params, self.indices, self.states, self.group_of, strict=True)
        kinds = [None if by_operations[k] else _kind(p, grads[i], own) for p, i, own, k in rows]
        #: Places, in `params`, of those that no engine reads.
        self.by_operations = [j for j, kind in enumerate(kinds) if kind is None]
        #: Bindings of the others, each with its update and the places of its parameters.
        self.bindings: list[tuple[TensorBinding, FusedUpdate, list[int]]] = []
        # Tensors that share memory are updated one after another, in the groups' order.
        alone = _overlap([p for p, kind in zip(self.params, kinds, strict=True) if kind is not None])
        alike = {update: n for n, update in enumerate(updates)}
        shared = {kind: not alone and takes_groups(kind[-1]) for kind in set(kinds) if kind is not None}
        found: dict[tuple[Any, ...], list[int]] = {}
        for j, (kind, k) in enumerate(zip(kinds, self.group_of, strict=True)):
            if kind is not None:
                found.setdefault((*kind, alike[updates[k]] if shared[kind] else k), []).append(j)
        known = {id(binding.tensors[0]): binding for binding, *_ in old.bindings} if old else {}
        for (sharded, grad_dtype, *_), together in found.items():
            alone_here = alone and _overlap([self.params[j] for j in together])
            for own in [[j] for j in together] if alone_here else [together]:
                columns: Any = ([column[j] for j in own] for column in (names, self.params, self.states, self.group_of))
                elements = self.elements and [self.elements[j] for j in own]
                made_of = *columns, grad_dtype, sharded, elements
                bound = known.get(id(self.params[own[0]]))
                binding = bound if bound and bound.binds(*made_of) else TensorBinding(*made_of)
                self.bindings.append((binding, updates[self.group_of[own[0]]], own))

    def is_current(
        self, groups: Sequence[Group], updates: Sequence[FusedUpdate], by_operations: Sequence[bool]
    ) -> bool:
        """Whether options, updates, parameters and state are what they were, and where they were."""
        return (
            self.options == _options(groups, by_operations)
            and self.updates == updates
            and same(self.all_params, _params(groups))
            and all(self.states)
            and same(self.steps, map(_step, self.states))
            and all(binding.is_current() for binding, *_ in self.bindings)
        )

    def local_grads(self, grads: Grads) -> list[Grads] | None:
        """The gradients for each binding; None if others have come than it was made for."""
        if any(grads[i] is not None for i in self.idle) or (self.by_operations and _any_sparse(grads)):
            return None
        own, found = self._own(grads), []
        for binding, _, places in self.bindings:
            its = binding.local_grads(own if len(places) == len(own) else [own[j] for j in places])
            if its is None:
                return None
            found.append(its)
        return found

    def plans(self, local_grads: Sequence[Grads], values: Values, rounding: Rounding | None) -> list[Plan]:
        """Check what is to be done, and plan what the engines have to do."""
        for j in self.by_operations:
            _check_state(self.names[j], self.params[j], self.states[j])
        plans = []
        for (binding, update, _), own in zip(self.bindings, local_grads, strict=True):
            if any(g is not None for g in own):
                device = binding.tensors[0].device
                rows = (values(k, device) for k in binding.members)
                plans.append(binding.plan(update, own, *rows, rounding=rounding))
        return plans

    def others(self, grads: Grads) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The gradients that no engine reads, and the parameters and state that they update, by name."""
        own, updated = dict[str, Tensor](), dict[str, Tensor]()
        for j in self.by_operations:
            if (g := grads[self.indices[j]]) is not None:
                own[f"gradient of {self.names[j]}"] = g
                updated[self.names[j]] = self.params[j]
                updated |= {f"{slot} of {self.names[j]}": self.states[j][slot] for slot in ADADELTA.slots}
        return own, updated

    def keep_new_states(self, states: MutableMapping[Tensor, State]) -> None:
        """Give the optimizer the states that are new."""
        states.update(self.new_states)
        self.new_states = {}

    def numbers(self, values: Values) -> dict[int, Mapping[str, Any]]:
        """The numbers of those that no engine reads, by their groups."""
        return {k: values(k, None) for k in sorted({self.group_of[j] for j in self.by_operations})}

    def update_by_operations(
        self, grads: Sequence[Any], numbers: Mapping[int, Mapping[str, Any]], rounding: Rounding | None
    ) -> None:
        """Update those that no engine reads."""
        for j in self.by_operations:
            if (g := grads[self.indices[j]]) is not None:
                k, p = self.group_of[j], self.params[j]
                draws = Draws(rounding, self.elements[j], tuple(p.shape)) if rounding and self.elements else None
                update_by_operations(self.updates[k], numbers[k], p, g, self.states[j], draws)

    def touched(self, grads: Grads) -> None:
        """Tell autograd of DTensors whose shards were written to; an engine told it of the shards."""
        for binding, _, places in self.bindings:
            if binding.sharded:
                live = [j for j in places if grads[self.indices[j]] is not None]
                states = (self.states[j][slot] for j in live for slot in ADADELTA.slots)
                BACKEND.touched([*(self.params[j] for j in live), *states])

    def count(self, grads: Grads, found_inf: Tensor | None) -> None:
        """Count the step, for those with a gradient; if `found_inf` is given, where it is 0."""
        own = self._own(grads)
        live: Sequence[int] = range(len(self.steps))
        if any(map(is_, own, repeat(None))):
            live = [j for j, g in enumerate(own) if g is not None]
        if found_inf is not None:
            _count_unless(found_inf, [self.states[j] for j in live])
            self.steps = list(map(_step, self.states))
        elif live:
            steps = self.steps if len(live) == len(own) else [self.steps[j] for j in live]
            if self.plain_steps:
                BACKEND.increment(steps)
            else:
                torch._foreach_add_(steps, 1)

    def _own(self, grads: Grads) -> Grads:
        return [grads[i] for i in self.indices] if self.idle else grads


def _any_sparse(grads: Grads) -> bool:
    return any(g is not None and g.layout in SPARSE for g in grads)


def _options(groups: Sequence[Group], by_operations: Sequence[bool]) -> list[Any]:
    own = zip(groups, by_operations, strict=True)
    return [_in_inference(), *((len(group["params"]), *_switches(group), operations) for group, operations in own)]


def _params(groups: Sequence[Group]) -> Iterator[Tensor]:
    return chain.from_iterable(map(_params_of, groups))


def _check_writable(name: str, p: Tensor, own: State) -> None:
    """Check what PyTorch would not write to, and that the counter can be raised by 1."""
    for what, tensor in {"": p, **own}.items():
        if isinstance(tensor, Tensor) and tensor.is_inference() and not _in_inference():
            kind = f"a state {what!r}" if what else "a tensor"
            raise RuntimeError(f"{name}: expected {kind} for use outside inference mode, got an inference tensor")
    step = own["step"]
    strided = step.layout == torch.strided and not step.is_quantized
    if not strided or step.dtype not in COUNTING or step.is_neg() or (step.ndim and BACKEND.overlaps_itself(step)):
        raise RuntimeError(
            f"{name}: expected a state 'step' that can be raised by 1, a strided tensor of numbers with memory of "
            f"their own, got {step.dtype}, {step.layout}" + (f", strides {step.stride()}" if strided else "")
        )


def _check_state(name: str, p: Tensor, own: State) -> None:
    if torch.jit.is_tracing():
        return  # shapes are not looked at: they become part of the graph
    for slot in ADADELTA.slots:
        s = own[slot]
        if not isinstance(s, Tensor) or s.shape != p.shape or s.is_complex() != p.is_complex():
            got = f"{s.dtype} of shape {tuple(s.shape)}" if isinstance(s, Tensor) else repr(s)
            raise RuntimeError(f"{name}: expected a state {slot!r} like {p.dtype}, {tuple(p.shape)}, got {got}")


def _kind(p: Tensor, g: Tensor | None, state: State) -> tuple[Any, ...] | None:
    """What tensors that one binding takes have in common; None for what no engine reads, complex32 and slots of
    different dtypes among it.

    Whether they are shards, the dtypes of the gradient, the parameter and the state, and the device. The gradient may
    have another dtype than the parameter, where the user said so (`Tensor.grad_dtype`).
    """
    sharded = is_sharded(p)
    found = [p] if g is None else [p, g]
    if sharded and is_whole(p) and all(map(is_sharded, found)):
        found = [local(tensor) for tensor in found]
    held = {getattr(state[slot], "dtype", None): None for slot in ADADELTA.slots}  # in order
    mixed = len(held) > 1 and all(dtype and (dtype.is_floating_point or dtype.is_complex) for dtype in held)
    if mixed or torch.complex32 in {p.dtype, found[-1].dtype, *held} or not all(map(is_readable, found)):
        return None
    return sharded, found[-1].dtype, p.dtype, next(iter(held)), p.device


def _overlap(tensors: Sequence[Tensor]) -> bool:
    extents = sorted(BACKEND.extent(local(tensor)) for tensor in tensors)
    return any(one[1] > two[0] for one, two in pairwise(extent for extent in extents if extent[0] < extent[1]))


def _count_unless(found_inf: Tensor, states: Sequence[State]) -> None:
    by_device: dict[torch.device, list[Tensor]] = {}
    for state in states:
        if state["step"].device.type == "cpu" != found_inf.device.type:
            # A counter in the host's memory would have to wait for the device.
            state["step"] = state["step"].to(found_inf.device, non_blocking=True)
        by_device.setdefault(state["step"].device, []).append(state["step"])
    for device, steps in by_device.items():
        torch._foreach_add_(steps, (found_inf == 0).to(device, steps[0].dtype, non_blocking=True))


def _check_capturable(params: Sequence[Tensor], steps: Sequence[Tensor]) -> None:
    supported = _get_capturable_supported_devices(supports_xla=False)
    if not all(p.device.type == s.device.type in supported for p, s in zip(params, steps, strict=True)):
        raise AssertionError(f"If capturable=True, params and state_steps must be on supported devices: {supported}.")
