"""Adadelta as a `torch.optim.Optimizer`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..binding import Job, Pass, run
from ..rule import ADADELTA
from .held import Held, counter_dtype, same
from .operations import must_be_seen, update_by_operations
from .scaling import Scaling, number

__all__ = ["Adadelta"]


class Adadelta(torch.optim.Optimizer):
    """Adadelta (Zeiler 2012, arXiv 1212.5701), a drop-in for `torch.optim.Adadelta`.

    With g the gradient, ``g = g + weight_decay x``, ``v = rho v + (1 - rho) g²``,
    ``d = sqrt(u + eps) / sqrt(v + eps) g``, ``u = rho u + (1 - rho) d²``, ``x = x - lr d``, where v is
    ``square_avg`` and u is ``acc_delta``. Everything that is called `torch.optim.Optimizer` works on it: hooks,
    schedulers, `GradScaler`, checkpoints in either direction, named parameters.

    Tensors on the CPU and on CUDA are updated by multiopt's engines, in one pass over memory; DTensors by their
    local shards. Other tensors (subclasses of Tensor, meta and fake tensors, those on other devices, those under
    `torch.func`'s transforms or a dispatch mode) are updated by PyTorch's operations, each of which is seen by
    whoever looks.

    Parameters
    ----------
    params : iterable of Tensor, of (str, Tensor), or of dict
        Parameters, named parameters, or groups with options of their own.
    lr : float or Tensor
        Learning rate. A tensor has one element; on CUDA it is read there, so that a CUDA graph follows it.
    rho : float
        Decay of both accumulators, in [0, 1].
    eps : float
        Added under both roots, at least 0.
    weight_decay : float
        Added to the gradient, times the parameter.
    foreach : bool or None
        Only says how `zero_grad` fills with zeros: the engines take all tensors at once, whatever it is.
    capturable : bool
        Whether a CUDA graph may capture the step: the counters are kept on the parameters' device. One step with
        the same options has to be done before.
    maximize : bool
        Climb.
    differentiable : bool
        Whether autograd follows the step. It then runs operation by operation.

    Raises
    ------
    ValueError
        If a hyperparameter is out of range, or no parameter is given.
    TypeError
        If something is not a tensor.
    """

    #: `GradScaler` hands over the scale and what it found, instead of asking for it and waiting for the device.
    _step_supports_amp_scaling = True
    _held: dict[int, Held]
    _states: list[dict[str, Tensor]]

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        capturable: bool = False,
        maximize: bool = False,
        differentiable: bool = False,
    ) -> None:
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        for what, value, holds in [
            ("learning rate", lr, lr >= 0.0),
            ("rho value", rho, 0.0 <= rho <= 1.0),
            ("epsilon value", eps, eps >= 0.0),
            ("weight_decay value", weight_decay, weight_decay >= 0.0),
        ]:
            if not holds:
                raise ValueError(f"Invalid {what}: {value}")
        options: dict[str, Any] = {"lr": lr, "rho": rho, "eps": eps, "weight_decay": weight_decay}
        options |= {"maximize": maximize, "capturable": capturable, "foreach": foreach}
        self._held, self._states = {}, []
        super().__init__(params, {**options, "differentiable": differentiable})

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a state, of an older PyTorch too."""
        super().__setstate__(state)
        self._held, self._states = {}, []
        for group in self.param_groups:
            for name, value in _LATER_OPTIONS.items():
                group.setdefault(name, value)
            for p in group["params"]:
                own = self.state.get(p, {})
                if own and not isinstance(own["step"], Tensor):
                    device = p.device if group["capturable"] else None
                    own["step"] = torch.tensor(float(own["step"]), dtype=counter_dtype(), device=device)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update the parameters that have a gradient.

        Parameters
        ----------
        closure : callable, optional
            Computes the gradients anew and returns the loss.

        Returns
        -------
        object
            What `closure` returned, or None.

        Raises
        ------
        RuntimeError
            If a gradient is sparse, or a tensor does not agree with its parameter. Nothing has been changed then.
        AssertionError
            If `capturable` is on for tensors of a device without graphs, or `foreach` together with `differentiable`.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            self._update()
        return loss

    # The step is compiled already, and a graph that held it would gain nothing: `torch.compile` breaks here.
    # (`torch.compiler.disable` would import the compiler along with this module.)
    @torch._disable_dynamo
    def _update(self) -> None:
        _health_check(self)
        amp = Scaling.of(self)
        if amp.found_on_host:
            return
        seen = must_be_seen()
        if not same(self._states, self.state.values()):
            self._held.clear()
        try:
            plan = [(group, self._plan(i, group, seen)) for i, group in enumerate(self.param_groups)]
            # All is checked; from here on things are written.
            self._execute(plan, amp)
        finally:
            for held in self._held.values():
                held.release()

    def _execute(self, plan: list[tuple[dict[str, Any], Held]], amp: Scaling) -> None:
        jobs: list[Job] = []
        for group, held in plan:
            held.keep_states(self.state)
            jobs += held.jobs(_pass(group, amp), partial(_values, group, amp))
        self._states = list(self.state.values())
        run(jobs)
        for group, held in plan:
            for p, g, own in held.by_operations():
                update_by_operations(_pass(group, amp), _values(group, amp, None), p, g, own)
            held.count(amp.found_inf)

    def _plan(self, i: int, group: dict[str, Any], seen: bool) -> Held:
        """What is to be done for a group, checked: as in the last step, where nothing has moved."""
        grads = [p.grad for p in group["params"]]
        held = self._held.get(i)
        if held is None or seen or not held.take(group, grads):
            where = f"groups[{i}]." if len(self.param_groups) > 1 else ""
            apart = seen or (group["differentiable"] and self.defaults["differentiable"])
            held = Held(group, grads, self.state, where, apart)
            if not seen:
                self._held[i] = held
        return held


def _pass(group: Mapping[str, Any], amp: Scaling) -> Pass:
    return Pass(
        ADADELTA,
        scaled=group["maximize"] or amp.scale is not None,
        coupled=bool(group["weight_decay"] != 0),
        guarded=amp.found_inf is not None,
    )


def _values(group: Mapping[str, Any], amp: Scaling, device: torch.device | None) -> dict[str, Any]:
    """The pass' numbers as its engine wants them on a device; as they are for None."""
    numbers = {name: number(group[name], device) for name in ("lr", "rho", "eps", "weight_decay")}
    sign = -1.0 if group["maximize"] else 1.0
    numbers["scale"] = sign if amp.scale is None else sign / number(amp.scale, device)
    numbers["skip"] = None if amp.found_inf is None else number(amp.found_inf, device)
    return numbers


#: Options that older checkpoints do not have.
_LATER_OPTIONS = {"foreach": None, "maximize": False, "differentiable": False, "capturable": False}
#: The check's name is another in older versions.
_health_check: Callable[[torch.optim.Optimizer], None] = getattr(
    torch.optim.Optimizer,
    "_accelerator_graph_capture_health_check",
    getattr(torch.optim.Optimizer, "_cuda_graph_capture_health_check", lambda optimizer: None),
)
