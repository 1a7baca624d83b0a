"""What a bucket keeps on its CUDA device, and how it is brought up to date without waiting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ...generic import Array, CudaMemory
from ...protocol import Bucket, Job
from ...rounding import tables as rounding_tables
from ..locate import Copies, copy_blocks, locations_of
from ..program import Code
from . import source
from .driver import Driver
from .plan import WORDS, Plan, changes, make_plan

__all__ = ["Tables"]

WARM_UP = "do one step with the same options before it"


class Tables:
    """What a bucket keeps on its device: the plan, addresses, and room for numbers and sums."""

    def __init__(self, bucket: Bucket, driver: Driver) -> None:
        self.bucket, self.driver = bucket, driver
        self.backend = bucket.backend
        memory = bucket.backend.cuda_memory(bucket.device)
        assert memory is not None  # or the engine would not serve the bucket
        self.memory: CudaMemory = memory
        self.ordinal = self.memory.ordinal(bucket.device)
        if self.capturing():
            raise RuntimeError(f"cannot make an optimizer's tables during CUDA graph capture: {WARM_UP}")
        self.locations = locations_of(bucket, self.memory)
        self.plan: Plan = make_plan(self.locations.sizes)
        self.rooms: dict[str, Array] = {}
        tables = {"owners": self.plan.owners, "rows": self.plan.rows}
        self.fixed = [self.address(self.room(name, words)) for name, words in tables.items()]
        #: What the table on the device holds: the addresses of x, g and the state, a row each.
        self.uploaded = np.full((2 + len(bucket.state), len(self.locations.sizes)), -1, np.int64)
        self.room("addresses", self.uploaded.ravel())
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
        """Write words to the device, a launch for each `WORDS` of them."""
        for start in range(0, len(words), WORDS):
            piece, carried = words[start : start + WORDS], np.zeros(WORDS, np.int64)
            carried[: len(piece)] = piece
            self.launch(source.fill_source(), "fill", [address + 8 * start, len(piece), carried], grid=1)

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

    def run(self, text: str, name: str, job: Job, arguments: Sequence[Any], *, own: bool = False) -> None:
        """Launch a kernel that walks over the bucket. `own` says whether it writes to the parameters and the state."""
        address, _kept, copies = self.locate(job, own)  # what is kept lives until the kernel is on the stream
        walk = [*self.fixed, address, len(self.plan.owners), len(self.plan.sizes)]
        self.launch(text, name, [*walk, *arguments])
        with self.memory.on(self.bucket.device):
            for copy in copies:
                copy.write_back(self.backend)

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
        self.fill(address, np.ascontiguousarray(scales, np.float64).view(np.int64))
        return address

    def rounding(self, job: Job) -> list[Any]:
        """The arguments by which an update rounds stochastically."""
        low, high = job.keys
        return [*self.places, low & 0xFFFFFFFF | (high & 0xFFFFFFFF) << 32]

    @cached_property
    def places(self) -> list[int]:
        """Where the tables of `rounding.tables` are."""
        assert self.bucket.elements is not None  # `Binding.plan` has looked
        tables = zip(("tensors", "runs"), rounding_tables(self.bucket.elements, self.locations.sizes), strict=True)
        return [self.address(self.room(name, table.ravel())) for name, table in tables]

    # --- where the arrays are ---

    def locate(self, job: Job, own: bool) -> tuple[int, list[Array | None], list[Copies]]:
        """Bring the table on the device up to date: where it is, and the arrays made for it.

        Tensors whose memory cannot be walked as one run are copied, and their copies walked. `own` says whether the
        parameters and the state are walked too.
        """
        kept, now, copies = list(job.grads), self.locations.table[:, 1:].copy(), list[Copies]()
        for i in job.location.odd:
            if own and i not in self.locations.odd and self._laid_out(kept, i):
                now[i, 1] = self.locations.table[i, 2]
            else:
                copies += copy_blocks(self.bucket, self.memory, i, kept[i], own=own)
                now[i] = copies[-1].table[0, 1:]
        return self._upload(np.ascontiguousarray(now.T), (kept, copies)), kept, copies

    def _laid_out(self, grads: list[Array | None], i: int) -> bool:
        """Copy a gradient so that it lies as its parameter does, if the library makes such a copy."""
        new = self.backend.full_like(self.bucket.params[i], 0.0, self.bucket.grad_dtype)
        self.backend.write(new, grads[i])
        grads[i] = new
        self.locations.find_gradients(grads, [i])
        return bool(self.locations.table[i, 2] > 0)

    def _upload(self, now: np.ndarray, kept: Any) -> int:
        """Write what has changed to the table on the device, or all to one of its own under graph capture."""
        if not self.capturing():
            table, before = self.rooms["addresses"], self.uploaded
        else:
            like = self.bucket.params[0]
            with self.memory.on(self.bucket.device):
                table = self.backend.xp.empty(now.size, dtype=self.backend.xp.int64, device=like.device)
            before = np.full_like(now, -1)
            self.captured.append((table, kept))
        address = self.address(table)
        for start, words in changes(before, now):
            self.fill(address + 8 * start, words)
        before[:] = now
        return address


def _on_device(value: Any) -> bool:
    """Whether a number is an array on a device, and not Python's or in this machine's memory."""
    return "cpu" not in str(getattr(value, "device", "cpu"))


def _plain(value: Any) -> Any:
    """A number at hand as Python's own, so that arithmetic with it is done in double."""
    return value if value is None or type(value) is int else float(value)
