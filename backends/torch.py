"""PyTorch tensors, on any device; and DTensors: a rank's own shard of a tensor, and sums over the shards.

A shard is updated where it lies; the rule is elementwise, so no rank needs another's. `torch.distributed` is not
imported before a DTensor is seen.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from .generic import Array, Backend, Described, Place, dense, strides_overlap
from .registry import get

__all__ = [
    "PLAIN", "TorchBackend", "is_observed", "is_sharded", "is_whole", "local", "most_over_shards", "shard_start",
    "sum_over_shards", "with_layout_of",
]  # fmt: skip


#: Tensors that are no more than their memory: a subclass may mean something else by it.
PLAIN = frozenset((torch.Tensor, torch.nn.Parameter))


def is_observed() -> bool:
    """Whether somebody follows each operation: a tracer or compiler, a dispatch mode (fake tensors), a transform of
    `torch.func`, forward differentiation.

    Who reads or writes memory would go unseen.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
        or torch.autograd.forward_ad._current_level >= 0
    )


class TorchBackend(Backend):
    """Strided tensors. Gradients are not followed through a step; autograd is told of the writing."""

    kinds = PLAIN

    def rejects(self, array: Array) -> str | None:
        if array.is_nested:
            return "expected a tensor with one shape, got a nested one"
        if array.layout != torch.strided:
            return f"expected a strided tensor, got layout {array.layout}"
        if array.device.type == "meta":
            return "expected a tensor with data, got one on the meta device"
        if type(array).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
            return f"expected a tensor with memory of its own, got a {type(array).__name__}, which stands for others"
        return None

    def writable(self, array: Array) -> bool:
        return True

    def dtype(self, array: Array) -> str:
        return str(array.dtype).removeprefix("torch.")

    def device(self, array: Array) -> str:
        return str(array.device)

    def signature(self, arrays: Sequence[Array]) -> list[Any]:
        return [(a.dtype, a.shape, a.device, a.layout) for a in arrays]

    def describe(self, arrays: list[Array]) -> Any:
        exchange = _exchange()
        return None if exchange is None else exchange.describe(arrays)

    def memory_fingerprint(self, arrays: Sequence[Array]) -> Any:
        found = super().memory_fingerprint(arrays)
        if found is None:
            found = [(id(a), a.data_ptr(), a.stride(), *self.signature([a])) for a in arrays]
        # What ``.data = x.conj()`` changes, and nothing else.
        return found, [a.is_conj() for a in arrays] if arrays and arrays[0].is_complex() else None

    def freed(self, array: Array) -> bool:
        # As ``untyped_storage().resize_(0)`` leaves it, which FSDP does.
        begin, end = self.extent(array)
        if begin == end:
            return False
        storage = array.untyped_storage()
        return end > storage.data_ptr() + storage.nbytes()

    def increment(self, counters: list[Array]) -> None:
        """Add 1 to tensors of one element, which take no part in autograd."""
        exchange = _exchange()
        if exchange is not None and exchange.increment(counters):
            self.touched(counters)
        else:
            torch._foreach_add_(counters, 1)

    def extent(self, array: Array) -> tuple[int, int]:
        if array.numel() == 0 or array._is_zerotensor():  # which never had memory
            return (0, 0)
        last = sum((n - 1) * stride for n, stride in zip(array.shape, array.stride(), strict=True))
        start = array.data_ptr()
        return start, start + (last + 1) * array.element_size()

    def share_memory(self, a: Array, b: Array) -> bool:
        if a.device.type != "cpu":
            return True
        # By their bytes, because NumPy has no bfloat16.
        return get("numpy").share_memory(*(_bytes(tensor) for tensor in (a, b)))

    def overlaps_itself(self, array: Array) -> bool:
        return strides_overlap(array.shape, array.stride(), 1)

    def filled(self, array: Array, value: float) -> Array:
        with torch.no_grad():
            return array.fill_(value)

    def native(self, dtype: str) -> Any:
        return getattr(torch, dtype)

    def full_like(self, array: Array, value: float, dtype: str) -> Array:
        return torch.full_like(array, value, dtype=self.native(dtype), requires_grad=False)

    def empty_like(self, array: Array, dtype: str) -> Array:
        return torch.empty_like(array, dtype=self.native(dtype), requires_grad=False)

    def cast(self, array: Array, dtype: str) -> Array:
        return array.to(self.native(dtype))

    def write(self, array: Array, new: Array) -> None:
        with torch.no_grad():
            array.copy_(new)

    def take(self, array: Array, rows: np.ndarray) -> Array:
        return array.detach().index_select(0, self.from_host(rows, "int64", array))

    def put(self, array: Array, rows: np.ndarray, values: Array) -> Array:
        with torch.no_grad():
            return array.index_copy_(0, self.from_host(rows, "int64", array), values)

    def copy(self, array: Array) -> Array:
        return array.detach().clone()

    def parts(self, array: Array) -> list[Array]:
        return [array.real, array.imag] if array.is_complex() else [array]

    def join(self, parts: list[Array], dtype: str) -> Array:
        return parts[0] if len(parts) == 1 else torch.complex(*parts)

    def to_host(self, array: Array) -> np.ndarray:
        tensor = array.detach().cpu().resolve_conj().resolve_neg().contiguous()
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(np.uint16).copy()
        return tensor.numpy().copy()

    def from_host(self, array: np.ndarray, dtype: str, like: Array | None = None) -> Array:
        array = np.asarray(array, order="C")
        half = dtype == "bfloat16"
        tensor = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16) if half else torch.from_numpy(array)
        return tensor if like is None else tensor.to(like.device)

    def indices(self, n: int, like: Array) -> Array:
        return torch.arange(n, dtype=torch.int32, device=like.device)

    def blocked(self, device: str) -> bool:
        return device == "cpu"

    def elementwise(self, function: Any, arrays: Sequence[Array]) -> tuple[Array, ...]:
        """Through NumPy's views of plain tensors on the CPU: PyTorch's roots there are not correctly rounded."""
        if not self.plain(arrays) or any(isinstance(number, torch.Tensor) for number in function.numbers):
            with torch.no_grad():
                return tuple(function(self.xp, *arrays))
        new = get("numpy").elementwise(function, list(map(_view, arrays)))
        return tuple(_viewed(a, old.dtype) for a, old in zip(new, (arrays[0], *arrays[2:]), strict=True))

    # --- raw memory ---

    def threads(self) -> int:
        return torch.get_num_threads()

    def host_memory(self, device: str) -> TorchBackend | None:
        return self if device == "cpu" else None

    def cuda_memory(self, device: str) -> TorchBackend | None:
        return self if device.startswith("cuda") else None

    def plain(self, arrays: Sequence[Array]) -> bool:
        stored = all(type(a) in PLAIN and a.device.type == "cpu" and a.layout == torch.strided for a in arrays)
        return stored and not is_observed() and not any(a.is_nested for a in arrays)

    def place(self, array: Array) -> Place | None:
        if array.is_conj() or array.is_neg() or array._is_zerotensor():
            return None
        parts = 2 if array.is_complex() else 1
        return Place(array.data_ptr(), tuple(stride * parts for stride in array.stride()))

    def layout(self, array: Array) -> Any:
        """``"C"`` for a contiguous tensor, its strides for another dense one (channels last, say), else None."""
        if array.is_conj() or array.is_neg():
            return None
        if array.is_contiguous():
            return "C"
        return array.stride() if dense(array.shape, array.stride()) else None

    def addresses(self, arrays: Sequence[Array], layouts: Sequence[Any], out: np.ndarray) -> int:
        known, strange = self.described(arrays), set[int]()
        if isinstance(known, Described) and known.description.contiguous and layouts.count("C") == len(arrays):
            out[:] = known.description.addresses
        else:
            out[:] = np.fromiter(map(torch.Tensor.data_ptr, arrays), np.int64, len(arrays))
            pairs = enumerate(zip(arrays, layouts, strict=True))
            strange = {i for i, (a, to) in pairs if not (a.is_contiguous() if to == "C" else a.stride() == to)}
        # Views that stand for the negative, or the conjugate, of what is in memory.
        conjugates = [torch.Tensor.is_conj] if arrays and arrays[0].is_complex() else []
        for lazily in (torch.Tensor.is_neg, *conjugates):
            if any(map(lazily, arrays)):
                strange.update(i for i, array in enumerate(arrays) if lazily(array))
        if strange:
            out[list(strange)] = -1
        return len(strange)

    def contiguous(self, array: Array) -> Array:
        return array.detach().resolve_conj().resolve_neg().contiguous().clone()

    def touched(self, arrays: Iterable[Array]) -> None:
        torch.autograd.graph.increment_version(arrays)

    def ordinal(self, device: str) -> int:
        return int(device.partition(":")[2])

    def on(self, device: str) -> Any:
        return torch.cuda.device(device)

    def is_current(self, device: str) -> bool:
        return True  # it follows the tensors

    def stream(self, device: str) -> int:
        return torch.cuda.current_stream(device).cuda_stream


@cache
def _exchange() -> Any:
    """Many tensors' fingerprint and addresses in one call, where PyTorch (2.10 or later) and Numba allow it."""
    try:
        from .engines.host.exchange import Exchange

        return Exchange(torch.Tensor)
    except ImportError:
        return None


def _bytes(tensor: Array) -> np.ndarray:
    """A NumPy view of a CPU tensor's memory, whatever its dtype: for questions of overlap only."""
    size = tensor.element_size()
    storage = np.from_dlpack(torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()))
    strides = [stride * size for stride in tensor.stride()]
    return np.ndarray(tensor.shape, f"V{size}", storage, tensor.storage_offset() * size, strides)


def _view(tensor: Array) -> np.ndarray:
    """A NumPy view of a plain tensor on the CPU; of a lazily negated one, and of bfloat16, a copy, in float32.

    By DLPack, because after ``tensor.numpy()`` a storage cannot be resized any more.
    """
    if tensor._is_zerotensor():
        tensor = torch.zeros(tensor.shape, dtype=tensor.dtype)
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.dtype != torch.bfloat16:
        return np.from_dlpack(tensor)
    return (np.from_dlpack(tensor.view(torch.int16)).view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _viewed(array: np.ndarray, dtype: torch.dtype) -> Array:
    """A tensor of an array's memory, or of it rounded to bfloat16, as the host engine does."""
    if dtype != torch.bfloat16:
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    bits = array.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    # A NaN stays a NaN, whatever its payload.
    bits = np.where(np.isnan(array), (bits >> 16) | 0x40, rounded)
    return torch.from_numpy(bits.astype(np.uint16).view(np.int16)).view(torch.bfloat16)


# --- DTensors ---


def is_sharded(tensor: Any) -> bool:
    """Whether it is a DTensor."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def is_whole(tensor: Any) -> bool:
    """Whether a DTensor's shards are values, and not terms of a sum that is still to be taken."""
    return not any(placement.is_partial() for placement in tensor.placements)


def local(tensor: Any) -> torch.Tensor:
    """The shard of this rank of a DTensor, for reading and writing past autograd; any other tensor itself."""
    if not is_sharded(tensor):
        return tensor
    shard = tensor._local_tensor
    # The result of a collective that may still be under way.
    return shard.wait() if hasattr(shard, "wait") else shard


def shard_start(tensor: Any) -> tuple[int, ...]:
    """The place, in a DTensor, of the first element of this rank's shard, which is a block of it."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, start = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    if tuple(shape) != tuple(tensor._local_tensor.shape):
        got = f"{tuple(tensor._local_tensor.shape)} for {tensor.placements}"
        raise RuntimeError(f"expected a shard that is a block of its DTensor, of shape {tuple(shape)}, got {got}")
    return tuple(start)


def with_layout_of(param: Any, tensor: Any) -> Any:
    """A DTensor with the mesh and the placements of `param`; itself if it has them. Another tensor is an error."""
    if not is_sharded(tensor):
        raise RuntimeError(f"expected a DTensor, as its parameter is, got a {type(tensor).__name__}")
    if tensor.placements == param.placements and tensor.device_mesh == param.device_mesh:
        return tensor
    return tensor.redistribute(param.device_mesh, param.placements)


def sum_over_shards(xp: Any, table: Array, tensors: Sequence[Any]) -> Array:
    """Add up a table's rows of integers, one a tensor, over the dimensions of the mesh that shard their tensors.

    `xp` is the table's namespace, and the sums'. The table may be written to.
    """
    whole = torch.as_tensor(table)
    _reduce(whole, tensors, "SUM")
    return whole.numpy() if isinstance(table, np.ndarray) else xp.asarray(whole)


def most_over_shards(values: torch.Tensor, tensors: Sequence[Any]) -> torch.Tensor:
    """The largest of some numbers not below 0, one a tensor, over the dimensions of the mesh that shard it; or NaN."""
    nan = values.isnan()
    pairs = torch.stack([values.masked_fill(nan, 0.0), nan.to(values.dtype)], 1)  # no backend promises to pass on NaN
    _reduce(pairs, tensors, "MAX")
    return pairs[:, 0].masked_fill(pairs[:, 1] > 0, float("nan"))


def _reduce(whole: torch.Tensor, tensors: Sequence[Any], operation: str) -> None:
    """Reduce rows, one a tensor, over the dimensions of the mesh that shard their tensors."""
    groups: dict[Any, list[int]] = {}
    for i, tensor in enumerate(tensors):
        if is_sharded(tensor):
            for dim, placement in enumerate(tensor.placements):
                if not placement.is_replicate():
                    groups.setdefault((tensor.device_mesh, dim), []).append(i)
    for (mesh, dim), which in groups.items():
        if mesh.get_coordinate() is not None:
            part = whole[which].to(mesh.device_type)
            torch.distributed.all_reduce(part, getattr(torch.distributed.ReduceOp, operation), mesh.get_group(dim))
            whole[which] = part.to(whole.device)
