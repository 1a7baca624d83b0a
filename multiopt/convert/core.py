"""State of `multiopt.Adadelta`, read from its snapshots (`state_dict`) and written into them."""

from __future__ import annotations

from typing import Any

from ..optimizer import Optimizer
from .state import Converter, State, cast_like, fitted, to_host, whole

__all__ = ["CONVERTER"]

#: Options of the whole optimizer, which groups do not have.
_WHOLE = ("clip_global_norm", "accumulate", "loss_scale", "ema")


def _read(opt: Any) -> State:
    snapshot, columns = _snapshot(opt)
    about = snapshot["about"]
    options = [{name: value for name, value in group.items() if name != "names"} for group in about["groups"]]
    whole = {name: about[name] for name in _WHOLE}
    if any(own != options[0] for own in options):
        raise ValueError(f"groups: expected groups with the same options, got {options}")
    squares, deltas, *averages = [[to_host(snapshot["arrays"][key]) for key in keys] for keys in columns]
    average = averages[0] if averages else None
    return State(about["steps"], [*squares], [*deltas], average, {**options[0], **whole})


def _write(state: State, opt: Any) -> Any:
    snapshot, columns = _snapshot(opt)
    about, arrays = snapshot["about"], snapshot["arrays"]
    state = fitted(state, [tuple(arrays[key].shape) for key in columns[0]])
    if (state.average is None) != (about["ema"] is None):
        raise ValueError("average: expected averages of the parameters in both optimizers or in neither")
    for keys, values in zip(columns, (whole(state.square_avg), whole(state.acc_delta), state.average), strict=False):
        for key, value in zip(keys, values or [], strict=True):
            arrays[key] = cast_like(value, arrays[key])
    about["steps"] = state.steps
    opt.load_state_dict(snapshot)
    return opt


def _snapshot(opt: Any) -> tuple[dict[str, Any], list[list[str]]]:
    """A snapshot, and its arrays' keys: for each slot, and the averages if there are any, one for each parameter."""
    if opt.micro_steps:
        raise ValueError(
            f"accumulate: expected no unfinished accumulation, got {opt.micro_steps} gradients; finish them first"
        )
    snapshot = opt.state_dict()
    names = [name for group in snapshot["about"]["groups"] for name in group["names"]]
    slots = [*opt.rule.slots, *([] if opt.ema is None else ["ema"])]
    return snapshot, [[f"{slot}/{name}" for name in names] for slot in slots]


CONVERTER = Converter(lambda thing: isinstance(thing, Optimizer) and thing.rule.name == "adadelta", _read, _write)
