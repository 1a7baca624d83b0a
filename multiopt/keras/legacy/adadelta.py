"""Adadelta as TensorFlow 2.1 to 2.4 have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...adadelta import ADADELTA
from ..binding import AdadeltaStep, Planned
from ..gradients import Pairs
from ..variables.slices import IndexedSlices
from ..variables.variable import Variable
from .hyperparameters import Hyper, valid
from .optimizer import Optimizer

__all__ = ["Adadelta"]

#: TensorFlow's names of the rule's state.
_SLOTS = ("accum_grad", "accum_var")


class Adadelta(Optimizer):
    """Adadelta (Zeiler 2012, arXiv 1212.5701) with TensorFlow's names, defaults and numbers.

    Variables of one array library, device and dtype are updated together, by the fastest engine for them. Repeated
    rows of a sparse gradient are added up; rows that it does not have keep their values and their state, and are not
    touched. (`multiopt.keras.Adadelta` decays the state of all rows, as tf_keras' later optimizers and Keras 3's do.)

    Parameters
    ----------
    learning_rate : float, array, callable or LearningRateSchedule
        1.0 is the paper's form. A callable takes no arguments and is called in each update.
    rho : float, array, callable or LearningRateSchedule
        Decay rate of both accumulators, in [0, 1].
    epsilon : float, array or None
        Added under both roots. None and, as in TensorFlow, 0 mean 1e-7.
    name : str
    **kwargs
        The options of `Optimizer`.

    Raises
    ------
    TypeError, ValueError
        See `Optimizer`. A hyperparameter that is out of range or of a wrong type is a ValueError when it is set; what a
        callable returns is checked in the update, before anything is written.

    Notes
    -----
    As in TensorFlow, ``learning_rate`` and ``rho`` given as Python numbers pass through float32; ``epsilon`` does not.
    Real and imaginary parts of a complex gradient are updated separately; TensorFlow squares complex numbers.
    """

    def __init__(
        self,
        learning_rate: Hyper = 0.001,
        rho: Hyper = 0.95,
        epsilon: Any = 1e-7,
        name: str | None = "Adadelta",
        **kwargs: Any,
    ) -> None:
        super().__init__(name, **kwargs)
        self._steps: dict[tuple[Variable, ...], AdadeltaStep] = {}
        self._set_hyper("learning_rate", kwargs.get("lr", learning_rate))
        self._set_hyper("decay", self._initial_decay)
        self._set_hyper("rho", rho)
        self.epsilon = epsilon

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "epsilon":
            value = 1e-7 if value is None or not value else value
            valid(ADADELTA.hypers["eps"], "epsilon", value)
        super().__setattr__(name, value)

    def _set_hyper(self, name: str, value: Any) -> None:
        if not callable(value) and name in ("learning_rate", "rho", "decay"):
            rule = {"learning_rate": "lr", "rho": "rho", "decay": "lr"}[name]  # a decay's range is a rate's
            valid(ADADELTA.hypers[rule], name, value)
        super()._set_hyper(name, value)

    def _create_slots(self, var_list: Sequence[Variable]) -> None:
        # All of one slot, then all of the other: the order of TensorFlow's weights.
        new = [v for v in var_list if not self._slots.get(v, {}).keys() >= set(_SLOTS)]
        for slot in _SLOTS:
            for variable in new:
                self.add_slot(variable, slot)
        if new:
            self._steps.clear()

    def _prepare_local(self, device: Any, dtype: str, apply_state: dict[Any, dict[str, Any]]) -> None:
        super()._prepare_local(device, dtype, apply_state)
        local = apply_state[device, dtype]
        local["lr_t"] = ADADELTA.hypers["lr"].check("learning_rate", local["lr_t"])
        local["rho"] = ADADELTA.hypers["rho"].check("rho", self._get_hyper("rho", dtype))
        local["epsilon"] = ADADELTA.hypers["eps"].check("epsilon", self.epsilon)

    def _values(self, variable: Variable, apply_state: Mapping[Any, Any] | None) -> dict[str, float]:
        """The rule's hyperparameters for a variable."""
        key = variable.device, variable.dtype
        local = (apply_state or {}).get(key) or self._fallback_apply_state(*key)
        return {"lr": local["lr_t"], "rho": local["rho"], "eps": local["epsilon"]}

    def _apply(self, pairs: Pairs, apply_state: Mapping[Any, Any]) -> None:
        mine = [self._is_mine(isinstance(g, IndexedSlices)) for g, _ in pairs]
        own = [pair for pair, one in zip(pairs, mine, strict=True) if one]
        if len({v for _, v in pairs}) < len(pairs):  # one by one, in their order
            for pair in own:
                self._planned([pair], apply_state)  # what is wrong with one is said before anything is written
        elif own:
            self._step(own, apply_state)
            pairs = [pair for pair, one in zip(pairs, mine, strict=True) if not one]
        super()._apply(pairs, apply_state)

    def _is_mine(self, sparse: bool) -> bool:
        """Whether no subclass overrides the update by such gradients."""
        names = ["_resource_apply_sparse", "_resource_apply_sparse_duplicate_indices"]
        names = names if sparse else ["_resource_apply_dense"]
        return all(getattr(type(self), name) is getattr(Adadelta, name) for name in names)

    def _step(self, pairs: Pairs, apply_state: Mapping[Any, Any] | None) -> None:
        """One step of variables that are all different."""
        for step, planned in self._planned(pairs, apply_state):
            step.run(planned)

    def _planned(self, pairs: Pairs, apply_state: Mapping[Any, Any] | None) -> list[tuple[AdadeltaStep, list[Planned]]]:
        """A step that has been checked, for each library's variables; nothing is written."""
        given = {v: g for g, v in pairs}
        # All variables with slots, so that every step has the same ones; or a single one that is updated alone.
        known = list(self._slots) if len(given) > 1 else list(given)
        groups = [tuple(v for v in known if v.backend is library) for library in {v.backend: None for v in known}]
        for group in groups:
            if group not in self._steps:
                slots = [[self.get_slot(v, name) for v in group] for name in _SLOTS]
                self._steps[group] = AdadeltaStep([group, *slots])
        steps = [self._steps[group] for group in groups]
        return [
            (step, step.plan([given.get(v) for v in group], lambda v: self._values(v, apply_state)))
            for step, group in zip(steps, groups, strict=True)
        ]

    def _resource_apply_dense(self, grad: Any, var: Variable, apply_state: Mapping[Any, Any] | None = None) -> None:
        self._step([(grad, var)], apply_state)

    def _resource_apply_sparse(
        self, grad: Any, var: Variable, indices: np.ndarray, apply_state: Mapping[Any, Any] | None = None
    ) -> None:
        self._step([(IndexedSlices(grad, indices), var)], apply_state)

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set the values of `weights`. With one array less, as Keras 1 wrote them, the iterations become 0."""
        if len(weights) == len(self.weights) - 1:
            weights = [np.array(0), *weights]
        super().set_weights(weights)

    def get_config(self) -> dict[str, Any]:
        """The arguments that make an equal optimizer."""
        hypers = {name: self._serialize_hyperparameter(name) for name in ("learning_rate", "decay", "rho")}
        return {**super().get_config(), **hypers, "epsilon": float(self.epsilon)}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what can be made again."""
        return {**self.__dict__, "_steps": {}}
