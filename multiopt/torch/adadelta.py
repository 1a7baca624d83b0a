"""Adadelta as a `torch.optim.Optimizer`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ..adadelta import ADADELTA
from ..backends.torch import is_observed
from ..lock import Lock, locked
from ..plan import run
from ..update import FusedUpdate
from .graph import NUMBERS, register, trace, trace_zero_grad
from .group import GroupsCache
from .scaling import Scaling, checked, number
from .state import StateKind, counter_dtype
from .tensors import same

__all__ = ["Adadelta"]

Groups = Sequence[dict[str, Any]]


class Adadelta(torch.optim.Optimizer):
    """Adadelta (Zeiler 2012, arXiv 1212.5701), a drop-in for `torch.optim.Adadelta`.

    With g the gradient, ``g = g + weight_decay x``, ``v = rho v + (1 - rho) g²``,
    ``d = sqrt(u + eps) / sqrt(v + eps) g``, ``u = rho u + (1 - rho) d²``, ``x = x - lr d``, where v is
    ``square_avg`` and u is ``acc_delta``. Everything that is called `torch.optim.Optimizer` works on it: hooks,
    schedulers, `GradScaler`, checkpoints in either direction, named parameters.

    Tensors on the CPU and on CUDA are updated by multiopt's engines, in one pass over memory; DTensors by their
    local shards. Other tensors (subclasses of Tensor, meta and fake tensors, those on other devices, those under
    `torch.func`'s transforms or a dispatch mode) are updated by PyTorch's operations, so that whatever follows
    operations can follow the step.

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
        Only affects how `zero_grad` fills with zeros: the engines update all tensors at once in any case.
    capturable : bool
        Whether a CUDA graph may capture the step: the counters are kept on the parameters' device. Take one step
        with the same options before capturing.
    maximize : bool
        Maximize the objective.
    differentiable : bool
        Whether autograd follows the step. It then runs operation by operation.
    fused : bool or None
        Whether `GradScaler` leaves the unscaling to the step, as to PyTorch's fused optimizers: the host does not
        wait to hear whether the gradients are finite. The scaler then calls the step every time, hooks included; one
        with an infinite or NaN gradient changes nothing, and the others leave the gradients unscaled. It is the
        program's choice, and no part of groups and checkpoints. Otherwise the scaler unscales and skips, as it does
        with `torch.optim.Adadelta`. Without a scaler it has no effect: the engines are fused in any case.
    state_dtype : torch.dtype or None
        Dtype of the accumulators, such as ``torch.bfloat16`` for half the memory; by default each parameter's. The
        program's choice too: a checkpoint loads in any.
    state_rounding : {"nearest", "stochastic"}
        How accumulators in bfloat16 are rounded. To nearest, an average stands still where what is added is less than
        half a unit, as with `rho` near 1; stochastically it keeps, on average, all that is added. The numbers that it
        is rounded by are a hash of the seed, the step, and the parameter's and the element's place, the same on any
        number of threads and with DTensors sharded in any way.
    seed : int
        Of stochastic rounding, from 0 to 2**64 - 1. With the steps that were rounded by it (``rounding_step``) it is in
        the groups, so that training goes on from a checkpoint with the same bits.

    Raises
    ------
    ValueError
        If a hyperparameter is out of range, or no parameter is given; if state is to be rounded stochastically that is
        not in bfloat16, or a seed is given without.
    TypeError
        If something is not a tensor, or `state_dtype` no real floating-point dtype.
    RuntimeError
        If `fused` is on together with `foreach` or `differentiable`, or `differentiable` with stochastic rounding.
    """

    _step_lock: Lock
    _cache: GroupsCache | None
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
        fused: bool | None = None,
        state_dtype: torch.dtype | None = None,
        state_rounding: str = "nearest",
        seed: int = 0,
    ) -> None:
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        options: dict[str, Any] = {"lr": lr, "rho": rho, "eps": eps, "weight_decay": weight_decay}
        titles = "learning rate", "rho value", "epsilon value", "weight_decay value"
        for title, (name, value) in zip(titles, options.items(), strict=True):
            if not 0.0 <= value <= (1.0 if name == "rho" else float("inf")):
                raise ValueError(f"Invalid {title}: {value}")
        options |= {"maximize": maximize, "capturable": capturable, "foreach": foreach}
        self._step_lock, self._cache, self._states, self._key = Lock(), None, [], register(self)
        self._kind = StateKind(state_dtype, state_rounding)
        super().__init__(params, {**options, "differentiable": differentiable, **self._kind.options(seed)})
        for p in (p for group in self.param_groups for p in group["params"]):
            self._kind.check("params", p)
        if self._kind.stochastic and differentiable:
            raise RuntimeError("`state_rounding='stochastic'` does not support `differentiable`")
        if fused and differentiable:
            raise RuntimeError("`fused` does not support `differentiable`")
        if fused and foreach:
            raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
        if fused:
            # By this `GradScaler` knows, and hands over the scale and what it found.
            self._step_supports_amp_scaling = True

    def __getstate__(self) -> dict[str, Any]:
        """The state, and the choices that are the program's."""
        own: dict[str, Any] = {
            name: self.__dict__[name] for name in ("_kind", "_step_supports_amp_scaling") if name in self.__dict__
        }
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a state, of an older PyTorch too."""
        self.__dict__.setdefault("_step_lock", Lock())
        self.__dict__.setdefault("_key", register(self))
        self.__dict__.setdefault("_kind", StateKind())
        super().__setstate__(state)
        self._cache, self._states = None, []
        for group in self.param_groups:
            for name, value in _LATER_OPTIONS.items():
                group.setdefault(name, value)
            for name in self.defaults.keys() & {"seed", "rounding_step"}:  # which another's checkpoint does not have
                group.setdefault(name, self.defaults[name])
            for p in group["params"]:
                own = self.state.get(p, {})
                if own and not isinstance(own["step"], Tensor):
                    device = p.device if group["capturable"] else None
                    own["step"] = torch.tensor(float(own["step"]), dtype=counter_dtype(), device=device)
                self._kind.take(p, own)

    @property  # type: ignore[override]
    def state(self) -> Any:
        """Step counter and accumulators of each parameter that has had a gradient.

        The operator that is the step in a graph does not name them (graph.py), so that nobody else may use them in a
        graph: `torch.compile` leaves out the function that does, and compiles those that it calls.
        """
        if torch.compiler.is_dynamo_compiling():
            torch._dynamo.skip_frame("the state of an optimizer is used")
        return self.__dict__["state"]

    @state.setter
    def state(self, value: Any) -> None:
        self.__dict__["state"] = value

    # Neither sees half a step of another thread.
    state_dict = torch._disable_dynamo(locked(torch.optim.Optimizer.state_dict))
    load_state_dict = torch._disable_dynamo(locked(torch.optim.Optimizer.load_state_dict))
    add_param_group = torch._disable_dynamo(locked(torch.optim.Optimizer.add_param_group))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Make the gradients None, or fill them with zeros: `torch.optim.Optimizer.zero_grad`."""
        if torch.compiler.is_dynamo_compiling() and set_to_none:
            trace_zero_grad(self)
        else:
            super().zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update the parameters that have a gradient; steps of several threads come one after another.

        One that is interrupted (Ctrl-C, a signal handler that raises) leaves tensors partly updated, and those whose
        `step` was not yet raised uncounted; no thread of its own still writes when the exception goes on. The closure
        is called before, and not one at a time.

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
            If a gradient is sparse, a tensor does not agree with its parameter, or a step counter cannot be raised.
            Nothing has been changed then, nor after one of the next two.
        TypeError, ValueError
            If an option of a group that is to be a number is none, or NaN.
        AssertionError
            If `capturable` is on for tensors of a device without graphs, or `foreach` together with `differentiable`.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            if not (torch.compiler.is_dynamo_compiling() and trace(self)):
                self._step()
        return loss

    # In a graph of `torch.compile` the step is one operator, which comes here (graph.py); where there is none, the
    # graph breaks. (`torch.compiler.disable` would import the compiler along with this module.)
    @torch._disable_dynamo
    @locked
    def _step(self, groups: Groups | None = None, grads: Sequence[list[Tensor | None]] | None = None) -> None:
        """Do a step; on other groups than the optimizer's, and by other gradients than the parameters', if given."""
        groups = self.param_groups if groups is None else groups
        if grads is None:
            own = [p.grad for group in groups for p in group["params"]]
        else:
            own = list(chain.from_iterable(grads))
        _health_check(self)
        amp = Scaling.of(self)
        if amp.found_on_host:
            return
        where = [f"groups[{k}]." for k in range(len(groups))] if len(groups) > 1 else [""]
        numbers = [_numbers(group, its) for group, its in zip(groups, where, strict=True)]
        stochastic = self._kind.stochastic
        updates = [_update(group, given, amp, stochastic) for group, given in zip(groups, numbers, strict=True)]

        def values(k: int, device: torch.device | None) -> dict[str, Any]:
            return _values(groups[k], numbers[k], amp, where[k], device)

        rounding = self._kind.rounding_of(self.param_groups)
        cache, local_grads = self._cached(groups, own, updates)
        plans, by_operations = cache.plans(local_grads, values, rounding), cache.numbers(values)
        if amp.scale is not None:
            amp.check(plans, *cache.others(own))
        # All is checked; from here on things are written.
        cache.keep_new_states(self.state)
        self._states = list(self.state.values())
        run(plans)
        cache.touched(own)
        cache.update_by_operations(own, by_operations, rounding)
        self._kind.count(self.param_groups)
        cache.count(own, amp.found_inf)
        amp.unscale(g for g in own if g is not None)

    def _cached(
        self, groups: Groups, grads: list[Tensor | None], updates: list[FusedUpdate]
    ) -> tuple[GroupsCache, list[Sequence[Tensor | None]]]:
        """What is known about the groups, found out anew where something has moved; and their gradients."""
        observed, followed = is_observed(), self.defaults["differentiable"]
        by_operations = [observed or (group["differentiable"] and followed) for group in groups]
        cache = self._cache
        # One with states that nobody has kept is of a step that was refused.
        current = cache is not None and not cache.new_states and same(self._states, self.state.values())
        current = current and cache is not None and cache.is_current(groups, updates, by_operations)
        local_grads = cache.local_grads(grads) if cache and current else None
        if cache is None or local_grads is None:
            cache = self._cache = GroupsCache(groups, grads, self.state, updates, by_operations, self._kind, cache)
            local_grads = cache.local_grads(grads)
            assert local_grads is not None  # it was made for them
        return cache, local_grads


def _numbers(group: Mapping[str, Any], where: str) -> dict[str, Any]:
    return {
        name: value if type(value := group[name]) is float and value == value else checked(f"{where}{name}", value)
        for name in NUMBERS
    }


def _update(group: Mapping[str, Any], numbers: Mapping[str, Any], amp: Scaling, stochastic: bool) -> FusedUpdate:
    scaled, coupled = bool(group["maximize"]) or amp.scale is not None, bool(numbers["weight_decay"] != 0)
    return _fused(scaled, coupled, amp.found_inf is not None, stochastic)


@cache
def _fused(scaled: bool, coupled: bool, guarded: bool, stochastic: bool) -> FusedUpdate:
    slots = (None, *range(len(ADADELTA.slots))) if stochastic else ()
    return FusedUpdate(ADADELTA, scaled=scaled, coupled=coupled, guarded=guarded, stochastic=slots)


def _values(
    group: Mapping[str, Any], numbers: Mapping[str, Any], amp: Scaling, where: str, device: torch.device | None
) -> dict[str, Any]:
    """The update's numbers as its engine wants them on a device; as they are for None."""
    made = {
        name: value if type(value) is float else number(f"{where}{name}", value, device)
        for name, value in numbers.items()
    }
    sign = -1.0 if group["maximize"] else 1.0
    made["scale"] = sign if amp.scale is None else sign / number("grad_scale", amp.scale, device)
    made["skip"] = None if amp.found_inf is None else number("found_inf", amp.found_inf, device)
    return made


#: Options that older checkpoints do not have.
_LATER_OPTIONS = {"foreach": None, "maximize": False, "differentiable": False, "capturable": False}
#: The check's name is another in older versions.
_health_check: Callable[[torch.optim.Optimizer], None] = getattr(
    torch.optim.Optimizer,
    "_accelerator_graph_capture_health_check",
    getattr(torch.optim.Optimizer, "_cuda_graph_capture_health_check", lambda optimizer: None),
)
