"""The one pass over memory: a rule with the preparation of its gradient and the decay around it.

Like a rule, a pass is elementwise array-API code. The eager engine calls it, the others trace it, so that each
option has one meaning everywhere. What is off is left out and costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from multiopt.rule import Rule

__all__ = ["Pass"]


@dataclass(frozen=True)
class Pass:
    """A rule and the options that are on.

    The gradient goes through, in this order: ``scale`` (the loss scale's inverse, the mean over accumulated
    micro-batches, −1 to maximize, one factor), clipping to ±``clip_value``, ``norm_scale`` (what clipping by norm
    asks for, one factor per tensor), coupled ``weight_decay``. Decoupled decay shrinks the parameter before the
    rule moves it, as Keras does. Where it is ``guarded``, a number ``skip`` other than 0 keeps everything as it was:
    for a number on a device, at which the host cannot look without waiting (a 0-d array there, for eager use).
    """

    rule: Rule
    scaled: bool = False
    clipped: bool = False
    normed: bool = False
    coupled: bool = False
    decoupled: bool = False
    guarded: bool = False

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the state arrays, in order."""
        return tuple(self.rule.slots)

    @property
    def scalars(self) -> tuple[str, ...]:
        """Names of the numbers that the pass reads: hyperparameters, and those of the options that are on."""
        names = [*self.rule.hypers]
        names += ["step"] * self.rule.uses_step + ["scale"] * self.scaled + ["clip_value"] * self.clipped
        names += ["norm_scale"] * self.normed + ["weight_decay"] * (self.coupled or self.decoupled)
        names += ["skip"] * self.guarded
        return tuple(names)

    def __call__(self, xp: Any, x: Any, g: Any, *state: Any, **s: Any) -> tuple[Any, ...]:
        """Compute the new parameter and state from the old ones, the gradient and the scalars `s`."""
        old = x, *state
        g = self.gradient(xp, g, s)
        if self.normed:
            g = g * s["norm_scale"]
        if self.coupled:
            g = g + s["weight_decay"] * x
        if self.decoupled:
            x = x - (s["lr"] * s["weight_decay"]) * x
        hypers = {name: s[name] for name in self.rule.hypers}
        if self.rule.uses_step:
            hypers["step"] = s["step"]
        new = self.rule.function(xp, x, g, *state, **hypers)
        return tuple(xp.where(s["skip"] != 0, *pair) for pair in zip(old, new, strict=True)) if self.guarded else new

    def gradient(self, xp: Any, g: Any, s: Mapping[str, Any]) -> Any:
        """Scale and clip by value: the part that clipping by norm measures."""
        if self.scaled:
            g = g * s["scale"]
        if self.clipped:
            g = xp.clip(g, -s["clip_value"], s["clip_value"])
        return g
