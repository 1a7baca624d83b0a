"""PyTorch's own optimizers, and multiopt's on PyTorch tensors; on the CPU and on CUDA."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from time import perf_counter
from typing import Any

import numpy as np

from ..harness.contender import Running
from ..harness.workload import Workload
from .cuda import torch_running
from .numpy import HYPERS, core_step, functional_step

__all__ = ["functional_tensors", "multiopt_tensors", "multiopt_torch", "torch_adadelta", "torch_adam", "torch_compiled"]

Step = Callable[[], Any]


def on_tensors(make: Callable[..., Step]) -> Callable[..., Running]:
    """Turn a function that makes a step from parameters, with gradients in ``.grad``, into a contender's."""

    @wraps(make)
    def build(workload: Workload, device: str = "cpu", **options: Any) -> Running:
        import torch

        def tensor(x: np.ndarray) -> Any:
            """Copy numbers, with the workload's gaps; PyTorch does not read NumPy's bfloat16."""
            if workload.dtype == "bfloat16":
                full = torch.tensor(x.view("int16"), device=device).view(torch.bfloat16)
            else:
                full = torch.tensor(x, device=device)
            if workload.stride == 1:
                return full
            return full.repeat_interleave(workload.stride, -1)[..., :: workload.stride]

        params = [tensor(x).requires_grad_() for x in workload.params()]
        for p, g in zip(params, workload.grads(), strict=True):
            p.grad = tensor(g)

        def host() -> list[np.ndarray]:
            held = [p.detach().cpu() for p in params]
            if workload.dtype != "bfloat16":
                return [p.numpy() for p in held]
            return [p.view(torch.int16).numpy().view("bfloat16") for p in held]

        if device == "cuda":
            torch.cuda.synchronize()
        began = perf_counter()
        step = make(workload, params, **options)
        return (torch_running if device == "cuda" else Running)(step, host, began)

    return build


@on_tensors
def multiopt_tensors(workload: Workload, params: list[Any], **options: Any) -> Step:
    """`multiopt.Adadelta` on tensors."""
    return core_step(workload, [p.detach() for p in params], [p.grad for p in params], **options)


@on_tensors
def functional_tensors(workload: Workload, params: list[Any]) -> Step:
    """`multiopt.functional.update` on tensors."""
    grads = [p.grad for p in params]
    params[:] = [p.detach() for p in params]
    return functional_step(workload, params, grads)


@on_tensors
def multiopt_torch(workload: Workload, params: list[Any], clip: float | None = None, **options: Any) -> Step:
    """`multiopt.torch.Adadelta`, the drop-in; after its `clip_grad_norm_`, if a bound is given."""
    import torch

    import multiopt.torch

    dtype = getattr(torch, workload.state) if workload.state else None
    step = multiopt.torch.Adadelta(_groups(workload, params), **HYPERS, state_dtype=dtype, **options).step
    return step if clip is None else _clipped(multiopt.torch.clip_grad_norm_, params, clip, step)


@on_tensors
def torch_adadelta(workload: Workload, params: list[Any], foreach: bool | None = None) -> Step:
    """`torch.optim.Adadelta`."""
    import torch

    return torch.optim.Adadelta(_groups(workload, params), **HYPERS, foreach=foreach).step


@on_tensors
def torch_compiled(workload: Workload, params: list[Any]) -> Step:
    """`torch.compile` of `torch.optim.Adadelta`'s step, compiled from nothing."""
    import torch
    import torch._inductor.config

    torch._inductor.config.force_disable_caches = True  # an earlier run must not make it look ready sooner
    return torch.compile(torch.optim.Adadelta(params, **HYPERS).step)


@on_tensors
def torch_adam(workload: Workload, params: list[Any], clip: float | None = None) -> Step:
    """PyTorch's fused Adam: another rule, which moves as many bytes; after `clip_grad_norm_`, if a bound is given."""
    import torch

    step = torch.optim.Adam(_groups(workload, params), lr=1e-3, fused=True).step
    return step if clip is None else _clipped(torch.nn.utils.clip_grad_norm_, params, clip, step)


def _groups(workload: Workload, params: list[Any]) -> list[dict[str, Any]]:
    return [{"params": own} for own in workload.grouped(params)]


def _clipped(clip: Callable[..., Any], params: list[Any], bound: float, step: Step) -> Step:
    """A step after gradients are clipped in place, to a bound that sinks a bit, so that each time clips something."""

    def clipped() -> None:
        nonlocal bound
        bound *= 0.999
        clip(params, bound, foreach=True)
        step()

    return clipped
