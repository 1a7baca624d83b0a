"""The base class of the optimizers of TensorFlow 2.1 to 2.4 (``OptimizerV2``)."""

from __future__ import annotations

import copy
import inspect
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ..aggregation import VariableAggregation, VariableSynchronization
from ..clipping import clipped
from ..differentiate import GradientTape, flat, gradients
from ..distribute import get_replica_context
from ..sparse import put, summed, take
from ..variable import Boxes, IndexedSlices, Variable
from .hyperparameters import Hyperparameters, restored
from .pairs import Pairs, checked, sum_over_replicas
from .state import State

__all__ = ["Operation", "Optimizer"]

Transformer = Callable[[Pairs], Iterable[tuple[Any, Any]]]
#: What TensorFlow calls a valid name of a scope.
_NAME = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_./>-]*")
_CLIPS = ("clipvalue", "clipnorm", "global_clipnorm")
_OPTIONS = (*_CLIPS, "lr", "decay")


@dataclass(frozen=True)
class Operation:
    """What an update leaves behind: its name, and the number of updates done. The work itself is done already."""

    name: str
    iterations: int


class Optimizer(ABC):
    """Base class: inherit from it, and override these methods for an algorithm of your own.

    - ``_resource_apply_dense(grad, var, apply_state)`` updates a variable;
    - ``_resource_apply_sparse(grad, var, indices, apply_state)`` updates some rows, each of which comes once;
    - ``_create_slots(var_list)`` calls `add_slot`, if there is state;
    - ``get_config()`` returns the arguments of the constructor.

    The constructor passes its hyperparameters to ``self._set_hyper(name, value)``; ``self._get_hyper(name, dtype)``
    and, for the learning rate with all its decay, ``self._decayed_lr(dtype)`` return their values now. See
    ``examples/keras_custom_optimizer.py``.

    Parameters
    ----------
    name : str or None
        Name of the optimizer's variables; the class's by default.
    gradient_aggregator : callable or None
        Aggregates gradients across replicas, in place of summing: takes and returns a list of pairs.
    gradient_transformers : list of callables or None
        Change gradients after that, one after another: each takes and returns a list of pairs.
    clipvalue, clipnorm, global_clipnorm : float or None
        Clip each element of a gradient, then each gradient's norm, then the norm of all. Not with transformers, and
        not both norms. May be set as attributes. 0 makes all gradients 0.
    decay : float
        Divides the learning rate by ``1 + decay * iterations``.
    lr : float
        The old name of ``learning_rate``; it wins, with a warning.

    Raises
    ------
    TypeError
        If an option is unknown, or of a wrong type.
    ValueError
        If one is negative, if both norms are given, or if the name is empty or has characters other than letters,
        digits and ``_ . - / >``.

    Notes
    -----
    Differences from TensorFlow, where that does not do what its documents say: setting the hyperparameter ``decay``
    has an effect; a function keeps its name in the configuration, so that `from_config` finds it in `custom_objects`;
    a schedule sees the exact number of the iteration in float16, too. Like TensorFlow's, an optimizer may be used in
    one thread at a time.
    """

    def __init__(
        self,
        name: str | None,
        gradient_aggregator: Transformer | None = None,
        gradient_transformers: Sequence[Transformer] | None = None,
        **kwargs: Any,
    ) -> None:
        self._hyper = Hyperparameters()
        self._state, self._boxes = State(), Boxes()
        self._name = _checked_name(type(self).__name__ if name is None else name)
        for option, value in kwargs.items():
            if option not in _OPTIONS:
                raise TypeError(f"{option}: unknown option; expected one of {', '.join(_OPTIONS)}")
            if option != "lr" and value is not None:
                _not_negative(option, value)
        if "lr" in kwargs:
            warnings.warn("lr: this option has a new name; use learning_rate", stacklevel=3)
        if kwargs.get("clipnorm") is not None and kwargs.get("global_clipnorm") is not None:
            raise ValueError("clipnorm, global_clipnorm: expected one of the two, got both")
        transformers = list(gradient_transformers or [])
        for function in [*([] if gradient_aggregator is None else [gradient_aggregator]), *transformers]:
            if not callable(function):
                what = "gradient_aggregator, gradient_transformers"
                raise TypeError(f"{what}: expected functions of a list of pairs, got {function!r}")
        self.gradient_aggregator: Transformer = gradient_aggregator or sum_over_replicas
        self.gradient_transformers: list[Transformer] = transformers
        self.clipvalue = kwargs.get("clipvalue")
        self.clipnorm = kwargs.get("clipnorm")
        self.global_clipnorm = kwargs.get("global_clipnorm")
        self._initial_decay = float(kwargs.get("decay") or 0.0)

    # --- hyperparameters ---

    def _set_hyper(self, name: str, value: Any) -> None:
        """Set a hyperparameter: a number, an array, a function without arguments, or a schedule."""
        self._hyper.set(name, value)

    def _get_hyper(self, name: str, dtype: str | None = None) -> Any:
        """A hyperparameter: what holds it or, given the dtype of a computation, its value now as a Python float."""
        return self._hyper.get(name) if dtype is None else self._hyper.number(name, int(self.iterations))

    def _decayed_lr(self, dtype: str) -> float:
        """The learning rate of this update: the schedule's value, over ``1 + decay * iterations``."""
        rate: float = self._get_hyper("learning_rate", dtype)
        decay = self._hyper.number("decay", int(self.iterations)) if "decay" in self._hyper else self._initial_decay
        return rate / (1.0 + decay * int(self.iterations)) if decay > 0 else rate

    def _serialize_hyperparameter(self, name: str) -> Any:
        """A hyperparameter for `get_config`: a number, a schedule's dictionary, or a function's name."""
        return self._hyper.stored(name)

    def __getattr__(self, name: str) -> Any:
        hyper = self.__dict__.get("_hyper", ())
        name = "learning_rate" if name == "lr" else name
        if name in hyper:
            return self._get_hyper(name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        name = "learning_rate" if name == "lr" else name
        if name in self.__dict__.get("_hyper", ()):
            self._set_hyper(name, value)
        else:
            if name in _CLIPS and value is not None:
                _not_negative(name, value)
                if self.gradient_transformers:
                    raise ValueError(f"{name}: expected None with gradient_transformers; make clipping one of them")
            object.__setattr__(self, name, value)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._hyper.names(), *["lr"] * ("learning_rate" in self._hyper)]

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
        loss : callable without arguments, or tensor
            A PyTorch tensor comes with its tape.
        var_list : container of Variables or arrays, or callable that returns it
            A callable is called after the loss, which may make the variables.
        grad_loss : array or None
            The gradient that the loss itself is given.
        name : str or None
            Of the operation; the optimizer's by default.
        tape : GradientTape or None
        grad_fn : callable or None
            ``grad_fn(*arrays)`` returns the gradients, for libraries that cannot differentiate: NumPy and CuPy.

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
            A gradient is an array, `IndexedSlices`, a sparse PyTorch tensor, or None, with which its variable is left
            alone. A variable is a `Variable`, or an array of a library whose arrays are mutable.
        name : str or None
            Of the operation; the optimizer's by default.
        experimental_aggregate_gradients : bool
            Whether to aggregate gradients over replicas (`multiopt.keras.distribute`): by summing, unless the
            optimizer was given an aggregator. If False, the caller has done so.

        Returns
        -------
        Operation
            ``iterations`` has been increased by one, unless the list is empty.

        Raises
        ------
        TypeError
            If `grads_and_vars` is malformed, or a gradient's library or dtype is not its variable's.
        ValueError
            If no variable has a gradient, or a gradient's shape or device is not its variable's.
        RuntimeError
            In a cross-replica context, or if a sparse gradient's variable has a constraint.
        """
        pairs = checked(grads_and_vars, self._boxes)
        context = get_replica_context()
        if context is None:
            raise RuntimeError("apply_gradients: called in a cross-replica context; call it in Replicas.run(...)")
        own = self._name if name is None else _checked_name(name)
        self._check_sparse(pairs)
        context.merge_call(lambda: self._create_all_weights([v for _, v in pairs]))
        if pairs:
            if experimental_aggregate_gradients:
                pairs = list(self.gradient_aggregator(pairs))
            pairs = checked(self._transform_gradients(pairs), self._boxes)
            context.merge_call(lambda: self._update(pairs))
        return Operation(own, int(self.iterations))

    def _check_sparse(self, pairs: Pairs) -> None:
        """Refuse sparse gradients before anything is written, if no method takes them."""
        names = ("_resource_apply_sparse", "_resource_apply_sparse_duplicate_indices")
        if all(getattr(type(self), name) is getattr(Optimizer, name) for name in names):
            for gradient, variable in pairs:
                if isinstance(gradient, IndexedSlices):
                    self._resource_apply_sparse(gradient.values, variable, gradient.indices, None)

    def _transform_gradients(self, grads_and_vars: Pairs) -> Iterable[tuple[Any, Any]]:
        """Clip, and call the transformers."""
        pairs: Iterable[tuple[Any, Any]] = grads_and_vars
        if any(getattr(self, name) is not None for name in _CLIPS):
            found = clipped(
                [g for g, _ in grads_and_vars],
                value=self.clipvalue,
                norm=self.clipnorm,
                global_norm=self.global_clipnorm,
                names=[f"gradient of {v.name}" for _, v in grads_and_vars],
            )
            pairs = [(g, v) for g, (_, v) in zip(found, grads_and_vars, strict=True)]
        for transformer in self.gradient_transformers:
            pairs = transformer(list(pairs))
        return pairs

    def _update(self, pairs: Pairs) -> None:
        self._apply(pairs, self._prepare([v for _, v in pairs]))
        for _, variable in pairs:
            if variable.constraint is not None:
                variable.assign(variable.constraint(variable.value))
        self.iterations.assign_add(1)

    def _apply(self, pairs: Pairs, apply_state: Mapping[Any, Any]) -> None:
        """Update each variable; a subclass that can update several at once may do so."""
        for gradient, variable in pairs:
            if isinstance(gradient, IndexedSlices):
                first = self._resource_apply_sparse_duplicate_indices
                state = _wanted(self._resource_apply_sparse, apply_state) and _wanted(first, apply_state)
                first(gradient.values, variable, gradient.indices, **state)
            else:
                self._resource_apply_dense(gradient, variable, **_wanted(self._resource_apply_dense, apply_state))

    def _prepare(self, var_list: Sequence[Variable]) -> dict[Any, dict[str, Any]]:
        """Values that the updates of this call share, for each device and dtype."""
        apply_state: dict[Any, dict[str, Any]] = {(v.device, v.dtype): {} for v in var_list}
        for device, dtype in apply_state:
            self._prepare_local(device, dtype, apply_state)
        return apply_state

    def _prepare_local(self, device: Any, dtype: str, apply_state: dict[Any, dict[str, Any]]) -> None:
        if "learning_rate" in self._hyper:
            apply_state[device, dtype]["lr_t"] = self._decayed_lr(dtype)

    def _fallback_apply_state(self, device: Any, dtype: str) -> dict[str, Any]:
        """The values of one device and dtype, for a method that was not given them."""
        apply_state: dict[Any, dict[str, Any]] = {(device, dtype): {}}
        self._prepare_local(device, dtype, apply_state)
        return apply_state[device, dtype]

    # --- what subclasses override ---

    @abstractmethod
    def _resource_apply_dense(self, grad: Any, var: Variable, apply_state: Mapping[Any, Any]) -> Any:
        """Update `var`. `apply_state` may be left out of the signature; it has what `_prepare_local` put there."""

    def _resource_apply_sparse(self, grad: Any, var: Variable, indices: np.ndarray, apply_state: Any) -> Any:
        """Update the rows `indices` of `var`, each of which comes once, with the rows `grad`."""
        raise TypeError(f"gradient of {var.name!r}: it is sparse; {type(self).__name__} has no _resource_apply_sparse")

    def _resource_apply_sparse_duplicate_indices(
        self, grad: Any, var: Variable, indices: np.ndarray, **kwargs: Any
    ) -> Any:
        """Add up the rows that come more than once, and update; override it for an algorithm that needs no sums."""
        single = summed(IndexedSlices(grad, indices))
        return self._resource_apply_sparse(single.values, var, single.indices, **kwargs)

    def _resource_scatter_add(self, x: Variable, i: np.ndarray, v: Any) -> Variable:
        """Add to some rows of a variable, each of which comes once."""
        return self._resource_scatter_update(x, i, take(x.value, i) + v)

    def _resource_scatter_update(self, x: Variable, i: np.ndarray, v: Any) -> Variable:
        """Replace some rows of a variable."""
        x.value = put(x.value, i, v)
        return x

    def _create_slots(self, var_list: Sequence[Variable]) -> None:  # noqa: B027  # no state is a good answer
        """Make the state of new variables, by `add_slot`; without state there is nothing to make."""

    @abstractmethod
    def get_config(self) -> dict[str, Any]:
        """The arguments that make an equal optimizer, without its state: a dictionary that JSON can hold.

        A subclass adds its own to what this returns. Aggregator and transformers are not in it.
        """
        clips = {name: getattr(self, name) for name in _CLIPS}
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
        """Gradients of a loss, which is a PyTorch tensor or a function; see `minimize`.

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

    # --- state ---

    @property
    def iterations(self) -> Variable:
        """The number of updates done: a Variable. Another may be set before the first use."""
        return self._state.iterations

    @iterations.setter
    def iterations(self, variable: Variable) -> None:
        self._state.iterations = variable

    @property
    def weights(self) -> list[Variable]:
        """The optimizer's variables in the order they were created: iterations, then slots."""
        return list(self._state.weights)

    def variables(self) -> list[Variable]:
        """The same as `weights`."""
        return self.weights

    def get_weights(self) -> list[np.ndarray]:
        """The values of `weights`, as NumPy arrays."""
        return self._state.values()

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set the values of `weights`; see `get_weights`.

        Raises
        ------
        ValueError
            If their number or a shape is another. Nothing has been changed then.
        """
        self._state.assign(weights)

    def add_slot(self, var: Any, slot_name: str, initializer: Any = "zeros", shape: Any = None) -> Variable:
        """The slot of a variable: a Variable of its library, dtype and shape, made if there is none yet.

        Parameters
        ----------
        var : Variable or array
        slot_name : str
        initializer : {"zeros", "ones"}, callable of shape and dtype, or value
        shape : sequence of int or None
            Another shape.
        """
        return self._state.add_slot(self._boxes.of(var, "var"), slot_name, initializer, shape)

    def get_slot(self, var: Any, slot_name: str) -> Variable:
        """A slot of a variable; KeyError if there is none."""
        return self._state.get_slot(self._boxes.of(var, "var"), slot_name)

    def get_slot_names(self) -> list[str]:
        """Names of the slots that were made."""
        return list(self._state.names)

    def add_weight(
        self,
        name: str,
        shape: Sequence[int],
        dtype: str | None = None,
        initializer: Any = "zeros",
        trainable: bool | None = None,
        synchronization: Any = VariableSynchronization.AUTO,
        aggregation: Any = VariableAggregation.NONE,
    ) -> Variable:
        """A variable for a subclass's own use, which is not among `weights`.

        Parameters
        ----------
        name : str
        shape : sequence of int
        dtype : str or None
            float32 by default.
        initializer : {"zeros", "ones"}, callable of shape and dtype, or value
        trainable : bool or None
            True by default.
        synchronization : {"auto", "none", "on_write"}
            All mean the same here, where replicas of one process share variables; "on_read" is refused.
        aggregation : {"none", "sum", "mean", "only_first_replica"}
            What becomes of values that several replicas assign at once.

        Returns
        -------
        Variable
            Of the library of the variables that the optimizer knows, or NumPy's before there are any.
        """
        return self._state.add_weight(name, shape, dtype, initializer, trainable, synchronization, aggregation)

    def _create_all_weights(self, var_list: Sequence[Variable]) -> None:
        self._state.iterations  # noqa: B018  # made first, so that it comes first among the weights
        self._create_slots(var_list)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # The copy has state of its own, and trains the same variables, unless they are being copied along.
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        for variable in self._state.slots:
            memo.setdefault(id(variable), variable)
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin


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


def _not_negative(option: str, value: Any) -> None:
    try:
        good = float(value) >= 0
    except (TypeError, ValueError):
        raise TypeError(f"{option}: expected a number, got {value!r}") from None
    if not good:
        raise ValueError(f"{option}: expected a number that is not negative, got {value!r}")
