"""TensorFlow's learning-rate schedules by their names there. The formulas are those of `multiopt.schedules`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from .. import schedules as core
from .configuration import restore, store

__all__ = [
    "CosineDecay",
    "CosineDecayRestarts",
    "ExponentialDecay",
    "InverseTimeDecay",
    "LearningRateSchedule",
    "PiecewiseConstantDecay",
    "PolynomialDecay",
    "deserialize",
    "named",
    "serialize",
]


class LearningRateSchedule(ABC):
    """A learning rate that depends on the step: subclass it and give ``__call__`` and ``get_config``.

    An optimizer calls it with the number of updates done before, a Python int. (TensorFlow's legacy optimizer rounds it
    to the variables' dtype; float16 cannot count beyond 2048.)
    """

    @abstractmethod
    def __call__(self, step: Any) -> Any:
        """The learning rate of the 0-based `step`."""

    @abstractmethod
    def get_config(self) -> dict[str, Any]:
        """The arguments that make an equal schedule."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LearningRateSchedule:
        """A schedule from what `get_config` returned."""
        return cls(**config)


class _Core(LearningRateSchedule):
    """A schedule that the core computes. The fields are the arguments of TensorFlow's class."""

    #: The core's class: its arguments are the fields in their order, without the name.
    _core: ClassVar[type[core.Schedule]]

    def __post_init__(self) -> None:
        self._schedule = self._made([value for name, value in self.get_config().items() if name != "name"])

    def _made(self, arguments: list[Any]) -> core.Schedule:
        return self._core(*arguments)

    def __call__(self, step: Any) -> Any:
        """The learning rate of the 0-based `step`: a float for a number, an array for an array."""
        return self._schedule(step)

    def get_config(self) -> dict[str, Any]:
        """The arguments that make an equal schedule."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]


@dataclass(eq=False)
class ExponentialDecay(_Core):
    """``initial_learning_rate * decay_rate ** (step / decay_steps)``; with `staircase` the exponent is rounded down."""

    _core = core.Exponential
    initial_learning_rate: float
    decay_steps: float
    decay_rate: float
    staircase: bool = False
    name: str | None = "ExponentialDecay"


@dataclass(eq=False)
class InverseTimeDecay(_Core):
    """``initial_learning_rate / (1 + decay_rate * step / decay_steps)``; `staircase` rounds the quotient down."""

    _core = core.InverseTime
    initial_learning_rate: float
    decay_steps: float
    decay_rate: float
    staircase: bool = False
    name: str | None = "InverseTimeDecay"


@dataclass(eq=False)
class PolynomialDecay(_Core):
    """From `initial_learning_rate` to `end_learning_rate` in `decay_steps`, along a polynomial of degree `power`.

    With `cycle`, the decay starts again each time it ends, stretched to the next multiple of `decay_steps`.
    """

    _core = core.Polynomial
    initial_learning_rate: float
    decay_steps: float
    end_learning_rate: float = 0.0001
    power: float = 1.0
    cycle: bool = False
    name: str | None = "PolynomialDecay"


@dataclass(eq=False)
class PiecewiseConstantDecay(_Core):
    """``values[i]`` up to and including step ``boundaries[i]``, and the last value after that."""

    _core = core.Piecewise
    boundaries: Sequence[float]
    values: Sequence[float]
    name: str | None = "PiecewiseConstant"

    def __post_init__(self) -> None:
        self.boundaries, self.values = list(self.boundaries), list(self.values)
        super().__post_init__()


@dataclass(eq=False)
class CosineDecay(_Core):
    """Half a cosine wave from the top to ``alpha`` times the top in `decay_steps`.

    With `warmup_target`, first a straight line from `initial_learning_rate` to `warmup_target`, which then is the top,
    in `warmup_steps`.
    """

    _core = core.Cosine
    initial_learning_rate: float
    decay_steps: float
    alpha: float = 0.0
    name: str | None = "CosineDecay"
    warmup_target: float | None = None
    warmup_steps: float = 0

    def _made(self, arguments: list[Any]) -> core.Schedule:
        initial, steps, alpha, top, warmup_steps = arguments
        if top is None:
            return core.Cosine(initial, steps, alpha)
        return core.WarmUp(core.Cosine(top, steps, alpha), steps=warmup_steps, initial=initial)


@dataclass(eq=False)
class CosineDecayRestarts(_Core):
    """Half cosine waves one after another, each `t_mul` times as long and `m_mul` times as high as the one before."""

    _core = core.CosineRestarts
    initial_learning_rate: float
    first_decay_steps: float
    t_mul: float = 2.0
    m_mul: float = 1.0
    alpha: float = 0.0
    name: str | None = "SGDRDecay"


_BUILT_IN: dict[str, type[LearningRateSchedule]] = {kind.__name__: kind for kind in _Core.__subclasses__()}


def named(schedule: core.Schedule) -> LearningRateSchedule:
    """The schedule of TensorFlow that is equal to one of `multiopt.schedules`.

    Raises
    ------
    TypeError
        If TensorFlow has none.
    """
    if isinstance(schedule, core.Constant):
        return PiecewiseConstantDecay([], [schedule.value])
    if isinstance(schedule, core.WarmUp) and isinstance(schedule.schedule, core.Cosine):
        top, steps = schedule.schedule, schedule.steps
        steps = int(steps) if steps == int(steps) else steps
        return CosineDecay(schedule.initial, top.decay_steps, top.alpha, warmup_target=top.initial, warmup_steps=steps)
    for kind in _Core.__subclasses__():
        if type(schedule) is kind._core:
            return kind(*[getattr(schedule, field.name) for field in fields(schedule)])
    raise TypeError(f"schedule: expected one that TensorFlow has too, got {schedule!r}")


def serialize(schedule: LearningRateSchedule | core.Schedule) -> dict[str, Any]:
    """A schedule as the dictionary that Keras writes, and that Keras reads.

    Raises
    ------
    TypeError
        If it is not a schedule.
    """
    if isinstance(schedule, core.Schedule):
        schedule = named(schedule)
    if not isinstance(schedule, LearningRateSchedule):
        raise TypeError(f"schedule: expected a LearningRateSchedule, got {schedule!r}")
    return store(schedule, "keras.optimizers.schedules", _BUILT_IN)


def deserialize(config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None) -> LearningRateSchedule:
    """A schedule from such a dictionary, ours or one of Keras 3, tf_keras or TensorFlow; or the function that it names.

    Parameters
    ----------
    config : mapping
        With ``"class_name"`` and ``"config"``.
    custom_objects : mapping or None
        Classes and functions of your own, by name.

    Raises
    ------
    TypeError, ValueError
        If it is not such a dictionary, names a class or a function that is not known, or holds a lambda's bytecode.
    """
    return restore(config, _BUILT_IN, custom_objects, "schedule")
