"""What a step needs of one group, sorted once and kept until something moves.

A step over a thousand small tensors is as fast as the questions that are asked of each tensor, so what has to be
asked in every step is asked of lists, in C.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from operator import is_, itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import _get_capturable_supported_devices

from ..binding import Job, Pass
from ..rule import ADADELTA
from .part import EXACT, Part, is_readable
from .shards import is_sharded, is_whole, local

__all__ = ["Held", "counter_dtype", "same"]

State = MutableMapping[str, Any]
SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
_step = itemgetter("step")


def counter_dtype() -> torch.dtype:
    """The dtype of a step counter, as PyTorch has it."""
    return torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32


def same(old: Sequence[Any], new: Iterable[Any]) -> bool:
    """Whether two lists hold the very same objects."""
    new = list(new)
    return len(old) == len(new) and all(map(is_, old, new))


class Held:
    """The parameters of a group that have a gradient or a state, in parts that are updated alike.

    Parameters
    ----------
    group : mapping
        One of ``param_groups``.
    grads : list of Tensor or None
        One for each parameter.
    states : mapping
        The optimizer's; it is not changed before `keep_states`.
    where : str
        What the parameters' names begin with.
    by_operations : bool
        Whether all is to be done by operations.

    Raises
    ------
    RuntimeError, TypeError, ValueError
        If a gradient is sparse, or a tensor cannot be a parameter, or does not agree with its parameter.
    AssertionError
        If `capturable` or `foreach` ask for what cannot be.
    """

    def __init__(
        self,
        group: Mapping[str, Any],
        grads: Sequence[Tensor | None],
        states: Mapping[Tensor, State],
        where: str,
        by_operations: bool,
    ) -> None:
        if group["foreach"] and group["differentiable"]:
            raise AssertionError("_foreach ops don't support autograd")
        if any(g is not None and g.layout in SPARSE for g in grads):
            raise RuntimeError("Adadelta does not support sparse gradients")
        self.group_params, self.options = list(group["params"]), _options(group)
        self.fresh: dict[Tensor, State] = {}
        self.indices = [i for i, p in enumerate(self.group_params) if grads[i] is not None or states.get(p)]
        self.others = sorted(set(range(len(grads))) - set(self.indices))
        self.params = [self.group_params[i] for i in self.indices]
        self.states = [
            states.get(p) or self.fresh.get(p) or self.fresh.setdefault(p, _new_state(p, group["capturable"]))
            for p in self.params
        ]
        self.steps = list(map(_step, self.states))
        if not all(isinstance(step, Tensor) for step in self.steps):
            raise RuntimeError("API has changed, `state_steps` argument must contain a list of singleton tensors")
        self.steps_on_host = all(type(step) is Tensor and step.is_cpu for step in self.steps)
        if group["capturable"]:
            _check_capturable(self.params, self.steps)
        self._own_grads(grads)
        names = [f"{where}params[{i}]" for i in self.indices]
        if "param_names" in group:
            names = [f"{name} ({group['param_names'][i]})" for name, i in zip(names, self.indices, strict=True)]
        chosen: dict[Any, list[int]] = {}
        for j, (p, g) in enumerate(zip(self.params, self.grads, strict=True)):
            chosen.setdefault(None if by_operations else _kind(p, g), []).append(j)
        #: Places of those that no engine reads.
        self.apart = chosen.pop(None, [])
        self.parts = [
            Part(names, self.params, self.states, self.grads, places, sharded)
            for (sharded, _), places in chosen.items()
        ]

    def take(self, group: Mapping[str, Any], grads: Sequence[Tensor | None]) -> bool:
        """Take in the gradients of another step; False if something has moved, and all is to be sorted anew."""
        if not same(self.group_params, group["params"]) or self.options != _options(group):
            return False
        if any(grads[i] is not None for i in self.others) or not all(map(len, self.states)):
            return False
        if not same(self.steps, map(_step, self.states)):
            return False
        self._own_grads(grads)
        return all(part.take(self.grads) for part in self.parts)

    def _own_grads(self, grads: Sequence[Tensor | None]) -> None:
        self.grads: Sequence[Tensor | None] = grads if not self.others else [grads[i] for i in self.indices]

    def keep_states(self, states: MutableMapping[Tensor, State]) -> None:
        """Give the optimizer the states that are new."""
        states.update(self.fresh)
        self.fresh = {}

    def jobs(self, one_pass: Pass, values: Callable[[torch.device], Mapping[str, Any]]) -> Iterator[Job]:
        """What the engines have to do; `values` gives the pass' numbers for a device."""
        for part in self.parts:
            yield from part.jobs(one_pass, values)

    def by_operations(self) -> Iterator[tuple[Tensor, Tensor, State]]:
        """Parameter, gradient and state of those that no engine reads."""
        for j in self.apart:
            if (g := self.grads[j]) is not None:
                yield self.params[j], g, self.states[j]

    def release(self) -> None:
        """Let go of the gradients, so that `zero_grad` frees them."""
        self.grads = ()
        for part in self.parts:
            part.grads = []

    def count(self, found_inf: Tensor | None) -> None:
        """Count the step, for those with a gradient; if `found_inf` is given, where it is 0."""
        live = [j for j, g in enumerate(self.grads) if g is not None]
        if not live:
            return
        if found_inf is None:
            steps = self.steps if len(live) == len(self.steps) else [self.steps[j] for j in live]
            # Given as a tensor, the number is not made into one again for each counter in the host's memory.
            if self.steps_on_host:
                torch._foreach_add_(steps, torch.ones((), device="cpu"), alpha=1.0)
            else:
                torch._foreach_add_(steps, 1.0)
            return
        self.steps_on_host = False
        by_device: dict[torch.device, list[Tensor]] = {}
        for j in live:
            step = self.steps[j]
            if step.device.type == "cpu" != found_inf.device.type:
                # A counter in the host's memory would have to wait for the device.
                step = self.steps[j] = self.states[j]["step"] = step.to(found_inf.device, non_blocking=True)
            by_device.setdefault(step.device, []).append(step)
        for device, steps in by_device.items():
            torch._foreach_add_(steps, (found_inf == 0).to(device, steps[0].dtype, non_blocking=True))


def _options(group: Mapping[str, Any]) -> tuple[Any, ...]:
    return group["capturable"], group["foreach"], group["differentiable"]


def _kind(p: Tensor, g: Tensor | None) -> tuple[bool, torch.dtype] | None:
    """Whether they are shards, and the gradient's dtype; None for what no engine reads.

    The gradient may have another dtype than the parameter, where the user said so (`Tensor.grad_dtype`).
    """
    sharded = is_sharded(p)
    if sharded and is_whole(p) and (g is None or is_sharded(g)):
        readable = is_readable(local(p))
    else:
        readable = not sharded and is_readable(p) and (g is None or type(g) in EXACT)
    return (sharded, p.dtype if g is None else g.dtype) if readable else None


def _new_state(p: Tensor, capturable: bool) -> State:
    state = {"step": torch.zeros((), dtype=counter_dtype(), device=p.device if capturable else "cpu")}
    for slot, value in ADADELTA.slots.items():
        state[slot] = torch.full_like(p, value, memory_format=torch.preserve_format, requires_grad=False)
    return state


def _check_capturable(params: Sequence[Tensor], steps: Sequence[Tensor]) -> None:
    supported = _get_capturable_supported_devices(supports_xla=False)
    if not all(p.device.type == s.device.type in supported for p, s in zip(params, steps, strict=True)):
        raise AssertionError(f"If capturable=True, params and state_steps must be on supported devices: {supported}.")
