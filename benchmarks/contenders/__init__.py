"""The contenders, on the CPU and on CUDA, one module a library, all with the same hyperparameters."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection
from dataclasses import replace

from ..harness.contender import Contender
from ..harness.figures import FLOOR, TORCH
from .cuda import copy, multiopt_cupy, plain_cupy
from .floor import floor
from .jax import multiopt_arrays, multiopt_jax, multiopt_optax, optax_adadelta
from .keras import keras_jax, keras_torch
from .numpy import multiopt_numpy, plain_numpy
from .rows import tf_keras_legacy
from .torch import multiopt_tensors, multiopt_torch, torch_adadelta, torch_adam, torch_compiled

__all__ = ["CPU", "CUDA", "choose"]

EAGER, FOREACH, GPU, OURS = {"engine": "eager"}, {"foreach": True}, {"device": "cuda"}, {"ours": True}
DONATE, FUSED, OPTAX = {"donate": True}, {"fused": True}, ("jax", "optax", "multiopt.optax")
ON_TORCH, ON_JAX = {"KERAS_BACKEND": "torch"}, {"KERAS_BACKEND": "jax"}
COMPILED = "torch-compile"
CPU = [
    Contender(FLOOR, "floor", floor, ("numba",)),
    Contender("multiopt-numpy", "multiopt, NumPy", multiopt_numpy),
    Contender("multiopt-tensors", "multiopt, PyTorch tensors", multiopt_tensors, ("torch",)),
    Contender("multiopt-torch", "multiopt.torch", multiopt_torch, ("torch", "multiopt.torch")),
    Contender(TORCH, "torch.optim, default", torch_adadelta, ("torch",), 7),
    Contender("torch-foreach", "torch.optim, foreach", torch_adadelta, ("torch",), 8, FOREACH),
    Contender("torch-adam", "torch.optim's fused Adam", torch_adam, ("torch",)),
    Contender(COMPILED, "torch.optim, torch.compile", torch_compiled, ("torch",)),
    Contender("multiopt-jax", "multiopt, JAX, jitted and donated", multiopt_jax, ("jax",), 7),
    Contender("multiopt-arrays", "multiopt, JAX", multiopt_arrays, ("jax",), 7),
    Contender("multiopt-donate", "multiopt, JAX, donate=True", multiopt_arrays, ("jax",), 7, DONATE),
    Contender("multiopt-step", "multiopt.optax in one pass, jitted and donated", multiopt_optax, OPTAX, 7, FUSED),
    Contender("multiopt-optax", "multiopt.optax + apply_updates, likewise", multiopt_optax, OPTAX, 7),
    Contender("keras-ours", "multiopt.keras.for_keras on JAX, jitted", keras_jax, ("jax", "keras"), 8, OURS, ON_JAX),
    Contender("optax", "optax, jitted and donated", optax_adadelta, ("jax", "optax"), 7),
    Contender("keras-jax", "Keras 3 on JAX, jitted", keras_jax, ("jax", "keras"), 8, {}, ON_JAX),
    Contender("keras-torch", "Keras 3 on PyTorch", keras_torch, ("torch", "keras"), 8, {}, ON_TORCH),
    Contender("multiopt-eager", "multiopt, NumPy, eager engine", multiopt_numpy, (), 4, EAGER),
    Contender("numpy", "the rule in plain NumPy", plain_numpy, (), 8),
    Contender("tf-keras", "tf_keras legacy", tf_keras_legacy, ("tensorflow", "tf_keras"), whole=False),
]
CUDA = [
    Contender(FLOOR, "device-to-device copy", copy),
    Contender("multiopt-cupy", "multiopt, CuPy", multiopt_cupy, ("cupy",)),
    Contender("multiopt-tensors", "multiopt, PyTorch tensors", multiopt_tensors, ("torch",), 4, GPU),
    Contender("multiopt-torch", "multiopt.torch", multiopt_torch, ("torch", "multiopt.torch"), 4, GPU),
    Contender(TORCH, "torch.optim, default", torch_adadelta, ("torch",), 8, GPU),
    Contender("torch-foreach", "torch.optim, foreach", torch_adadelta, ("torch",), 8, GPU | FOREACH),
    Contender(COMPILED, "torch.optim, torch.compile", torch_compiled, ("torch",), 4, GPU),
    Contender("torch-adam", "torch.optim's fused Adam", torch_adam, ("torch",), 4, GPU),
    Contender("cupy", "the rule in plain CuPy", plain_cupy, ("cupy",), 8),
]


def choose(device: str, compile_too: bool, keys: Collection[str]) -> dict[str, Contender]:
    """Choose the contenders of a run: all, or those of some keys and the floor.

    Raises
    ------
    ValueError
        If a key is unknown.
    """
    everybody = {c.key: c for c in (CPU if device == "cpu" else CUDA)}
    unknown = sorted(set(keys) - set(everybody))
    if unknown:
        raise ValueError(f"--contenders: expected some of {', '.join(everybody)}, got {', '.join(unknown)}")
    if device == "cuda":
        library = "cupy" if importlib.util.find_spec("cupy") is not None else "torch"
        everybody[FLOOR] = replace(everybody[FLOOR], needs=(library,))
    if not compile_too:
        excuse = "compiles for a minute or more: pass --compile"
        everybody[COMPILED] = replace(everybody[COMPILED], excuse=excuse)
    return {key: c for key, c in everybody.items() if not keys or key in keys or key == FLOOR}
