"""Gradients of a loss: by PyTorch's autograd, by `jax.vjp`, or by a function that the caller gives."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from ...memory import backend_of
from .slices import as_gradient
from .variable import Boxes, Variable, holding, is_traced, unboxed

__all__ = ["GradientTape", "flat", "gradients"]


class GradientTape:
    """The counterpart of ``tf.GradientTape`` for PyTorch, for training loops that were written with it.

    ``with GradientTape() as tape: loss = …`` records operations, even under ``torch.no_grad``;
    ``tape.gradient(loss, variables)`` differentiates. Trainable Variables and tensors that require gradients are
    recorded; others after `watch`.

    Parameters
    ----------
    persistent : bool
        Whether `gradient` can be called more than once.
    """

    def __init__(self, persistent: bool = False) -> None:
        self.persistent = persistent
        self._used = False
        self._recording: Any = None

    def __enter__(self) -> GradientTape:
        import torch

        if self._recording is not None:
            raise ValueError("tape: it is recording already")
        self._recording = torch.enable_grad()
        self._recording.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        recording, self._recording = self._recording, None
        recording.__exit__(*error)

    def watch(self, tensors: Any) -> None:
        """Record operations on tensors, or Variables, that are not trainable.

        Raises
        ------
        TypeError
            If one is not a floating PyTorch tensor.
        """
        for tensor in (unboxed(t) for t in flat(tensors)):
            _check_torch(tensor, "watch")
            if not tensor.requires_grad:
                tensor.requires_grad_()

    def gradient(self, target: Any, sources: Any, output_gradients: Any = None) -> Any:
        """Gradients of `target`; of the sum of its elements if it has several.

        Parameters
        ----------
        target : tensor, or list of them
            Computed while the tape was recording.
        sources : Variable, tensor, or container of them
        output_gradients : tensor, or list of them, or None
            Gradients of the target itself; ones by default.

        Returns
        -------
        like sources
            A tensor, an `IndexedSlices` (of a sparse embedding), or None for a source on which the target does not
            depend.

        Raises
        ------
        RuntimeError
            If the tape is not persistent and `gradient` has been called before.
        TypeError
            If something is not a PyTorch tensor.
        """
        if self._used and not self.persistent:
            raise RuntimeError(
                "tape: it is not persistent, so gradient can be called only once; use GradientTape(persistent=True)"
            )
        targets, given = flat(target), flat(sources)
        for tensor in targets:
            _check_torch(unboxed(tensor), "target")
        outputs = None if output_gradients is None else flat(output_gradients)
        found = _torch_gradients(targets, [unboxed(s) for s in given], outputs, self.persistent)
        self._used = True
        return _packed(sources, iter(found))


def gradients(
    loss: Any,
    variables: Any,
    *,
    grad_loss: Any = None,
    tape: Any = None,
    grad_fn: Callable[..., Any] | None = None,
    boxes: Boxes | None = None,
) -> list[tuple[Any, Variable]]:
    """The gradient of a loss for each variable; None for one on which the loss does not depend.

    See `multiopt.keras.legacy.Optimizer.minimize` for the arguments. A callable loss reads the variables; with JAX,
    they hold traced values while it is differentiated. It is called once, and with `grad_fn` not at all; only where it
    makes JAX variables, which JAX has to know before it differentiates, a second time. `boxes` are the optimizer's.
    """
    boxes = Boxes() if boxes is None else boxes
    if grad_fn is not None:
        if grad_loss is not None:
            raise ValueError("grad_loss: expected None with grad_fn, which returns the final gradients")
        given = _listed(variables, boxes)
        found = grad_fn(*[v.value for v in given])
        found = list(found) if isinstance(found, (list, tuple)) else [found]
        if len(found) != len(given):
            raise ValueError(f"grad_fn: expected {len(given)} gradients, one for each variable, got {len(found)}")
    elif callable(loss):
        given, found = _differentiated(loss, variables, boxes, grad_loss, tape)
    elif tape is not None:
        given = _listed(variables, boxes)
        found = tape.gradient(loss, given, grad_loss)
    else:
        raise ValueError("tape: expected the GradientTape under which the loss was computed, or a callable as loss")
    return list(zip(found, given, strict=True))


def _listed(variables: Any, boxes: Boxes) -> list[Variable]:
    """The variables, asked for if this is a function; ValueError if there is something else among them."""
    asked = callable(variables) and not isinstance(variables, Variable)
    try:
        return [boxes.of(v, f"var_list[{i}]") for i, v in enumerate(flat(variables() if asked else variables))]
    except TypeError as error:
        raise ValueError(str(error)) from None


def _differentiated(
    loss: Callable[[], Any], variables: Any, boxes: Boxes, grad_loss: Any, tape: Any
) -> tuple[list[Variable], list[Any]]:
    """The variables and their gradients."""
    asked = callable(variables) and not isinstance(variables, Variable)
    try:
        known = _listed(variables, boxes)
    except Exception:
        if not asked:
            raise
        known = []  # the loss will make them
    if (known or not asked) and _library(known) == "jax":
        found = dict(zip(known, _by_jax(loss, known, grad_loss), strict=True))
        given = _listed(variables, boxes) if asked else known
        if found.keys() >= set(given):
            return given, [found[v] for v in given]
    else:
        tape = GradientTape() if tape is None else tape
        with _followed(known):
            with tape if "torch" in sys.modules else nullcontext():
                value = loss()
            given = _listed(variables, boxes) if asked else known
            if _library(given) == "torch":
                return given, tape.gradient(value, given, grad_loss)
    return given, _by_jax(loss, given, grad_loss)


def _library(variables: Sequence[Variable]) -> str:
    """The one library of these variables, which can differentiate; ValueError if there is no such one."""
    names = {v.backend.name for v in variables}
    if len(names) != 1:
        raise ValueError(f"var_list: expected variables of one array library, got {', '.join(sorted(names)) or 'none'}")
    (name,) = names
    if name not in ("torch", "jax"):
        raise ValueError(
            f"{variables[0].name}: {name} has no automatic differentiation, so the gradient cannot be computed; pass "
            "grad_fn, a function of the variables' arrays that returns a gradient for each, or call apply_gradients"
        )
    return name


def flat(tree: Any) -> list[Any]:
    """The leaves of lists, tuples and dicts."""
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in flat(value)]
    if isinstance(tree, (list, tuple)):
        return [leaf for value in tree for leaf in flat(value)]
    return [tree]


def _packed(tree: Any, leaves: Iterator[Any]) -> Any:
    if isinstance(tree, dict):
        return {key: _packed(value, leaves) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_packed(value, leaves) for value in tree]
    return next(leaves)


def _check_torch(tensor: Any, what: str) -> None:
    name = backend_of(what, tensor).name
    if name != "torch":
        raise TypeError(
            f"{what}: a tape records PyTorch tensors, got a {name} array; give minimize a function as loss instead"
            + ("" if name == "jax" else ", and grad_fn")
        )


# --- PyTorch ---


def _torch_gradients(targets: Sequence[Any], sources: Sequence[Any], outputs: Any, keep: bool) -> list[Any]:
    import torch

    for source in sources:
        _check_torch(source, "sources")
    targets = [unboxed(t) for t in targets]
    seeds = [torch.ones_like(t) for t in targets] if outputs is None else [unboxed(o) for o in outputs]
    recorded = [i for i, s in enumerate(sources) if s.requires_grad]
    pairs = [(t, o) for t, o in zip(targets, seeds, strict=True) if t.requires_grad]
    found: list[Any] = [None] * len(sources)
    if recorded and pairs:
        ends, ones = zip(*pairs, strict=True)
        some = torch.autograd.grad(ends, [sources[i] for i in recorded], ones, retain_graph=keep, allow_unused=True)
        for i, gradient in zip(recorded, some, strict=True):
            found[i] = None if gradient is None else as_gradient(gradient)
    return found


@contextmanager
def _followed(variables: Sequence[Variable]) -> Iterator[None]:
    """Within it, PyTorch records the operations on these variables, trainable or not."""
    values = [v.value for v in variables]
    plain = [x for x in values if backend_of("var_list", x).name == "torch" and x.is_leaf and not x.requires_grad]
    for tensor in plain:
        tensor.requires_grad_()
    try:
        yield
    finally:
        for tensor in plain:
            tensor.requires_grad_(False)


# --- JAX ---


def _by_jax(loss: Callable[[], Any], variables: Sequence[Variable], grad_loss: Any) -> list[Any]:
    import jax

    def function(values: list[Any]) -> Any:
        with holding(variables, values):
            return jax.numpy.asarray(unboxed(loss()))

    value, pull = jax.vjp(function, [v.value for v in variables])
    seed = jax.numpy.ones_like(value) if grad_loss is None else jax.numpy.asarray(unboxed(grad_loss), value.dtype)
    seed = jax.numpy.broadcast_to(seed, value.shape)
    (found,) = pull(seed)
    zeros = [g for g in found if is_traced(g) or not jax.numpy.any(g)]
    reached = _reached(jax.make_jaxpr(pull)(seed).jaxpr) if zeros else [True] * len(variables)
    return [g if is_reached else None for g, is_reached in zip(found, reached, strict=True)]


def _reached(jaxpr: Any) -> list[bool]:
    """Which results depend on the arguments: JAX gives zeros for a variable on which the loss does not depend."""
    known = set(map(id, jaxpr.invars))
    for equation in jaxpr.eqns:
        if not known.isdisjoint(map(id, equation.invars)):
            known.update(map(id, equation.outvars))
    return [id(result) in known for result in jaxpr.outvars]
