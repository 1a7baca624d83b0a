"""PyTorch's own optimizers, and multiopt's on PyTorch tensors; on the CPU and on CUDA."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

from .contender import Running, wall
from .host_rows import HYPERS
from .workload import Workload

__all__ = ["compiled", "multiopt_face", "multiopt_tensors", "torch_adam", "torch_optim"]


def tensors(workload: Workload, device: str, grad: bool = True) -> tuple[list[Any], list[Any], float]:
    """Make parameters, with their ``.grad`` unless told otherwise, and gradients; say when they were there."""
    import torch

    params = [torch.tensor(x, device=device, requires_grad=grad) for x in workload.params()]
    grads = [torch.tensor(g, device=device) for g in workload.grads()]
    for p, g in zip(params, grads, strict=True):
        if grad:
            p.grad = g
    if device != "cpu":
        torch.cuda.synchronize()
    return params, grads, perf_counter()


def running(step: Callable[[], Any], params: list[Any], device: str, began: float) -> Running:
    """Time a step by the clock, or by CUDA events."""

    def host() -> list[np.ndarray]:
        return [p.detach().cpu().numpy() for p in params]

    if device == "cpu":
        return Running(wall(step), step, host, began)
    from .cuda_rows import torch_counts, torch_events

    return Running(torch_events(step), step, host, began, lambda: torch_counts(step))


def multiopt_tensors(workload: Workload, options: dict[str, Any]) -> Running:
    """`multiopt.Adadelta` on tensors."""
    from multiopt import Adadelta

    device = options.get("device", "cpu")
    params, grads, began = tensors(workload, device, grad=False)
    optimizer = Adadelta(params, **HYPERS)
    return running(lambda: optimizer.step(grads), params, device, began)


def multiopt_face(workload: Workload, options: dict[str, Any]) -> Running:
    """`multiopt.torch.Adadelta`, the drop-in."""
    from multiopt.torch import Adadelta

    device = options.get("device", "cpu")
    params, _, began = tensors(workload, device)
    return running(Adadelta(params, **HYPERS).step, params, device, began)


def torch_optim(workload: Workload, options: dict[str, Any]) -> Running:
    """`torch.optim.Adadelta`, with what `options` say of ``foreach``."""
    import torch

    device = options.get("device", "cpu")
    params, _, began = tensors(workload, device)
    return running(torch.optim.Adadelta(params, **HYPERS, foreach=options.get("foreach")).step, params, device, began)


def compiled(workload: Workload, options: dict[str, Any]) -> Running:
    """`torch.compile` of `torch.optim.Adadelta`'s step, compiled from nothing."""
    import torch
    import torch._inductor.config

    torch._inductor.config.force_disable_caches = True  # an earlier run must not make it look ready sooner
    device = options.get("device", "cpu")
    params, _, began = tensors(workload, device)
    optimizer = torch.optim.Adadelta(params, **HYPERS)
    return running(torch.compile(optimizer.step), params, device, began)


def torch_adam(workload: Workload, options: dict[str, Any]) -> Running:
    """PyTorch's fused Adam: another rule, which moves as many bytes."""
    import torch

    device = options.get("device", "cpu")
    params, _, began = tensors(workload, device)
    return running(torch.optim.Adam(params, lr=1e-3, fused=True).step, params, device, began)
