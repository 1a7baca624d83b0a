"""PyTorch's own optimizers, and multiopt's on PyTorch tensors; on the CPU and on CUDA."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from time import perf_counter
from typing import Any

import numpy as np

from multiopt import Adadelta

from ..harness.contender import Running
from ..harness.workload import Workload
from .cuda import torch_running
from .numpy import HYPERS

__all__ = ["multiopt_tensors", "multiopt_torch", "torch_adadelta", "torch_adam", "torch_compiled"]

Step = Callable[[], Any]


def on_tensors(make: Callable[..., Step]) -> Callable[..., Running]:
    """Turn a function that makes a step from parameters, with gradients in ``.grad``, into a contender's."""

    @wraps(make)
    def build(workload: Workload, device: str = "cpu", **options: Any) -> Running:
        import torch

        params = [torch.tensor(x, device=device, requires_grad=True) for x in workload.params()]
        for p, g in zip(params, workload.grads(), strict=True):
            p.grad = torch.tensor(g, device=device)

        def host() -> list[np.ndarray]:
            return [p.detach().cpu().numpy() for p in params]

        if device == "cuda":
            torch.cuda.synchronize()
        began = perf_counter()
        return (torch_running if device == "cuda" else Running)(make(params, **options), host, began)

    return build


@on_tensors
def multiopt_tensors(params: list[Any]) -> Step:
    """`multiopt.Adadelta` on tensors."""
    grads = [p.grad for p in params]
    optimizer = Adadelta([p.detach() for p in params], **HYPERS)
    return lambda: optimizer.step(grads)


@on_tensors
def multiopt_torch(params: list[Any]) -> Step:
    """`multiopt.torch.Adadelta`, the drop-in."""
    import multiopt.torch

    return multiopt.torch.Adadelta(params, **HYPERS).step


@on_tensors
def torch_adadelta(params: list[Any], foreach: bool | None = None) -> Step:
    """`torch.optim.Adadelta`."""
    import torch

    return torch.optim.Adadelta(params, **HYPERS, foreach=foreach).step


@on_tensors
def torch_compiled(params: list[Any]) -> Step:
    """`torch.compile` of `torch.optim.Adadelta`'s step, compiled from nothing."""
    import torch
    import torch._inductor.config

    torch._inductor.config.force_disable_caches = True  # an earlier run must not make it look ready sooner
    return torch.compile(torch.optim.Adadelta(params, **HYPERS).step)


@on_tensors
def torch_adam(params: list[Any]) -> Step:
    """PyTorch's fused Adam: another rule, which moves as many bytes."""
    import torch

    return torch.optim.Adam(params, lr=1e-3, fused=True).step
