"""The field of contenders, on the CPU and on CUDA, all with the same hyperparameters."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

from .contender import Contender
from .figures import FLOOR, TORCH

__all__ = ["contenders"]

US, FACE, FUNCTIONAL = "multiopt.optimizer", "multiopt.torch", "multiopt.functional"
TENSORS, FACED = "torch_rows:multiopt_tensors", "torch_rows:multiopt_face"
KERAS, JITTED = "keras_rows:keras_adadelta", "jax_rows:multiopt_jit"
EAGER, FOREACH, GPU = {"engine": "eager"}, {"foreach": True}, {"device": "cuda"}
ON_TORCH, ON_JAX = {"KERAS_BACKEND": "torch"}, {"KERAS_BACKEND": "jax"}
CPU = [
    Contender(FLOOR, "floor", "floor:build", ("numba",)),
    Contender("multiopt-numpy", "multiopt, NumPy", "host_rows:multiopt_numpy", (US,)),
    Contender("multiopt-tensors", "multiopt, PyTorch tensors", TENSORS, ("torch", US)),
    Contender("multiopt-torch", "multiopt.torch", FACED, ("torch", FACE)),
    Contender(TORCH, "torch.optim, default", "torch_rows:torch_optim", ("torch",), 7),
    Contender("torch-foreach", "torch.optim, foreach", "torch_rows:torch_optim", ("torch",), 8, FOREACH),
    Contender("torch-adam", "torch.optim's fused Adam", "torch_rows:torch_adam", ("torch",)),
    Contender("torch-compile", "torch.optim, torch.compile", "torch_rows:compiled", ("torch",)),
    Contender("multiopt-jax", "multiopt.functional, jitted", JITTED, ("jax", FUNCTIONAL), 7),
    Contender("optax", "optax, jitted", "jax_rows:optax_adadelta", ("jax", "optax"), 7),
    Contender("keras-jax", "Keras 3 on JAX, jitted", KERAS, ("jax", "keras"), 8, {}, ON_JAX),
    Contender("keras-torch", "Keras 3 on PyTorch", KERAS, ("torch", "keras"), 8, {}, ON_TORCH),
    Contender("multiopt-eager", "multiopt, NumPy, eager engine", "host_rows:multiopt_numpy", (US,), 4, EAGER),
    Contender("numpy", "the rule in plain NumPy", "host_rows:plain_numpy", (), 8),
]
CUDA = [
    Contender(FLOOR, "device-to-device copy", "cuda_rows:copy"),
    Contender("multiopt-cupy", "multiopt, CuPy", "cuda_rows:multiopt_cupy", ("cupy", US)),
    Contender("multiopt-tensors", "multiopt, PyTorch tensors", TENSORS, ("torch", US), 4, GPU),
    Contender("multiopt-torch", "multiopt.torch", FACED, ("torch", FACE), 4, GPU),
    Contender(TORCH, "torch.optim, default", "torch_rows:torch_optim", ("torch",), 8, GPU),
    Contender("torch-foreach", "torch.optim, foreach", "torch_rows:torch_optim", ("torch",), 8, GPU | FOREACH),
    Contender("torch-compile", "torch.optim, torch.compile", "torch_rows:compiled", ("torch",), 4, GPU),
    Contender("torch-adam", "torch.optim's fused Adam", "torch_rows:torch_adam", ("torch",), 4, GPU),
    Contender("cupy", "the rule in plain CuPy", "cuda_rows:plain_cupy", ("cupy",), 8),
]


def contenders(device: str, compiled: bool, rows: list[str] | None) -> dict[str, Contender]:
    """Choose the contenders of a run, by key.

    Parameters
    ----------
    device : str
        ``"cpu"`` or ``"cuda"``.
    compiled : bool
        Whether to run what compiles for a minute or more; else it is absent and says so.
    rows : list of str or None
        Keys to choose; the floor is always chosen. None chooses all.

    Raises
    ------
    ValueError
        If a key is unknown.
    """
    everybody = {c.key: c for c in (CPU if device == "cpu" else CUDA)}
    if device == "cuda":
        library = "cupy" if importlib.util.find_spec("cupy") is not None else "torch"
        everybody[FLOOR] = replace(everybody[FLOOR], needs=(library,))
    unknown = sorted(set(rows or ()) - set(everybody))
    if unknown:
        raise ValueError(f"--rows: expected some of {', '.join(everybody)}, got {', '.join(unknown)}")
    if not compiled:
        everybody["torch-compile"] = replace(
            everybody["torch-compile"], excuse="compiles for a minute or more: pass --compile"
        )
    return {key: c for key, c in everybody.items() if rows is None or key in rows or key == FLOOR}
