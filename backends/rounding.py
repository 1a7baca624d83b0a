"""Stochastic rounding to bfloat16: the hash that it draws from, written once, and what it is a hash of.

A float32 lies between two bfloat16 numbers, its own upper half and the next one away from zero. It is stored as the
latter with the probability that makes the mean right: a random number of 16 bits is added to its bits, and the lower
half is cut off. What is a bfloat16 number already stays as it is, infinities too.

The random number is a hash of (seed, step, parameter, element, slot), so that nothing is carried along and the bits
depend on nothing else: not on threads, blocks, layout or sharding. Two slots share one hash of 32 bits, each takes half
of it: slot 2m the low bits of hash m, slot 2m + 1 the high ones.

- Keys, two words, are derived from seed, step, parameter, the high half of the element's index, and the pair of slots,
  by absorbing one after another; the element's hash takes the low half. Of the two keys one enters before the first
  multiplication and one after it, so that two steps are never the same sequence at another place.
- An element's index is that in the whole parameter, in C order: 64 bits.

Engines render `STEPS` in their language; here they are done on Python's integers and on arrays of any library, in
words of 32 bits with a sign, because that is what all of them have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .generic import Array, Backend

__all__ = ["Draws", "Elements", "Keys", "Rounding", "absorbed", "hashed", "rendered", "rounded", "tables"]

#: The hash of a word under a pair of keys: a key is added, or xored; the word is xored to itself, shifted to the right;
#: it is multiplied. Each can be undone, so that no two of 2**32 words have the same hash.
STEPS: tuple[tuple[str, int], ...] = (
    ("add", 0), ("shift", 16), ("mul", 0x21F0AAAD), ("shift", 15), ("xor", 1), ("mul", 0xD35A2D97), ("shift", 15),
)  # fmt: skip
#: The keys before anything is absorbed.
START = (0x243F6A88, 0x13198A2E)
MASK = 0xFFFFFFFF
#: Elements that are hashed in one go: their numbers fit into a word.
SEGMENT = 1 << 30

#: Two words, integers or, where the step is one, arrays.
Keys = tuple[Any, Any]


@dataclass(frozen=True, eq=False)
class Elements:
    """Which elements of which parameter an array holds."""

    #: The parameter's number.
    parameter: int
    #: Where they stand in the whole parameter, in C order both: rows of first index and length, int64, of shape
    #: (n, 2). None: it holds the whole parameter.
    runs: np.ndarray | None = None

    @classmethod
    def of_block(cls, parameter: int, whole: Sequence[int], start: Sequence[int], shape: Sequence[int]) -> Elements:
        """Those of a block, of some shape and with its first element at `start`, of a parameter of shape `whole`."""
        axis, length = len(shape), 1
        while axis and length == math.prod(whole[axis:]):  # axes that are whole make one run with the one before
            axis -= 1
            length *= shape[axis]
        strides = [math.prod(whole[k + 1 :]) for k in range(len(whole))]
        first = np.array([sum(s * stride for s, stride in zip(start, strides, strict=True))], np.int64)
        for n, stride in zip(shape[:axis], strides, strict=False):
            first = (first[:, None] + np.arange(n, dtype=np.int64) * stride).ravel()
        return cls(parameter, np.stack([first, np.full_like(first, length)], axis=1))

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Check that there are as many as an array of this shape has."""
        if self.runs is not None and int(self.runs[:, 1].sum()) != math.prod(shape):
            raise ValueError(f"{name}: expected runs of {math.prod(shape)} elements, got {int(self.runs[:, 1].sum())}")


@dataclass(frozen=True)
class Rounding:
    """By what one step rounds stochastically."""

    #: From 0 to 2**64 − 1.
    seed: int
    #: The step's number from 0: an integer below 2**64; or, where it may not be looked at, its low and high 32 bits,
    #: each an integer or a 0-d array of int32.
    step: int | tuple[Any, Any]

    @cached_property
    def keys(self) -> Keys:
        """The keys from which each parameter's are derived."""
        keys: Keys = START
        for number in (self.seed, self.step):
            for word in (number, number >> 32) if isinstance(number, int) else number:
                keys = absorbed(keys, word)
        return keys


def rendered(templates: Mapping[str, str]) -> list[str]:
    """The hash in another language, a line a step, by templates for ``add``, ``xor``, ``shift`` and ``mul``."""
    return [templates[what].format(operand) for what, operand in STEPS]


def absorbed(keys: Keys, word: Any) -> Keys:
    """Keys that depend on a word besides: an array of int32, or the low 32 bits of an integer."""
    word = _signed(word) if isinstance(word, int) else word
    first = hashed(word, keys)
    return first, hashed(~word, (keys[1], first))


def hashed(word: Any, keys: Keys) -> Any:
    """The hash of a word under two keys."""
    for what, operand in STEPS:
        if what == "add":
            word = word + keys[operand]
        elif what == "xor":
            word = word ^ keys[operand]
        elif what == "shift":
            word = word ^ ((word >> operand) & (MASK >> operand))
        else:
            word = word * _signed(operand)
        word = _signed(word) if isinstance(word, int) else word
    return word


def _signed(number: int) -> int:
    """The low 32 bits of an integer, as a number with a sign."""
    return ((number + (1 << 31)) & MASK) - (1 << 31)


# --- the store, in array code ---


def rounded(xp: Any, x: Array, random: Array) -> Array:
    """Round float32 numbers to bfloat16 ones, still as float32, by random integers from 0 to 2**16 − 1."""
    return xp.where(x == x, ((x.view(xp.int32) + random) & -(1 << 16)).view(xp.float32), x)


@dataclass(frozen=True)
class Draws:
    """What an array, or a block of one, is rounded by at one step."""

    rounding: Rounding
    elements: Elements
    #: Of the array.
    shape: tuple[int, ...]
    #: Which block of it; None for all of it.
    box: tuple[slice, ...] | None = None

    def random(self, backend: Backend, like: Array, slots: Sequence[int]) -> dict[int, Array]:
        """For each slot integers from 0 to 2**16 − 1, in the shape of an array of the backend."""
        keys = absorbed(self.rounding.keys, self.elements.parameter)
        hashes = {pair: self._hashes(backend, like, keys, pair) for pair in {slot // 2 for slot in slots}}
        return {slot: hashes[slot // 2] >> 16 * (slot % 2) & 0xFFFF for slot in slots}

    def _hashes(self, backend: Backend, like: Array, keys: Keys, pair: int) -> Array:
        if self.box is None and self.elements.runs is None:
            # Made where the array is, without the host's memory: the array may be traced.
            total = math.prod(self.shape)
            parts = [
                hashed(
                    backend.indices(min(SEGMENT, total - start), like) + _signed(start),
                    absorbed(absorbed(keys, start >> 32), pair),
                )
                for start in range(0, max(total, 1), SEGMENT)
            ]
            whole = parts[0] if len(parts) == 1 else backend.xp.concat(parts)
        else:
            index = self._index()
            high: Any = (index >> 32).astype(np.int32)
            high = high if (high != high[:1]).any() else int(high[:1].sum())
            whole = hashed(index.astype(np.int32), absorbed(absorbed(keys, high), pair))
            whole = backend.from_host(whole, "int32", like)
        return backend.xp.reshape(whole, like.shape)

    def _index(self) -> np.ndarray:
        """Where the block's elements stand in the whole parameter, in C order."""
        box = self.box or tuple(slice(0, n) for n in self.shape)
        local, stride = np.zeros((1,) * len(box), np.int64), 1
        for axis in reversed(range(len(box))):
            along = np.arange(box[axis].start, box[axis].stop, dtype=np.int64) * stride
            local = local + along.reshape([-1 if k == axis else 1 for k in range(len(box))])
            stride *= self.shape[axis]
        local = local.ravel()
        if (runs := self.elements.runs) is None:
            return local
        ends = np.cumsum(runs[:, 1])
        which = np.searchsorted(ends, local, side="right")
        return local + (runs[:, 0] - (ends - runs[:, 1]))[which]


# --- for compiled engines ---


def tables(elements: Sequence[Elements], sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the elements of some tensors stand, as kernels read it; int64.

    The first table has a row a tensor and one more: the parameter's number, and the tensor's first row in the second
    table. That has a row a run: the tensor's element after its last one, and what is added to a place in the tensor.
    """
    runs = [
        np.array([[0, size]], np.int64) if e.runs is None else np.asarray(e.runs, np.int64).reshape(-1, 2)
        for e, size in zip(elements, sizes, strict=True)
    ]
    ends = [np.cumsum(own[:, 1]) for own in runs]
    tensors = np.zeros((len(runs) + 1, 2), np.int64)
    tensors[:-1, 0] = [e.parameter for e in elements]
    tensors[1:, 1] = np.cumsum([len(own) for own in runs])
    places = [np.stack([end, own[:, 0] - (end - own[:, 1])], axis=1) for own, end in zip(runs, ends, strict=True)]
    return tensors, np.concatenate(places)
