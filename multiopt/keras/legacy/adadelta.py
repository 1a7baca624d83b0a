"""Adadelta as TensorFlow 2.1 to 2.4 have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...binding import Job, Pass, check_params, make_buckets, prepare, run
from ...rule import ADADELTA
from ..bound import Bound
from ..sparse import take
from ..variable import IndexedSlices, Variable
from .hyperparameters import Hyper
from .optimizer import Optimizer
from .pairs import Pairs

__all__ = ["Adadelta"]

_PASS = Pass(ADADELTA)
#: The rule's names of its state, and TensorFlow's.
_SLOTS = {"square_avg": "accum_grad", "acc_delta": "accum_var"}
_SLOTS_OF = set(_SLOTS.values())


class Adadelta(Optimizer):
    """Adadelta (Zeiler 2012, arXiv 1212.5701) with TensorFlow's names, defaults and numbers.

    Variables of one array library, device and dtype are updated together, by the fastest engine that serves them.
    Of a sparse gradient, rows that come more than once are added up; rows that do not come keep their parameters and
    their state as they are.

    Parameters
    ----------
    learning_rate : float, array, callable or LearningRateSchedule
        1.0 is the paper's form. A callable takes no arguments and is called in each update.
    rho : float, array, callable or LearningRateSchedule
        Decay rate of both averages, in [0, 1].
    epsilon : float, array or None
        Keeps the quotient finite. None, and 0 as in TensorFlow, mean 1e-7.
    name : str
    **kwargs
        ``clipnorm``, ``clipvalue``, ``global_clipnorm``, ``decay``, ``lr``, ``gradient_aggregator``,
        ``gradient_transformers``: see `Optimizer`.

    Raises
    ------
    TypeError, ValueError
        See `Optimizer`; ValueError also if a hyperparameter is out of range: when it is set or, if it is a callable,
        in the update, before anything is written.

    Notes
    -----
    As in TensorFlow, ``learning_rate`` and ``rho`` given as Python numbers pass through float32; ``epsilon`` does not.
    A complex gradient is not squared as a complex number, as TensorFlow does: its real and imaginary part are taken
    apart.
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
        self._bounds = _Bounds()
        self._set_hyper("learning_rate", kwargs.get("lr", learning_rate))
        self._set_hyper("decay", self._initial_decay)
        self._set_hyper("rho", rho)
        self.epsilon = epsilon

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "epsilon":
            value = 1e-7 if value is None or not value else value
            ADADELTA.hypers["eps"].check("epsilon", value)
        super().__setattr__(name, value)

    def _set_hyper(self, name: str, value: Any) -> None:
        if not callable(value) and name in ("learning_rate", "rho", "decay"):
            rule = {"learning_rate": "lr", "rho": "rho", "decay": "lr"}[name]  # a decay's range is a rate's
            ADADELTA.hypers[rule].check(name, value)
        super()._set_hyper(name, value)

    def _create_slots(self, var_list: Sequence[Variable]) -> None:
        # All of one slot, then all of the other: the order of TensorFlow's weights.
        new = [v for v in var_list if not self._state.slots.get(v, {}).keys() >= _SLOTS_OF]
        for slot in _SLOTS.values():
            for variable in new:
                self.add_slot(variable, slot)
        if new:
            self._bounds.clear()

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
        dense = [(g, v) for g, v in pairs if not isinstance(g, IndexedSlices)]
        # One by one if a subclass has a say in it, or if a variable comes twice.
        together = type(self)._resource_apply_dense is Adadelta._resource_apply_dense
        if together and dense and len({v for _, v in pairs}) == len(pairs):
            self._step(dense, apply_state)
            pairs = [(g, v) for g, v in pairs if isinstance(g, IndexedSlices)]
        super()._apply(pairs, apply_state)

    def _step(self, pairs: Pairs, apply_state: Mapping[Any, Any] | None) -> None:
        """One step of variables that are all different."""
        given = {v: g for g, v in pairs}
        for bound in self._bound(list(given)):
            variables = bound.columns[0]
            jobs = bound.jobs(_PASS, [given.get(v) for v in variables], {})
            for job in jobs:
                job.values = self._values(variables[job.indices[0]], apply_state)
            run([job for job in jobs if any(g is not None for g in job.grads)])
            bound.collect()

    def _bound(self, variables: list[Variable]) -> list[Bound]:
        """Buckets of all variables with slots, one set for each library; or of one variable that comes alone."""
        known = list(self._state.slots) if len(variables) > 1 else variables
        by_library: dict[str, list[Variable]] = {}
        for variable in known:
            by_library.setdefault(variable.backend.name, []).append(variable)
        found = []
        for group in by_library.values():
            key = tuple(group)
            if key not in self._bounds:
                slots = {slot: [self.get_slot(v, name) for v in group] for slot, name in _SLOTS.items()}
                self._bounds[key] = Bound(ADADELTA, group, slots, range(len(group)), "auto")
            found.append(self._bounds[key])
        return found

    def _resource_apply_dense(self, grad: Any, var: Variable, apply_state: Mapping[Any, Any] | None = None) -> None:
        self._step([(grad, var)], apply_state)

    def _resource_apply_sparse(
        self, grad: Any, var: Variable, indices: np.ndarray, apply_state: Mapping[Any, Any] | None = None
    ) -> None:
        if not len(indices):
            return
        # The rows, taken out, are arrays like any other.
        boxes = {slot: self.get_slot(var, name) for slot, name in _SLOTS.items()}
        rows = take(var.value, indices)
        state = {slot: take(box.value, indices) for slot, box in boxes.items()}
        check_params([rows], [var.name])
        ((bucket, places),) = make_buckets(ADADELTA, [rows], [var.name], state=[state])
        prepare(bucket, _PASS)
        run([Job(bucket, places, _PASS, [grad], self._values(var, apply_state))])
        for box, column in zip([var, *boxes.values()], bucket.arrays(), strict=True):
            self._resource_scatter_update(box, indices, column[0])

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set the values of `weights`. One array less, as Keras 1 wrote, leaves out the iterations: they become 0."""
        if len(weights) == len(self.weights) - 1:
            weights = [np.array(0), *weights]
        super().set_weights(weights)

    def get_config(self) -> dict[str, Any]:
        """The arguments that make an equal optimizer."""
        hypers = {name: self._serialize_hyperparameter(name) for name in ("learning_rate", "decay", "rho")}
        return {**super().get_config(), **hypers, "epsilon": float(self.epsilon)}


class _Bounds(dict[tuple[Variable, ...], Bound]):
    """Buckets by their variables: they can be made again, and are neither copied nor pickled."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Bounds:
        return _Bounds()

    def __reduce__(self) -> Any:
        return _Bounds, ()
