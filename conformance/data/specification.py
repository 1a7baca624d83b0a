"""What a scenario is: data only, in terms that belong to no framework.

A scenario says what is stepped (tensors, data type, gradients), how (a `Config`) and by whom (systems). The
recorders translate a `Config` into each framework's own options; the reference and the checks read it as it stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

#: NumPy data types that hold a trace's values in memory. bfloat16 is held in float32, which holds it exactly.
HOLDERS: Mapping[str, str] = {
    "float64": "float64",
    "float32": "float32",
    "float16": "float16",
    "bfloat16": "float32",
    "complex64": "complex64",
    "complex128": "complex128",
}


@dataclass(frozen=True)
class Schedule:
    """A learning rate that changes: ``kind`` and its parameters.

    Kinds and parameters (``t`` counts from 0):

    - ``exponential``: ``initial * decay_rate ** (t / decay_steps)``
    - ``inverse-time``: ``initial / (1 + decay_rate * t / decay_steps)``
    - ``polynomial``: ``(initial - end) * (1 - min(t, decay_steps) / decay_steps) ** power + end``
    - ``cosine``: ``initial * ((1 - alpha) * (1 + cos(pi * min(t, decay_steps) / decay_steps)) / 2 + alpha)``
    - ``piecewise``: ``values[i]`` for the first ``i`` with ``t <= boundaries[i]``, else the last value
    - ``callable``: a function without arguments that returns ``values[t]`` at step ``t``
    """

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

    def as_json(self) -> dict[str, Any]:
        """Return the options as plain JSON data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Config:
        """Return the `Config` that `as_json` described."""
        values = dict(data)
        schedule = values.get("schedule")
        values["schedule"] = Schedule(**schedule) if schedule is not None else None
        return cls(**values)


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
    """One thing to show: tensors, gradients, steps and options, and the systems that it is put to.

    Attributes
    ----------
    name, about : str
        The name, and in one sentence what it shows.
    systems : tuple of str
        The systems that must have a trace of it.
    config : Config
    dtype : str
        One of `HOLDERS`.
    shapes : tuple of shapes
        One tensor each, named ``p0``, ``p1``, …
    steps : int
    start, gradients : Draw
        Initial values and gradients.
    missing : tuple of (step, tensor)
        Where the gradient is None. Tensor −1 stands for all of them.
    rows : tuple of tuples of int
        Not empty: the first tensor's gradient is sparse, with these row numbers at each step (in turn).
    refusals : mapping of system to the exception's class name
        The systems that must refuse it.
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

    def is_missing(self, step: int, tensor: int) -> bool:
        """Tell whether ``tensor`` has no gradient at ``step``."""
        return (step, tensor) in self.missing or (step, -1) in self.missing

    @property
    def everyone(self) -> tuple[str, ...]:
        """Every system with a trace, be it of states or of a refusal."""
        return (*self.systems, *self.refusals)
