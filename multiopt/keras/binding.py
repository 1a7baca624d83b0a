"""Variables bound to the core: their arrays are taken from the boxes before each update, and put back after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .. import functional
from ..backends.base import Array, Bucket
from ..rule import ADADELTA, Rule
from ..stepping import Job, Pass, check_gradients, check_params, make_buckets, prepare, run
from .distribute.mesh import local, reducer
from .variables.variable import Variable

__all__ = ["AdadeltaStep", "VariableBinding"]

#: Every number that an update may read.
Values = Mapping[str, Any]


class VariableBinding:
    """A rule bound to variables of one array library, and to their slots, a Variable for each of them.

    `names` are the variables' in messages.
    """

    def __init__(
        self,
        rule: Rule,
        variables: Sequence[Variable],
        slots: Mapping[str, Sequence[Variable]],
        engine: str = "auto",
        names: Sequence[str] | None = None,
    ) -> None:
        self.rule, self.engine = rule, engine
        self.variables = list(variables)
        self.columns = [self.variables, *(list(slots[name]) for name in rule.slots)]
        self.names = [variable.name for variable in variables] if names is None else list(names)
        self._buckets: list[tuple[Bucket, list[int]]] = []

    @property
    def engines(self) -> list[str]:
        """The names of the engines that run it."""
        return [bucket.engine.name for bucket, _ in self._buckets]

    def plan(
        self, update: Pass, grads: Sequence[Array | None], values: Values, clip_norm: float | None = None
    ) -> list[Job]:
        """Check everything, and return what `multiopt.stepping.run` takes; nothing is written.

        Raises
        ------
        TypeError, ValueError
            If variables cannot be updated, or a gradient does not agree with its variable.
        """
        self._take_arrays()
        made = []
        for bucket, indices in self._buckets:
            own = [None if grads[i] is None else local(grads[i]) for i in indices]
            check_gradients(bucket, own, [f"gradient of {self.names[i]!r}" for i in indices])
            prepare(bucket, update)
            made.append(Job(bucket, indices, update, own, values, clip_norm))
        return made

    def put_back(self) -> None:
        """Put new arrays of an immutable library into the variables."""
        for bucket, indices in self._buckets:
            if not bucket.backend.mutable:
                for column, boxes in zip(bucket.arrays(), self.columns, strict=True):
                    for array, i in zip(column, indices, strict=True):
                        boxes[i].value = array

    def apply(self, grads: Sequence[Array | None], traced: bool = False, **hypers: Any) -> None:
        """Run a rule that has no slots; where `traced`, operation by operation."""
        if not traced:
            run(self.plan(Pass(self.rule), grads, hypers))
            self.put_back()
            return
        for variable, g in zip(self.variables, grads, strict=True):
            if g is not None:
                variable.value = stateless(self.rule, variable.value, g, **hypers)

    def _take_arrays(self) -> None:
        """Bind the arrays that the variables hold now: somebody may have put other ones there."""
        if not self._buckets:
            arrays = [local(variable.value) for variable in self.variables]
            check_params(arrays, self.names)
            slots = zip(self.rule.slots, self.columns[1:], strict=True)
            columns = {slot: [local(box.value) for box in column] for slot, column in slots}
            state = [{slot: column[i] for slot, column in columns.items()} for i in range(len(arrays))]
            self._buckets = make_buckets(self.rule, arrays, self.names, state=state, engine=self.engine)
        for bucket, indices in self._buckets:
            changed = False
            for column, boxes in zip(bucket.arrays(), self.columns, strict=True):
                for j, i in enumerate(indices):
                    array = local(boxes[i].value)
                    if column[j] is not array:
                        column[j], changed = array, True
            if changed and bucket.backend.mutable:
                bucket.cache.clear()  # it may hold addresses


def stateless(rule: Rule, x: Array, g: Array, **options: Any) -> Array:
    """The new array of a rule that has no slots, computed operation by operation."""
    return functional.update(x, g, functional.State(0, {}), rule=rule, **options)[0]


class AdadeltaStep:
    """A step of Adadelta: weight decay, clipping and the rule in one pass over memory.

    Parameters
    ----------
    columns : three sequences of Variable
        The variables, of one array library, and for each of them the accumulated gradient and the accumulated delta.
    decayed : sequence of bool or None
        Which variables weight decay applies to; None: all.
    engine : str
        See `multiopt.Optimizer`.
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
        for (decay, _, _), places in groups.items():
            own, *state = ([column[i] for i in places] for column in columns)
            slots = dict(zip(ADADELTA.slots, state, strict=True))
            self._groups.append((decay, places, VariableBinding(ADADELTA, own, slots, engine)))

    @property
    def engines(self) -> list[str]:
        """The names of the engines that run it."""
        return [name for _, _, binding in self._groups for name in binding.engines]

    def plan(
        self,
        grads: Sequence[Array | None],
        values: Callable[[Variable], Values],
        clip_norm: float | None = None,
        clip_global_norm: float | None = None,
    ) -> tuple[list[Job], list[Variable]]:
        """Check everything as `step` does; return the work, and the variable of each gradient in it."""
        jobs: list[Job] = []
        variables: list[Variable] = []
        for decayed, places, binding in self._groups:
            own = [grads[i] for i in places]
            if all(g is None for g in own):
                continue
            numbers = {"scale": 1.0, "clip_value": None, "weight_decay": 0.0, **values(binding.variables[0])}
            update = Pass(
                ADADELTA,
                scaled=numbers["scale"] != 1.0,
                clipped=numbers["clip_value"] is not None,
                normed=clip_norm is not None or clip_global_norm is not None,
                decoupled=decayed and numbers["weight_decay"] != 0.0,
            )
            jobs += binding.plan(update, own, numbers, clip_norm)
            variables += binding.variables
        return jobs, variables

    def step(
        self,
        grads: Sequence[Array | None],
        values: Callable[[Variable], Values],
        clip_norm: float | None = None,
        clip_global_norm: float | None = None,
    ) -> None:
        """Take a step. Everything is checked before anything is written.

        Parameters
        ----------
        grads : sequence of arrays or None
            One for each variable; None leaves its variable and state as they are.
        values : callable
            The numbers for a variable: ``lr``, ``rho``, ``eps``, and optionally ``scale`` (1), ``clip_value`` (None)
            and ``weight_decay`` (0). Called once for each device and dtype.
        clip_norm, clip_global_norm : float or None
            Thresholds for each gradient's norm, and for the norm of all gradients together.

        Raises
        ------
        TypeError, ValueError
            See `VariableBinding.plan`.
        """
        jobs, variables = self.plan(grads, values, clip_norm, clip_global_norm)
        normed = clip_norm is not None or clip_global_norm is not None
        run(jobs, clip_global_norm, reducer([v.value for v in variables]) if normed else None)
        for _, _, binding in self._groups:
            binding.put_back()
