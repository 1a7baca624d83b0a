"""What a scenario is: data only, in terms that belong to no framework.

A scenario says what is stepped (tensors, data type, gradients), how (a `Config`) and by whom (systems). The
recorders translate a `Config` into each framework's own options; the reference and the checks read it as it stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: NumPy data types that hold a trace's values in memory. bfloat16 is held in float32, which holds it exactly.
HOLDERS: Mapping[str, str] = {
    "float64": "float64", "float32": "float32", "float16": "float16", "bfloat16": "float32",
    "complex64": "complex64", "complex128": "complex128",
}  # fmt: skip


@dataclass(frozen=True)
class Schedule:
    """A learning rate that changes. `rates.rate_at` has the formula of each kind, and with it the parameters."""

    kind: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Config:
    """The options of one optimizer, in framework-neutral terms.

    ``decay_kind`` is ``"coupled"`` (the gradient gains ``weight_decay * x``) or ``"decoupled"`` (``x`` first loses
    ``lr * weight_decay * x``). Clips apply value first, then each tensor's norm, then the global norm.
    ``legacy_decay`` divides the learning rate by ``1 + legacy_decay * t``. ``accumulate`` is the number of
    gradients averaged for one update. ``ema_every`` is after how many steps the average overwrites the
    parameters. ``constraint`` is applied to the first tensor after each update. ``defaults`` leaves lr, rho and eps to
    the framework (the trace then holds what it chose). ``floatx`` is Keras' global float type.
    """

    lr: float | None = 0.5
    rho: float = 0.9
    eps: float = 1e-6
    weight_decay: float = 0.0
    decay_kind: str | None = None
    clipvalue: float | None = None
    clipnorm: float | None = None
    global_clipnorm: float | None = None
    maximize: bool = False
    schedule: Schedule | None = None
    legacy_decay: float = 0.0
    accumulate: int = 1
    ema_momentum: float | None = None
    ema_every: int | None = None
    constraint: str | None = None
    first_iteration: int = 0
    defaults: bool = False
    floatx: str | None = None


@dataclass(frozen=True)
class Draw:
    """Where numbers come from.

    ``uniform``: evenly between ``low`` and ``high``. ``decades``: either sign, mantissa between 1 and 10, decimal
    exponent evenly between the whole numbers ``low`` and ``high``. ``listed``: ``values`` in turn, over steps and
    elements.
    """

    kind: str = "uniform"
    low: float = -1.0
    high: float = 1.0
    values: tuple[complex, ...] = ()


@dataclass(frozen=True)
class Scenario:
    """One thing to show: tensors, gradients, steps and options, and the systems that must have a trace of it.

    ``dtype`` is one of `HOLDERS`. ``missing`` lists step and tensor of gradients that are None; tensor −1 stands for
    all of them. With ``rows`` the first tensor's gradient is sparse, with these row numbers at each step, in turn.
    ``refusals`` are the systems that must refuse it, with the name of the exception's class.
    """

    name: str
    about: str
    systems: tuple[str, ...]
    config: Config = Config()
    dtype: str = "float64"
    shapes: tuple[tuple[int, ...], ...] = ((7,), (3, 2), ())
    steps: int = 10
    start: Draw = Draw()
    gradients: Draw = Draw(low=-2.0, high=2.0)
    missing: tuple[tuple[int, int], ...] = ()
    rows: tuple[tuple[int, ...], ...] = ()
    refusals: Mapping[str, str] = field(default_factory=dict)

    @property
    def everyone(self) -> tuple[str, ...]:
        """Every system with a trace, be it of states or of a refusal."""
        return (*self.systems, *self.refusals)
