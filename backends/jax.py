"""JAX arrays. They are immutable: a step puts new arrays into its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import jax
import numpy as np

from .engines.norms import square_sums
from .generic import Array, Backend

__all__ = ["JaxBackend"]


class JaxBackend(Backend):
    """Concrete arrays, sharded ones too. Under `jax.jit` use `multiopt.functional`.

    On the CPU the host engine computes, called from XLA's programs (`engines.xla`). Where it does not, XLA flushes
    subnormal numbers to zero, contracts products and sums, and multiplies by the reciprocal where a rule divides an
    array by a number (Adadelta does not).
    """

    mutable: bool = False
    donates: bool = True

    def rejects(self, array: Array) -> str | None:
        if isinstance(array, jax.core.Tracer):
            return "got a traced array; under jax.jit use multiopt.functional"
        return None

    def freed(self, array: Array) -> bool:
        return not isinstance(array, jax.core.Tracer) and array.is_deleted()  # donated, say

    def device(self, array: Array) -> str:
        return _names(frozenset(array.sharding.device_set))  # which a deleted one has, too

    def calls(self, device: str) -> bool:
        return {str(found) for found in jax.devices("cpu")}.issuperset(device.split(", "))

    def signature(self, arrays: Sequence[Array]) -> list[Any]:
        return [(a.dtype, a.shape, a.sharding) for a in arrays]

    def full_like(self, array: Array, value: float, dtype: str) -> Array:
        # The device argument takes a sharding, which the state shares with its parameter, and binds the array to it.
        # One that is bound where its parameter is not would have JAX compile a step twice.
        bound = array.sharding if getattr(array, "committed", True) else None
        return jax.numpy.full_like(array, value, dtype=dtype, device=bound)

    def take(self, array: Array, rows: np.ndarray) -> Array:
        return array[rows]  # NumPy's integers are no array of a device

    def put(self, array: Array, rows: np.ndarray, values: Array) -> Array:
        return array.at[rows].set(values)

    def join(self, parts: list[Array], dtype: str) -> Array:
        return parts[0] if len(parts) == 1 else jax.lax.complex(*parts)

    def to_host(self, array: Array) -> np.ndarray:
        host = np.array(array, order="C", copy=True)
        return host.view(np.uint16) if array.dtype.name == "bfloat16" else host

    def from_host(self, array: np.ndarray, dtype: str, like: Array | None = None) -> Array:
        return jax.device_put(array.view(jax.numpy.dtype(dtype)), None if like is None else like.sharding)

    def lower(
        self,
        program: Any,
        columns: Sequence[Sequence[Array]],
        scalars: Mapping[str, Any],
        rounding: Any,
        parameters: Sequence[int],
    ) -> list[list[Array]] | None:
        from .engines.xla.calls import lowered

        return lowered(self, program, columns, scalars, rounding, parameters)

    def square_sums(self, prepare: Any, g: Array, computing: str) -> list[int]:
        # On the host, because JAX has no float64 unless told so for the whole process.
        return square_sums(np, np.atleast_1d(np.asarray(prepare(self.xp, g))).astype(np.float64), computing)


@cache
def _names(devices: frozenset[Any]) -> str:
    return ", ".join(sorted(map(str, devices)))
