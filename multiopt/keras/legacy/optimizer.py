"""The base class of the optimizers of TensorFlow 2.1 to 2.4 (``OptimizerV2``)."""

from __future__ import annotations

import inspect
import logging
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from ...lock import locked
from ..distribute.replicas import get_replica_context
from ..gradients import Pairs, checked, clipped, pairs
from ..variables.differentiate import GradientTape, flat, gradients
from ..variables.slices import IndexedSlices, put, summed, take
from ..variables.variable import Variable
from .hyperparameters import CLIPS, Hyperparameters, check_not_negative, restored
from .weights import Weights

__all__ = ["Operation", "Optimizer"]

_LOG = logging.getLogger("multiopt.keras")
Transformer = Callable[[Pairs], Iterable[tuple[Any, Any]]]
#: What TensorFlow calls a valid name of a scope.
_NAME = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_./>-]*")
_OPTIONS = (*CLIPS, "lr", "decay")


@dataclass
class Operation:
    """What an update returns: its name, and the number of updates done. The work itself is done already."""

    name: str
    iterations: int
    _is_run: bool = field(default=False, init=False, repr=False, compare=False)

    def run(self) -> None:
        """Say that the update is to be done, as a program of TensorFlow's graphs does: it is done already.

        Raises
        ------
        RuntimeError
            If it is called again: an update does not repeat itself here.
        """
        if self._is_run:
            raise RuntimeError(f"{self.name}: this update was done once; call minimize or apply_gradients for another")
        self._is_run = True


class Optimizer(Hyperparameters, Weights, ABC):
    """Base class: for an algorithm of your own, inherit from it and override these methods.

    - ``_resource_apply_dense(grad, var, apply_state)`` updates a variable;
    - ``_resource_apply_sparse(grad, var, indices, apply_state)`` updates some rows, each of which occurs once;
    - ``_create_slots(var_list)`` calls `add_slot`, if there is state;
    - ``get_config()`` returns the arguments of the constructor.

    The constructor passes its hyperparameters to ``self._set_hyper(name, value)``. Their current values are
    ``self._get_hyper(name, dtype)`` and, for the learning rate with its decay, ``self._decayed_lr(dtype)``. See
    ``examples/keras_custom_optimizer.py``.

    Parameters
    ----------
    name : str or None
        The optimizer's name; that of its class by default.
    gradient_aggregator : callable or None
        Aggregates gradients over replicas, instead of summing them: takes and returns a list of pairs.
    gradient_transformers : list of callables or None
        Functions that change the gradients after that, one after another: each takes and returns a list of pairs.
    clipvalue, clipnorm, global_clipnorm : float or None
        Clip each element of a gradient, then each gradient's norm, then the norm of all. Not together with
        transformers; not both norms. May be set as attributes. 0 makes all gradients 0. Norms are exact.
    decay : float
        Divides the learning rate by ``1 + decay * iterations``.
    lr : float
        The old name of ``learning_rate``; it has precedence, with a warning.

    Raises
    ------
    TypeError
        If an option is unknown.
    ValueError
        If an option is negative or of a wrong type, if both norms are given, or if the name is empty or has characters
        other than letters, digits and ``_ . - / >``.

    Notes
    -----
    Where TensorFlow deviates from its documentation, this class does not: setting the hyperparameter ``decay`` has an
    effect; a function keeps its name in the configuration, so that `from_config` finds it in `custom_objects`; a
    schedule sees the exact number of the iteration in float16, too; an argument of a wrong type is a ValueError (but an
    unknown one a TypeError, as in TensorFlow).

    There are no graphs: an update is done when it is asked for, ``minimize(...).run()`` adds nothing to that, and a
    second ``run()`` is refused. Initializers have TensorFlow's names and distributions, not its random numbers. A
    variable that is synchronized on read learns how many replicas there are when the first of them uses it.

    An optimizer may be used by several threads: their
    updates come one after another. One that is interrupted (Ctrl-C, a signal handler that raises) leaves variables
    partly updated, and is not counted; no thread of its own still writes when the exception goes on.
    """

    def __init__(
        self,
        name: str | None,
        gradient_aggregator: Transformer | None = None,
        gradient_transformers: Sequence[Transformer] | None = None,
        **kwargs: Any,
    ) -> None:
        Hyperparameters.__init__(self)
        Weights.__init__(self)
        self._name = _checked_name(type(self).__name__ if name is None else name)
        for option, value in kwargs.items():
            if option not in _OPTIONS:
                raise TypeError(f"{option}: unknown option; expected one of {', '.join(_OPTIONS)}")
            if option == "decay" and value is not None:
                check_not_negative(option, value)
        if "lr" in kwargs:
            warnings.warn("lr: this option has a new name; use learning_rate", stacklevel=3)
        if kwargs.get("clipnorm") is not None and kwargs.get("global_clipnorm") is not None:
            raise ValueError("clipnorm, global_clipnorm: expected one of the two, got both")
        what = "gradient_aggregator, gradient_transformers"
        aggregator = _sum_over_replicas if gradient_aggregator is None else gradient_aggregator
        if not isinstance(gradient_transformers or [], Iterable):
            raise ValueError(f"{what}: expected functions of a list of pairs, got {gradient_transformers!r}")
        transformers = list(gradient_transformers or [])
        for function in [aggregator, *transformers]:
            if not callable(function):
                raise ValueError(f"{what}: expected functions of a list of pairs, got {function!r}")
        self.gradient_aggregator: Transformer = aggregator
        self.gradient_transformers: list[Transformer] = transformers
        for clip in CLIPS:  # each is checked when it is set
            setattr(self, clip, kwargs.get(clip))
        self._initial_decay = float(kwargs.get("decay") or 0.0)

    # --- training ---

    def minimize(
        self,
        loss: Any,
        var_list: Any,
        grad_loss: Any = None,
        name: str | None = None,
        tape: GradientTape | None = None,
        *,
        grad_fn: Callable[..., Any] | None = None,
    ) -> Operation:
        """Compute the loss's gradients and apply them.

        Parameters
        ----------
        loss, tape, grad_fn
            See `multiopt.keras.Optimizer.compute_gradients`.
        var_list : container of Variables or arrays, or callable that returns it
            A callable is called after the loss, which may create the variables; see `compute_gradients` for JAX.
        grad_loss : array or None
            The gradient of the loss itself; ones by default.
        name : str or None
            Name of the operation; the optimizer's by default.

        Raises
        ------
        ValueError
            If some of `var_list` are not variables, or gradients cannot be computed.
        """
        pairs = gradients(loss, var_list, grad_loss=grad_loss, tape=tape, grad_fn=grad_fn, boxes=self._boxes)
        return self.apply_gradients(pairs, name=name)

    def apply_gradients(
        self, grads_and_vars: Iterable[tuple[Any, Any]], name: str | None = None,
        experimental_aggregate_gradients: bool = True,
    ) -> Operation:  # fmt: skip
        """Update variables.

        Parameters
        ----------
        grads_and_vars : iterable of (gradient, variable)
            A gradient is an array, `IndexedSlices`, a sparse PyTorch tensor, or None, which leaves its variable
            unchanged. A variable is a `Variable`, or a mutable array.
        name : str or None
            Name of the operation; the optimizer's by default.
        experimental_aggregate_gradients : bool
            Whether to aggregate gradients over replicas (`multiopt.keras.distribute`): by summing, unless the
            optimizer has another aggregator. If False, the caller has done so.

        Returns
        -------
        Operation
            ``iterations`` has been increased by one, unless there are no pairs.

        Raises
        ------
        TypeError
            If `grads_and_vars` is malformed, or a gradient's library or dtype is not its variable's.
        ValueError
            If no variable has a gradient, or a gradient's shape or device is not its variable's.
        RuntimeError
            In a cross-replica context, or if a sparse gradient's variable has a constraint.
        """
        found = self._checked(grads_and_vars)
        context = get_replica_context()
        if context is None:
            raise RuntimeError("apply_gradients: called in a cross-replica context; call it in Replicas.run(...)")
        own = self._name if name is None else _checked_name(name)
        self._check_sparse(found)
        context.merge_call(lambda: self._create_all_weights([v for _, v in found]))
        if found:
            if experimental_aggregate_gradients:
                found = list(self.gradient_aggregator(found))
            found = self._checked(self._transform_gradients(found))
            context.merge_call(lambda: self._update(found))
        return Operation(own, int(self.iterations))

    @locked
    def _checked(self, grads_and_vars: Iterable[tuple[Any, Any]]) -> Pairs:
        """The pairs that have a gradient, each of which agrees with its variable."""
        given, missing = checked(pairs(grads_and_vars), self._boxes)
        if missing:
            _LOG.warning("Gradients do not exist for variables %s; they are left as they are", ", ".join(missing))
        found = [(g, v) for g, v in given if g is not None]
        for gradient, variable in found:
            if variable.constraint is not None and isinstance(gradient, IndexedSlices):
                raise RuntimeError(
                    f"gradient of {variable.name!r}: it is sparse, and its variable has a constraint; "
                    "that is not supported"
                )
        return found

    def _check_sparse(self, pairs: Pairs) -> None:
        """Raise TypeError for sparse gradients before anything is written, if no method takes them."""
        names = ("_resource_apply_sparse", "_resource_apply_sparse_duplicate_indices")
        if all(getattr(type(self), name) is getattr(Optimizer, name) for name in names):
            for gradient, variable in pairs:
                if isinstance(gradient, IndexedSlices):
                    self._resource_apply_sparse(gradient.values, variable, gradient.indices, None)

    def _transform_gradients(self, grads_and_vars: Pairs) -> Iterable[tuple[Any, Any]]:
        """Clip, and call the transformers."""
        given, variables = [g for g, _ in grads_and_vars], [v for _, v in grads_and_vars]
        thresholds = {"value": self.clipvalue, "norm": self.clipnorm, "global_norm": self.global_clipnorm}
        given = clipped(given, [f"gradient of {v.name!r}" for v in variables], **thresholds)
        found: Iterable[tuple[Any, Any]] = zip(given, variables, strict=True)
        for transformer in self.gradient_transformers:
            found = transformer(list(found))
        return found

    @locked
    def _update(self, pairs: Pairs) -> None:
        self._apply(pairs, self._prepare([v for _, v in pairs]))
        for _, variable in pairs:
            if variable.constraint is not None:
                variable.assign(variable.constraint(variable.value))
        self.iterations.assign_add(1)

    def _apply(self, pairs: Pairs, apply_state: Mapping[Any, Any]) -> None:
        """Update each variable; subclasses may update several at once."""
        for gradient, variable in pairs:
            if isinstance(gradient, IndexedSlices):
                first = self._resource_apply_sparse_duplicate_indices
                state = _wanted(self._resource_apply_sparse, apply_state) and _wanted(first, apply_state)
                first(gradient.values, variable, gradient.indices, **state)
            else:
                self._resource_apply_dense(gradient, variable, **_wanted(self._resource_apply_dense, apply_state))

    def _prepare(self, var_list: Sequence[Variable]) -> dict[Any, dict[str, Any]]:
        """The values of an update, for each device and dtype."""
        return {key: self._fallback_apply_state(*key) for key in {(v.device, v.dtype): None for v in var_list}}

    def _prepare_local(self, device: Any, dtype: str, apply_state: dict[Any, dict[str, Any]]) -> None:
        if "learning_rate" in self._hyper:
            apply_state[device, dtype]["lr_t"] = self._decayed_lr(dtype)

    def _fallback_apply_state(self, device: Any, dtype: str) -> dict[str, Any]:
        """The values for one device and dtype."""
        apply_state: dict[Any, dict[str, Any]] = {(device, dtype): {}}
        self._prepare_local(device, dtype, apply_state)
        return apply_state[device, dtype]

    # --- what subclasses override ---

    @abstractmethod
    def _resource_apply_dense(self, grad: Any, var: Variable, apply_state: Mapping[Any, Any]) -> Any:
        """Update `var`. `apply_state` has what `_prepare_local` has put there; the signature may omit it."""

    def _resource_apply_sparse(self, grad: Any, var: Variable, indices: np.ndarray, apply_state: Any) -> Any:
        """Update the rows `indices` of `var`, each of which occurs once, by the rows `grad`."""
        raise TypeError(f"gradient of {var.name!r}: it is sparse; {type(self).__name__} has no _resource_apply_sparse")

    def _resource_apply_sparse_duplicate_indices(
        self, grad: Any, var: Variable, indices: np.ndarray, **kwargs: Any
    ) -> Any:
        """Add up repeated rows, and update; override it for an algorithm that needs no sums."""
        single = summed(IndexedSlices(grad, indices))
        return self._resource_apply_sparse(single.values, var, single.indices, **kwargs)

    def _resource_scatter_add(self, x: Variable, i: np.ndarray, v: Any) -> Variable:
        """Add to some rows of a variable, each of which occurs once."""
        return self._resource_scatter_update(x, i, take(x.value, i) + v)

    def _resource_scatter_update(self, x: Variable, i: np.ndarray, v: Any) -> Variable:
        """Replace some rows of a variable."""
        x.value = put(x.value, i, v)
        return x

    @abstractmethod
    def get_config(self) -> dict[str, Any]:
        """The arguments that make an equal optimizer, without its state: a dictionary that JSON can hold.

        A subclass adds its own to what this returns. Aggregator and transformers are not in it.
        """
        clips = {name: getattr(self, name) for name in CLIPS}
        return {"name": self._name, **{name: value for name, value in clips.items() if value is not None}}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None) -> Self:
        """An optimizer from what `get_config` returned.

        Parameters
        ----------
        config : mapping
        custom_objects : mapping or None
            Functions that are hyperparameters, and classes of schedules, by name.

        Raises
        ------
        TypeError, ValueError
            If an option or a name is unknown.
        """
        return cls(**restored(config, custom_objects))

    # --- gradients of a loss ---

    def get_gradients(self, loss: Any, params: Any, *, grad_fn: Callable[..., Any] | None = None) -> list[Any]:
        """Gradients of a loss, a PyTorch tensor or a function; see `minimize`.

        Raises
        ------
        ValueError
            If one cannot be computed.
        """
        tape = None if callable(loss) else GradientTape(persistent=True)
        pairs = gradients(loss, flat(params), tape=tape, grad_fn=grad_fn, boxes=self._boxes)
        for gradient, variable in pairs:
            if gradient is None:
                raise ValueError(f"{variable.name}: expected a loss that depends on it differentiably, got no gradient")
        return [gradient for gradient, _ in pairs]

    def get_updates(self, loss: Any, params: Any, *, grad_fn: Callable[..., Any] | None = None) -> list[Operation]:
        """Compute gradients as `get_gradients` does, and apply them."""
        found = self.get_gradients(loss, params, grad_fn=grad_fn)
        return [self.apply_gradients(list(zip(found, flat(params), strict=True)))]


def _wanted(method: Callable[..., Any], apply_state: Mapping[Any, Any]) -> dict[str, Any]:
    parameters = inspect.signature(method).parameters.values()
    wanted = any(p.name == "apply_state" or p.kind is p.VAR_KEYWORD for p in parameters)
    return {"apply_state": apply_state} if wanted else {}


def _checked_name(name: Any) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"name: expected letters, digits and _ . / > -, the first a letter, digit or dot, got {name!r}"
        )
    return name


def _sum_over_replicas(grads_and_vars: Pairs) -> Pairs:
    """Sum gradients over all replicas: the aggregator, unless another one is given."""
    context = get_replica_context()
    assert context is not None
    reduced = context.all_reduce("sum", [g for g, _ in grads_and_vars])
    return [(g, v) for g, (_, v) in zip(reduced, grads_and_vars, strict=True)]
