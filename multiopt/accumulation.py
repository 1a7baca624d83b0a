"""Two more bindings beside an optimizer's: sums of gradients over micro-batches, and averages of the parameters."""

from __future__ import annotations

from collections.abc import Sequence

from .backends.generic import Array
from .binding import Binding, Plan, run, state_dtype_of
from .update import AVERAGE, SUM

__all__ = ["Accumulator", "Average"]


class Accumulator:
    """Sums of a binding's gradients over micro-batches, as wide as its state.

    A gradient that is None in every micro-batch stays None.
    """

    def __init__(self, binding: Binding, state_dtype: str | None) -> None:
        backend, dtypes = binding.backend, [binding.backend.dtype(p) for p in binding.params]
        sums = [
            backend.full_like(p, 0.0, state_dtype_of(d, state_dtype))
            for p, d in zip(binding.params, dtypes, strict=True)
        ]
        self.binding = Binding(SUM.rule, sums, binding.names, grad_dtypes=dtypes, engine=binding.engine)
        #: Which parameters have had a gradient since the last `clear`.
        self.seen = [False] * len(sums)

    def plan(self, grads: Sequence[Array | None]) -> Plan:
        """Check a micro-batch."""
        return self.binding.plan(SUM, grads, {})

    def add(self, plan: Plan, grads: Sequence[Array | None]) -> None:
        """Add a micro-batch that has been checked."""
        run([plan])
        self.seen = [seen or g is not None for seen, g in zip(self.seen, grads, strict=True)]

    def sums(self) -> list[Array | None]:
        """What was added since the last `clear`."""
        return [array if seen else None for array, seen in zip(self.binding.params, self.seen, strict=True)]

    def clear(self) -> None:
        """Start again from zero."""
        for bucket in self.binding.buckets:
            bucket.params[:] = [bucket.backend.filled(array, 0.0) for array in bucket.params]
        self.seen = [False] * len(self.seen)


class Average:
    """An exponential moving average of a binding's parameters, as wide as its state; it starts at their values."""

    def __init__(self, binding: Binding, state_dtype: str | None) -> None:
        backend, dtypes = binding.backend, [binding.backend.dtype(p) for p in binding.params]
        starts = [
            backend.copy(backend.cast(p, state_dtype_of(d, state_dtype)))
            for p, d in zip(binding.params, dtypes, strict=True)
        ]
        self.binding = Binding(AVERAGE.rule, starts, binding.names, grad_dtypes=dtypes, engine=binding.engine)

    def plan(self, params: Sequence[Array], momentum: float) -> Plan:
        """Plan a move of every average towards its parameter."""
        return self.binding.plan(AVERAGE, params, {"momentum": momentum})
