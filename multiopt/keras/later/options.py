"""The options of the later API: how each is checked, when the optimizer is made and whenever one is assigned."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from ...options import WEIGHT_DECAY, check_optional, check_switch, check_threshold
from ...update import AVERAGE

__all__ = ["CHECKS", "FIXED", "check_leftover"]

#: Names of options that only the legacy optimizer has, and what to use instead.
_LEGACY = {
    "decay": "a schedule",
    "gradient_aggregator": "a function of your own that is called before apply_gradients",
    "gradient_transformers": "a function of your own that is called before apply_gradients",
}


def _count(name: str, value: Any, lowest: int) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < lowest):
        raise ValueError(f"{name}: expected an integer of at least {lowest}, or None, got {value!r}")
    return value


#: The options, in the order of a configuration, and how each is checked whenever it is set.
CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "weight_decay": partial(check_optional, hyper=WEIGHT_DECAY),
    "clipnorm": check_threshold,
    "global_clipnorm": check_threshold,
    "clipvalue": check_threshold,
    "use_ema": check_switch,
    "ema_momentum": AVERAGE.rule.hypers["momentum"].check,
    "ema_overwrite_frequency": partial(_count, lowest=1),
    "jit_compile": check_switch,
    "loss_scale_factor": check_threshold,
    "gradient_accumulation_steps": partial(_count, lowest=2),
}
#: Those by which the optimizer's variables are made.
FIXED = ("use_ema", "gradient_accumulation_steps")


def check_leftover(kwargs: dict[str, Any]) -> None:
    """Reject keyword arguments that are left over, except those that tf_keras takes without using them."""
    if kwargs.pop("is_legacy_optimizer", False):
        raise ValueError("is_legacy_optimizer: expected False; a legacy one is multiopt.keras.legacy.Adadelta")
    if "lr" in kwargs:
        value = kwargs.pop("lr")
        warnings.warn(
            f"lr: {value!r} is ignored, as in tf_keras; use learning_rate, or multiopt.keras.legacy.Adadelta",
            stacklevel=4,
        )
    for name in kwargs:
        if name in _LEGACY:
            raise ValueError(f"{name}: only multiopt.keras.legacy.Adadelta has it; use {_LEGACY[name]}")
        raise TypeError(f"{name}: unknown argument")
