"""State of `multiopt.Adadelta`."""

from __future__ import annotations

from typing import Any

import numpy as np

from .state import State, cast_like, check_shapes, to_host

__all__ = ["into_core", "of_core"]


def of_core(opt: Any) -> State:
    """From an optimizer of the core."""
    if opt.micro_steps:
        raise ValueError(f"accumulate: expected no half-done sum, got {opt.micro_steps} gradients; finish them first")
    options = [group.options() for group in opt.groups]
    if any(own != options[0] for own in options):
        raise ValueError(f"groups: expected groups with the same options, got {options}")
    whole = {name: getattr(opt, name) for name in ("clip_global_norm", "accumulate", "loss_scale", "ema")}
    arrays = opt.state_dict()["arrays"]
    names = [name for group in opt.groups for name in group.structure.names]
    columns: list[Any] = [[to_host(arrays[f"{slot}/{name}"]) for name in names] for slot in opt.rule.slots]
    average = None if opt.ema is None else [to_host(arrays[f"ema/{name}"]) for name in names]
    return State(opt.steps, columns[0], columns[1], average, {**options[0], **whole})


def into_core(state: State, opt: Any) -> None:
    """Into an optimizer of the core, all or nothing."""
    names = [name for group in opt.groups for name in group.structure.names]
    params = [param for group in opt.groups for param in group.params]
    check_shapes(state, [tuple(param.shape) for param in params])
    if (state.average is None) != (opt.ema is None):
        raise ValueError("average: expected averages of the parameters in both optimizers or in neither")
    if opt.micro_steps:
        raise ValueError(f"accumulate: expected no half-done sum, got {opt.micro_steps} gradients; finish them first")
    saved = opt.state_dict()
    new: dict[str, Any] = dict(zip(opt.rule.slots, (state.square_avg, state.acc_delta), strict=True))
    new |= {} if state.average is None else {"ema": state.average}
    for slot, arrays in new.items():
        for name, array in zip(names, arrays, strict=True):
            held = saved["arrays"][f"{slot}/{name}"]
            saved["arrays"][f"{slot}/{name}"] = cast_like(np.zeros(held.shape) if array is None else array, held)
    saved["about"] |= {"steps": state.steps}
    opt.load_state_dict(saved)
