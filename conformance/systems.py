"""The systems that traces are recorded from, and how their known habits differ from the published rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .floats import REAL
from .specification import Scenario


@dataclass(frozen=True)
class System:
    """One real optimizer.

    Attributes
    ----------
    name, about : str
        Its name here, and the class or function that is run.
    recorder : str
        Module of `multiopt.conformance.recorders` that runs it.
    packages : tuple of str
        Distributions whose versions belong to the trace; the first ones must be installed.
    environment : mapping
        Environment variables that its process needs from the start.
    """

    name: str
    about: str
    recorder: str
    packages: tuple[str, ...]
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
        System(
            "tf-keras-dtensor",
            "tf_keras.dtensor.experimental.optimizers.Adadelta on a 2 × 2 mesh of virtual CPU devices",
            "dtensor",
            ("tf_keras", "tensorflow"),
            _TF,
        ),
        System(
            "keras-tensorflow",
            "keras.optimizers.Adadelta on TensorFlow",
            "keras",
            ("keras", "tensorflow"),
            {**_TF, "KERAS_BACKEND": "tensorflow"},
        ),
        System(
            "keras-jax",
            "keras.optimizers.Adadelta on JAX",
            "keras",
            ("keras", "jax", "jaxlib"),
            {**_JAX, "KERAS_BACKEND": "jax"},
        ),
        System(
            "keras-torch",
            "keras.optimizers.Adadelta on PyTorch",
            "keras",
            ("keras", "torch"),
            {**_ANY, "KERAS_BACKEND": "torch"},
        ),
        System("tf-v1", "tf.compat.v1.train.AdadeltaOptimizer", "tf_v1", ("tensorflow",), _TF),
        System(
            "tf-raw",
            "tf.raw_ops.ResourceApplyAdadelta and ResourceSparseApplyAdadelta",
            "tf_v1",
            ("tensorflow",),
            _TF,
        ),
        System("optax", "optax.adadelta", "optax", ("optax", "jax", "jaxlib"), _JAX),
    )
}

TORCH = ("torch-forloop", "torch-foreach")
LEGACY = ("tf-keras-legacy",)
NEW = ("tf-keras", "tf-keras-dtensor")
KERAS = ("keras-tensorflow", "keras-jax", "keras-torch")
V1 = ("tf-v1",)
RAW = ("tf-raw",)
OPTAX = ("optax",)
EVERY = tuple(SYSTEMS)


@dataclass(frozen=True)
class Quirk:
    """A habit by which a system leaves the published rule: who has it, and in which scenarios it shows."""

    name: str
    about: str
    systems: tuple[str, ...]
    shows: Callable[[Scenario], bool]


def _double(s: Scenario) -> bool:
    return REAL.get(s.dtype, s.dtype) == "float64"


def _half(s: Scenario) -> bool:
    return s.dtype in ("float16", "bfloat16")


QUIRKS: tuple[Quirk, ...] = (
    Quirk(
        "lr-through-float32",
        "the learning rate passes through float32 on its way to float64 parameters",
        (*LEGACY, *NEW, *KERAS, *V1),
        lambda s: _double(s) and s.config.floatx is None,
    ),
    Quirk(
        "rho-through-float32", "rho passes through float32 on its way to float64 parameters", (*LEGACY, *V1), _double
    ),
    Quirk("eps-through-float32", "eps passes through float32 on its way to float64 parameters", V1, _double),
    Quirk(
        "one-minus-rho-in-parameter-dtype",
        "1 − rho is formed from rho as already rounded to the parameters' data type",
        (*LEGACY, *V1, *RAW),
        lambda s: not _double(s),
    ),
    Quirk("half-arithmetic", "every operation is rounded to the 16-bit type, not only the results", EVERY, _half),
    Quirk(
        "complex-arithmetic",
        "a complex gradient is squared as a complex number, where torch takes real and imaginary parts apart",
        (*LEGACY, *NEW, *KERAS, *V1, *RAW, *OPTAX),
        lambda s: s.dtype.startswith("complex"),
    ),
    Quirk(
        "ascends-without-lr",
        "optax.adadelta() has no learning rate by default and then adds the update instead of subtracting it",
        OPTAX,
        lambda s: s.config.lr is None or s.config.defaults,
    ),
    Quirk(
        "eps-zero-becomes-1e-7",
        "epsilon=0 is silently replaced by 1e-7",
        LEGACY,
        lambda s: s.config.eps == 0.0,
    ),
    Quirk(
        "nonpositive-clip-ignored",
        "clipvalue=0 or less means no clipping, where the legacy optimizer makes every gradient 0",
        (*NEW, *KERAS),
        lambda s: s.config.clipvalue is not None and s.config.clipvalue <= 0,
    ),
    Quirk(
        "norm-clip-wins",
        "with clipvalue and a norm clip both set, only the norm clip is applied",
        NEW,
        lambda s: s.config.clipvalue is not None and (s.config.clipnorm or s.config.global_clipnorm) is not None,
    ),
    Quirk(
        "norm-plus-1e-6",
        "torch.nn.utils.clip_grad_norm_ divides by norm + 1e-6",
        TORCH,
        lambda s: s.config.global_clipnorm is not None,
    ),
    Quirk(
        "boundary-belongs-to-next",
        "a piecewise schedule takes the next value at its boundary; Keras takes it one step later",
        (*TORCH, *OPTAX),
        lambda s: s.config.schedule is not None and s.config.schedule.kind == "piecewise",
    ),
    Quirk(
        "callable-lr-frozen",
        "a callable learning rate is called once, when the optimizer is made",
        NEW,
        lambda s: s.config.schedule is not None and s.config.schedule.kind == "callable",
    ),
    Quirk(
        "step-in-parameter-dtype",
        "the schedule sees the step number rounded to the parameters' data type",
        LEGACY,
        lambda s: (s.config.schedule is not None or s.config.legacy_decay > 0) and s.config.first_iteration > 0,
    ),
    Quirk(
        "schedule-counts-micro-steps",
        "under gradient accumulation the schedule counts gradients, not updates",
        KERAS,
        lambda s: s.config.accumulate > 1 and s.config.schedule is not None,
    ),
    Quirk(
        "ema-never-updates",
        "the average stays at the initial values, and finalize_variable_values puts those back",
        ("tf-keras-dtensor",),
        lambda s: s.config.ema_momentum is not None,
    ),
    Quirk(
        "ema-starts-after-first-step",
        "the average starts at the parameters after the first step, not before it",
        (*KERAS, *TORCH),
        lambda s: s.config.ema_momentum is not None,
    ),
    Quirk(
        "ema-every-micro-step",
        "under gradient accumulation the average moves with every gradient, not with every update",
        KERAS,
        lambda s: s.config.ema_momentum is not None and s.config.accumulate > 1,
    ),
    Quirk(
        "sparse-untouched-rows-kept",
        "rows that are absent from a sparse gradient keep their accumulators as they are",
        (*LEGACY, *V1, *RAW),
        lambda s: bool(s.rows),
    ),
    Quirk(
        "sparse-duplicates-in-turn",
        "a row that occurs twice is stepped twice, one after the other",
        RAW,
        lambda s: bool(s.rows),
    ),
    Quirk(
        "sparse-duplicates-squared-apart",
        "a row that occurs twice adds the sum of squares to the accumulator, not the square of the sum",
        ("keras-tensorflow",),
        lambda s: bool(s.rows),
    ),
    Quirk(
        "sparse-clipped-before-summed",
        "clipping comes before the occurrences of a row are summed",
        (*LEGACY, "tf-keras", "keras-tensorflow"),
        lambda s: bool(s.rows) and s.config.clipvalue is not None,
    ),
)


def quirks_of(system: str, scenario: Scenario) -> tuple[str, ...]:
    """Return the names of the quirks of ``system`` that show in ``scenario``."""
    return tuple(q.name for q in QUIRKS if system in q.systems and q.shows(scenario))
