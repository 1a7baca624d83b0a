"""Gradients on their way to the step: accumulation over micro-batches, and the guard against non-finite ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .backends.base import Array, Bucket
from .rule import Rule
from .stepping import Pass, make_buckets, prepare

__all__ = ["NONFINITE", "Accumulator", "check_nonfinite"]

#: What to do with gradients that are not finite.
NONFINITE = ("propagate", "skip", "raise")


def check_nonfinite(value: str) -> str:
    """Check the option ``nonfinite``."""
    if value not in NONFINITE:
        raise ValueError(f"nonfinite: expected one of {', '.join(map(repr, NONFINITE))}, got {value!r}")
    return value


def accumulate(xp: Any, x: Any, g: Any) -> tuple[Any]:
    """Add a gradient to a sum."""
    return (x + g,)


PASS = Pass(Rule("accumulate", accumulate, slots={}, hypers={}))


class Accumulator:
    """Sums of a bucket's gradients over micro-batches, kept in the bucket's state dtype.

    A gradient that is None in every micro-batch stays None.
    """

    def __init__(self, bucket: Bucket) -> None:
        backend, dtype = bucket.backend, bucket.state_dtype
        sums = [backend.full_like(p, 0.0, dtype) for p in bucket.params]
        ((self.bucket, _),) = make_buckets(
            PASS.rule, sums, bucket.names, grad_dtype=bucket.dtype, state_dtype=dtype, engine=bucket.wanted
        )
        prepare(self.bucket, PASS)
        self.seen = [False] * len(sums)

    def add(self, grads: Sequence[Array | None]) -> None:
        """Add one micro-batch."""
        self.bucket.engine.update(self.bucket, PASS, grads, {}, None)
        self.bucket.params[:] = self.bucket.backend.settle(self.bucket.params)
        self.seen = [seen or g is not None for seen, g in zip(self.seen, grads, strict=True)]

    def sums(self) -> list[Array | None]:
        """What was added since the last `clear`."""
        return [array if seen else None for array, seen in zip(self.bucket.params, self.seen, strict=True)]

    def clear(self) -> None:
        """Start again from zero."""
        backend = self.bucket.backend
        self.bucket.params[:] = [backend.filled(array, 0.0) for array in self.bucket.params]
        self.seen = [False] * len(self.seen)
