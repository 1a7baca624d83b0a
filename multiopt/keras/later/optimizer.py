"""The base class of optimizers of the later API: options, learning rate, gradients, configuration."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ...backends.generic import Array
from ...lock import locked
from .. import schedules
from ..distribute import mesh as meshes
from ..distribute.replicas import get_replica_context
from ..gradients import checked, pairs
from ..variables.differentiate import gradients
from ..variables.slices import IndexedSlices, dense
from ..variables.variable import Variable, holding, is_traced
from .options import CHECKS, FIXED, check_leftover
from .rate import Rate, Rated
from .state import unchanged_by_errors
from .step import Stepper, without_autograd

__all__ = ["Optimizer"]


class Optimizer(Stepper, Rated):
    """The base class of optimizers: subclasses define `update_step`, `build` and `get_config`.

    Parameters
    ----------
    learning_rate : float, schedule, or callable without arguments
        A callable is called at each step.
    name : str
        The optimizer's name.
    weight_decay : float or None
        Decoupled: ``x - learning_rate * weight_decay * x``, before the update.
    clipnorm, clipvalue, global_clipnorm : float or None
        Thresholds for each gradient's norm, for each element, and for the norm of all gradients together. At most one
        of the two norms. Norms are exact, except where `stateless_apply` is traced by `jax.jit`.
    use_ema : bool
        Keep an exponential moving average of the variables. It is updated in every call.
    ema_momentum : float
        In ``new = ema_momentum * old + (1 - ema_momentum) * value``; in [0, 1].
    ema_overwrite_frequency : int or None
        After each of this many iterations, the variables are overwritten by their averages, before constraints are
        applied.
    jit_compile : bool
        True: the fastest engine for the arrays, which is compiled. False: the eager engine, operation by operation,
        with the same bits in float32 and float64. An optimizer with its own `update_step` runs that as it is.
    loss_scale_factor : float or None
        What `scale_loss` multiplies by. Gradients are divided by it first.
    gradient_accumulation_steps : int or None
        Number of calls, at least 2, whose gradients are averaged for one update, which the last of them makes.
        `iterations` then counts updates, while a schedule sees calls. 0 and None are off.
    mesh : torch DeviceMesh, jax Mesh or None
        All variables must be on this mesh; those that `add_variable` creates are replicated on it. With or without
        it, state that belongs to a variable has the variable's sharding. It is not part of the configuration.
    **kwargs
        As tf_keras takes them: ``is_legacy_optimizer=False``, which its configurations have, and ``lr``, which is
        ignored with a warning.

    Raises
    ------
    TypeError, ValueError
        If an option is unknown, of the wrong type or out of range; if both norms are set.

    Notes
    -----
    `apply_gradients` sums the gradients of `multiopt.keras.distribute.Replicas`. Gradients are not added up over
    processes: those of DTensors and of sharded JAX arrays are sums over the mesh already; with plain arrays in several
    processes, the caller adds them up.
    """

    #: How attributes are checked whenever they are set.
    option_checks: ClassVar[Mapping[str, Callable[[str, Any], Any]]] = CHECKS

    def __init__(
        self,
        learning_rate: Any = 0.001,
        name: str = "Optimizer",
        weight_decay: float | None = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        jit_compile: bool = True,
        loss_scale_factor: float | None = None,
        gradient_accumulation_steps: int | None = None,
        mesh: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        check_leftover(kwargs)
        self.name = name
        self.weight_decay = weight_decay
        self.clipnorm = clipnorm
        self.clipvalue = clipvalue
        self.global_clipnorm = global_clipnorm
        if clipnorm is not None and global_clipnorm is not None:
            raise ValueError(
                f"clipnorm, global_clipnorm: expected one of them at most, got {clipnorm!r} and {global_clipnorm!r}"
            )
        self.use_ema = use_ema
        self.ema_momentum = ema_momentum
        self.ema_overwrite_frequency = ema_overwrite_frequency
        self.jit_compile = jit_compile
        self.loss_scale_factor = loss_scale_factor
        self.gradient_accumulation_steps = gradient_accumulation_steps or None
        self.mesh = meshes.check_mesh(mesh)
        self._rate = Rate(learning_rate)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.option_checks:
            value = self.option_checks[name](name, value)
            if name in FIXED and self.built and value != getattr(self, name):
                raise ValueError(f"{name}: fixed once the optimizer is built; expected {getattr(self, name)!r}")
        super().__setattr__(name, value)

    # --- gradients ---

    def compute_gradients(
        self, loss: Any, var_list: Any, tape: Any = None, *, grad_fn: Callable[..., Any] | None = None
    ) -> list[tuple[Any, Variable]]:
        """Differentiate a loss.

        Parameters
        ----------
        loss : callable or tensor
            A callable takes no arguments and returns the loss. A tensor needs the tape under which it was computed.
        var_list : sequence of Variable, or callable that returns one
            The variables. A callable is called after the loss, which may make them. JAX has to know before what it
            differentiates, so the callable is called before the loss, too; variables that are only there after it cost
            a second call of the loss.
        tape : GradientTape or None
            See `multiopt.keras.GradientTape`.
        grad_fn : callable or None
            ``grad_fn(*arrays)`` returns a gradient, or None, for each variable's array: for NumPy and CuPy, which have
            no automatic differentiation.

        Returns
        -------
        list of (gradient, Variable)
            A gradient may be None.

        Raises
        ------
        ValueError
            If gradients cannot be computed.
        """
        return gradients(loss, var_list, tape=tape, grad_fn=grad_fn, boxes=self._boxes)

    def minimize(
        self, loss: Any, var_list: Any, tape: Any = None, *, grad_fn: Callable[..., Any] | None = None
    ) -> None:
        """Differentiate a loss and apply the gradients; see `compute_gradients` and `apply_gradients`."""
        self.apply_gradients(self.compute_gradients(loss, var_list, tape, grad_fn=grad_fn))

    def scale_loss(self, loss: Any) -> Any:
        """The loss times `loss_scale_factor`, if that is set."""
        return loss if self.loss_scale_factor is None else loss * self.loss_scale_factor

    # --- applying them ---

    def apply_gradients(
        self,
        grads_and_vars: Iterable[tuple[Any, Any]],
        name: str | None = None,
        skip_gradients_aggregation: bool = False,
        *,
        experimental_aggregate_gradients: bool = True,
    ) -> None:
        """Do one step.

        Parameters
        ----------
        grads_and_vars : iterable of (gradient, variable)
            A gradient is an array, an `IndexedSlices`, or None, which leaves its variable unchanged. If there are no
            pairs, nothing happens.
        name : str or None
            What the names of the optimizer's new variables begin with, before a slash.
        skip_gradients_aggregation : bool
            Whether the caller has summed the gradients of `multiopt.keras.distribute.Replicas`; else they are here.
        experimental_aggregate_gradients : bool
            False means the same: its old name, turned round.

        Raises
        ------
        TypeError
            If this is not an iterable of pairs, or a gradient is not of its variable's library and dtype.
        ValueError
            If no gradient is given, a shape differs, or a variable occurs twice.
        KeyError
            If a variable is not one of those that the optimizer was built with.
        RuntimeError
            In a cross-replica context.
        """
        given, context = pairs(grads_and_vars), get_replica_context()
        if context is None:
            raise RuntimeError("apply_gradients: called in a cross-replica context; call it in Replicas.run(...)")
        if name is not None and not isinstance(name, str):
            raise ValueError(f"name: expected a string or None, got {name!r}")
        if context.shares_variables and experimental_aggregate_gradients and not skip_gradients_aggregation:
            given, _ = checked(given, self._boxes)
            summed = context.all_reduce("sum", [g for g, _ in given])
            given = [(g, v) for g, (_, v) in zip(summed, given, strict=True)]
        context.merge_call(lambda: self._named_apply(given, name))

    @locked
    def _named_apply(self, given: Sequence[tuple[Any, Any]], name: str | None) -> None:
        self._scope = f"{name}/" if name else ""
        try:
            self.apply([g for g, _ in given], [v for _, v in given])
        finally:
            self._scope = ""

    @locked
    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Do one step, given gradients and variables separately; see `apply_gradients`.

        Steps of several threads come one after another. One that is interrupted (Ctrl-C, a signal handler that raises)
        leaves variables partly updated, and is not counted; no thread of its own still writes when the exception goes
        on.

        Parameters
        ----------
        grads : sequence of gradients
        trainable_variables : sequence of variables or None
            None: those that the optimizer was built with.
        """
        grads = list(grads)
        if not grads:
            return
        if trainable_variables is None:
            if not self.built:
                raise ValueError("trainable_variables: expected variables, or an optimizer that is built, got None")
            trainable_variables = self._trainable_variables
        variables = list(trainable_variables)
        if len(grads) != len(variables):
            raise ValueError(f"grads: expected one for each of {len(variables)} variables, got {len(grads)}")
        count = int(self._iterations.value)
        if self.built:
            ordered, rate = self._ordered(grads, variables), self._rate.at(count)
        else:
            checked(zip(grads, variables, strict=True), self._boxes)
            with unchanged_by_errors(self):
                self.build(variables)
                ordered, rate = self._ordered(grads, variables), self._rate.at(count)
                self._check_update(ordered, rate, traced=False)
        self._apply(ordered, rate, count)
        self._iterations.assign_add(1)

    def _ordered(self, grads: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
        """A checked gradient for each variable of the optimizer, dense, and laid out as the variable is."""
        given, missing = checked(zip(grads, variables, strict=True), self._boxes)
        found: list[Any] = [None] * len(self._trainable_variables)
        places: set[int] = set()
        for g, box in given:
            place = self._index_dict.get(self._var_key(box))
            if place is None:
                raise KeyError(
                    f"{box.name}: expected one of the {len(found)} variables that the optimizer was built with; "
                    "call build() with all that will be updated"
                )
            if place in places:
                raise ValueError(f"{box.name}: expected each variable once, got it twice")
            places.add(place)
            if g is not None:
                g = dense(g, box) if isinstance(g, IndexedSlices) else g
                found[place] = meshes.aligned(g, box.value, f"gradient of {box.name!r}")
        if missing:
            warnings.warn(f"no gradient for the variables {missing}; they are left as they are", stacklevel=4)
        return found

    def _apply(self, grads: Sequence[Array | None], rate: Any, count: Any, traced: bool = False) -> None:
        """The step, then the constraints."""
        with without_autograd(self._trainable_variables[0].backend):
            self._step(grads, rate, count, traced)
            for g, box in zip(grads, self._trainable_variables, strict=True):
                if g is not None and box.constraint is not None:
                    box.assign(box.constraint(box.value))

    def _update(self, grads: Sequence[Array | None], rate: Any, traced: bool) -> None:
        self._rate.used = rate
        super()._update(grads, rate, traced)

    @locked
    def stateless_apply(
        self, optimizer_variables: Sequence[Array], grads: Sequence[Any], trainable_variables: Sequence[Array]
    ) -> tuple[list[Array], list[Array]]:
        """One step as a pure function: nothing is written; it may be traced by `jax.jit`.

        Parameters
        ----------
        optimizer_variables : sequence of arrays
            Values for `variables`.
        grads : sequence of arrays
            One for each of the variables that the optimizer was built with.
        trainable_variables : sequence of arrays
            Values for these.

        Returns
        -------
        trainable_variables, optimizer_variables : list of arrays
            The new values.

        Raises
        ------
        ValueError
            If the optimizer is not built, or a list has another length.

        Notes
        -----
        Norms are exact, as in `apply`, unless JAX traces the call. While it is traced there are no values from which
        an exact norm could be computed: XLA then sums the squares in floating point, in an order of its own.
        """
        if not self.built:
            raise ValueError("stateless_apply: expected an optimizer that is built; call build() first")
        boxes, n = [*self._trainable_variables, *self._variables], len(self._trainable_variables)
        if len(trainable_variables) != n or len(optimizer_variables) != len(self._variables):
            raise ValueError(
                f"stateless_apply: expected {n} model variables and {len(self._variables)} of the optimizer's, "
                f"got {len(trainable_variables)} and {len(optimizer_variables)}"
            )
        given = [*trainable_variables, *optimizer_variables]
        # Copies, because `update_step` writes into the arrays of a mutable library.
        values = [v if is_traced(v) else _copy(box, v) for box, v in zip(boxes, given, strict=True)]
        seen, used = self._seen, self._rate.used
        try:
            with holding(boxes, values):
                self._seen = [True] * len(seen)  # what earlier calls have seen is not part of the state
                count = self._iterations.value
                count = count if is_traced(count) else int(count)
                traced = any(map(is_traced, [*given, *grads]))
                self._apply(self._ordered(grads, self._trainable_variables), self._rate.at(count), count, traced)
                self._iterations.value = self._iterations.value + 1
                after = [box.value for box in boxes]
        finally:
            self._seen, self._rate.used = seen, used
        return after[:n], after[n:]

    # --- averages ---

    @locked
    def finalize_variable_values(self, var_list: Iterable[Any]) -> None:
        """Overwrite variables by their averages, if `use_ema` is on; to be called at the end of training.

        Raises
        ------
        KeyError
            If a variable is not one of those that the optimizer was built with.
        """
        if self.use_ema:
            boxes = [self._boxes.of(given, f"var_list[{i}]") for i, given in enumerate(var_list)]
            for place in [self._get_variable_index(box) for box in boxes]:
                self._trainable_variables[place].assign(self._model_variables_moving_average[place])

    # --- configuration ---

    def get_config(self) -> dict[str, Any]:
        """The options, as plain data; a callable learning rate is called."""
        options = {name: getattr(self, name) for name in CHECKS}
        return {"name": self.name, "learning_rate": self._rate.config(), **options}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None) -> Optimizer:
        """An optimizer from what `get_config` returned, here, in tf_keras or in Keras 3.

        Parameters
        ----------
        config : mapping
        custom_objects : mapping or None
            Your own schedules, and functions as learning rates, by name.
        """
        options = dict(config)
        if isinstance(options.get("learning_rate"), Mapping):
            options["learning_rate"] = schedules.deserialize(options["learning_rate"], custom_objects)
        return cls(**options)


def _copy(box: Variable, value: Any) -> Array:
    """A copy of a value for a variable, of its library and dtype."""
    if box.backend.name == "numpy":
        value = np.asarray(value)  # the counter, which `jax.jit` returns as an array of its own
    twin = Variable(box.backend.copy(box.value), trainable=False, name=box.name)
    return twin.assign(value).value
