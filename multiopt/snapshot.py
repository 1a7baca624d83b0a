"""Snapshots: an optimizer's state, its options and its counters at one moment.

A snapshot is ``{"about": ..., "arrays": {key: array}}``: options and counters, and every state array, average and
unfinished accumulation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .accumulation import Accumulator
from .backends.generic import Array, Backend
from .backends.protocol import Bucket
from .binding import Binding
from .options import OPTIONS, Group

__all__ = [
    "COUNTERS",
    "ROUNDING",
    "SETTINGS",
    "Place",
    "Trained",
    "about",
    "check_readable",
    "places",
    "state_dict",
    "sums",
]

FORMAT = 1
COUNTERS = ("steps", "micro_steps", "skipped")
#: Fixed options that say, with the counter of steps, how state is rounded; snapshots have them since 0.2.
ROUNDING = ("state_rounding", "seed")
#: Options of the whole step, which can be assigned.
SETTINGS = tuple(name for name, option in OPTIONS.items() if option.scope == "step")


class Trained(Protocol):
    """What a snapshot needs of an optimizer."""

    bindings: list[Binding]
    accumulators: list[Accumulator]
    averages: list[Binding]
    groups: list[Group]
    settings: dict[str, Any]
    steps: int
    micro_steps: int
    skipped: int


@dataclass
class Place:
    """One array of the optimizer, which can be read and replaced."""

    key: str
    bucket: Bucket
    column: list[Array]
    j: int
    dtype: str

    def get(self) -> Array:
        """The array that stands here now."""
        return self.column[self.j]

    @property
    def backend(self) -> Backend:
        """Of the optimizer's arrays."""
        return self.bucket.backend

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the parameter, and so of its state."""
        return tuple(self.bucket.params[self.j].shape)

    def check(self, array: Array) -> None:
        """Check that an array can stand here."""
        backend = self.backend
        check_readable(backend, array)
        expected = self.shape, self.dtype, str(self.bucket.device)
        got = tuple(array.shape), backend.dtype(array), str(backend.device(array))
        for what, one, other in zip(("shape", "dtype", "device"), expected, got, strict=True):
            if one != other:
                raise ValueError(f"expected {what} {one}, got {other}")

    def checked(self, host: np.ndarray) -> np.ndarray:
        """Values as `Backend.to_host` gives them, if they are what this array's must be: what is lazy may not be."""
        if (host.shape, host.dtype) != (self.shape, np.dtype("uint16" if self.dtype == "bfloat16" else self.dtype)):
            raise ValueError(f"expected {self.dtype} values of shape {self.shape}, got {host.dtype} of {host.shape}")
        return host

    def made(self, host: np.ndarray) -> Array:
        """An array of the library, on the device, with such values."""
        return self.backend.from_host(self.checked(host), self.dtype, self.get())

    def saved(self) -> Array:
        """A copy; where arrays are immutable and stay, the array itself."""
        return self.backend.copy(self.get())

    def put(self, new: Array) -> None:
        """Take over an array that has been checked: its values, or itself where arrays are immutable."""
        if self.backend.mutable:
            self.backend.write(self.get(), new)
        else:
            self.column[self.j] = new


def check_readable(backend: Backend, array: Array) -> None:
    """Check that an array has values in memory of its own."""
    if reason := backend.rejects(array):
        raise ValueError(reason)
    if backend.freed(array):
        raise ValueError("expected an array with memory, got one whose storage was freed")


def places(opt: Trained, params: bool, unfinished: bool | None = None) -> list[Place]:
    """Every array of a snapshot, with keys such as ``square_avg/params['w']``.

    Parameters
    ----------
    opt : Trained
    params : bool
        Whether the parameters are among them.
    unfinished : bool, optional
        Whether the sums of an accumulation are; by default if one has begun.
    """
    found = []
    for i, binding in enumerate(opt.bindings):
        found += _column("params", binding, 0) if params else []
        for k, slot in enumerate(binding.rule.slots, start=1):
            found += _column(slot, binding, k)
        found += _column("ema", opt.averages[i], 0) if opt.averages else []
        found += sums(opt, i) if (opt.micro_steps > 0 if unfinished is None else unfinished) else []
    return found


def _column(kind: str, binding: Binding, k: int) -> list[Place]:
    found = []
    for bucket in binding.buckets:
        arrays, dtype = bucket.arrays()[k], bucket.state_dtype if k else bucket.dtype
        found += [Place(f"{kind}/{name}", bucket, arrays, j, dtype) for j, name in enumerate(bucket.names)]
    return found


def sums(opt: Trained, i: int) -> list[Place]:
    """The sums of an accumulation of the i-th group; none without accumulation."""
    return _column("accumulated", opt.accumulators[i].binding, 0) if opt.accumulators else []


def about(opt: Trained, encode: Callable[[Any], Any] = lambda value: value) -> dict[str, Any]:
    """Everything but the arrays."""
    accumulators = zip(opt.accumulators, opt.bindings, strict=False)
    return {
        "format": FORMAT,
        "rule": opt.settings["rule"].name,
        "accumulate": opt.settings["accumulate"],
        **{name: getattr(opt, name) for name in COUNTERS},
        **{name: opt.settings[name] for name in (*SETTINGS, *ROUNDING)},
        # Which parameters of each bucket have had a gradient in this accumulation.
        "accumulated": [[a.seen[i] for i in own] for a, binding in accumulators for own in binding.places],
        "groups": [
            {"names": list(group.structure.names), **{k: encode(v) for k, v in group.options().items()}}
            for group in opt.groups
        ],
    }


def state_dict(opt: Trained) -> dict[str, Any]:
    """A snapshot, with copies of the arrays."""
    held = places(opt, params=False)
    return {"about": about(opt), "arrays": {place.key: place.saved() for place in held}}
