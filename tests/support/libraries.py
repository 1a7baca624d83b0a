"""The one table of array libraries that the tests run over, with their variants, and what tests share."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import pytest


def torch_tensor(array):
    """A tensor that shares the memory of a native NumPy array, or copies one of another kind."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def torch_array(tensor):
    import ml_dtypes
    import torch

    tensor = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16).copy()
    return tensor.numpy().copy()


def strided(array):
    """The same values, with gaps between the elements, along the first axis backwards."""
    if array.ndim == 0:
        return array.copy()
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)[..., ::2]
    wide[...] = array[::-1]
    return wide[::-1]


def gaps(array):
    """The same values with gaps; forwards, because PyTorch has no negative strides."""
    tensor = torch_tensor(np.repeat(array[..., None], 2, axis=-1)) if array.ndim else torch_tensor(array.copy())
    return tensor[..., 0] if array.ndim else tensor


def readonly(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def dask_array(array):
    """Several chunks, the last of them smaller: a single one would hide mistakes."""
    import dask.array as da

    return da.from_array(array, chunks=tuple(max(1, -(-n * 2 // 3)) for n in array.shape))


def jax_array(array):
    import jax

    made = jax.numpy.asarray(array)
    assert made.dtype == array.dtype, "float64 on JAX needs the fixture `x64`"
    return made


def strict_array(array):
    import array_api_strict

    return array_api_strict.asarray(array, copy=True)


@dataclass(frozen=True)
class Library:
    """One array library, or one way to hold its arrays.

    `param` and `grad` make its arrays of NumPy's, with memory of their own; `back` is the inverse. `bits` says that
    float32 and float64 have the bits of NumPy; `subnormals` that they are kept.
    """

    name: str
    package: str
    param: Callable[[np.ndarray], Any]
    grad: Callable[[np.ndarray], Any]
    back: Callable[[Any], np.ndarray] = np.array
    engine: str = "auto"
    mutable: bool = True
    subnormals: bool = True
    half: bool = True
    #: Each operation costs so much that tests ask fewer questions.
    slow: bool = False

    def __str__(self) -> str:
        return self.name

    def need(self) -> None:
        pytest.importorskip(self.package, reason=f"{self.package} is not installed")
        if self.engine == "host":
            pytest.importorskip("numba", reason="the host engine needs numba")

    def params(self, arrays):
        return [self.param(array) for array in arrays]

    def grads(self, arrays):
        return [None if array is None else self.grad(array) for array in arrays]

    def backs(self, arrays):
        return [np.asarray(self.back(array)) for array in arrays]


def own(array):
    return np.array(array, order="K")


LIBRARIES = {
    library.name: library
    for library in [
        Library("numpy", "numpy", own, own, engine="host"),
        Library("numpy-eager", "numpy", own, own, engine="eager"),
        Library("numpy-strided", "numpy", strided, strided, engine="host"),
        Library("numpy-strided-eager", "numpy", strided, strided, engine="eager"),
        Library("numpy-strided-grads", "numpy", own, strided, engine="host"),
        # A gradient is only read; that its memory may not be written to is no reason to refuse it.
        Library("numpy-readonly-grads", "numpy", own, readonly, engine="host"),
        Library(
            "torch", "torch", lambda a: torch_tensor(a.copy()), lambda a: torch_tensor(a.copy()), torch_array, "host"
        ),
        Library("torch-strided", "torch", gaps, gaps, torch_array, "host"),
        # XLA on the CPU flushes subnormal numbers to zero, jitted or not.
        Library("jax", "jax", jax_array, jax_array, mutable=False, subnormals=False, slow=True),
        Library("dask", "dask.array", dask_array, dask_array, lambda a: a.compute(), mutable=False, slow=True),
        Library("array_api_strict", "array_api_strict", strict_array, strict_array, half=False),
    ]
}


#: One of each library, for what does not depend on how its arrays are held.
PLAIN = [LIBRARIES[name] for name in ("numpy", "torch", "jax", "dask", "array_api_strict")]


@contextlib.contextmanager
def library_of(library):
    library.need()
    with x64() if library.name == "jax" else contextlib.nullcontext():
        yield library


def x64():
    """JAX with float64, for this thread and this block only."""
    jax = import_module("jax")
    return jax.enable_x64(True) if hasattr(jax, "enable_x64") else import_module("jax.experimental").enable_x64()


def snapshot(opt):
    """All that a failed call must leave as it was: the bits of every array, and every number."""
    from multiopt import checkpoint

    arrays = {p.key: p.bucket.backend.to_host(p.get()).tobytes() for p in checkpoint.places(opt, params=True)}
    return arrays, [group.options() for group in opt.groups], opt.steps, opt.micro_steps, opt.skipped


def gradients(rng, shape, dtype, decades=(-40, 20), subnormals=True):
    """Gradients over many decades, with zeros; squares of the small ones are subnormal or zero in `dtype`."""
    info = np.finfo(dtype) if np.dtype(dtype).name != "bfloat16" else None
    low, high = decades
    values = np.asarray(rng.standard_normal(shape)) * 10.0 ** rng.uniform(low, high, shape)
    values = np.where(rng.random(shape) < 0.02, 0.0, values)
    if subnormals and info is not None:
        tiny = float(info.smallest_subnormal) * rng.integers(1, 1000, shape)
        values = np.where(rng.random(shape) < 0.02, tiny * np.sign(values), values)
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(values).astype(dtype)


#: Options of the optimizer, each alone and all together.
OPTIONS = {
    "plain": {},
    "coupled": {"weight_decay": 0.013},
    "decoupled": {"weight_decay": 0.013, "decoupled": True},
    "maximize": {"maximize": True, "weight_decay": 0.1},
    "clip_value": {"clip_value": 0.37},
    "clip_norm": {"clip_norm": 0.61},
    "clip_global_norm": {"clip_global_norm": 1.7},
    "all clips": {"clip_value": 3.0, "clip_norm": 1.1, "clip_global_norm": 0.9, "weight_decay": 0.01},
    "accumulate": {"accumulate": 3},
    "ema": {"ema": 0.97},
    "loss_scale": {"loss_scale": 1000.0},
    "schedules": {"lr": lambda step: 1 / (1 + 0.3 * step), "weight_decay": lambda step: 0.1 * 0.9**step},
    "everything": {
        "weight_decay": 0.01,
        "decoupled": True,
        "maximize": True,
        "clip_value": 2.0,
        "clip_norm": 1.5,
        "clip_global_norm": 1.0,
        "accumulate": 2,
        "ema": 0.9,
        "loss_scale": 128.0,
    },
}
