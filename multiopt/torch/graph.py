"""The step as one operator, so that a graph of `torch.compile` can hold it and the engines still do it.

The compiler's tracer reads the groups as it reads any Python, so whatever is assigned to them counts, within what is
compiled or outside. It is told that the operator writes to the parameters. The state stays the optimizer's own: it is
made and written where the operator runs, by the same code as ever.
"""

from __future__ import annotations

from itertools import count
from operator import is_
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from ..backends.torch import PLAIN

__all__ = ["NUMBERS", "register", "trace", "trace_zero_grad"]

#: The hyperparameters of a group.
NUMBERS = ("lr", "rho", "eps", "weight_decay")
_optimizers: WeakValueDictionary[int, Any] = WeakValueDictionary()
_keys = count()


def register(optimizer: torch.optim.Optimizer) -> int:
    """The number by which graphs know an optimizer, as long as it lives."""
    _optimizers[key := next(_keys)] = optimizer
    return key


def trace(optimizer: Any) -> bool:
    """Put the step into the graph that is being traced; False, and no step, where it has to be done outside.

    That is where autograd is to follow it, where a `GradScaler` leaves the unscaling to it, for subclasses of Tensor,
    for complex ones, which inductor does not take, and for options that are no numbers, which are refused.
    """
    if getattr(optimizer, "grad_scale", None) is not None or getattr(optimizer, "found_inf", None) is not None:
        return False
    params, grads, places, numbers, maximize, place = [], [], [], [], [], 0
    for group in _groups(optimizer):
        if group["differentiable"]:
            return False
        maximize.append(bool(group["maximize"]))
        for name in NUMBERS:
            if not isinstance(group[name], (int, float, Tensor)):
                return False
            numbers.append(group[name])
        for p in group["params"]:
            g = p.grad
            if g is not None:
                if type(p) not in PLAIN or type(g) not in PLAIN or p.is_complex():
                    return False
                params.append(p)
                grads.append(g)
                places.append(place)
            place += 1
    # Of a float in a product the compiler makes an input of the graph, once it has seen it change.
    numbers = [n if isinstance(n, Tensor) else torch.ones((), dtype=torch.float64) * n for n in numbers]
    torch.ops.multiopt.adadelta_step(params, grads, places, numbers, maximize, optimizer._key)
    return True


def trace_zero_grad(optimizer: Any) -> None:
    """Put into the graph that the gradients become None."""
    for group in _groups(optimizer):
        for p in group["params"]:
            p.grad = None


def _groups(optimizer: Any) -> Any:
    # Asked for by its name, all that the groups hold would become constants of the graph.
    return optimizer.__dict__["param_groups"]


def _step(
    params: list[Tensor],
    grads: list[Tensor],
    places: list[int],
    numbers: list[Tensor],
    maximize: list[bool],
    key: int,
) -> None:
    """Do a step on these parameters, which are the optimizer's at `places`, counted through all groups, or copies."""
    optimizer = _optimizers.get(key)
    if optimizer is None:
        raise RuntimeError("the optimizer whose step this graph holds is gone: compile again with another")
    live, place, groups, all_grads = dict(zip(places, zip(params, grads, strict=True), strict=True)), count(), [], []
    for i, group in enumerate(optimizer.param_groups):
        pairs = [live.get(next(place), (p, None)) for p in group["params"]]
        row = dict(zip(NUMBERS, numbers[i * len(NUMBERS) :], strict=False))
        # The compiler turns `capturable` on, on any device, where it sees that groups are changed.
        capturable = group["capturable"] and not any(p.device.type == "cpu" for p, _ in pairs)
        options = {"maximize": maximize[i], "capturable": capturable}
        groups.append({**group, **row, **options, "params": [p for p, _ in pairs]})
        all_grads.append([g for _, g in pairs])
    own = [p for group in optimizer.param_groups for p in group["params"]]
    given = [p for group in groups for p in group["params"]]
    with optimizer._step_lock:
        if all(map(is_, given, own)):
            optimizer._step(groups, all_grads)
            return
        # Copies, which the graph puts into the parameters afterwards: another optimizer's, but for the state.
        states = {copy: optimizer.state[p] for copy, p in zip(given, own, strict=True) if p in optimizer.state}
        other = object.__new__(type(optimizer))
        other.__dict__.update({**optimizer.__dict__, "state": states, "_cache": None, "_states": []})
        other._step(groups, all_grads)
        optimizer.state.update({p: states[copy] for copy, p in zip(given, own, strict=True) if copy in states})


# Not `torch.library.custom_op`, which asks each tensor several questions in Python: with a thousand small ones it takes
# longer than the step.
_library = torch.library.Library("multiopt", "DEF")
_library.define(
    "adadelta_step(Tensor(a!)[] params, Tensor[] grads, SymInt[] places, Tensor[] numbers, bool[] maximize, SymInt key)"
    " -> ()",
    # A CUDA graph that the compiler makes by itself would hold the addresses of the state.
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.cudagraph_unsafe),
)
_library.impl("adadelta_step", _step, "CompositeExplicitAutograd")
torch.library.register_fake("multiopt::adadelta_step", lambda *args: None, lib=_library)
