"""State of ``optax.adadelta``."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..tree import Structure
from .state import State, cast_like, check_shapes, to_host, whole

__all__ = ["from_optax", "into_optax", "to_optax"]


def from_optax(opt_state: Any, params: Any = None) -> State:
    """From the state of ``optax.adadelta``: the tuple, or its ``ScaleByAdaDeltaState``.

    Parameters
    ----------
    opt_state : tuple
    params : tree or None
        The parameters, whose order counts: JAX sorts the keys of dicts. None: the order of the state.

    Raises
    ------
    ValueError
        If there is no such state in it.
    """
    nodes = _nodes(opt_state)
    found = [node for node in nodes if hasattr(node, "e_g") and hasattr(node, "e_x")]
    if len(found) != 1:
        raise ValueError(f"opt_state: expected one ScaleByAdaDeltaState in it, got {len(found)}")
    counts = [int(node.count) for node in nodes if "count" in getattr(node, "_fields", ())]
    structure = Structure(found[0].e_g if params is None else params)
    columns: list[Any] = [
        [to_host(a) for a in structure.flatten(tree, "opt_state")] for tree in (found[0].e_g, found[0].e_x)
    ]
    return State(max(counts, default=0), columns[0], columns[1])


def to_optax(state: State, like: Any = None, params: Any = None) -> Any:
    """The state for ``optax.adadelta``.

    Parameters
    ----------
    state : State
    like : tuple or None
        A state of the same transformation, as from its ``init(params)``; its arrays are replaced. None gives plain
        data, ``{"e_g": [...], "e_x": [...], "count": steps}``.
    params : tree or None
        See `from_optax`.
    """
    if like is None:
        return {"e_g": whole(state.square_avg), "e_x": whole(state.acc_delta), "count": state.steps}
    check_shapes(state, [array.shape for array in from_optax(like, params).square_avg if array is not None])

    def rebuilt(node: Any) -> Any:
        if hasattr(node, "e_g"):
            structure = Structure(node.e_g if params is None else params)
            new = []
            for tree, arrays in ((node.e_g, state.square_avg), (node.e_x, state.acc_delta)):
                leaves = structure.flatten(tree, "like")
                filled = [cast_like(a, leaf) for a, leaf in zip(whole(arrays), leaves, strict=True)]
                # Back in the order of the state's own tree.
                by_id = {id(leaf): made for leaf, made in zip(leaves, filled, strict=True)}
                own = Structure(tree)
                new.append(own.unflatten([by_id[id(leaf)] for leaf in own.leaves]))
            return node._replace(e_g=new[0], e_x=new[1])
        if "count" in getattr(node, "_fields", ()):
            node = node._replace(count=cast_like(np.asarray(state.steps), node.count))
        if type(node) is tuple:
            return tuple(map(rebuilt, node))
        return node._replace(**{k: rebuilt(v) for k, v in node._asdict().items()}) if hasattr(node, "_asdict") else node

    return rebuilt(like)


def _nodes(tree: Any) -> list[Any]:
    inner = [node for child in tree for node in _nodes(child)] if isinstance(tree, tuple) else []
    return [tree, *inner]


def into_optax(state: State, target: Any) -> None:
    """Refuse: what holds the state must be replaced."""
    raise TypeError("target: optax' state is immutable; to_optax(state, like=target) returns a new one")
