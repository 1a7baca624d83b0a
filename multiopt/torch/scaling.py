"""The numbers of a step: hyperparameters held in tensors, and what a `GradScaler` hands over."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..backends.protocol import Job, Ranges
from ..backends.torch import PLAIN, is_observed, local
from ..memory import Memory
from ..plan import Plan
from .tensors import BACKEND

__all__ = ["Scaling", "checked", "number"]


def checked(name: str, value: Any) -> Any:
    """A real number, or a tensor of one; TypeError or ValueError if it is something else, or NaN."""
    if isinstance(value, (torch.SymInt, torch.SymFloat)):
        return value
    if isinstance(value, Tensor) and not value.is_complex():
        if value.numel() == 1:
            return value
        raise ValueError(f"{name}: expected a number, got a tensor of {value.numel()} elements")
    if not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    try:
        made = float(value)
    except OverflowError:
        made = math.nan
    if math.isnan(made):
        raise ValueError(f"{name}: expected a number, got {value!r:.80}")
    return made


def number(name: str, value: Any, device: torch.device | None) -> Any:
    """A number that was `checked`, as a pass over tensors on `device` wants it.

    A tensor that lives on an accelerator stays there: the host does not wait for its value, and a CUDA graph sees
    it anew at each replay. For None, where operations are seen by autograd or by whoever traces, it stays a tensor.
    """
    if not isinstance(value, Tensor):
        return value
    if device is None:
        return value.reshape(())
    if device.type == "cpu" or value.device.type == "cpu":
        return checked(name, value.item())
    return value.detach().reshape(()).to(device, non_blocking=True)


@dataclass
class Scaling:
    """What `GradScaler` leaves on the optimizer for the time of a step."""

    #: What the loss was multiplied by, where the gradients still are.
    scale: Any
    #: On an accelerator: above 0 where a gradient was not finite, and the step is to change nothing.
    found_inf: Tensor | None
    #: The same, where the host can say so without waiting.
    found_on_host: bool

    @classmethod
    def of(cls, optimizer: Any) -> Scaling:
        """Read it off an optimizer that unscales for itself; any other has been unscaled for."""
        if not getattr(optimizer, "_step_supports_amp_scaling", False):
            return cls(None, None, False)
        scale = getattr(optimizer, "grad_scale", None)
        found: Any = getattr(optimizer, "found_inf", None)
        if hasattr(found, "full_tensor"):
            found = found.full_tensor()  # of gradients that are DTensors
        if isinstance(found, Tensor) and found.device.type != "cpu":
            return cls(scale, found, False)
        return cls(scale, None, bool(found))  # None, and 0 where there is no gradient

    def check(self, plans: Sequence[Plan], others: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
        """Check, where there is a scale, that `unscale` can write to the gradients, and to nothing else.

        `others` are gradients that no engine reads, and `theirs` the parameters and state that they update, by name.
        """
        jobs = [job for plan in plans for job in plan.jobs]
        doubtful: dict[str, Tensor] = {}
        for name, g in others.items():
            if _is_locked(g):
                raise RuntimeError(f"{name}: expected a tensor that can be written to, to be unscaled in place")
            if BACKEND.overlaps_itself(g):
                raise RuntimeError(f"{name}: expected elements with memory of their own, got a view that repeats some")
        if others and not is_observed():
            # Nobody has located these: they are compared with everything.
            arrays = [
                pair
                for job in jobs
                for column in job.bucket.arrays()
                for pair in zip(job.bucket.names, column, strict=True)
            ]
            doubtful |= {f"array {k} of {name}": array for k, (name, array) in enumerate(arrays)}
            doubtful |= {name: t for name, t in {**theirs, **others}.items() if type(t) in PLAIN}
        if jobs:
            doubtful |= self._doubtful(jobs, everything=bool(others))
        try:
            Memory().plus(BACKEND, list(doubtful.values()), list(doubtful))
        except ValueError as error:
            raise RuntimeError(str(error)) from None

    @staticmethod
    def _doubtful(jobs: Sequence[Job], everything: bool) -> dict[str, Tensor]:
        """Gradients that engines read, and that may share memory with another; those in what is written are refused."""
        written = Ranges.union([job.location.written for job in jobs])
        taken = Ranges.union([written, *(Ranges(*job.location.read) for job in jobs)])
        found: dict[str, Tensor] = {}
        for job in jobs:
            names, grads = job.bucket.names, job.grads
            locked = [i for i, g in enumerate(grads) if g is not None and _is_locked(g)]
            upon = written.aliases(job.location.read, np.zeros(len(grads), bool))
            for i in (*locked, *upon):
                of = "that can be written to" if i in locked else "with memory apart from parameters and state"
                raise RuntimeError(f"gradient of {names[i]}: expected a tensor {of}, to be unscaled in place")
            # One that meets more than itself may still lie between the other's elements.
            which = {*job.location.odd, *taken.aliases(job.location.read, np.ones(len(grads), bool))}
            which |= {i for i, g in enumerate(grads) if everything and g is not None}
            found |= {f"gradient of {names[i]}": grads[i] for i in which}
        return found

    def unscale(self, grads: Iterable[Tensor]) -> None:
        """Leave gradients unscaled in their own memory, as PyTorch's fused optimizers do."""
        if self.scale is None:
            return
        kinds: dict[tuple[torch.device, bool], list[Tensor]] = {}
        for g in map(local, grads):
            kinds.setdefault((g.device, g.is_neg() or g.is_conj()), []).append(g)
        for (device, lazy), own in kinds.items():
            factor = 1.0 / number("grad_scale", self.scale, device)
            if self.found_inf is not None:
                factor = torch.where(self.found_inf.to(device, non_blocking=True) != 0, 1.0, factor)
            if lazy:  # which PyTorch takes one by one only
                for g in own:
                    g.mul_(factor)
            else:
                torch._foreach_mul_(own, factor)


def _is_locked(tensor: Tensor) -> bool:
    return tensor._is_zerotensor() or (tensor.is_inference() and not torch.is_inference_mode_enabled())
