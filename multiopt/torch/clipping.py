"""Clipping by the global norm, exact and in any order, so that it does not depend on how tensors are sharded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..backends.torch import is_sharded, is_whole, local, sum_over_shards, with_layout_of
from ..clipping import clip
from .tensors import is_readable

__all__ = ["clip_grad_norm_"]


@torch.no_grad()
def clip_grad_norm_(parameters: Tensor | Iterable[Tensor], max_norm: float, error_if_nonfinite: bool = False) -> Tensor:
    """Multiply all gradients by ``min(1, max_norm / norm)``, in place, where `norm` is that of all together.

    Unlike `torch.nn.utils.clip_grad_norm_` it is exact: squares are added as integers, so that one process and any
    number of them, holding DTensors on a mesh, give the same bits. PyTorch divides by ``norm + 1e-6``.

    Parameters
    ----------
    parameters : Tensor or iterable of Tensor
        Those whose gradients are clipped; None gradients are left out. With DTensors every rank of the mesh must call.
    max_norm : float
        The threshold, above 0.
    error_if_nonfinite : bool
        Whether to raise if the norm is infinite or NaN. Otherwise infinite ones become 0 or NaN, and NaN stays.

    Returns
    -------
    Tensor
        The norm before clipping: 0-d, float64.

    Raises
    ------
    ValueError
        If `max_norm` is not above 0.
    RuntimeError
        If the norm is not finite and that is an error. No gradient has been changed then.
    """
    max_norm = float(max_norm)
    if not max_norm > 0 or max_norm == float("inf"):
        raise ValueError(f"max_norm: expected a finite number above 0, got {max_norm!r}")
    params = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    owners = [p for p in params if p.grad is not None]
    if not owners:
        return torch.zeros((), dtype=torch.float64)
    names = [f"parameters[{i}].grad" for i, p in enumerate(params) if p.grad is not None]
    for p in owners:
        if is_sharded(p) and is_sharded(p.grad):
            p.grad = with_layout_of(p, p.grad)
    grads = [local(p.grad) for p in owners]
    for name, p, g in zip(names, owners, grads, strict=True):
        if not is_readable(g) or (is_sharded(p.grad) and not is_whole(p.grad)):
            raise TypeError(f"{name}: expected a plain tensor or DTensor on CPU or CUDA, got {torch.typename(p.grad)}")

    def reduce(xp: Any, table: Any, rows: list[tuple[int, int]]) -> Any:
        whole = sum_over_shards(xp, table, [owners[i].grad for _, i in rows])
        if error_if_nonfinite and bool((whole[:, -2:] != 0).any()):
            raise RuntimeError("the norm of the gradients is not finite, so they cannot be clipped")
        return whole

    _, norm = clip(grads, names, global_norm=max_norm, reduce=reduce, in_place=True)
    return torch.as_tensor(norm)[0].clone()
