"""Gradients of a loss by each library's own means: PyTorch's autograd, `jax.vjp`, or a function of the caller's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .. import backends
from .sparse import as_gradient
from .variable import Boxes, Variable

__all__ = ["GradientTape", "flat", "gradients"]


class GradientTape:
    """A counterpart of ``tf.GradientTape`` for PyTorch, so that training loops keep their shape.

    ``with GradientTape() as tape: loss = …`` records, even under ``torch.no_grad``; ``tape.gradient(loss, variables)``
    differentiates. Trainable Variables and tensors that require gradients are followed; others after `watch`.

    Parameters
    ----------
    persistent : bool
        Whether `gradient` may be called more than once.
    """

    def __init__(self, persistent: bool = False) -> None:
        self.persistent = persistent
        self._used = False
        self._recording: Any = None
        self._watched: list[Any] = []

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
        """Follow tensors, or Variables, that are not trainable.

        Raises
        ------
        TypeError
            If one is not a floating PyTorch tensor.
        """
        for tensor in (_value(t) for t in flat(tensors)):
            _check_torch(tensor, "watch")
            if not tensor.requires_grad:
                tensor.requires_grad_()

    def gradient(self, target: Any, sources: Any, output_gradients: Any = None) -> Any:
        """Gradients of `target`, its elements' sum if it has several.

        Parameters
        ----------
        target : tensor, or list of them
            Computed under the tape.
        sources : Variable, tensor, or container of them
        output_gradients : tensor, or list of them, or None
            The gradient that the target itself is given; ones by default.

        Returns
        -------
        like sources
            A tensor, an `IndexedSlices` (of a sparse embedding), or None for a source that the target does not need.

        Raises
        ------
        RuntimeError
            If the tape is not persistent and has been used.
        TypeError
            If something is not a PyTorch tensor.
        """
        if self._used and not self.persistent:
            raise RuntimeError(
                "tape: it is not persistent, so that gradient can be called once; GradientTape(persistent=True)"
            )
        targets, given = flat(target), flat(sources)
        for tensor in targets:
            _check_torch(_value(tensor), "target")
        outputs = None if output_gradients is None else flat(output_gradients)
        found = _torch_gradients(targets, [_value(s) for s in given], outputs, self.persistent)
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
    """The gradient of a loss for each variable.

    Parameters
    ----------
    loss : callable without arguments, or tensor
        A PyTorch tensor comes with the tape that it was computed under. A callable reads the variables; JAX sees
        traced values in them while it differentiates.
    variables : Variable or array, container of them, or callable that returns it
        A callable is called after the loss, which may make the variables.
    grad_loss : array or None
        The gradient that the loss itself is given; ones by default.
    tape : GradientTape or None
    grad_fn : callable or None
        ``grad_fn(*arrays)`` returns a gradient, or None, for each variable's array: for NumPy and CuPy, which have no
        differentiation of their own, and for whoever wants to differentiate differently. The loss is not called then.
    boxes : Boxes or None
        Those of the optimizer, for plain arrays.

    Returns
    -------
    list of (gradient or None, Variable)

    Raises
    ------
    ValueError
        If gradients cannot be computed, if a variable is not one, or if a tensor comes without a tape.
    """
    boxes = Boxes() if boxes is None else boxes
    if grad_fn is not None:
        given = variables() if callable(variables) and not isinstance(variables, Variable) else variables
        boxed = _boxed(given, boxes)
        found = grad_fn(*[v.value for v in boxed])
        found = list(found) if isinstance(found, (list, tuple)) else [found]
        if len(found) != len(boxed):
            raise ValueError(f"grad_fn: expected {len(boxed)} gradients, one for each variable, got {len(found)}")
        if grad_loss is not None:
            raise ValueError("grad_loss: expected None with grad_fn, which returns the gradients as they shall be")
        return list(zip(found, boxed, strict=True))
    if not callable(loss):
        if tape is None:
            raise ValueError("tape: expected the GradientTape under which the loss was computed, or a callable as loss")
        boxed = _boxed(variables() if callable(variables) else variables, boxes)
        found = tape.gradient(loss, boxed, grad_loss)
        return list(zip(found, boxed, strict=True))
    if callable(variables) and not isinstance(variables, Variable):
        # Once for the variables that it makes; differentiation calls it again.
        loss()
        variables = variables()
    boxed = _boxed(variables, boxes)
    names = {v.backend.name for v in boxed}
    if len(names) != 1:
        raise ValueError(f"var_list: expected variables of one array library, got {', '.join(sorted(names)) or 'none'}")
    (name,) = names
    if name == "torch":
        found = _by_autograd(loss, boxed, grad_loss, tape)
    elif name == "jax":
        found = _by_jax(loss, boxed, grad_loss)
    else:
        raise ValueError(
            f"{boxed[0].name}: {name} has no automatic differentiation, so the gradient cannot be computed; give "
            "grad_fn, a function of the variables' arrays that returns a gradient for each, or call apply_gradients"
        )
    return list(zip(found, boxed, strict=True))


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


def _boxed(variables: Any, boxes: Boxes) -> list[Variable]:
    try:
        return [boxes.of(v, f"var_list[{i}]") for i, v in enumerate(flat(variables))]
    except TypeError as error:
        raise ValueError(str(error)) from None


def _value(thing: Any) -> Any:
    return thing.value if isinstance(thing, Variable) else thing


def _check_torch(tensor: Any, what: str) -> None:
    try:
        name = backends.of(tensor).name
    except TypeError as error:
        raise TypeError(f"{what}: {error}") from None
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
    targets = [_value(t) for t in targets]
    seeds = [torch.ones_like(t) for t in targets] if outputs is None else [_value(o) for o in outputs]
    followed = [i for i, s in enumerate(sources) if s.requires_grad]
    pairs = [(t, o) for t, o in zip(targets, seeds, strict=True) if t.requires_grad]
    found: list[Any] = [None] * len(sources)
    if followed and pairs:
        ends, ones = zip(*pairs, strict=True)
        some = torch.autograd.grad(ends, [sources[i] for i in followed], ones, retain_graph=keep, allow_unused=True)
        for i, gradient in zip(followed, some, strict=True):
            found[i] = None if gradient is None else as_gradient(gradient)
    return found


def _by_autograd(loss: Callable[[], Any], variables: Sequence[Variable], grad_loss: Any, tape: Any) -> list[Any]:
    tape = GradientTape() if tape is None else tape
    plain = [v.value for v in variables if v.value.is_leaf and not v.value.requires_grad]
    for tensor in plain:
        tensor.requires_grad_()
    try:
        with tape:
            value = loss()
        return tape.gradient(value, list(variables), grad_loss)
    finally:
        for tensor in plain:
            tensor.requires_grad_(False)


# --- JAX ---


@contextmanager
def _holding(variables: Sequence[Variable], values: Sequence[Any]) -> Iterator[None]:
    """Have the variables hold other values for a while."""
    before = [v.value for v in variables]
    try:
        for variable, value in zip(variables, values, strict=True):
            variable.value = value
        yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.value = value


def _by_jax(loss: Callable[[], Any], variables: Sequence[Variable], grad_loss: Any) -> list[Any]:
    import jax

    def function(values: list[Any]) -> Any:
        with _holding(variables, values):
            return jax.numpy.asarray(_value(loss()))

    value, pull = jax.vjp(function, [v.value for v in variables])
    seed = jax.numpy.ones_like(value) if grad_loss is None else jax.numpy.asarray(_value(grad_loss), value.dtype)
    (found,) = pull(jax.numpy.broadcast_to(seed, value.shape))
    return list(found)
