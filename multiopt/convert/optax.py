"""State of ``optax.adadelta``, which is that of `multiopt.optax.adadelta`, too."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..tree import Structure
from .state import Converter, State, cast_like, fitted, to_host, whole

__all__ = ["CONVERTER", "from_optax", "to_optax"]


def from_optax(opt_state: Any, params: Any = None) -> State:
    """Read the state of ``optax.adadelta``: the tuple, or the ``ScaleByAdaDeltaState`` in it.

    Parameters
    ----------
    opt_state : tuple
    params : tree or None
        The parameters, in the order that the arrays shall have: JAX sorts the keys of dicts. None: the order of the
        state.

    Raises
    ------
    ValueError
        If there is not exactly one such state in it.
    """
    nodes = _nodes(opt_state)
    found = [node for node in nodes if hasattr(node, "e_g") and hasattr(node, "e_x")]
    if len(found) != 1:
        raise ValueError(f"opt_state: expected one ScaleByAdaDeltaState in it, got {len(found)}")
    counts = [int(node.count) for node in nodes if "count" in getattr(node, "_fields", ())]
    structure = Structure(found[0].e_g if params is None else params)
    squares, deltas = (structure.flatten(tree, "opt_state") for tree in (found[0].e_g, found[0].e_x))
    return State(max(counts, default=0), [*map(to_host, squares)], [*map(to_host, deltas)])


def to_optax(state: State, like: Any = None, params: Any = None) -> Any:
    """Make the state for ``optax.adadelta``.

    Parameters
    ----------
    state : State
    like : tuple or None
        A state of the same transformation, as its ``init(params)`` returns it; the result is a copy with other
        arrays. None gives plain data, ``{"e_g": [...], "e_x": [...], "count": steps}``.
    params : tree or None
        See `from_optax`.
    """
    if like is None:
        return {"e_g": whole(state.square_avg), "e_x": whole(state.acc_delta), "count": state.steps}
    held = fitted(state, [array.shape for array in from_optax(like, params).square_avg if array is not None])

    def filled(tree: Any, arrays: list[Any]) -> Any:
        own = Structure(tree)
        positions = own.unflatten(range(len(own.leaves)))  # in the state's own tree, whose order may differ
        order = Structure(tree if params is None else params).flatten(positions, "like")
        by_position = dict(zip(order, arrays, strict=True))
        return own.unflatten([cast_like(by_position[i], leaf) for i, leaf in enumerate(own.leaves)])

    def rebuilt(node: Any) -> Any:
        if hasattr(node, "e_g"):
            return node._replace(e_g=filled(node.e_g, held.square_avg), e_x=filled(node.e_x, held.acc_delta))
        if "count" in getattr(node, "_fields", ()):
            node = node._replace(count=cast_like(np.asarray(state.steps), node.count))
        if type(node) is tuple:
            return tuple(map(rebuilt, node))
        return node._replace(**{k: rebuilt(v) for k, v in node._asdict().items()}) if hasattr(node, "_asdict") else node

    return rebuilt(like)


def _nodes(tree: Any) -> list[Any]:
    """A tuple and all tuples in it."""
    inner = [node for child in tree for node in _nodes(child)] if isinstance(tree, tuple) else []
    return [tree, *inner]


CONVERTER = Converter(lambda thing: isinstance(thing, tuple), from_optax, to_optax)
