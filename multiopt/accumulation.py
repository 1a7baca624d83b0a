"""Two more bindings beside an optimizer's: sums of gradients over micro-batches, and averages of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .backends.generic import Array
from .backends.rounding import Elements
from .binding import Binding, state_dtype_of
from .update import AVERAGE, SUM, FusedUpdate

__all__ = ["Accumulator", "average"]


class Accumulator:
    """Sums of a binding's gradients over micro-batches, as wide as its state.

    A gradient that is None in every micro-batch stays None.
    """

    def __init__(self, binding: Binding, state_dtype: str | None) -> None:
        def zeros(array: Array, dtype: str) -> Array:
            return binding.backend.full_like(array, 0.0, dtype)

        donate = all(bucket.engine.donates for bucket in binding.buckets)
        self.binding = _beside(binding, SUM, state_dtype, zeros, donate=donate)
        #: Which parameters have had a gradient since the last `clear`.
        self.seen = [False] * len(binding.names)

    def seen_with(self, grads: Sequence[Array | None]) -> list[bool]:
        """Which parameters will have had a gradient once these have been added."""
        return [seen or g is not None for seen, g in zip(self.seen, grads, strict=True)]

    def sums(self, seen: Sequence[bool]) -> list[Array | None]:
        """The sums of the parameters that have had a gradient."""
        return [array if had else None for array, had in zip(self.binding.params, seen, strict=True)]

    def clear(self) -> None:
        """Start again from zero."""
        for bucket in self.binding.buckets:
            bucket.params[:] = [bucket.backend.filled(array, 0.0) for array in bucket.params]
        self.seen = [False] * len(self.seen)


def average(binding: Binding, state_dtype: str | None) -> Binding:
    """Exponential moving averages of a binding's parameters, as wide as its state; they start at their values."""

    def start(array: Array, dtype: str) -> Array:
        return binding.backend.copy(binding.backend.cast(array, dtype))

    return _beside(binding, AVERAGE, state_dtype, start, binding.elements)


def _beside(
    binding: Binding,
    update: FusedUpdate,
    state_dtype: str | None,
    make: Callable[[Array, str], Array],
    elements: Sequence[Elements] | None = None,
    *,
    donate: bool = False,
) -> Binding:
    dtypes = [binding.backend.dtype(array) for array in binding.params]
    arrays = [make(p, state_dtype_of(dtype, state_dtype)) for p, dtype in zip(binding.params, dtypes, strict=True)]
    return Binding(
        update.rule, arrays, binding.names, grad_dtypes=dtypes, engine=binding.engine, elements=elements, donate=donate
    )
