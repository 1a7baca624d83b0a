"""The step of the later API: accumulation, weight decay, clipping, the update, averages.

It runs on what the variables hold. `Optimizer.stateless_apply` has them hold other arrays for a while, which JAX may be
tracing: no value can be looked at then, so choices are made by ``where``, and norms are summed in floating point.
"""

from __future__ import annotations

import inspect
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from ... import backends
from ...backends.generic import Array, Backend
from ...lock import locked
from ...rule import Hyper, Rule
from ...update import AVERAGE, SUM, FusedUpdate
from ..binding import VariableBinding, stateless
from ..distribute import mesh as meshes
from ..gradients import clipped
from ..variables.slices import as_gradient
from ..variables.variable import Variable
from .state import OptimizerVariables

__all__ = ["Stepper", "without_autograd"]


def _keep(xp: Any, x: Any, g: Any, *, lr: float) -> tuple[Any]:
    return (x,)


#: Nothing but the decay around it.
KEEP = Rule("keep", _keep, slots={}, hypers={"lr": Hyper(1.0, low=0.0)})


def without_autograd(backend: Backend) -> AbstractContextManager[Any]:
    """Within it, PyTorch's operations are not recorded."""
    return sys.modules["torch"].no_grad() if backend.name == "torch" else nullcontext()


class Stepper(OptimizerVariables, ABC):
    """A part of `Optimizer`: what a step does to the variables."""

    weight_decay: float | None
    clipnorm: float | None
    clipvalue: float | None
    global_clipnorm: float | None
    use_ema: bool
    ema_momentum: float
    ema_overwrite_frequency: int | None
    jit_compile: bool
    loss_scale_factor: float | None
    gradient_accumulation_steps: int | None

    def __init__(self) -> None:
        super().__init__()
        self._excluded: set[int] = set()
        self._excluded_names: list[str] = []
        self._model_variables_moving_average: list[Variable] = []
        self._accumulated_gradients: list[Variable] = []
        #: Which variables have had a gradient since the last update.
        self._seen: list[bool] = []
        self._bound: dict[str, VariableBinding] = {}

    def build(self, var_list: Sequence[Any]) -> None:
        """Create averages and sums of gradients; see `OptimizerVariables.build`."""
        if self.built:
            return
        super().build(var_list)
        boxes = self._trainable_variables
        if self.use_ema:
            self._model_variables_moving_average = [
                self.add_variable_from_reference(box, "average", initial_value=box) for box in boxes
            ]
        if self.gradient_accumulation_steps:
            self._accumulated_gradients = [
                self.add_variable_from_reference(box, "gradient_accumulator") for box in boxes
            ]
            self._seen = [False] * len(boxes)

    @locked
    def set_weights(self, weights: Sequence[Any]) -> None:
        """Assign arrays to `variables`; see `OptimizerVariables.set_weights`."""
        super().set_weights(weights)
        if self.gradient_accumulation_steps:
            # Between two updates, every sum counts.
            begun = int(self._iterations.value) % self.gradient_accumulation_steps != 0
            self._seen = [begun] * len(self._seen)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is looked up by identity, and what can be made again."""
        spared = [box for box in self._trainable_variables if self._var_key(box) in self._excluded]
        return {**super().__getstate__(), "_excluded": spared, "_bound": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._excluded = {self._var_key(box) for box in state["_excluded"]}

    # --- weight decay ---

    def exclude_from_weight_decay(
        self, var_list: Iterable[Any] | None = None, var_names: Iterable[str] | None = None
    ) -> None:
        """Exclude variables from weight decay.

        Parameters
        ----------
        var_list : iterable of variables or None
            The variables.
        var_names : iterable of str or None
            Regular expressions: variables are excluded in whose name one of them is found.

        Raises
        ------
        ValueError
            If the optimizer is built already.
        """
        if self.built:
            raise ValueError("exclude_from_weight_decay: expected before the optimizer is built, got it after that")
        self._excluded = {self._var_key(self._boxes.of(given, "var_list")) for given in var_list or ()}
        self._excluded_names = list(var_names or ())

    def _use_weight_decay(self, variable: Variable) -> bool:
        if self._var_key(variable) in self._excluded:
            return False
        return not any(re.search(name, variable.name) for name in self._excluded_names)

    # --- the step ---

    def _step(self, grads: Sequence[Array | None], rate: Any, count: Any, traced: bool = False) -> None:
        """Do one step, the `count`-th from 0, with gradients that are checked and laid out as the variables are.

        `traced` says whether JAX traces anything of it.
        """
        every = self.gradient_accumulation_steps or 1
        if self.use_ema and not traced:  # before anything is written; averages move last
            self._binding(AVERAGE, self._model_variables_moving_average).bound().check(AVERAGE)
        if every == 1:
            self._update(grads, rate, traced)
        else:
            self._check_update(grads, rate, traced)
            unscaled = 1.0 / (self.loss_scale_factor or 1.0)  # sums are of what the optimizer works with, as in Keras
            added = replace(SUM, scaled=unscaled != 1.0)
            self._binding(added, self._accumulated_gradients).apply(added, grads, traced, scale=unscaled)
            self._seen = [seen or g is not None for seen, g in zip(self._seen, grads, strict=True)]
            sums = [s.value if seen else None for s, seen in zip(self._accumulated_gradients, self._seen, strict=True)]
            due = (count + 1) % every == 0
            changed = [*self._trainable_variables, *self._slots()]
            _when(due, changed, lambda: self._update(sums, rate, traced))
            _when(due, self._accumulated_gradients, lambda: self._clear(traced))
        if self.use_ema:
            values = [variable.value for variable in self._trainable_variables]
            averages = self._binding(AVERAGE, self._model_variables_moving_average)
            averages.apply(AVERAGE, values, traced, momentum=self.ema_momentum)
            if self.ema_overwrite_frequency:
                due = (count // every + 1) % self.ema_overwrite_frequency == 0
                _when(due, self._trainable_variables, self._overwrite)

    def _binding(self, update: FusedUpdate, held: Sequence[Variable]) -> VariableBinding:
        """The sums or averages, bound to what updates them."""
        if update.rule.name not in self._bound:
            names = [variable.name for variable in self._trainable_variables]
            self._bound[update.rule.name] = VariableBinding(update.rule, [held], self._engine(), names)
        return self._bound[update.rule.name]

    def _engine(self) -> str:
        return "auto" if self.jit_compile else "eager"

    def _scale(self) -> float:
        """What the gradients of an update, or their sums, are multiplied by."""
        return 1.0 / (self.gradient_accumulation_steps or self.loss_scale_factor or 1.0)

    def _slots(self) -> list[Variable]:
        """The optimizer's variables that an update changes: all but the counter, averages and sums."""
        others = [self._iterations, *self._model_variables_moving_average, *self._accumulated_gradients]
        known = {id(variable) for variable in others}
        return [variable for variable in self._variables if id(variable) not in known]

    def _clear(self, traced: bool) -> None:
        for held in self._accumulated_gradients:
            zeros = held.backend.xp.zeros_like if traced else partial(held.backend.filled, value=0.0)
            held.value = zeros(held.value)
        self._seen = [False] * len(self._seen)

    def _overwrite(self) -> None:
        for held, variable in zip(self._model_variables_moving_average, self._trainable_variables, strict=True):
            variable.assign(held)

    # --- the update ---

    def _check_update(self, grads: Sequence[Array | None], rate: Any, traced: bool) -> None:
        """Raise what `_update` would raise, before the sums of gradients are written; nothing here."""

    def _update(self, grads: Sequence[Array | None], rate: Any, traced: bool) -> None:
        """Scale and clip the gradients, decay the variables, and call `update_step` for each."""
        live = [(g, v) for g, v in zip(grads, self._trainable_variables, strict=True) if g is not None]
        prepared = self._prepared(live, traced)
        for g, variable in live:
            if self.weight_decay and self._use_weight_decay(variable):
                options = {"lr": rate, "weight_decay": self.weight_decay, "decoupled": True}
                variable.assign(stateless(KEEP, variable.value, g, **options))
        takes = inspect.signature(self.update_step).parameters.values()
        more = [rate] if len(takes) > 2 or any(p.kind is p.VAR_POSITIONAL for p in takes) else []
        for g, (_, variable) in zip(prepared, live, strict=True):
            self.update_step(g, variable, *more)

    @abstractmethod
    def update_step(self, gradient: Array, variable: Variable, learning_rate: Any = None) -> None:
        """Update a variable: subclasses override this, with two arguments, or with three as in Keras 3.

        Parameters
        ----------
        gradient : array
            Unscaled, averaged and clipped.
        variable : Variable
            Weight decay has been applied to it.
        learning_rate : float or 0-d array
            The learning rate of this step.
        """

    def _prepared(self, live: Sequence[tuple[Array, Variable]], traced: bool) -> list[Array]:
        """The gradients of an update, unscaled and clipped."""
        scale = self._scale()
        grads = [g if scale == 1.0 else as_gradient(g * scale) for g, _ in live]
        thresholds = {"value": self.clipvalue, "norm": self.clipnorm, "global_norm": self.global_clipnorm}
        if traced:
            return clipped_in_floating_point(grads, **thresholds)
        names = [f"gradient of {variable.name!r}" for _, variable in live]
        made = clipped(meshes.shards(grads), names, **thresholds, reduce=meshes.reducer([grads]))
        return [meshes.with_local(g, shard) for g, shard in zip(grads, made, strict=True)]


def _when(condition: Any, variables: Sequence[Variable], action: Callable[[], None]) -> None:
    """Do something to the variables if the condition holds, be it a bool or a traced array."""
    if isinstance(condition, bool):
        if condition:
            action()
        return
    before = [variable.value for variable in variables]
    action()
    for variable, old in zip(variables, before, strict=True):
        variable.value = variable.backend.xp.where(condition, variable.value, old)


def clipped_in_floating_point(
    grads: Sequence[Array], value: float | None, norm: float | None, global_norm: float | None
) -> list[Array]:
    """Clip traced gradients, which have no values yet: their norms are summed in at least float32."""
    made = list(grads)
    if value is not None:
        made = [backends.of(g).xp.clip(g, -value, value) for g in made]
    threshold = norm if norm is not None else global_norm
    if threshold is None or not made:
        return made
    squares = [_square(g) for g in made]
    total = sum(squares[1:], squares[0])
    for i, square in enumerate(squares):
        xp = backends.of(made[i]).xp
        size = xp.sqrt(square if norm is not None else total)
        above = size > threshold
        # A NaN norm makes its gradients NaN, as everywhere.
        factor = xp.where(above, threshold / xp.where(above, size, xp.ones_like(size)), size * 0 + 1)
        made[i] = made[i] * xp.astype(factor, made[i].dtype)
    return made


def _square(g: Any) -> Any:
    """The square of a gradient's norm, in at least float32."""
    backend = backends.of(g)
    xp, parts = backend.xp, backend.parts(g)
    wide = xp.float64 if backend.dtype(parts[0]) == "float64" else xp.float32
    sums = [xp.sum(xp.astype(part, wide) * xp.astype(part, wide)) for part in parts]
    return sum(sums[1:], sums[0])
