"""The numbers of a step: hyperparameters held in tensors, and what a `GradScaler` hands over."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

__all__ = ["Scaling", "checked", "number"]


def checked(name: str, value: Any) -> Any:
    """A real number, or a tensor of one; TypeError or ValueError if it is something else, or NaN."""
    if type(value) is float and value == value:  # quickly, as nearly always
        return value
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
        """Read it off the optimizer."""
        scale = getattr(optimizer, "grad_scale", None)
        found: Any = getattr(optimizer, "found_inf", None)
        if hasattr(found, "full_tensor"):
            found = found.full_tensor()  # of gradients that are DTensors
        if found is None or found.device.type != "cpu":
            return cls(scale, found, False)
        return cls(scale, None, bool(found.item()))
