"""The systems that traces are recorded from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class System:
    """One real optimizer: the class or function of that name, which a module of `recording` runs."""

    name: str
    about: str
    recorder: str
    #: Distributions that must be installed, and whose versions belong to the trace.
    packages: tuple[str, ...]
    #: Environment variables that its process needs from the start.
    environment: Mapping[str, str]


_ANY = {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
# oneDNN may reorder TensorFlow's arithmetic from one processor to the next.
_TF = {**_ANY, "TF_ENABLE_ONEDNN_OPTS": "0"}
_JAX = {**_ANY, "JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"}

SYSTEMS: Mapping[str, System] = {
    system.name: system
    for system in (
        System("torch-forloop", "torch.optim.Adadelta(foreach=False)", "torch", ("torch",), _ANY),
        System("torch-foreach", "torch.optim.Adadelta(foreach=True)", "torch", ("torch",), _ANY),
        System("tf-keras-legacy", "tf_keras.optimizers.legacy.Adadelta", "tf_keras", ("tf_keras", "tensorflow"), _TF),
        System("tf-keras", "tf_keras.optimizers.Adadelta", "tf_keras", ("tf_keras", "tensorflow"), _TF),
        System("tf-keras-dtensor",
               "tf_keras.dtensor.experimental.optimizers.Adadelta on a 2 × 2 mesh of virtual CPU devices",
               "dtensor", ("tf_keras", "tensorflow"), _TF),
        System("keras-tensorflow", "keras.optimizers.Adadelta on TensorFlow", "keras", ("keras", "tensorflow"),
               {**_TF, "KERAS_BACKEND": "tensorflow"}),
        System("keras-jax", "keras.optimizers.Adadelta on JAX", "keras", ("keras", "jax", "jaxlib"),
               {**_JAX, "KERAS_BACKEND": "jax"}),
        System("keras-torch", "keras.optimizers.Adadelta on PyTorch", "keras", ("keras", "torch"),
               {**_ANY, "KERAS_BACKEND": "torch"}),
        System("tf-v1", "tf.compat.v1.train.AdadeltaOptimizer", "tf_v1", ("tensorflow",), _TF),
        System("tf-raw", "tf.raw_ops.ResourceApplyAdadelta and ResourceSparseApplyAdadelta", "tf_v1",
               ("tensorflow",), _TF),
        System("optax", "optax.adadelta", "optax", ("optax", "jax", "jaxlib"), _JAX),
    )
}  # fmt: skip

TORCH = ("torch-forloop", "torch-foreach")
LEGACY = ("tf-keras-legacy",)
NEW = ("tf-keras", "tf-keras-dtensor")
KERAS = ("keras-tensorflow", "keras-jax", "keras-torch")
V1 = ("tf-v1",)
RAW = ("tf-raw",)
OPTAX = ("optax",)
EVERY = tuple(SYSTEMS)
