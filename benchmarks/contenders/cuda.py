"""CuPy's contenders, the copy that is the floor on a GPU, and what CUDA events and allocators say of a step."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np

from multiopt import Adadelta

from ..harness.contender import Running
from ..harness.workload import Workload
from .numpy import HYPERS, plain_step

__all__ = ["copy", "multiopt_cupy", "plain_cupy", "torch_running"]

Step = Callable[[], Any]


@dataclass
class OnDevice(Running):
    """Timed by CUDA events on the library's current stream."""

    event: Callable[[], Any] = field(kw_only=True)  # makes an event that measures time
    elapsed: Callable[[Any, Any], float] = field(kw_only=True)  # milliseconds from one event to another
    allocations: Callable[[Step], int] = field(kw_only=True)  # does a step and counts those from the library's pool

    def sample(self, n: int) -> float:
        """Return the seconds that the device takes for `n` steps."""
        start, end = self.event(), self.event()
        self.wait()
        start.record()
        for _ in range(n):
            self.step()
        end.record()
        self.wait()
        return self.elapsed(start, end) / 1e3

    def counts(self) -> dict[str, int | None]:
        """Count the allocations and launches of one step."""
        return {"allocations": self.allocations(self.step), "launches": launches(self.step)}


def torch_running(step: Step, params: Callable[[], list[np.ndarray]], began: float) -> Running:
    """Run PyTorch's work."""
    import torch

    def allocations(step: Step) -> int:
        before = torch.cuda.memory_stats().get("allocation.all.allocated", 0)
        step()
        return torch.cuda.memory_stats().get("allocation.all.allocated", 0) - before

    return OnDevice(
        step, params, began, torch.cuda.synchronize, allocations=allocations,
        event=lambda: torch.cuda.Event(enable_timing=True), elapsed=torch.cuda.Event.elapsed_time,
    )  # fmt: skip


def cupy_running(step: Step, params: Callable[[], list[np.ndarray]], began: float) -> Running:
    """Run CuPy's work."""
    import cupy

    class Counter(cupy.cuda.MemoryHook):
        name = "multiopt.benchmarks"
        calls = 0

        def malloc_preprocess(self, **kwargs: Any) -> None:
            self.calls += 1

    def allocations(step: Step) -> int:
        with Counter() as counter:
            step()
        return counter.calls

    return OnDevice(
        step, params, began, cupy.cuda.Device().synchronize, allocations=allocations,
        event=cupy.cuda.Event, elapsed=cupy.cuda.get_elapsed_time,
    )  # fmt: skip


def launches(step: Step) -> int | None:
    """Kernels that one step launches, whoever launches them; None where CUDA's profiler is not to be had."""
    try:
        import torch
        from torch.profiler import ProfilerActivity, profile
    except ImportError:
        return None
    if not torch.cuda.is_available():  # a PyTorch for the CPU, beside CuPy
        return None
    torch.cuda.init()
    kernels: list[Any] = []
    for _ in range(2):  # the first session only wakes the profiler
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as session:
            step()
            torch.cuda.synchronize()
        on_device = [e for e in session.events() or [] if e.device_type == torch.autograd.DeviceType.CUDA]
        kernels = [e for e in on_device if not e.name.startswith(("Memcpy", "Memset"))]
    # Every contender launches something: nothing seen means that nothing could be seen.
    return len(kernels) or None


def copy(workload: Workload) -> Running:
    """Copy from device to device, as many bytes as the update moves: half of them read, half written."""
    half = workload.moved // 2
    if importlib.util.find_spec("cupy") is not None:
        import cupy

        source, target = cupy.zeros(half, "uint8"), cupy.zeros(half, "uint8")
        stream = cupy.cuda.get_current_stream()
        cupy.cuda.Device().synchronize()
        return cupy_running(
            lambda: target.data.copy_from_device_async(source.data, half, stream), lambda: [], perf_counter()
        )
    import torch

    old, new = (torch.zeros(half, dtype=torch.uint8, device="cuda") for _ in range(2))
    return torch_running(lambda: new.copy_(old), lambda: [], perf_counter())


def multiopt_cupy(workload: Workload) -> Running:
    """`multiopt.Adadelta` on CuPy arrays."""
    params, grads, began = _cupy_arrays(workload)
    optimizer = Adadelta(params, **HYPERS)
    return cupy_running(lambda: optimizer.step(grads), lambda: [x.get() for x in params], began)


def plain_cupy(workload: Workload) -> Running:
    """Call the rule on CuPy arrays, operation by operation."""
    import cupy

    params, grads, began = _cupy_arrays(workload)
    return cupy_running(plain_step(cupy, params, grads), lambda: [x.get() for x in params], began)


def _cupy_arrays(workload: Workload) -> tuple[list[Any], list[Any], float]:
    """Parameters, gradients, and what the clock says when they are on the device."""
    import cupy

    params, grads = ([cupy.asarray(x) for x in arrays] for arrays in (workload.params(), workload.grads()))
    cupy.cuda.Device().synchronize()
    return params, grads, perf_counter()
