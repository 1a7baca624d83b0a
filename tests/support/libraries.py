"""The registry's array libraries with what tests need of them, variants, and what tests share."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from multiopt import backends
from multiopt import snapshot as snapshots


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
    """One array library of the registry, or one way to hold its arrays.

    `param` and `grad` make its arrays of NumPy's, with memory of their own; `back` is the inverse.
    """

    name: str
    #: As the registry lists it.
    library: backends.Library
    param: Callable[[np.ndarray], Any]
    grad: Callable[[np.ndarray], Any]
    back: Callable[[Any], np.ndarray] = np.array
    engine: str = "auto"
    mutable: bool = True
    #: Whether subnormal numbers are kept.
    subnormals: bool = True
    half: bool = True
    #: Each operation costs so much that tests ask fewer questions.
    slow: bool = False

    def __str__(self) -> str:
        return self.name

    def params(self, arrays):
        return [self.param(array) for array in arrays]

    def grads(self, arrays):
        return [None if array is None else self.grad(array) for array in arrays]

    def host(self, array):
        """The values of one array, in NumPy."""
        return np.asarray(self.back(array))

    def backs(self, arrays):
        return [self.host(array) for array in arrays]


def own(array):
    return np.array(array, order="K")


def torch_copy(array):
    return torch_tensor(array.copy())


#: What the registry does not say: how to make a library's arrays of NumPy's and back, and what its arithmetic does.
HELD = {
    "numpy": {"param": own, "grad": own, "engine": "host"},
    "torch": {"param": torch_copy, "grad": torch_copy, "back": torch_array, "engine": "host"},
    "jax": {"param": jax_array, "grad": jax_array, "mutable": False, "engine": "xla", "slow": True},
    "dask": {
        "param": dask_array, "grad": dask_array, "back": lambda a: a.compute(), "mutable": False, "slow": True,
    },
    "array_api_strict": {"param": strict_array, "grad": strict_array, "half": False},
}  # fmt: skip
#: Other ways to hold a library's arrays, or another engine for them.
VARIANTS = {
    "numpy-eager": {"engine": "eager"},
    "numpy-strided": {"param": strided, "grad": strided},
    "numpy-strided-eager": {"param": strided, "grad": strided, "engine": "eager"},
    "numpy-strided-grads": {"grad": strided},
    # A gradient is only read; that its memory may not be written to is no reason to refuse it.
    "numpy-readonly-grads": {"grad": readonly},
    "torch-strided": {"param": gaps, "grad": gaps},
}
#: CuPy needs a GPU: its tests are in `tests/backends`.
REGISTERED = {library.name: library for library in backends.libraries() if library.name != "cupy"}
#: One of each library, for what does not depend on how its arrays are held.
PLAIN = [Library(name, library, **HELD[name]) for name, library in REGISTERED.items()]
LIBRARIES = {library.name: library for library in PLAIN}
for _name, _changes in VARIANTS.items():
    LIBRARIES[_name] = replace(LIBRARIES[_name.partition("-")[0]], name=_name, **_changes)


@contextlib.contextmanager
def library_of(library):
    """The library, if it is installed; otherwise the test is skipped."""
    pytest.importorskip(library.library.namespace, reason=f"{library.library.title} is not installed")
    if library.engine in ("host", "xla"):
        pytest.importorskip("numba", reason="the host engine needs numba")
    with x64() if library.library.name == "jax" else contextlib.nullcontext():
        yield library


def x64():
    """JAX with float64, for this thread and this block only."""
    jax = import_module("jax")
    return jax.enable_x64(True) if hasattr(jax, "enable_x64") else import_module("jax.experimental").enable_x64()


def snapshot(opt):
    """All that a failed call must leave as it was: the bits of every array, and every number."""
    arrays = {p.key: p.bucket.backend.to_host(p.get()).tobytes() for p in snapshots.places(opt, params=True)}
    return arrays, [group.options() for group in opt.groups], opt.steps, opt.micro_steps, opt.skipped


@contextlib.contextmanager
def refused(opt, kind, message):
    """The block raises such an error, and leaves the optimizer as it was."""

    def whole():
        names = [(group.where, list(group.structure.names)) for group in opt.groups]
        seen = [list(a.seen) for a in opt.accumulators]
        return snapshot(opt), names, dict(opt.defaults), opt.settings, opt.grouped, seen

    before = whole()
    with pytest.raises(kind, match=message):
        yield
    assert whole() == before


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
        "weight_decay": 0.01, "decoupled": True, "maximize": True, "clip_value": 2.0, "clip_norm": 1.5,
        "clip_global_norm": 1.0, "accumulate": 2, "ema": 0.9, "loss_scale": 128.0,
    },
}  # fmt: skip
