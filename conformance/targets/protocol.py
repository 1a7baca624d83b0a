"""What an optimizer must offer so that it can be run: take a step, show every state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from ..data.case import Gradient
from ..data.specification import Config


class TargetOptimizer(Protocol):
    """An optimizer with its parameters. Anything with these members can be run, one of your own framework too.

    ``name`` stands in messages, ``dtype`` is the data type of parameters and state, such as ``"float32"``.
    """

    name: str
    dtype: str

    def step(self, number: int, gradients: Sequence[Gradient]) -> float | None:
        """Take step `number`, counted from 0, with a gradient for each parameter.

        Returns the learning rate that was used, or None where it is not known.
        """

    def states(self) -> Mapping[str, Sequence[Any]]:
        """Return copies as NumPy arrays, one for each parameter, in the data type that `HOLDERS` names.

        ``"x"`` are the parameters; where known there are ``"square_avg"``, ``"acc_delta"`` and ``"average"`` too, and
        ``"iterations"``, the optimizer's own counters.
        """


class Options(NamedTuple):
    """What an optimizer was asked for: options, and the learning rate of each update where it changes."""

    config: Config
    rates: tuple[float, ...] | None = None
