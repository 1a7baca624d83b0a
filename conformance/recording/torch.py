"""Recorder of torch.optim.Adadelta, for-loop and foreach.

Clipping, schedules and averages are torch's own functions beside the optimizer, applied as its documentation shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..data.inputs import Gradient, Sparse
from ..data.specification import Scenario, Schedule


def _from_numpy(values: NDArray[Any], dtype: str) -> torch.Tensor:
    return torch.from_numpy(np.array(values)).to(getattr(torch, dtype))


def _to_numpy(values: torch.Tensor) -> NDArray[Any]:
    values = values.detach()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy().copy()


def _scheduler(optimizer: torch.optim.Optimizer, schedule: Schedule) -> torch.optim.lr_scheduler.LRScheduler:
    p = schedule.parameters
    if schedule.kind == "exponential" and p["decay_steps"] == 1:
        return torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=p["decay_rate"])
    if schedule.kind == "piecewise":
        gamma = p["values"][1] / p["values"][0]
        return torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=p["boundaries"], gamma=gamma)
    raise ValueError(f"schedule: torch has no {schedule.kind!r} schedule of these parameters")


class TorchDriver:
    """torch.optim.Adadelta with its parameters."""

    def __init__(self, system: str, scenario: Scenario, start: Sequence[NDArray[Any]]) -> None:
        self.config = c = scenario.config
        self.dtype = scenario.dtype
        self.foreach = system == "torch-foreach"
        model = torch.nn.ParameterList([torch.nn.Parameter(_from_numpy(x, self.dtype)) for x in start])
        self.params = list(model)
        hypers: dict[str, Any] = {}
        if not c.defaults:
            lr = c.lr
            if c.schedule is not None:
                lr = c.schedule.parameters.get("initial", c.schedule.parameters.get("values", [None])[0])
            hypers = {"lr": lr, "rho": c.rho, "eps": c.eps}
        self.optimizer = torch.optim.Adadelta(
            self.params, weight_decay=c.weight_decay, maximize=c.maximize, foreach=self.foreach, **hypers
        )
        self.scheduler = _scheduler(self.optimizer, c.schedule) if c.schedule is not None else None
        self.model = model
        self.average = (
            AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(c.ema_momentum))
            if c.ema_momentum is not None
            else None
        )

    def hyperparameters(self) -> dict[str, float | None]:
        """Return lr, rho and eps of the group."""
        group = self.optimizer.param_groups[0]
        return {key: float(group[key]) for key in ("lr", "rho", "eps")}

    def _gradient(self, gradient: Gradient, param: torch.Tensor) -> torch.Tensor | None:
        if gradient is None:
            return None
        if isinstance(gradient, Sparse):
            indices = torch.from_numpy(gradient.indices)[None]
            return torch.sparse_coo_tensor(indices, _from_numpy(gradient.values, self.dtype), param.shape)
        return _from_numpy(gradient, self.dtype)

    def step(self, step: int, gradients: Sequence[Gradient]) -> float | None:
        """Clip as asked, step, then advance schedule and average."""
        for param, gradient in zip(self.params, gradients, strict=True):
            param.grad = self._gradient(gradient, param)
        if self.config.clipvalue is not None:
            torch.nn.utils.clip_grad_value_(self.params, self.config.clipvalue, foreach=self.foreach)
        if self.config.global_clipnorm is not None:
            torch.nn.utils.clip_grad_norm_(self.params, self.config.global_clipnorm, foreach=self.foreach)
        used = float(self.optimizer.param_groups[0]["lr"])
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return used

    def snapshot(self) -> Mapping[str, Sequence[Any]]:
        """Return parameters and state; state that does not exist yet counts as zeros."""
        states = [self.optimizer.state.get(p, {}) for p in self.params]
        shot = {
            "x": [_to_numpy(p) for p in self.params],
            "square_avg": [_to_numpy(s.get("square_avg", torch.zeros_like(p)))
                           for s, p in zip(states, self.params, strict=True)],
            "acc_delta": [_to_numpy(s.get("acc_delta", torch.zeros_like(p)))
                          for s, p in zip(states, self.params, strict=True)],
        }  # fmt: skip
        if self.average is not None:
            shot["average"] = [_to_numpy(p) for p in self.average.module.parameters()]
        return shot

    def iterations(self) -> list[int]:
        """Return each parameter's own counter."""
        return [int(self.optimizer.state.get(p, {}).get("step", 0)) for p in self.params]

    def finalize(self) -> None:
        """Do nothing: torch has no such thing."""


driver = TorchDriver
