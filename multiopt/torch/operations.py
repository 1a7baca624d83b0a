"""The step in PyTorch's own operations: for autograd, for tracers, and for tensors that no engine reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..backends.generic import wider
from ..backends.rounding import Draws, rounded
from ..update import FusedUpdate
from .tensors import BACKEND

__all__ = ["update_by_operations"]


def update_by_operations(
    update: FusedUpdate,
    numbers: Mapping[str, Any],
    p: Tensor,
    g: Tensor,
    own: Mapping[str, Any],
    draws: Draws | None = None,
) -> None:
    """Do one update of one parameter and its state, in place.

    Half precision is computed in float32, and complex tensors as their real and imaginary parts. `draws` are what an
    update rounds by that rounds stochastically.
    """
    arrays = [p, g, *(own[slot] for slot in update.rule.slots)]
    real = list(map(_real, arrays))
    computing = BACKEND.native(wider([BACKEND.dtype(a) for a in real]))
    wide = [a.to(computing) for a in real]
    new = update(BACKEND.xp, *wide, **{name: numbers[name] for name in update.scalars})
    if draws is not None:
        slots = update.stochastic
        random = draws.random(BACKEND, wide[0], [slot for slot in slots if slot is not None])
        pairs = zip(new, slots, strict=True)
        new = tuple(v if s is None else rounded(BACKEND.xp, v.to(torch.float32), random[s]) for v, s in pairs)
    for old, value in zip((arrays[0], *arrays[2:]), new, strict=True):
        old.copy_(torch.view_as_complex(value) if old.is_complex() else value)


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
