"""Arrays that are sharded over a mesh of devices: PyTorch's DTensors, and JAX arrays with a `NamedSharding`.

The local shard of a DTensor is updated in place by the same engines as any tensor; JAX sees whole arrays and
distributes the work itself. Neither library is imported here unless one of its arrays or meshes is given.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...backends.generic import Array
from ..variables.variable import Variable

__all__ = [
    "aligned",
    "assign",
    "check_mesh",
    "check_on_mesh",
    "is_dtensor",
    "local",
    "mesh_of",
    "numpy",
    "reducer",
    "replicated",
    "shards",
    "with_local",
]


def is_dtensor(array: Array) -> bool:
    """Whether the array is a DTensor."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(array, module.DTensor)


def mesh_of(array: Array) -> Any:
    """The mesh over which an array is sharded: a `DeviceMesh`, a JAX `Mesh`, or None."""
    if is_dtensor(array):
        return array.device_mesh
    return getattr(getattr(array, "sharding", None), "mesh", None)


def local(array: Array) -> Array:
    """A DTensor's shard in this process, which shares its memory; any other array itself."""
    if not is_dtensor(array):
        return array
    from ...backends import torch

    return torch.local(array)


def shards(arrays: Sequence[Array | None]) -> list[Array | None]:
    """The same for many; None stays None."""
    return list(arrays) if "torch.distributed.tensor" not in sys.modules else [local(array) for array in arrays]


def with_local(array: Array, shard: Array) -> Array:
    """An array laid out as `array`, of which this process computes on `shard`."""
    if not is_dtensor(array):
        return shard
    layout = array.device_mesh, array.placements
    return type(array).from_local(shard, *layout, run_check=False, shape=array.shape, stride=array.stride())


def check_on_mesh(mesh: Any, arrays: Sequence[Array], names: Sequence[str]) -> None:
    """Raise ValueError unless all arrays are on `mesh`, if given, and each DTensor can be updated in this process."""
    for array, name in zip(arrays, names, strict=True):
        found = mesh_of(array)
        if mesh is not None and found != mesh:
            raise ValueError(f"{name}: expected an array on {mesh}, the optimizer's mesh, got one on {found}")
        if is_dtensor(array):
            if any(placement.is_partial() for placement in array.placements):
                raise ValueError(f"{name}: expected shards or replicas, got {array.placements}")
            if found.get_coordinate() is None:
                raise ValueError(f"{name}: expected a mesh that this process belongs to, got {found}")


def aligned(gradient: Array, like: Array, name: str) -> Array:
    """The gradient in the layout of its variable: pending sums are taken, shards are moved."""
    if is_dtensor(gradient) != is_dtensor(like):
        expected, got = (type(a).__name__ for a in (like, gradient))
        raise TypeError(f"{name}: expected a {expected}, as its variable holds, got a {got}")
    if is_dtensor(like):
        if gradient.device_mesh != like.device_mesh:
            raise ValueError(f"{name}: expected it on {like.device_mesh}, got it on {gradient.device_mesh}")
        same = gradient.placements == like.placements
        return gradient if same else gradient.detach().redistribute(placements=like.placements)
    if mesh_of(like) is not None:
        sharding = getattr(gradient, "sharding", None)
        if sharding is not None and not sharding.is_equivalent_to(like.sharding, like.ndim):
            import jax

            return jax.device_put(gradient, like.sharding)
    return gradient


def reducer(plans: Sequence[Sequence[Array]]) -> Callable[..., Any] | None:
    """A `multiopt.plan.Reduce` for plans that update these arrays; None if none of them is a DTensor."""
    if not any(is_dtensor(array) for arrays in plans for array in arrays):
        return None
    from ...backends.torch import sum_over_shards

    return lambda xp, table, rows: sum_over_shards(xp, table, [plans[k][i] for k, i in rows])


def replicated(array: np.ndarray, mesh: Any) -> Array:
    """A NumPy array with a copy on every device of a mesh."""
    if type(mesh).__module__.startswith("jax"):
        import jax

        return jax.device_put(array, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    import torch
    from torch.distributed.tensor import Replicate, distribute_tensor

    tensor = torch.from_numpy(array).to(mesh.device_type)
    return distribute_tensor(tensor, mesh, [Replicate()] * mesh.ndim)


def numpy(variable: Variable) -> np.ndarray:
    """A NumPy copy of a variable's value, gathered from the mesh; every process must call this."""
    if not is_dtensor(variable.value):
        return variable.numpy()
    return Variable(variable.value.full_tensor(), trainable=False).numpy()


def assign(variable: Variable, value: Any) -> None:
    """Assign to a variable that may be sharded: a whole array is distributed over its mesh; see `Variable.assign`."""
    array = variable.value
    if not is_dtensor(array) or is_dtensor(value):
        variable.assign(value)
        return
    from torch.distributed.tensor import distribute_tensor

    whole = Variable(variable.backend.xp.empty(array.shape, dtype=array.dtype, device=array.device), trainable=False)
    whole.assign(value)
    variable.assign(distribute_tensor(whole.value, array.device_mesh, array.placements))


def check_mesh(mesh: Any) -> Any:
    """Check the option ``mesh``: None, a JAX `Mesh` or a PyTorch `DeviceMesh`; TypeError if it is something else."""
    known = {"jax.sharding": "Mesh", "torch.distributed.device_mesh": "DeviceMesh"}
    kinds = tuple(getattr(sys.modules[module], name) for module, name in known.items() if module in sys.modules)
    if mesh is not None and not isinstance(mesh, kinds):
        raise TypeError(f"mesh: expected a jax.sharding.Mesh or a torch DeviceMesh, got {mesh!r}")
    return mesh
