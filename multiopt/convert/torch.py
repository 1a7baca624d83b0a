"""State of ``torch.optim.Adadelta``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .state import Converter, State, fitted, only, to_host

__all__ = ["CONVERTER", "from_torch", "to_torch"]

#: PyTorch's options and their defaults; the core has the same names.
_OPTIONS = {"lr": 1.0, "rho": 0.9, "eps": 1e-6, "weight_decay": 0, "maximize": False}


def from_torch(source: Any) -> State:
    """Read ``torch.optim.Adadelta``, or its ``state_dict()``.

    Of a parameter that never had a gradient there is no state: from the optimizer it is zeros, which PyTorch would
    make at the first gradient; from a ``state_dict`` it is None, for nobody knows the shape.

    Raises
    ------
    ValueError
        If groups have different options.
    """
    saved = source if isinstance(source, Mapping) else source.state_dict()
    groups = saved["param_groups"]
    options = [{name: group[name] for name in _OPTIONS if name in group} for group in groups]
    if any(own != options[0] for own in options):
        raise ValueError(f"param_groups: expected groups with the same options, got {options}")
    numbers = {name: value if isinstance(value, bool) else float(value) for name, value in options[0].items()}
    held = [saved["state"].get(i, {}) for group in groups for i in group["params"]]
    params = [None] * len(held) if saved is source else _params(source)

    def slot(name: str) -> list[np.ndarray | None]:
        return [
            to_host(entry[name]) if entry else None if param is None else np.zeros_like(to_host(param))
            for entry, param in zip(held, params, strict=True)
        ]

    steps = max((int(entry["step"]) for entry in held if "step" in entry), default=0)
    return State(steps, slot("square_avg"), slot("acc_delta"), options={**numbers, "decoupled": False})


def to_torch(state: State, optimizer: Any = None) -> dict[str, Any]:
    """Make a ``state_dict`` for ``torch.optim.Adadelta``.

    Parameters
    ----------
    state : State
    optimizer : torch.optim.Adadelta or None
        The optimizer whose ``load_state_dict`` takes it: then the arrays are tensors, and the groups are its own.

    Raises
    ------
    ValueError
        If the options mean something that PyTorch does not have (decoupled decay, clipping).
    """
    if optimizer is None:
        options = only(state, {*_OPTIONS, "decoupled"}, "PyTorch")
        if options.pop("decoupled", False) and options.get("weight_decay"):
            raise ValueError("weight_decay: expected coupled decay, which is PyTorch's, got decoupled decay")
        given = {name: options.get(name, default) for name, default in _OPTIONS.items()}
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


def _params(optimizer: Any) -> list[Any]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def _write(state: State, optimizer: Any) -> Any:
    state = fitted(state, [tuple(param.shape) for param in _params(optimizer)])
    optimizer.load_state_dict(to_torch(state, optimizer))
    return optimizer


CONVERTER = Converter(
    lambda thing: hasattr(thing, "param_groups") and hasattr(thing, "load_state_dict"), read=from_torch, write=_write
)
