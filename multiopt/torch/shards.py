"""DTensors: a rank's own shard of a parameter, of its gradient and of its state.

A shard is updated where it lies; the rule is elementwise, so no rank needs another's. `torch.distributed` is not
imported before a DTensor is seen.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

__all__ = ["is_sharded", "is_whole", "local", "sum_over_shards", "with_layout_of"]


def is_sharded(tensor: Any) -> bool:
    """Whether it is a DTensor."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def is_whole(tensor: Any) -> bool:
    """Whether a DTensor's shards are values, and not terms of a sum that is still to be taken."""
    return not any(placement.is_partial() for placement in tensor.placements)


def local(tensor: Any) -> Tensor:
    """The shard of this rank, for reading and writing; autograd does not follow."""
    shard = tensor._local_tensor
    # The result of a collective that may still be under way.
    return shard.wait() if hasattr(shard, "wait") else shard


def with_layout_of(param: Any, tensor: Any) -> Any:
    """A DTensor with the mesh and the placements of `param`; itself if it has them.

    Raises
    ------
    RuntimeError
        If it is not a DTensor.
    """
    if not is_sharded(tensor):
        raise RuntimeError(f"expected a DTensor, as its parameter is, got a {type(tensor).__name__}")
    if tensor.placements == param.placements and tensor.device_mesh == param.device_mesh:
        return tensor
    return tensor.redistribute(param.device_mesh, param.placements)


def sum_over_shards(table: Tensor, rows: list[Any]) -> Tensor:
    """Add up the rows of tensors that are sharded, over the dimensions of the mesh that shard them.

    Parameters
    ----------
    table : Tensor
        Of integers, a row for each tensor; it is written to.
    rows : list of Tensor
        The tensors.
    """
    groups: dict[Any, list[int]] = {}
    for i, grad in enumerate(rows):
        if is_sharded(grad):
            for dim, placement in enumerate(grad.placements):
                if not placement.is_replicate():
                    groups.setdefault((grad.device_mesh, dim), []).append(i)
    for (mesh, dim), which in groups.items():
        if mesh.get_coordinate() is not None:
            part = table[which].to(mesh.device_type)
            torch.distributed.all_reduce(part, group=mesh.get_group(dim))
            table[which] = part.to(table.device)
    return table
