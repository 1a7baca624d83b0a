"""Variables that replicas write to: what becomes of the values that several of them assign at once."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from ..backends.protocol import Array
from .distribute import get_replica_context
from .variable import Variable

__all__ = ["Aggregated", "VariableAggregation", "VariableSynchronization", "variable_for"]


class VariableSynchronization(StrEnum):
    """When the replicas of a variable are made equal; TensorFlow's names."""

    AUTO = "auto"
    NONE = "none"
    ON_WRITE = "on_write"
    ON_READ = "on_read"

    @classmethod
    def of(cls, value: Any) -> VariableSynchronization:
        """The member of this name; TensorFlow's own member will do."""
        return _member(cls, "synchronization", value)


class VariableAggregation(StrEnum):
    """How what replicas assign to a variable becomes one value; TensorFlow's names."""

    NONE = "none"
    SUM = "sum"
    MEAN = "mean"
    ONLY_FIRST_REPLICA = "only_first_replica"

    @classmethod
    def of(cls, value: Any) -> VariableAggregation:
        """The member of this name; TensorFlow's own member will do."""
        return _member(cls, "aggregation", value)


def _member(kind: Any, what: str, value: Any) -> Any:
    name = str(getattr(value, "name", value)).lower()
    if name not in list(kind):
        raise ValueError(f"{what}: expected one of {', '.join(kind)}, got {value!r}")
    return kind(name)


class Aggregated(Variable):
    """A variable that several replicas assign to at once: the value is one of all their values.

    Without replicas it is a `Variable` like any other.
    """

    def __init__(self, value: Any, trainable: bool, name: str, aggregation: VariableAggregation) -> None:
        super().__init__(value, trainable=trainable, name=name)
        self.aggregation = aggregation

    def assign(self, value: Any) -> Variable:
        """Put the aggregate of the replicas' values in; every replica calls this."""
        context = get_replica_context()
        if context is None or context.num_replicas_in_sync == 1:
            return super().assign(value)
        mine = self._like(value)
        if self.aggregation is VariableAggregation.ONLY_FIRST_REPLICA:
            first = context.replica_id_in_sync_group == 0
            whole = context.all_reduce("sum", mine if first else self.backend.xp.zeros_like(mine))
        else:
            whole = context.all_reduce(str(self.aggregation), mine)
        context.merge_call(lambda: super(Aggregated, self).assign(whole))
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Variable:
        twin = super().__deepcopy__(memo)
        twin.aggregation = self.aggregation  # type: ignore[attr-defined]
        return twin


def variable_for(
    array: Array,
    trainable: bool,
    name: str,
    synchronization: VariableSynchronization,
    aggregation: VariableAggregation,
) -> Variable:
    """A variable that replicas treat as asked.

    Raises
    ------
    ValueError
        If it shall be synchronized on reading: replicas of one process share a variable, so that it has one value.
    """
    if synchronization is VariableSynchronization.ON_READ:
        also = ", and trainable=False" if trainable else ""
        raise ValueError(
            f"synchronization: expected auto, none or on_write{also}, got on_read: replicas share {name!r}, "
            "which has one value at any time; give aggregation instead"
        )
    if aggregation is VariableAggregation.NONE:
        return Variable(array, trainable=trainable, name=name)
    return Aggregated(array, trainable, name, aggregation)
