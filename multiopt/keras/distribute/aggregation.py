"""Variables to which several replicas assign at the same time, and how these values become one."""

from __future__ import annotations

import operator
from enum import StrEnum
from functools import reduce
from typing import Any, Self

from ... import backends
from ...backends.generic import Array
from ..variables.variable import Variable, as_array
from .replicas import get_replica_context

__all__ = ["Aggregated", "SyncOnRead", "VariableAggregation", "VariableSynchronization"]


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


class SyncOnRead(Variable):
    """A variable of which each replica has a value of its own; outside of them, it is the aggregate of these.

    The replicas are threads (`multiopt.keras.distribute.Replicas`), and each begins with the value that was there
    before them. In several processes, each has a variable of its own in any case.
    """

    def __init__(self, value: Any, name: str, aggregation: VariableAggregation) -> None:
        self.aggregation = aggregation
        self._replicas = 1
        #: The value of a replica that has not used the variable yet, and of each that has.
        self._common: Array = as_array(value)
        self._own: dict[int, Array] = {}
        super().__init__(self._common, trainable=False, name=name)

    def _replica(self) -> int | None:
        """The number of the replica that is running; None outside of replicas that are threads."""
        context = get_replica_context()
        if context is None or not context.shares_variables:
            return None
        self._replicas = context.num_replicas_in_sync
        return context.replica_id_in_sync_group

    @property  # type: ignore[override]
    def _value(self) -> Array:
        replica = self._replica()
        if replica is not None:
            if replica not in self._own:
                self._own[replica] = backends.of(self._common).copy(self._common)
            return self._own[replica]
        values = [self._own.get(i, self._common) for i in range(self._replicas)]
        if len(values) == 1 or self.aggregation is VariableAggregation.ONLY_FIRST_REPLICA:
            return values[0]
        if self.aggregation is VariableAggregation.NONE:
            raise ValueError(
                f"{self.name}: each replica has a value of its own; aggregation: expected another than none"
            )
        total: Any = reduce(operator.add, values)
        return self._kept(total if self.aggregation is VariableAggregation.SUM else total / len(values))

    @_value.setter
    def _value(self, array: Array) -> None:
        replica = self._replica()
        if replica is not None:
            self._own[replica] = array
            return
        shares = self._replicas if self.aggregation is VariableAggregation.SUM else 1
        self._common = array if shares == 1 else self._kept(array / shares)
        self._own = {}

    def _kept(self, array: Any) -> Array:
        """The result of an operation, in this variable's dtype."""
        return self.backend.cast(as_array(array), self.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of each value."""
        return tuple(self._common.shape)

    def assign(self, value: Any) -> Variable:
        """Set the value of this replica or, outside of them, all of them so that this is their aggregate."""
        if self._replica() is not None:
            return super().assign(value)
        self._value = self.backend.copy(self._like(value))
        return self

    def __repr__(self) -> str:
        return f"<SyncOnRead {self.name!r} shape={self.shape} dtype={self.dtype} values={self._own or self._common!r}>"
