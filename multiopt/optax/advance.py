"""Adadelta over all leaves: what `adadelta` and `scale_by_adadelta` do once schedules and masks have been asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .. import functional
from ..adadelta import ADADELTA, adadelta
from ..backends.generic import wider
from ..rule import Hyper, Rule
from .leaves import Rows

__all__ = ["HYPERS", "advance"]


def _from_zero(
    xp: Any, x: Any, g: Any, square_avg: Any, acc_delta: Any, *, lr: Any, rho: Any, eps: Any
) -> tuple[Any, Any, Any]:
    # -0.0 - y is -y for every y, 0 included, so that adding this to a parameter gives what subtracting y gives.
    return adadelta(xp, -0.0, g, square_avg, acc_delta, lr=lr, rho=rho, eps=eps)


#: Unlike the core, optax takes rates of either sign, and an eps of 0.
HYPERS = {"lr": Hyper(1.0), "rho": ADADELTA.hypers["rho"], "eps": Hyper(1e-6, low=0.0)}
#: A parameter's step, and the step from zero, which is the update.
STEP = replace(ADADELTA, hypers=HYPERS)
UPDATE = Rule("adadelta_update", _from_zero, slots=ADADELTA.slots, hypers=HYPERS, returns_update=True)


def advance(
    what: str,
    grads: Any,
    held: Any,
    hypers: dict[str, Any],
    *,
    params: Any = None,
    decays: Callable[[Any], Any] | None = None,
    weight_decay: Any = 0.0,
    fused: bool = False,
) -> tuple[Any, Any]:
    """One step over all leaves.

    Parameters
    ----------
    what : str
        The gradients' name in messages.
    grads : tree
    held : optax.ScaleByAdaDeltaState
    hypers : dict
        Numbers of the rule: floats or 0-d arrays.
    params : tree, optional
        If they are moved, or some decay.
    decays : callable, optional
        Makes of the gradients a tree that has True where the parameter decays; None: none does.
    weight_decay : float or array
    fused : bool
        Whether parameters are moved, or updates made.

    Returns
    -------
    tree
        The parameters or the updates.
    optax.ScaleByAdaDeltaState
    """
    if not isinstance(held, optax.ScaleByAdaDeltaState):
        raise TypeError(f"state: expected an optax.ScaleByAdaDeltaState in its place, got {held!r:.80}")
    moved = {"params": params} if fused or decays is not None else {}
    trees = {"state.e_g": held.e_g, "state.e_x": held.e_x, what: grads}
    table = Rows(moved | trees if fused else trees | moved, may_lack=what)
    marks = [False] * len(table.rows) if decays is None else table.structure.flatten_up_to(decays(grads))
    groups: dict[tuple[bool, str], list[tuple[int, Any, Any, Any, Any]]] = {}
    for i, (row, mark) in enumerate(zip(table.rows, marks, strict=True)):
        if row is None:
            continue
        g, squares, deltas, decaying = row[what], row["state.e_g"], row["state.e_x"], mark is True
        x = row["params"] if fused or decaying else g  # which the rule then does not read
        # An update is as wide as what it is made of, as in optax.
        dtype = jnp.result_type(x.dtype, g.dtype, *(() if fused else (squares.dtype,)))
        computing = wider([d.name for d in (dtype, squares.dtype, deltas.dtype)])
        groups.setdefault((decaying, computing), []).append((i, x.astype(dtype), g.astype(dtype), squares, deltas))
    new = list(table.leaves["params"]) if fused else [None] * len(table.rows)
    e_g, e_x = list(table.leaves["state.e_g"]), list(table.leaves["state.e_x"])
    for (decaying, computing), members in groups.items():
        places, xs, gs, *slots = map(list, zip(*members, strict=True))
        made, after = functional.update(
            xs,
            gs,
            functional.State(0, dict(zip(ADADELTA.slots, slots, strict=True))),
            rule=STEP if fused else UPDATE,
            weight_decay=_cast(weight_decay, computing) if decaying else 0.0,
            **{name: _cast(value, computing) for name, value in hypers.items()},
        )
        for i, x, squares, deltas in zip(places, made, *after.slots.values(), strict=True):
            new[i] = x.astype(table.rows[i]["params"].dtype) if fused else x
            e_g[i], e_x[i] = squares, deltas
    return table.unflatten(new), held._replace(e_g=table.unflatten(e_g), e_x=table.unflatten(e_x))


def _cast(value: Any, dtype: str) -> Any:
    return value.astype(dtype) if isinstance(value, jax.Array) else value
