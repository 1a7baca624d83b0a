"""Trees of JAX as rows of arrays that are checked: an error begins with the path of the leaf."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .. import backends
from ..memory import check_floating

__all__ = ["Rows", "checked"]

Row = dict[str, jax.Array]


class Rows:
    """Trees of one structure: for each leaf a row of arrays, one of each tree, with one shape.

    Parameters
    ----------
    trees : mapping of str to tree
        By the names that messages use. The others are to be like the first.
    may_lack : str
        The tree that may have None in the place of a leaf.

    Attributes
    ----------
    leaves : dict of str to list
        Of each tree, as they were given.
    rows : list of dict of str to array, or None
        None where that tree has None.

    Raises
    ------
    TypeError, ValueError
        See `checked`; or if another tree has another structure, a leaf has another shape, or is real where the first
        tree's is complex.
    """

    def __init__(self, trees: Mapping[str, Any], may_lack: str) -> None:
        first = next(iter(trees))
        self.paths, self.structure = _paths(trees[first])
        self.leaves = {name: self._flatten(tree, name, first) for name, tree in trees.items()}
        self.rows = [
            self._row(i, first) if self.leaves[may_lack][i] is not None else None for i in range(len(self.paths))
        ]

    def _flatten(self, tree: Any, name: str, first: str) -> list[Any]:
        try:
            leaves = self.structure.flatten_up_to(tree)
            if not jax.tree_util.all_leaves([leaf for leaf in leaves if leaf is not None]):
                raise ValueError("branches for leaves")
            return leaves
        except (ValueError, TypeError) as error:
            given, _ = _paths(tree)
            wrong = {
                "without": [path for path in self.paths if path not in given],
                "with": [path for path in given if path not in self.paths],
            }
            found = [f"{how} {', '.join(paths[:5])}" for how, paths in wrong.items() if paths]
            raise ValueError(
                f"{name}: expected the tree of {first}, got one {' and '.join(found) or f'of other nodes: {error}'}"
            ) from None

    def _row(self, i: int, first: str) -> Row:
        path = self.paths[i]
        row = {name: checked(f"{name}{path}", leaves[i]) for name, leaves in self.leaves.items()}
        like = row[first]
        for name, array in row.items():
            if array.shape != like.shape:
                raise ValueError(f"{name}{path}: expected shape {like.shape}, as {first}{path}, got {array.shape}")
            if jnp.iscomplexobj(array) != jnp.iscomplexobj(like):
                kind = "a complex" if jnp.iscomplexobj(like) else "a real"
                raise TypeError(f"{name}{path}: expected {kind} dtype, as {first}{path}, got {array.dtype}")
        return row

    def unflatten(self, leaves: list[Any]) -> Any:
        """A tree of this structure."""
        return self.structure.unflatten(leaves)


def checked(name: str, leaf: Any) -> jax.Array:
    """An array of a leaf: of a floating or complex dtype, neither deleted nor donated.

    Raises
    ------
    TypeError
        If it is none, or of another dtype.
    ValueError
        If its memory is gone.
    """
    if getattr(leaf, "dtype", None) == jax.dtypes.float0:
        raise TypeError(f"{name}: expected a gradient, got float0, which stands for the gradient of what is no float")
    if not isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)):  # optax takes NumPy's arrays and numbers, too
        try:
            leaf = jnp.asarray(leaf)
        except TypeError:
            raise TypeError(f"{name}: expected an array, got {type(leaf).__name__}") from None
    backend = backends.get("jax")
    check_floating(name, backend, leaf)
    if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer) and backend.freed(leaf):
        raise ValueError(f"{name}: expected memory, got an array that was deleted or donated")
    return leaf


def _paths(tree: Any) -> tuple[list[str], Any]:
    pairs, structure = jax.tree_util.tree_flatten_with_path(tree)
    return [jax.tree_util.keystr(path) for path, _ in pairs], structure
