"""Variables to which several replicas assign at the same time, and how these values become one."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Self

from ..variables.variable import Variable
from .replicas import get_replica_context

__all__ = ["Aggregated", "VariableAggregation", "VariableSynchronization"]


class _Named(StrEnum):
    @classmethod
    def of(cls, value: Any) -> Self:
        """The member of this name; a member of TensorFlow's class is accepted."""
        name = str(getattr(value, "name", value)).lower()
        if name not in list(cls):
            what = cls.__name__.removeprefix("Variable").lower()
            raise ValueError(f"{what}: expected one of {', '.join(cls)}, got {value!r}")
        return cls(name)


class VariableSynchronization(_Named):
    """When the replicas of a variable are synchronized; TensorFlow's names."""

    AUTO = "auto"
    NONE = "none"
    ON_WRITE = "on_write"
    ON_READ = "on_read"


class VariableAggregation(_Named):
    """How the values that replicas assign to a variable become one; TensorFlow's names."""

    NONE = "none"
    SUM = "sum"
    MEAN = "mean"
    ONLY_FIRST_REPLICA = "only_first_replica"


class Aggregated(Variable):
    """A variable that replicas assign to at the same time: it holds the aggregate of their values.

    Without replicas, or with aggregation "none", it is an ordinary `Variable`.
    """

    def __init__(self, value: Any, trainable: bool, name: str, aggregation: VariableAggregation) -> None:
        super().__init__(value, trainable=trainable, name=name)
        self.aggregation = aggregation

    def assign(self, value: Any) -> Variable:
        """Set the aggregate of the replicas' values; every replica must call this."""
        context = get_replica_context()
        if self.aggregation is VariableAggregation.NONE or context is None or context.num_replicas_in_sync == 1:
            return super().assign(value)
        mine = self._like(value)
        if self.aggregation is VariableAggregation.ONLY_FIRST_REPLICA:
            first = context.replica_id_in_sync_group == 0
            whole = context.all_reduce("sum", mine if first else self.backend.xp.zeros_like(mine))
        else:
            whole = context.all_reduce(str(self.aggregation), mine)
        context.merge_call(lambda: super(Aggregated, self).assign(whole))
        return self
