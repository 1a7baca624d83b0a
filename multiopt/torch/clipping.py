"""Clipping by the norm of all gradients, exact and in any order, so that it does not depend on how they are sharded."""

from __future__ import annotations

import math
import types
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..backends.torch import is_sharded, is_whole, local, most_over_shards, sum_over_shards, with_layout_of
from ..clipping import Gradients
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
    found = _found(grads)
    total = _total(grads, found, norm_type, error_if_nonfinite)
    _scale(found, max_norm, total)
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
    named = {f"tensors[{i}]": t for i, t in enumerate(_tensors(tensors))}
    return _total(named, _found(named), norm_type, error_if_nonfinite)


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
    _scale(_found(grads), _threshold(max_norm), total_norm)


def _tensors(given: Tensor | Iterable[Tensor]) -> list[Tensor]:
    return [given] if isinstance(given, Tensor) else list(given)


def _threshold(max_norm: float) -> float:
    max_norm = float(max_norm)
    if not max_norm > 0:
        raise ValueError(f"max_norm: expected a number above 0, got {max_norm!r}")
    return max_norm


def _found(named: dict[str, Any]) -> Gradients | None:
    """The tensors themselves, or of DTensors this rank's shards; None if there is none."""
    tensors = BACKEND.described(list(named.values()))
    if not (BACKEND.alike(tensors) and is_readable(tensors[0])):
        tensors = [local(tensor) for tensor in named.values()]
        for name, tensor, shard in zip(named, named.values(), tensors, strict=True):
            if not is_readable(shard) or (is_sharded(tensor) and not is_whole(tensor)):
                got = torch.typename(tensor)
                raise TypeError(f"{name}: expected a plain tensor or DTensor on CPU or CUDA, got {got}")
    return Gradients(tensors, list(named)) if tensors else None


def _total(named: dict[str, Any], found: Gradients | None, norm_type: float, error_if_nonfinite: bool) -> Tensor:
    if norm_type not in (2, math.inf, "inf"):
        raise ValueError(f"norm_type: expected 2 or inf, got {norm_type!r}")
    if found is None:
        return torch.zeros((), dtype=WIDE)
    whole = list(named.values())
    if norm_type == 2:

        def reduce(xp: Any, table: Any, rows: list[tuple[int, int]]) -> Any:
            return sum_over_shards(xp, table, [whole[i] for _, i in rows])

        norm = found.norm(reduce if any(map(is_sharded, whole)) else None)
        total = torch.tensor(float(norm[0]), dtype=WIDE) if isinstance(norm, np.ndarray) else norm[0].clone()
    else:
        total = _largest(whole, found.arrays)
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


def _scale(found: Gradients | None, max_norm: float, total_norm: Any) -> None:
    if found is None:
        return
    if is_sharded(total_norm):
        total_norm = total_norm.full_tensor()
    device = total_norm.device if isinstance(total_norm, Tensor) else torch.device("cpu")
    if device.type != "cpu" and all(tensor.device == device for tensor in found.arrays):
        total = total_norm.to(WIDE)  # which is not waited for
        shrink = torch.full_like(total, max_norm) / total
        found.multiply(torch.where(total > max_norm, shrink, torch.where(total == total, 1.0, total)))
        return
    total = float(total_norm)
    factor = max_norm / total if total > max_norm else 1.0 if total == total else total
    if factor != 1.0:  # which would change nothing
        found.multiply(factor)
