"""What a bucket keeps on its CUDA device, and how it is brought up to date without waiting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...generic import FLOATING, Array, CudaMemory
from ...protocol import Bucket
from ..program import Code
from . import source
from .driver import Driver
from .plan import WORDS, Plan, aliases, changes, make_plan

__all__ = ["Tables", "ordinal_of"]

WARM_UP = "do one step with the same options before it"


def ordinal_of(device: Any) -> int:
    """The number of a device such as ``cuda:1``; 0 where none is said."""
    return int(str(device).partition(":")[2] or 0)


class Tables:
    """What a bucket keeps on its device: the plan, addresses, and room for numbers and sums."""

    def __init__(self, bucket: Bucket, driver: Driver) -> None:
        self.bucket, self.driver = bucket, driver
        self.backend = bucket.backend
        memory = bucket.backend.cuda_memory(bucket.device)
        assert memory is not None  # or the engine would not serve the bucket
        self.memory: CudaMemory = memory
        self.ordinal = ordinal_of(bucket.device)
        if self.capturing():
            raise RuntimeError(f"cannot make an optimizer's tables during CUDA graph capture: {WARM_UP}")
        parts = 2 if bucket.dtype.startswith("complex") else 1
        self.layouts = [self.memory.layout(p) for p in bucket.params]
        self.plan: Plan = make_plan(np.array([math.prod(p.shape) for p in bucket.params], np.int64) * parts)
        itemsizes = [source.STORAGE[FLOATING[dtype]][0] for dtype in (bucket.dtype, bucket.grad_dtype)]
        self.param_bytes, self.grad_bytes = (self.plan.sizes * itemsize for itemsize in itemsizes)
        self.rooms: dict[str, Array] = {}
        self.fixed = [
            self.address(self.room("owners", self.plan.owners)),
            self.address(self.room("rows", self.plan.rows)),
        ]
        #: The addresses of x, g and the state, a row each: what the table on the device holds, and what it shall hold.
        self.held = np.full((2 + len(bucket.state), len(bucket.params)), -1, np.int64)
        self.now = np.zeros_like(self.held)
        self.room("addresses", self.held.ravel())
        #: What launches that went into CUDA graphs read, each its own: a later step must not change it.
        self.captured: list[Any] = []

    # --- memory on the device ---

    def room(self, name: str, initial: np.ndarray) -> Array:
        """An array on the device, kept under a name."""
        if name not in self.rooms:
            # Its size is at least 1, so that it has an address.
            padded = initial if initial.size else np.zeros(1, initial.dtype)
            self.rooms[name] = self.backend.from_host(padded, padded.dtype.name, self.bucket.params[0])
        return self.rooms[name]

    def address(self, array: Array) -> int:
        """The address of a contiguous array."""
        out = np.zeros(1, np.int64)
        if self.memory.addresses([array], ["C"], out):
            raise ValueError("expected a contiguous array")
        return int(out[0])

    def zeros(self, name: str, width: int) -> Array:
        """A kept array of `width` int64 a tensor, set to zero."""
        array = self.room(name, np.zeros(width * len(self.bucket.params), np.int64))
        self.driver.zero(self.address(array), 8 * width * len(self.bucket.params), self.ordinal, self.stream())
        return array

    def fill(self, address: int, words: np.ndarray) -> None:
        """Write at most `WORDS` words to the device."""
        carried = np.zeros(WORDS, np.int64)
        carried[: len(words)] = words
        self.launch(source.fill_source(), "fill", [address, len(words), carried], grid=1)

    # --- launching ---

    def stream(self) -> int:
        """The library's current stream on the bucket's device."""
        return self.memory.stream(self.bucket.device)

    def capturing(self) -> bool:
        """Whether the current stream is being captured."""
        return self.driver.capturing(self.ordinal, self.stream())

    def launch(self, text: str, name: str, arguments: Sequence[Any], grid: int | None = None) -> None:
        """Launch a kernel of a source on the current stream."""
        grid = self.plan.grid if grid is None else grid
        if not grid:
            return
        if (text, name, self.ordinal) not in self.driver.functions and self.capturing():
            raise RuntimeError(f"cannot load the kernel {name!r} during CUDA graph capture: {WARM_UP}")
        kernel = self.driver.kernel(text, name, self.ordinal)
        self.driver.launch(kernel, self.ordinal, self.stream(), grid, arguments)

    def walk(self, addresses: int) -> list[int]:
        """The arguments that every walk over the plan begins with."""
        return [*self.fixed, addresses, len(self.plan.owners), len(self.plan.sizes)]

    def numbers(self, code: Code, values: Mapping[str, Any]) -> list[Any]:
        """The arguments that carry the program's numbers: those at hand, and where on the device the others are."""
        live, mask = self.room("live", np.zeros(source.MOST_NUMBERS)), 0
        carried = np.zeros(max(len(code.scalars), 1))
        with self.memory.on(self.bucket.device):
            wide = {
                name: self.backend.cast(value, "float64").reshape(()) if _on_device(value) else _plain(value)
                for name, value in values.items()
            }
            for k, number in enumerate(code.values(wide)):
                if _on_device(number):
                    mask |= 1 << k
                    self.backend.write(live[k : k + 1], number.reshape((1,)))
                else:
                    carried[k] = number
        return [carried, self.address(live), mask]

    def scales(self, scales: Array) -> int:
        """The address of one float64 a tensor, which may come from the host."""
        if not isinstance(scales, np.ndarray):
            return self.address(scales)
        address = self.address(self.room("scales", np.ones(len(scales))))
        words = np.ascontiguousarray(scales, np.float64).view(np.int64)
        for start in range(0, len(words), WORDS):
            self.fill(address + 8 * start, words[start : start + WORDS])
        return address

    # --- where the arrays are ---

    def locate(
        self, grads: Sequence[Array | None], own: bool = True
    ) -> tuple[int, list[Array | None], list[tuple[Array, Array]]]:
        """Bring the table of addresses up to date.

        Tensors whose memory cannot be walked as one run are copied, and their copies walked.

        Parameters
        ----------
        grads : sequence of arrays or None
        own : bool
            Whether the parameters and the state are to be walked too.

        Returns
        -------
        int
            The table's address on the device.
        list of arrays or None
            The gradients and copies that it points at, to be held until the kernel is on the stream.
        list of (array, array)
            What is to be written back afterwards: an array, and its copy.
        """
        grads, columns = list(grads), self.bucket.arrays()
        used, back = grads.copy(), list[tuple[Array, Array]]()
        live = [i for i, g in enumerate(grads) if g is not None]
        rows = [0, *range(2, len(self.now))]
        for row, arrays in zip(rows, columns, strict=True):
            self.memory.addresses(arrays, self.layouts, self.now[row])
        self.now[1] = 0
        self._locate_gradients(grads, live)
        begins = np.where(self.now[0] < 0, 0, self.now[0])
        for i in aliases(begins, self.param_bytes * (begins != 0), np.maximum(self.now[1], 0), self.grad_bytes):
            grads[i] = self.backend.copy(grads[i])
            used.append(grads[i])
            self._locate_gradients(grads, [int(i)])
        for i in np.flatnonzero((self.now < 0).any(axis=0)).tolist():
            if grads[i] is None:
                continue
            if own and (self.now[rows, i] >= 0).all():
                used.append(self._laid_out(i, grads[i]))
                self._locate_gradients({i: used[-1]}, [i])
            if self.now[1, i] < 0 or not (self.now[rows, i] >= 0).all():
                used += self._copy(i, grads[i], columns if own else [], back)
        return self._upload(used), used, back

    def _locate_gradients(self, grads: Mapping[int, Array] | Sequence[Array], which: list[int]) -> None:
        found = np.zeros(len(which), np.int64)
        self.memory.addresses([grads[i] for i in which], [self.layouts[i] for i in which], found)
        self.now[1, which] = found

    def _laid_out(self, i: int, g: Array) -> Array:
        """A copy of a gradient that lies as its parameter does."""
        new = self.backend.full_like(self.bucket.params[i], 0.0, self.bucket.grad_dtype)
        self.backend.write(new, g)
        return new

    def _copy(self, i: int, g: Array, columns: list[list[Array]], back: list[tuple[Array, Array]]) -> list[Array]:
        """Walk copies of one tensor's arrays in C order; the caller writes those in `back` back."""
        arrays = [g, *(column[i] for column in columns)]
        copies = [self.memory.contiguous(array) for array in arrays]
        found = np.zeros(len(copies), np.int64)
        self.memory.addresses(copies, ["C"] * len(copies), found)
        self.now[:, i] = 0
        self.now[[1, 0, *range(2, len(self.now))][: len(found)], i] = found
        back += zip(arrays[1:], copies[1:], strict=True)
        return copies

    def _upload(self, used: list[Array | None]) -> int:
        """Write what has changed to the table on the device, or all to one of its own under graph capture."""
        if not self.capturing():
            table, held = self.rooms["addresses"], self.held
        else:
            xp = self.backend.xp
            with self.memory.on(self.bucket.device):
                table = xp.empty(self.now.size, dtype=xp.int64, device=self.bucket.params[0].device)
            held = np.full_like(self.now, -1)
            self.captured.append((table, used))
        address = self.address(table)
        for start, words in changes(held, self.now):
            self.fill(address + 8 * start, words)
        held[:] = self.now
        return address


def _on_device(value: Any) -> bool:
    """Whether a number is an array on a device, and not Python's or NumPy's or in the host's memory."""
    return not isinstance(value, (int, float, np.generic, np.ndarray)) and "cpu" not in str(
        getattr(value, "device", "cpu")
    )


def _plain(value: Any) -> Any:
    """A number at hand as Python's own, so that arithmetic with it is done in double."""
    return value if value is None or type(value) is int else float(value)
