"""CuPy's rows, the copy that is the floor on a GPU, and what CUDA events and allocators say of a step."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

from multiopt.rule import adadelta

from .contender import Running
from .host_rows import HYPERS
from .workload import Workload

__all__ = ["copy", "multiopt_cupy", "plain_cupy", "torch_counts", "torch_events"]


def torch_events(step: Callable[[], Any]) -> Callable[[int], float]:
    """Make a `sample` function that times by CUDA events on PyTorch's current stream."""
    import torch

    def sample(n: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(n):
            step()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3

    return sample


def cupy_events(step: Callable[[], Any]) -> Callable[[int], float]:
    """Make a `sample` function that times by CUDA events on CuPy's current stream."""
    import cupy

    def sample(n: int) -> float:
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        cupy.cuda.Device().synchronize()
        start.record()
        for _ in range(n):
            step()
        end.record()
        cupy.cuda.Device().synchronize()
        return cupy.cuda.get_elapsed_time(start, end) / 1e3

    return sample


def ready_to_begin() -> float:
    """Wait until everything is on the device, and read the clock."""
    import cupy

    cupy.cuda.Device().synchronize()
    return perf_counter()


def launches(step: Callable[[], Any]) -> int | None:
    """Kernels that one step launches, whoever launches them; None where CUDA's profiler is not to be had."""
    try:
        import torch
        from torch.profiler import ProfilerActivity, profile
    except ImportError:
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


def torch_counts(step: Callable[[], Any]) -> dict[str, int | None]:
    """Count launches, and allocations from PyTorch's pool, of one step."""
    import torch

    def allocated() -> int:
        return torch.cuda.memory_stats().get("allocation.all.allocated", 0)

    before = allocated()
    step()
    return {"allocations": allocated() - before, "launches": launches(step)}


def cupy_counts(step: Callable[[], Any]) -> dict[str, int | None]:
    """Count launches, and allocations from CuPy's pool, of one step."""
    import cupy

    class Counter(cupy.cuda.MemoryHook):
        name = "multiopt.benchmarks"
        calls = 0

        def malloc_preprocess(self, **kwargs: Any) -> None:
            self.calls += 1

    with Counter() as counter:
        step()
    return {"allocations": counter.calls, "launches": launches(step)}


def copy(workload: Workload, options: dict[str, Any]) -> Running:
    """Copy from device to device, as many bytes as the update moves: half of them read, half written."""
    half = workload.moved // 2
    if importlib.util.find_spec("cupy") is not None:
        import cupy

        source, target = cupy.zeros(half, "uint8"), cupy.zeros(half, "uint8")
        stream = cupy.cuda.get_current_stream()

        def step() -> None:
            target.data.copy_from_device_async(source.data, half, stream)

        return Running(cupy_events(step), step, lambda: [], ready_to_begin())
    import torch

    old, new = (torch.zeros(half, dtype=torch.uint8, device="cuda") for _ in range(2))

    def copied() -> None:
        new.copy_(old)

    return Running(torch_events(copied), copied, lambda: [], perf_counter())


def multiopt_cupy(workload: Workload, options: dict[str, Any]) -> Running:
    """`multiopt.Adadelta` on CuPy arrays."""
    import cupy

    from multiopt import Adadelta

    params = [cupy.asarray(x) for x in workload.params()]
    grads = [cupy.asarray(g) for g in workload.grads()]
    began = ready_to_begin()
    optimizer = Adadelta(params, **HYPERS)

    def step() -> None:
        optimizer.step(grads)

    return Running(cupy_events(step), step, lambda: [_host(x) for x in params], began, lambda: cupy_counts(step))


def plain_cupy(workload: Workload, options: dict[str, Any]) -> Running:
    """Call the rule on CuPy arrays, operation by operation."""
    import cupy

    params = [cupy.asarray(x) for x in workload.params()]
    grads = [cupy.asarray(g) for g in workload.grads()]
    began = ready_to_begin()
    state = [(cupy.zeros_like(x), cupy.zeros_like(x)) for x in params]

    def step() -> None:
        for i, g in enumerate(grads):
            params[i], *new = adadelta(cupy, params[i], g, *state[i], **HYPERS)
            state[i] = tuple(new)

    return Running(cupy_events(step), step, lambda: [_host(x) for x in params], began, lambda: cupy_counts(step))


def _host(array: Any) -> np.ndarray:
    return array.get()
