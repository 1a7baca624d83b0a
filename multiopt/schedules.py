"""Learning-rate schedules: small immutable objects, called with the 0-based step.

A learning rate may be any function of the step; these are the usual ones. Called with a Python number, a schedule
computes in double precision and returns a Python float. Called with an array, traced or not, it returns an array in
the default precision of that library, which is what `multiopt.functional` uses inside ``jax.jit``.

TensorFlow's and Keras' schedules are these by other names: ``ExponentialDecay`` is `Exponential`,
``InverseTimeDecay`` is `InverseTime`, ``PolynomialDecay`` is `Polynomial`, ``PiecewiseConstantDecay`` is
`Piecewise`, ``CosineDecay`` is `Cosine` (with a warm-up: `WarmUp` of it), and ``CosineDecayRestarts`` is
`CosineRestarts`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from types import SimpleNamespace
from typing import Any

from . import backends
from .options import check_switch
from .rule import Hyper

__all__ = [
    "Constant",
    "Cosine",
    "CosineRestarts",
    "Exponential",
    "InverseTime",
    "Piecewise",
    "Polynomial",
    "Schedule",
    "WarmUp",
]

#: What the formulas need of a namespace, for Python numbers.
_NUMBERS = SimpleNamespace(
    floor=math.floor, ceil=math.ceil, cos=math.cos, log=math.log, where=lambda test, yes, no: yes if test else no
)
_NOT_NEGATIVE = Hyper(0.0, low=0.0)
#: The ranges of numbers that must be more than not negative; a name means the same in every schedule.
_RANGES = {"t_mul": Hyper(1.0, low=1.0), "decay_steps": Hyper(1.0, low=0.0, open_low=True)}


def _sequence(label: str, value: Any) -> tuple[float, ...]:
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        raise TypeError(f"{label}: expected a sequence of numbers, got {value!r}")
    return tuple(_NOT_NEGATIVE.check(f"{label}[{i}]", entry) for i, entry in enumerate(value))


def _function(label: str, value: Any) -> Any:
    if not callable(value):
        raise TypeError(f"{label}: expected a function of the step, got {value!r}")
    return value


#: How a parameter is checked, by its annotation.
_CHECKS = {"bool": check_switch, "Sequence[float]": _sequence, "Callable[[Any], Any]": _function}


@dataclass(frozen=True)
class Schedule(ABC):
    """What all schedules share: their parameters are checked, and a call takes a number or an array."""

    def __post_init__(self) -> None:
        for field in fields(self):
            check = _CHECKS.get(str(field.type)) or _RANGES.get(field.name, _NOT_NEGATIVE).check
            value = check(f"{type(self).__name__}.{field.name}", getattr(self, field.name))
            object.__setattr__(self, field.name, value)

    def __call__(self, step: Any) -> Any:
        """Return the learning rate of a step.

        Parameters
        ----------
        step : int, float or 0-d array
            How many steps were done before this one.

        Raises
        ------
        TypeError
            If `step` is neither a number nor an array.
        ValueError
            If `step` is a negative number.
        OverflowError
            If the value is too large for a double.
        """
        if not isinstance(step, Real):
            xp = backends.of(step).xp
            return self._at(xp, xp.astype(step, xp.__array_namespace_info__().default_dtypes()["real floating"]))
        number = int(step) if isinstance(step, Integral) else float(step)
        if not number >= 0:
            raise ValueError(f"step: expected a number that is not negative, got {step!r}")
        try:
            return float(self._at(_NUMBERS, number))
        except OverflowError:
            raise OverflowError(f"{self}: its value at step {step} is too large for a float") from None

    @abstractmethod
    def _at(self, xp: Any, step: Any) -> Any:
        """Compute the value at `step`, which `xp` works on: an array's namespace, or one for numbers."""


@dataclass(frozen=True)
class Constant(Schedule):
    """The same `value` at every step."""

    value: float

    def _at(self, xp: Any, step: Any) -> Any:
        return self.value


@dataclass(frozen=True)
class Exponential(Schedule):
    """``initial · rate^(step / decay_steps)``; with `staircase`, the exponent is rounded down."""

    initial: float
    decay_steps: float
    rate: float
    staircase: bool = False

    def _at(self, xp: Any, step: Any) -> Any:
        p = step / self.decay_steps
        return self.initial * self.rate ** (xp.floor(p) if self.staircase else p)


@dataclass(frozen=True)
class InverseTime(Schedule):
    """``initial / (1 + rate · step / decay_steps)``; with `staircase`, the quotient is rounded down.

    Keras' legacy option ``decay`` is ``InverseTime(lr, 1, decay)``.
    """

    initial: float
    decay_steps: float
    rate: float
    staircase: bool = False

    def _at(self, xp: Any, step: Any) -> Any:
        p = step / self.decay_steps
        return self.initial / (1.0 + self.rate * (xp.floor(p) if self.staircase else p))


@dataclass(frozen=True)
class Polynomial(Schedule):
    """``(initial − final) · (1 − p)^power + final``, where ``p = step / decay_steps``; then `final`.

    With `cycle` it never stops: `decay_steps` is stretched to its first multiple that is not below the step.
    """

    initial: float
    decay_steps: float
    final: float = 0.0
    power: float = 1.0
    cycle: bool = False

    def _at(self, xp: Any, step: Any) -> Any:
        p = step / self.decay_steps
        if self.cycle:
            p = p / xp.where(p > 0, xp.ceil(p), 1.0)
        # Not more than 1, whatever the rounding: a power of a negative number is not real.
        return (self.initial - self.final) * (1.0 - xp.where(p < 1, p, 1.0)) ** self.power + self.final


@dataclass(frozen=True)
class Piecewise(Schedule):
    """``values[i]`` up to and including step ``boundaries[i]``, and the last value after the last boundary.

    As in TensorFlow, a boundary belongs to the piece before it: ``Piecewise([9], [1.0, 0.1])`` is 1.0 for ten
    steps, 0 to 9. A milestone of PyTorch's ``MultiStepLR`` belongs to the piece after it: milestone 10 is
    boundary 9.

    Raises
    ------
    ValueError
        If the boundaries do not increase, or if there is not one value more than boundaries.
    """

    boundaries: Sequence[float]
    values: Sequence[float]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.values) != len(self.boundaries) + 1:
            raise ValueError(
                f"Piecewise.values: expected {len(self.boundaries) + 1} of them, one more than boundaries, "
                f"got {len(self.values)}"
            )
        if any(a >= b for a, b in zip(self.boundaries, self.boundaries[1:], strict=False)):
            raise ValueError(f"Piecewise.boundaries: expected them to increase, got {self.boundaries}")

    def _at(self, xp: Any, step: Any) -> Any:
        value = 0.0 * step + self.values[-1]  # an array if the step is one: `where` needs one in its choices
        for boundary, earlier in zip(self.boundaries[::-1], self.values[-2::-1], strict=True):
            value = xp.where(step <= boundary, earlier, value)
        return value


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine wave from `initial` down to ``alpha · initial`` in `decay_steps`, constant from then on.

    Source: Loshchilov and Hutter, arXiv 1608.03983. For a warm-up, wrap it:
    ``WarmUp(Cosine(1.0, 900), steps=100)``.
    """

    initial: float
    decay_steps: float
    alpha: float = 0.0

    def _at(self, xp: Any, step: Any) -> Any:
        p = step / self.decay_steps
        return self.initial * _half_wave(xp, xp.where(p < 1, p, 1.0), 1.0, self.alpha)


@dataclass(frozen=True)
class CosineRestarts(Schedule):
    """Half cosine waves one after another (SGDR: Loshchilov and Hutter, arXiv 1608.03983).

    The first takes `decay_steps`, each later one `t_mul` times as many; it begins at `m_mul` times the height
    of the one before it. All come down to ``alpha · initial``.
    """

    initial: float
    decay_steps: float
    t_mul: float = 2.0
    m_mul: float = 1.0
    alpha: float = 0.0

    def _at(self, xp: Any, step: Any) -> Any:
        p, t = step / self.decay_steps, self.t_mul
        if t == 1:
            wave = xp.floor(p)
            return self.initial * _half_wave(xp, p - wave, self.m_mul**wave, self.alpha)
        # Wave i begins where p is 1 + t + … + t^(i−1). The logarithm may round to the wave before or after.
        wave = xp.floor(xp.log(1.0 + p * (t - 1.0)) / math.log(t))
        wave = xp.where(self._start(wave + 1) <= p, wave + 1, xp.where(self._start(wave) > p, wave - 1, wave))
        return self.initial * _half_wave(xp, (p - self._start(wave)) / t**wave, self.m_mul**wave, self.alpha)

    def _start(self, wave: Any) -> Any:
        return (self.t_mul**wave - 1.0) / (self.t_mul - 1.0)


@dataclass(frozen=True)
class WarmUp(Schedule):
    """A straight line from `initial` to the schedule's first value, `steps` long; then the schedule.

    Parameters
    ----------
    schedule : callable
        A schedule, or any function of the 0-based step; it sees step 0 when the warm-up is over.
    steps : int
        Length of the warm-up.
    initial : float
        The value at step 0.
    """

    schedule: Callable[[Any], Any]
    steps: float
    initial: float = 0.0

    def _at(self, xp: Any, step: Any) -> Any:
        steps = int(self.steps) if self.steps == int(self.steps) else self.steps  # so that an int stays one
        value = self.schedule(xp.where(step < steps, 0 * step, step - steps))
        line = (value - self.initial) * (step / max(steps, 1)) + self.initial
        return xp.where(step < steps, line, value)


def _half_wave(xp: Any, p: Any, height: Any, alpha: float) -> Any:
    return (1.0 - alpha) * (0.5 * height * (1.0 + xp.cos(math.pi * p))) + alpha
