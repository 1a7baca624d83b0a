"""Gradients before an update: paired with their variables, checked, and clipped by exact norms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .. import backends
from ..backends.generic import FLOATING, Array
from ..clipping import clip
from ..memory import check_floating, check_gradient
from ..plan import Reduce
from .distribute.mesh import mesh_of
from .variables.slices import IndexedSlices, as_gradient
from .variables.variable import Boxes, Variable, detached, is_traced

__all__ = ["Pairs", "checked", "clipped", "pairs"]

Pairs = list[tuple[Any, Variable]]


def pairs(grads_and_vars: Any) -> list[tuple[Any, Any]]:
    """A list of (gradient, variable); TypeError if it is something else."""
    message = "grads_and_vars: expected an iterable of (gradient, variable) pairs"
    try:
        given = list(grads_and_vars)
    except TypeError:
        raise TypeError(f"{message}, got {grads_and_vars!r}") from None
    for i, pair in enumerate(given):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(f"{message}, got {pair!r} at position {i}")
    return given


def checked(grads_and_vars: Iterable[tuple[Any, Any]], boxes: Boxes) -> tuple[Pairs, list[str]]:
    """Pairs of gradients, dense or `IndexedSlices` or None, and Variables; and the names of those without a gradient.

    Raises TypeError or ValueError if a gradient does not agree with its variable, or no variable has one.
    """
    given = [(as_gradient(g), boxes.of(v, f"variables[{i}]")) for i, (g, v) in enumerate(grads_and_vars)]
    missing = [v.name for g, v in given if g is None]
    if given and len(missing) == len(given):
        raise ValueError(f"grads: expected a gradient for at least one of {', '.join(missing)}, got none")
    live = [(g, v) for g, v in given if g is not None] if missing else given
    if live and not _agree_at_a_glance(live):
        for gradient, variable in live:
            _check(gradient, variable)
    return given, missing


def _agree_at_a_glance(given: Pairs) -> bool:
    """Whether these are dense gradients of one library, each like its variable."""
    kinds, libraries = {type(g) for g, _ in given}, {v.backend for _, v in given}
    if len(kinds) != 1 or len(libraries) != 1 or IndexedSlices in kinds:
        return False
    (backend,) = libraries
    values = [v.value for _, v in given]
    try:
        if backends.of(given[0][0]) is not backend:
            return False
        same = backend.signature([g for g, _ in given]) == backend.signature(values)
    except (AttributeError, TypeError):
        return False
    return same and all(backend.dtype(array) in FLOATING for array in {a.dtype: a for a in values}.values())


def _check(gradient: Any, variable: Variable) -> None:
    name, array, like = f"gradient of {variable.name!r}", gradient, variable.value
    dtype = check_floating(variable.name, variable.backend, like)
    if isinstance(gradient, IndexedSlices):
        gradient.check(variable.shape, name)
        array, like = gradient.values[:0], like[:0]
    # Traced arrays have no device yet; sharded ones are moved to where their variable is.
    elsewhere = any(is_traced(a) or mesh_of(a) is not None for a in (array, like))
    check_gradient(name, variable.backend, array, like, dtype, may_be_traced=elsewhere)


def clipped(
    gradients: Sequence[Array | IndexedSlices],
    names: Sequence[str],
    *,
    value: float | None = None,
    norm: float | None = None,
    global_norm: float | None = None,
    reduce: Reduce | None = None,
) -> list[Any]:
    """New gradients, clipped by `multiopt.clipping.clip`; a threshold of 0 makes all of them 0.

    Of `IndexedSlices` the values are clipped, without adding up repeated rows.
    """
    if not gradients or (value is None and norm is None and global_norm is None):
        return list(gradients)
    if norm == 0 or global_norm == 0:
        # No factor makes an infinite norm 0.
        value, norm, global_norm = 0.0, None, None
    arrays = [detached(g.values if isinstance(g, IndexedSlices) else g) for g in gradients]
    made, _ = clip(arrays, names, value=value, norm=norm, global_norm=global_norm, reduce=reduce)
    return [
        IndexedSlices(new, g.indices, g.dense_shape) if isinstance(g, IndexedSlices) else new
        for g, new in zip(gradients, made, strict=True)
    ]
