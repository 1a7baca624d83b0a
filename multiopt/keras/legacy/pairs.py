"""Gradients and their variables on their way to an update."""

from __future__ import annotations

import logging
from typing import Any

from ... import backends
from ...backends.protocol import FLOATING
from ..distribute import get_replica_context
from ..mesh import local
from ..sparse import as_gradient
from ..variable import Boxes, IndexedSlices, Variable

__all__ = ["Pairs", "checked", "sum_over_replicas"]

Pairs = list[tuple[Any, Variable]]
_LOG = logging.getLogger("multiopt.keras")


def sum_over_replicas(grads_and_vars: Pairs) -> Pairs:
    """Sum gradients over all replicas: what an optimizer does unless it is given another aggregator."""
    context = get_replica_context()
    assert context is not None
    reduced = context.all_reduce("sum", [g for g, _ in grads_and_vars])
    return [(g, v) for g, (_, v) in zip(reduced, grads_and_vars, strict=True)]


def checked(grads_and_vars: Any, boxes: Boxes) -> Pairs:
    """The pairs that have a gradient, each of which fits its variable.

    Raises
    ------
    TypeError
        If these are not pairs of gradients and variables, or a gradient's library or dtype is not its variable's.
    ValueError
        If no variable has a gradient, or a gradient's shape or device is not its variable's.
    RuntimeError
        If a sparse gradient's variable has a constraint.
    """
    try:
        given = [(gradient, variable) for gradient, variable in grads_and_vars]
    except (TypeError, ValueError):
        raise TypeError(f"grads_and_vars: expected (gradient, variable) pairs, got {grads_and_vars!r}") from None
    found = [(as_gradient(g), boxes.of(v, f"grads_and_vars[{i}][1]")) for i, (g, v) in enumerate(given)]
    missing = [v.name for g, v in found if g is None]
    if found and len(missing) == len(found):
        raise ValueError(f"grads_and_vars: expected a gradient for at least one of {', '.join(missing)}, got none")
    if missing:
        _LOG.warning("Gradients do not exist for variables %s; they are left as they are", ", ".join(missing))
    pairs = [(g, v) for g, v in found if g is not None] if missing else found
    if not _fit(pairs):
        for gradient, variable in pairs:
            _check(gradient, variable)
    return pairs


def _fit(pairs: Pairs) -> bool:
    """Whether all is well at a glance: dense gradients of one library, each like its variable."""
    kinds = {type(g) for g, _ in pairs}
    libraries = {v.backend for _, v in pairs}
    if len(kinds) != 1 or len(libraries) != 1 or IndexedSlices in kinds:
        return False
    values = [v.value for _, v in pairs]
    (backend,) = libraries
    try:
        if backends.of(pairs[0][0]) is not backend:
            return False
        same = backend.signature([g for g, _ in pairs]) == backend.signature(values)
    except (AttributeError, TypeError):
        return False
    return same and all(backend.dtype(array) in FLOATING for array in {a.dtype: a for a in values}.values())


def _check(gradient: Any, variable: Variable) -> None:
    name = f"gradient of {variable.name!r}"
    array = gradient
    if variable.dtype not in FLOATING:
        raise TypeError(f"{variable.name}: expected one of the dtypes {', '.join(FLOATING)}, got {variable.dtype}")
    if isinstance(gradient, IndexedSlices):
        if variable.constraint is not None:
            raise RuntimeError(f"{name}: it is sparse, and its variable has a constraint; that is not supported")
        gradient.check(variable.shape, name)
        array = gradient.values
    try:
        found = backends.of(array)
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None
    if found is not variable.backend:
        raise TypeError(
            f"{name}: expected a {variable.backend.name} array, as its variable's, got a {found.name} array"
        )
    if array is gradient and tuple(array.shape) != variable.shape:
        raise ValueError(f"{name}: expected shape {variable.shape}, as its variable's, got {tuple(array.shape)}")
    if found.dtype(array) != variable.dtype:
        raise TypeError(f"{name}: expected dtype {variable.dtype}, as its variable's, got {found.dtype(array)}")
    here, there = found.device(local(variable.value)), found.device(local(array))
    if here != there:
        raise ValueError(f"{name}: expected device {here}, as its variable's, got {there}")
