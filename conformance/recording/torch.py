"""Recorder of torch.optim.Adadelta, for-loop and foreach.

Clipping, schedules and averages are torch's own functions beside the optimizer, applied as its documentation shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..data.case import Case, Gradient, Sparse
from ..data.rates import update_rate
from ..data.specification import Schedule
from ..targets.arrays import Arrays
from ..targets.optimizers import TorchOptim


def _scheduler(optimizer: torch.optim.Optimizer, schedule: Schedule) -> torch.optim.lr_scheduler.LRScheduler:
    p = schedule.parameters
    if schedule.kind == "exponential" and p["decay_steps"] == 1:
        return torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=p["decay_rate"])
    if schedule.kind == "piecewise":
        gamma = p["values"][1] / p["values"][0]
        return torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=p["boundaries"], gamma=gamma)
    raise ValueError(f"schedule: torch has no {schedule.kind!r} schedule of these parameters")


class RecordedTorch(TorchOptim):
    """torch.optim.Adadelta with its parameters."""

    def __init__(self, system: str, case: Case) -> None:
        self.config = c = case.config
        self.foreach = system == "torch-foreach"
        make = Arrays("torch").make
        self.model = torch.nn.ParameterList([torch.nn.Parameter(make(x, case.dtype)) for x in case.start])
        hypers: dict[str, Any] = {} if c.defaults else {"lr": update_rate(c, 0), "rho": c.rho, "eps": c.eps}
        optimizer = torch.optim.Adadelta(
            list(self.model), weight_decay=c.weight_decay, maximize=c.maximize, foreach=self.foreach, **hypers
        )
        super().__init__(optimizer)
        self.scheduler = _scheduler(optimizer, c.schedule) if c.schedule is not None else None
        self.average = None
        if c.ema_momentum is not None:
            self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(c.ema_momentum))
        self.before_step, self.after_step = self._clip, self._follow

    def hyperparameters(self) -> dict[str, float | None]:
        group = self.opt.param_groups[0]
        return {key: float(group[key]) for key in ("lr", "rho", "eps")}

    def gradient(self, g: Gradient, i: int) -> Any:
        if not isinstance(g, Sparse):
            return super().gradient(g, i)
        values = super().gradient(g.values, i)
        return torch.sparse_coo_tensor(torch.from_numpy(g.indices)[None], values, self.params[i].shape)

    def _clip(self, step: int) -> None:
        if self.config.clipvalue is not None:
            torch.nn.utils.clip_grad_value_(self.params, self.config.clipvalue, foreach=self.foreach)
        if self.config.global_clipnorm is not None:
            torch.nn.utils.clip_grad_norm_(self.params, self.config.global_clipnorm, foreach=self.foreach)

    def _follow(self, step: int) -> None:
        if self.scheduler is not None:
            self.scheduler.step()
        if self.average is not None:
            self.average.update_parameters(self.model)

    def columns(self) -> Mapping[str, Sequence[Any]]:
        counters = [self.opt.state.get(p, {}).get("step", torch.zeros(())) for p in self.params]
        average = {} if self.average is None else {"average": list(self.average.module.parameters())}
        return {**super().columns(), **average, "iterations": counters}


make = RecordedTorch
