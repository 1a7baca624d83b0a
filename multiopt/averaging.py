"""An exponential moving average of parameters, by the same engines: one more pass over memory."""

from __future__ import annotations

from typing import Any

from .backends.base import Array, Bucket
from .rule import Hyper, Rule
from .stepping import Pass, make_buckets, prepare

__all__ = ["AVERAGE", "Average"]


def average(xp: Any, x: Any, g: Any, *, momentum: float) -> tuple[Any]:
    """One step of the average `x` towards the parameter `g`."""
    return (momentum * x + (1 - momentum) * g,)


AVERAGE = Rule("average", average, slots={}, hypers={"momentum": Hyper(0.99, low=0.0, high=1.0)})
PASS = Pass(AVERAGE)


class Average:
    """Averages of the arrays of buckets; they start at the parameters' values.

    An average is kept in the bucket's state dtype.
    """

    def __init__(self) -> None:
        self.buckets: list[Bucket] = []

    def add(self, buckets: list[Bucket]) -> None:
        """Average the parameters of more buckets."""
        for bucket in buckets:
            backend, dtype = bucket.backend, bucket.state_dtype
            starts = [backend.copy(backend.cast(p, dtype)) for p in bucket.params]
            ((made, _),) = make_buckets(
                AVERAGE,
                starts,
                bucket.names,
                grad_dtype=bucket.dtype,
                state_dtype=dtype,
                engine=bucket.wanted,
            )
            prepare(made, PASS)
            self.buckets.append(made)

    def update(self, buckets: list[Bucket], momentum: float) -> None:
        """Move every average towards its parameter."""
        for own, bucket in zip(self.buckets, buckets, strict=True):
            own.engine.update(own, PASS, bucket.params, {"momentum": momentum}, None)
            own.params[:] = own.backend.settle(own.params)

    def arrays(self) -> list[list[Array]]:
        """The averages, one list a bucket."""
        return [bucket.params for bucket in self.buckets]
