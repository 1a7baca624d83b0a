"""What an update rule is: data that says what an optimizer computes for one element. It imports nothing of ours."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

__all__ = ["Hyper", "Rule"]

#: What checkpoints call the parameters, their averages and the sums of micro-batches.
RESERVED = {"params", "ema", "accumulated"}


@dataclass(frozen=True)
class Hyper:
    """A hyperparameter: its default and the range in which it makes sense.

    Parameters
    ----------
    default : float
        The value used when the caller gives none.
    low, high : float
        The range. A value outside it is rejected.
    open_low, open_high : bool
        Whether the bound itself is rejected too.
    """

    default: float
    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __str__(self) -> str:
        """The range in mathematical notation, such as ``[0, 1)``."""
        left = "(" if self.open_low or math.isinf(self.low) else "["
        right = ")" if self.open_high or math.isinf(self.high) else "]"
        return f"{left}{self.low:g}, {self.high:g}{right}"

    def __contains__(self, number: float) -> bool:
        above = number > self.low if self.open_low else number >= self.low
        below = number < self.high if self.open_high else number <= self.high
        return above and below

    def check(self, name: str, value: float) -> float:
        """Return `value` as a Python float, or raise.

        Raises
        ------
        TypeError
            If `value` is not a real number.
        ValueError
            If it is NaN or outside the range.
        """
        try:
            if isinstance(value, (str, bytes, bool)):
                raise TypeError
            number = float(value)
        except OverflowError:
            number = math.inf if value > 0 else -math.inf
        except (TypeError, ValueError):
            raise TypeError(f"{name}: expected a real number in {self}, got {value!r}") from None
        # An infinite rate or epsilon is never meant, although it lies within an unbounded range.
        if number not in self or math.isinf(number):
            raise ValueError(f"{name}: expected a number in {self}, got {number!r}")
        return number


@dataclass(frozen=True)
class Rule:
    """An elementwise update rule: a name, its state, its hyperparameters and its formula.

    A rule of your own gets every backend and every engine with no further code.

    Parameters
    ----------
    name : str
        For messages, checkpoints and ``repr``.
    function : callable
        ``function(xp, x, g, *state, **hypers) -> (x, *state)``: elementwise array-API code. `x` is the parameter,
        `g` its gradient, the state arrays come in the order of `slots`. Hyperparameters are Python numbers, so that
        an expression of hyperparameters alone, such as ``1 - rho``, is formed in double precision and rounded once
        to the computing dtype. A parameter called ``step``, if the function has one, is the 0-based step.
        Usable on arrays: ``+ - * /``, unary minus, ``**`` by small integers, comparisons, and ``xp.sqrt``, ``abs``,
        ``square``, ``minimum``, ``maximum``, ``clip``, ``where``, ``sign``, ``exp``, ``log``. The bits are the same
        on every engine, except those of ``exp``, ``log`` and powers beyond the square, which are each library's own.
    slots : mapping of str to float
        The state arrays, shaped like the parameter, and the value each is filled with at first.
    hypers : mapping of str to Hyper
        Every keyword parameter of `function` except ``step``. A rule for `Optimizer` has one called ``lr``.
    returns_update : bool
        Whether `function` returns what is to be added to the parameter, and not the parameter. Such a rule is for
        `multiopt.functional` alone.

    Raises
    ------
    ValueError
        If the signature of `function` does not agree with `slots` and `hypers`, or a slot is called ``params``,
        ``ema`` or ``accumulated``.
    """

    name: str
    function: Callable[..., Any]
    # Rules are equal by value, so that an unpickled one finds what has been compiled for its twin.
    slots: Mapping[str, float] = field(hash=False)
    hypers: Mapping[str, Hyper] = field(hash=False)
    returns_update: bool = False
    uses_step: bool = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "slots", MappingProxyType(dict(self.slots)))
        object.__setattr__(self, "hypers", MappingProxyType(dict(self.hypers)))
        parameters = inspect.signature(self.function).parameters.values()
        positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        keywords = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
        expected = ["xp", "x", "g", *self.slots]
        if len(positional) != len(expected) or positional[3:] != expected[3:]:
            raise ValueError(
                f"rule {self.name!r}: its function takes ({', '.join(positional)}), expected ({', '.join(expected)})"
            )
        if keywords - {"step"} != set(self.hypers):
            raise ValueError(
                f"rule {self.name!r}: its function takes the keywords {sorted(keywords - {'step'})}, "
                f"its hypers are {sorted(self.hypers)}; they must agree"
            )
        if taken := RESERVED & self.slots.keys():
            raise ValueError(f"rule {self.name!r}: slots called {sorted(taken)}; checkpoints call others so")
        object.__setattr__(self, "uses_step", "step" in keywords)

    def __repr__(self) -> str:
        hypers = ", ".join(f"{name}={hyper.default:g}" for name, hyper in self.hypers.items())
        return f"Rule({self.name!r}, slots=({', '.join(self.slots)}), {hypers})"

    def __reduce__(self) -> Any:
        # A mapping proxy does not pickle; the plain mappings do.
        return type(self), (self.name, self.function, dict(self.slots), dict(self.hypers), self.returns_update)

    def __deepcopy__(self, memo: dict[int, Any]) -> Rule:
        return self  # immutable
