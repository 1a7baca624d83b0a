"""Clipping by the norm of all gradients, exact and in any order, so that it does not depend on how they are sharded."""

from __future__ import annotations

import math
import types
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends.torch import is_sharded, is_whole, local, most_over_shards, sum_over_shards, with_layout_of
from ..clipping import multiply, total_norm
from .tensors import BACKEND, is_readable

__all__ = ["clip_grad_norm_", "clip_grads_with_norm_", "get_total_norm"]

#: Norms are taken and compared in this dtype, whatever that of the gradients.
WIDE = torch.float64


@torch.no_grad()
def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Multiply all gradients by ``min(1, max_norm / norm)``, in place, where `norm` is that of all together.

    The arguments are those of `torch.nn.utils.clip_grad_norm_`, which it stands in for. Unlike that one it is exact:
    squares are added as integers, so that the order, the threads, the split into tensors and the number of processes,
    holding DTensors on a mesh, make no difference, and the norm is within one unit in the last place of the correctly
    rounded one. PyTorch divides by ``norm + 1e-6``.

    Parameters
    ----------
    parameters : Tensor or iterable of Tensor
        Those whose gradients are clipped; None gradients are left out. With DTensors every rank of the mesh must call.
    max_norm : float
        The threshold, above 0; ``inf`` changes nothing, and tells the norm.
    norm_type : float
        2, or ``inf`` for the largest absolute value.
    error_if_nonfinite : bool
        Whether to raise if the norm is infinite or NaN. Otherwise infinite ones become 0 or NaN, and NaN stays.
    foreach : bool or None
        Has no effect: all gradients are read at once in any case.

    Returns
    -------
    Tensor
        The norm before clipping: 0-d, float64. The same as that of `get_total_norm`, which, followed by
        `clip_grads_with_norm_`, does the same.

    Raises
    ------
    TypeError
        If a gradient is not a plain tensor or DTensor on the CPU or CUDA.
    ValueError
        If `max_norm` is not above 0, `norm_type` is neither 2 nor inf, or two gradients overlap.
    RuntimeError
        If the norm is not finite and that is an error. No gradient has been changed then.
    """
    max_norm = _threshold(max_norm)
    if isinstance(parameters, types.GeneratorType):
        parameters = list(parameters)  # it can be read once
        if not parameters:
            warnings.warn("parameters: got an empty generator, so that nothing is clipped", stacklevel=3)
    params = _tensors(parameters)
    for p in params:
        if p.grad is not None and is_sharded(p) and is_sharded(p.grad):
            p.grad = with_layout_of(p, p.grad)
    grads = {f"parameters[{i}].grad": p.grad for i, p in enumerate(params) if p.grad is not None}
    total = _total(grads, norm_type, error_if_nonfinite)
    _scale(grads, max_norm, total)
    return total


@torch.no_grad()
def get_total_norm(
    tensors: Tensor | Iterable[Tensor],
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """The norm of some tensors as if they were one, exact: see `clip_grad_norm_`. They are only read.

    Parameters
    ----------
    tensors : Tensor or iterable of Tensor
        Gradients, say. With DTensors every rank of the mesh must call.
    norm_type : float
        2, or ``inf`` for the largest absolute value.
    error_if_nonfinite : bool
        Whether to raise if the norm is infinite or NaN.
    foreach : bool or None
        Has no effect: all tensors are read at once in any case.

    Returns
    -------
    Tensor
        0-d, float64; 0 of no tensors.

    Raises
    ------
    TypeError
        If one is not a plain tensor or DTensor on the CPU or CUDA.
    ValueError
        If `norm_type` is neither 2 nor inf.
    RuntimeError
        If the norm is not finite and that is an error.
    """
    return _total({f"tensors[{i}]": t for i, t in enumerate(_tensors(tensors))}, norm_type, error_if_nonfinite)


@torch.no_grad()
def clip_grads_with_norm_(
    parameters: Tensor | Iterable[Tensor], max_norm: float, total_norm: Tensor | float, foreach: bool | None = None
) -> None:
    """Multiply all gradients by ``min(1, max_norm / total_norm)``, in place.

    Parameters
    ----------
    parameters : Tensor or iterable of Tensor
        Those whose gradients are clipped; None gradients are left out.
    max_norm : float
        The threshold, above 0.
    total_norm : Tensor or float
        The norm, as `get_total_norm` tells it.
    foreach : bool or None
        Has no effect: all gradients are multiplied at once in any case.

    Raises
    ------
    TypeError
        If a gradient is not a plain tensor or DTensor on the CPU or CUDA.
    ValueError
        If `max_norm` is not above 0, or two gradients overlap.
    """
    params = _tensors(parameters)
    grads = {f"parameters[{i}].grad": p.grad for i, p in enumerate(params) if p.grad is not None}
    _scale(grads, _threshold(max_norm), total_norm)


def _tensors(given: Tensor | Iterable[Tensor]) -> list[Tensor]:
    return [given] if isinstance(given, Tensor) else list(given)


def _threshold(max_norm: float) -> float:
    max_norm = float(max_norm)
    if not max_norm > 0:
        raise ValueError(f"max_norm: expected a number above 0, got {max_norm!r}")
    return max_norm


def _readable(named: dict[str, Any]) -> Sequence[Tensor]:
    """The tensors themselves, or of DTensors this rank's shards."""
    found = BACKEND.described(list(named.values()))
    if BACKEND.alike(found) and is_readable(found[0]):
        return found
    shards = []
    for name, tensor in named.items():
        shard = local(tensor)
        if not is_readable(shard) or (is_sharded(tensor) and not is_whole(tensor)):
            raise TypeError(f"{name}: expected a plain tensor or DTensor on CPU or CUDA, got {torch.typename(tensor)}")
        shards.append(shard)
    return shards


def _total(named: dict[str, Any], norm_type: float, error_if_nonfinite: bool) -> Tensor:
    if norm_type not in (2, math.inf, "inf"):
        raise ValueError(f"norm_type: expected 2 or inf, got {norm_type!r}")
    whole, tensors = list(named.values()), _readable(named)
    if not tensors:
        return torch.zeros((), dtype=WIDE)
    if norm_type == 2:

        def reduce(xp: Any, table: Any, rows: list[tuple[int, int]]) -> Any:
            return sum_over_shards(xp, table, [whole[i] for _, i in rows])

        sharded = not BACKEND.alike(tensors) and any(map(is_sharded, whole))
        total = torch.as_tensor(total_norm(tensors, list(named), reduce=reduce if sharded else None))[0].clone()
    else:
        total = _largest(whole, tensors)
    if error_if_nonfinite and not bool(total.isfinite()):
        raise RuntimeError("the norm of the gradients is not finite, so they cannot be clipped")
    return total


def _largest(whole: Sequence[Any], tensors: Sequence[Tensor]) -> Tensor:
    """The largest absolute value, NaN if there is any."""
    found = torch.zeros(len(tensors), dtype=WIDE, device=tensors[0].device)
    some = [i for i, tensor in enumerate(tensors) if tensor.numel()]
    for i, most in zip(some, torch._foreach_norm([tensors[i] for i in some], math.inf) if some else (), strict=True):
        found[i] = most
    return most_over_shards(found, whole).max()


def _scale(named: dict[str, Any], max_norm: float, total_norm: Any) -> None:
    tensors = _readable(named)
    if not tensors:
        return
    if is_sharded(total_norm):
        total_norm = total_norm.full_tensor()
    total = torch.as_tensor(total_norm, dtype=WIDE)
    factor: Any = torch.where(
        total > max_norm, torch.full_like(total, max_norm) / total, torch.where(total == total, 1.0, total)
    )
    if total.device.type == "cpu" or any(tensor.device != total.device for tensor in tensors):
        factor = float(factor)
        if factor == 1.0:
            return  # which would change nothing
    multiply(tensors, list(named), factor)
