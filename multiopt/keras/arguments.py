"""Checks of what callers give to Keras' optimizer."""

from __future__ import annotations

from typing import Any

__all__ = ["count", "pairs", "refuse_unknown"]


def refuse_unknown(kwargs: dict[str, Any]) -> None:
    """Refuse keyword arguments that are left over; the mark of tf_keras' configurations is no such.

    Raises
    ------
    ValueError
        If it is one of the legacy optimizer's.
    TypeError
        If it is another.
    """
    if kwargs.pop("is_legacy_optimizer", False):
        raise ValueError("is_legacy_optimizer: expected False; a legacy one is multiopt.keras.legacy.Adadelta")
    instead = {
        "lr": "learning_rate",
        "decay": "a schedule",
        "gradient_aggregator": "a function of yours before apply_gradients",
        "gradient_transformers": "a function of yours before apply_gradients",
    }
    for name in kwargs:
        if name in instead:
            raise ValueError(f"{name}: only multiopt.keras.legacy.Adadelta has it; use {instead[name]}")
        raise TypeError(f"{name}: unknown argument")


def count(name: str, value: Any, lowest: int) -> int | None:
    """An integer of at least `lowest`, or None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
        raise ValueError(f"{name}: expected an integer of at least {lowest}, or None, got {value!r}")
    return value


def pairs(grads_and_vars: Any) -> list[tuple[Any, Any]]:
    """A list of (gradient, variable).

    Raises
    ------
    TypeError
        If it is something else.
    """
    try:
        given = list(grads_and_vars)
    except TypeError:
        raise TypeError(
            f"grads_and_vars: expected an iterable of (gradient, variable), got {grads_and_vars!r}"
        ) from None
    for i, pair in enumerate(given):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(f"grads_and_vars[{i}]: expected a pair (gradient, variable), got {pair!r}")
    return given
