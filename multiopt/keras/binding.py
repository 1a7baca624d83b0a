"""Variables bound to the core: their arrays are taken from the boxes before each update, and put back after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from .. import functional
from ..adadelta import ADADELTA
from ..backends.generic import Array, Backend
from ..binding import Binding
from ..memory import Memory
from ..plan import Plan, run
from ..rule import Hyper, Rule
from ..update import FusedUpdate
from .distribute.mesh import is_dtensor, local, reducer, shards
from .variables.slices import IndexedSlices, summed
from .variables.variable import Variable, detached

__all__ = ["EPSILON", "KERAS_ADADELTA", "AdadeltaStep", "Planned", "VariableBinding", "stateless"]

#: As in Keras, 0 is accepted; nothing moves then.
EPSILON = Hyper(1e-7, low=0.0)
#: Adadelta as Keras takes it: an epsilon that is 0, or is 0 in float32, is no error.
KERAS_ADADELTA = replace(ADADELTA, hypers={**ADADELTA.hypers, "eps": EPSILON})
#: Every number that an update may read.
Values = Mapping[str, Any]


class VariableBinding:
    """A rule bound to variables of one array library.

    `columns` are the variables and, for each slot of the rule, a Variable for each of them. `names` are the
    variables' in messages.
    """

    def __init__(
        self,
        rule: Rule,
        columns: Sequence[Sequence[Variable]],
        engine: str = "auto",
        names: Sequence[str] | None = None,
    ) -> None:
        self.rule, self.columns, self._engine = rule, [list(column) for column in columns], engine
        self.names = [variable.name for variable in columns[0]] if names is None else list(names)
        self._grad_names = [f"gradient of {name!r}" for name in self.names]
        self._binding: Binding | None = None

    def bound(self, memory: Memory | None = None, backend: Backend | None = None) -> Binding:
        """The core's binding of the arrays that the variables hold now.

        `memory` is that of arrays which others update, and `backend` what the arrays must belong to.
        """
        columns = [shards([box.value for box in column]) for column in self.columns]
        if self._binding is None:
            state = [dict(zip(self.rule.slots, row, strict=True)) for row in zip(*columns[1:], strict=True)]
            self._binding = Binding(
                self.rule, columns[0], self.names, state=state, engine=self._engine, memory=memory, backend=backend
            )
        for k, column in enumerate(columns):
            self._binding.replace(k, column)
        return self._binding

    def plan(self, update: FusedUpdate, grads: Sequence[Array | None], values: Values) -> Plan:
        """Check a step; nothing is written. See `multiopt.binding.Binding.plan`."""
        return self.bound().plan(update, shards(grads), values, names=self._grad_names)

    def plan_rows(self, update: FusedUpdate, i: int, rows: IndexedSlices, values: Values) -> Plan:
        """Check a step of some rows of one variable. See `multiopt.binding.Binding.plan_rows`."""
        name = self._grad_names[i]
        if is_dtensor(self.columns[0][i].value):
            raise TypeError(f"{name}: expected a dense gradient of a variable that is sharded, got rows")
        single = summed(rows)
        return self.bound().plan_rows(update, i, single.indices, detached(single.values), values, name)

    def put_back(self, plan: Plan, alone: int | None = None) -> None:
        """Put new arrays of an immutable library into the variables, or into the one of which rows were updated."""
        if self._binding is None or self._binding.backend.mutable:
            return
        for k, column in enumerate(self.columns):
            if alone is None:
                for box, array in zip(column, self._binding.column(k), strict=True):
                    box.value = array
            else:
                for job in plan.jobs:
                    (column[alone].value,) = job.bucket.arrays()[k]

    def apply(self, update: FusedUpdate, grads: Sequence[Array | None], traced: bool = False, **hypers: Any) -> None:
        """Do a rule's update without slots and options; where `traced`, operation by operation."""
        if not traced:
            plan = self.plan(update, grads, hypers)
            run([plan])
            self.put_back(plan)
            return
        own = {name: hypers[name] for name in self.rule.hypers}
        for variable, g in zip(self.columns[0], grads, strict=True):
            if g is not None:
                g = update.measured(variable.backend.xp, g, hypers)
                variable.value = stateless(self.rule, variable.value, g, **own)


def stateless(rule: Rule, x: Array, g: Array, **options: Any) -> Array:
    """The new array of a rule that has no slots, computed operation by operation."""
    return functional.update(x, g, functional.State(0, {}), rule=rule, **options)[0]


class Planned(NamedTuple):
    """A part of a step that has been checked."""

    group: VariableBinding
    plan: Plan
    #: The one variable of the group of which rows are updated.
    alone: int | None = None


class AdadeltaStep:
    """A step of Adadelta: weight decay, clipping and the rule in one pass over memory.

    `columns` are the variables, of one array library, and for each of them the accumulated gradient and the
    accumulated delta; `decayed` says which of them weight decay applies to, by default all.
    """

    def __init__(
        self, columns: Sequence[Sequence[Variable]], decayed: Sequence[bool] | None = None, engine: str = "auto"
    ) -> None:
        groups: dict[tuple[bool, Any, str], list[int]] = {}
        for i, variable in enumerate(columns[0]):
            decay = True if decayed is None else decayed[i]
            device = variable.backend.device(local(variable.value))
            groups.setdefault((decay, device, variable.dtype), []).append(i)
        self._groups: list[tuple[bool, list[int], VariableBinding]] = []
        memory: Memory | None = None
        backend: Backend | None = None
        for (decay, _, _), places in groups.items():
            group = VariableBinding(ADADELTA, [[column[i] for i in places] for column in columns], engine)
            bound = group.bound(memory, backend)
            memory, backend = bound.memory, bound.backend
            self._groups.append((decay, places, group))

    @property
    def engines(self) -> list[str]:
        """The names of the engines that run it."""
        return [bucket.engine.name for _, _, group in self._groups for bucket in group.bound().buckets]

    def plan(
        self,
        grads: Sequence[Array | IndexedSlices | None],
        values: Callable[[Variable], Values],
        clip_norm: float | None = None,
        clip_global_norm: float | None = None,
    ) -> list[Planned]:
        """Check a step; nothing is written. See `step`."""
        normed = clip_norm is not None or clip_global_norm is not None
        plans = []
        for decayed, places, group in self._groups:
            own = [grads[i] for i in places]
            if all(g is None for g in own):
                continue
            numbers = {"scale": 1.0, "clip_value": None, "weight_decay": 0.0, **values(group.columns[0][0])}
            numbers["clip_norm"] = clip_norm
            scaled, clipped = numbers["scale"] != 1.0, numbers["clip_value"] is not None
            decoupled = decayed and numbers["weight_decay"] != 0.0
            update = FusedUpdate(ADADELTA, scaled=scaled, clipped=clipped, normed=normed, decoupled=decoupled)
            whole = [None if isinstance(g, IndexedSlices) else g for g in own]
            if any(g is not None for g in whole):
                plans.append(Planned(group, group.plan(update, whole, numbers)))
            for i, g in enumerate(own):
                if isinstance(g, IndexedSlices):
                    plans.append(Planned(group, group.plan_rows(update, i, g, numbers), i))
        return plans

    def step(
        self,
        grads: Sequence[Array | IndexedSlices | None],
        values: Callable[[Variable], Values],
        clip_norm: float | None = None,
        clip_global_norm: float | None = None,
    ) -> None:
        """Take a step. Everything is checked before anything is written.

        `IndexedSlices` update their rows alone: repeated ones are added up, the others keep their state, too. Norms are
        not asked of them; `multiopt.keras.gradients.clipped` clips them before, as TensorFlow does. `values`
        returns the numbers for a variable, and is called once for each device and dtype: ``lr``, ``rho``, ``eps``, and
        optionally ``scale`` (1), ``clip_value`` (None) and ``weight_decay`` (0).
        """
        self.run(self.plan(grads, values, clip_norm, clip_global_norm), clip_global_norm)

    def run(self, planned: Sequence[Planned], clip_global_norm: float | None = None) -> None:
        """Take a step that has been planned."""
        reduce = reducer([[v.value for v in each.group.columns[0]] for each in planned])
        run([each.plan for each in planned], clip_global_norm, reduce)
        for group, plan, alone in planned:
            group.put_back(plan, alone)
