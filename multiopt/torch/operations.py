"""The step in PyTorch's own operations: for autograd, for tracers, and for tensors that no engine reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .. import backends
from ..backends.protocol import wider
from ..binding import Pass

__all__ = ["must_be_seen", "update_by_operations"]


def must_be_seen() -> bool:
    """Whether somebody follows each operation: a tracer, a dispatch mode (fake tensors), a transform of `torch.func`.

    An engine, which writes to memory, would go unseen.
    """
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
    )


def update_by_operations(
    one_pass: Pass, numbers: Mapping[str, Any], p: Tensor, g: Tensor, own: Mapping[str, Any]
) -> None:
    """Do one pass on one parameter and its state, in place.

    Half precision is computed in float32, and complex tensors as their real and imaginary parts.
    """
    backend = backends.get("torch")
    arrays = [p, g, *(own[slot] for slot in one_pass.slots)]
    computing = backend.native(wider([backend.dtype(a) for a in arrays]))
    wide = [_real(a).to(computing) for a in arrays]
    new = one_pass(backend.xp, *wide, **{name: numbers[name] for name in one_pass.scalars})
    for old, value in zip((arrays[0], *arrays[2:]), new, strict=True):
        old.copy_(torch.view_as_complex(value) if old.is_complex() else value)


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
