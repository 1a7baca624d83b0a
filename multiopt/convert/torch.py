"""State of ``torch.optim.Adadelta``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .state import State, check_shapes, only, to_host

__all__ = ["from_torch", "into_torch", "to_torch"]

_TORCH = {"lr": "lr", "rho": "rho", "eps": "eps", "weight_decay": "weight_decay", "maximize": "maximize"}


def from_torch(source: Any) -> State:
    """From ``torch.optim.Adadelta``, or its ``state_dict()``.

    Raises
    ------
    ValueError
        If groups have different options.
    """
    saved = source if isinstance(source, Mapping) else source.state_dict()
    groups = saved["param_groups"]
    options = [{ours: group[theirs] for ours, theirs in _TORCH.items() if theirs in group} for group in groups]
    if any(own != options[0] for own in options):
        raise ValueError(f"param_groups: expected groups with the same options, got {options}")
    numbers = {name: value if isinstance(value, bool) else float(value) for name, value in options[0].items()}
    order = [i for group in groups for i in group["params"]]
    held = [saved["state"].get(i, {}) for i in order]
    return State(
        steps=max((int(entry["step"]) for entry in held if "step" in entry), default=0),
        square_avg=[to_host(entry["square_avg"]) if entry else None for entry in held],
        acc_delta=[to_host(entry["acc_delta"]) if entry else None for entry in held],
        options={**numbers, "decoupled": False},
    )


def to_torch(state: State, optimizer: Any = None) -> dict[str, Any]:
    """A ``state_dict`` of ``torch.optim.Adadelta``.

    Parameters
    ----------
    state : State
    optimizer : torch.optim.Adadelta or None
        Whose ``load_state_dict`` shall take it: then the arrays are tensors, and the groups are its own.

    Raises
    ------
    ValueError
        If the options mean something that PyTorch does not have (decoupled decay, clipping).
    """
    if optimizer is None:
        options = only(state, {*_TORCH, "decoupled"}, "PyTorch")
        if options.get("decoupled") and options.get("weight_decay"):
            raise ValueError("weight_decay: expected coupled decay, which is PyTorch's, got decoupled decay")
        defaults = {"lr": 1.0, "rho": 0.9, "eps": 1e-6, "weight_decay": 0, "maximize": False}
        given = {name: options.get(name, default) for name, default in defaults.items()}
        given["lr"] = given["lr"](state.steps) if callable(given["lr"]) else given["lr"]
        switches = {"foreach": None, "capturable": False, "differentiable": False}
        groups = [{**given, **switches, "params": list(range(len(state.square_avg)))}]
        make: Callable[[Any], Any] = np.asarray
    else:
        import torch

        groups, make = optimizer.state_dict()["param_groups"], torch.tensor
    entries = {
        i: {"step": make(np.float32(state.steps)), "square_avg": make(v), "acc_delta": make(u)}
        for i, (v, u) in enumerate(zip(state.square_avg, state.acc_delta, strict=True))
        if v is not None
    }
    return {"state": entries, "param_groups": groups}


def into_torch(state: State, optimizer: Any) -> None:
    """Into an optimizer of PyTorch, or ours for PyTorch."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    check_shapes(state, [tuple(param.shape) for param in params])
    optimizer.load_state_dict(to_torch(state, optimizer))
