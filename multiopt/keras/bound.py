"""Variables bound to the core's buckets: the boxes' arrays are what a bucket holds, before and after each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..backends.protocol import Array
from ..binding import Job, Pass, check_gradients, check_params, make_buckets, prepare
from ..rule import Rule
from .mesh import local
from .variable import Variable

__all__ = ["Bound"]


class Bound:
    """Some variables, with a rule's state, in buckets.

    Parameters
    ----------
    rule : Rule
        What will be computed on them.
    variables : sequence of Variable
        What the rule updates.
    slots : mapping of str to sequence of Variable
        The rule's state: for each slot one variable a variable.
    places : sequence of int
        Where each variable's gradient stands in the list that `jobs` takes.
    engine : str
        See `multiopt.Optimizer`.
    names : sequence of str or None
        What to call each variable in messages, if not by its name.

    Raises
    ------
    TypeError, ValueError
        See `multiopt.binding.check_params`.
    """

    def __init__(
        self,
        rule: Rule,
        variables: Sequence[Variable],
        slots: Mapping[str, Sequence[Variable]],
        places: Sequence[int],
        engine: str,
        names: Sequence[str] | None = None,
    ) -> None:
        self.columns = [list(variables), *(list(slots[name]) for name in rule.slots)]
        self.places = list(places)
        names = [variable.name for variable in variables] if names is None else list(names)
        arrays = [local(variable.value) for variable in variables]
        check_params(arrays, names)
        state = [{slot: local(slots[slot][i].value) for slot in rule.slots} for i in range(len(self.columns[0]))]
        self.buckets = make_buckets(rule, arrays, names, state=state, engine=engine)

    def refresh(self) -> None:
        """Take over arrays that somebody put into a box."""
        for bucket, indices in self.buckets:
            changed = False
            for column, boxes in zip(bucket.arrays(), self.columns, strict=True):
                for j, i in enumerate(indices):
                    array = local(boxes[i].value)
                    if column[j] is not array:
                        column[j], changed = array, True
            if changed and bucket.backend.mutable:
                bucket.cache.clear()  # it may hold addresses

    def jobs(
        self,
        one_pass: Pass,
        grads: Sequence[Array | None],
        values: Mapping[str, Any],
        clip_norm: float | None = None,
    ) -> list[Job]:
        """Check the gradients, and say what is to be done; nothing is written.

        Raises
        ------
        TypeError, ValueError
            See `multiopt.binding.check_gradients`.
        """
        self.refresh()
        made = []
        for bucket, indices in self.buckets:
            own = [grads[self.places[i]] for i in indices]
            names = [f"gradient of {bucket.names[j]!r}" for j in range(len(indices))]
            check_gradients(bucket, own, names)
            prepare(bucket, one_pass)
            made.append(Job(bucket, indices, one_pass, own, values, clip_norm))
        return made

    def collect(self) -> None:
        """Put the new arrays of an immutable library into the boxes."""
        for bucket, indices in self.buckets:
            if not bucket.backend.mutable:
                for column, boxes in zip(bucket.arrays(), self.columns, strict=True):
                    for j, i in enumerate(indices):
                        boxes[i].value = column[j]
