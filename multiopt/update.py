"""What one pass over memory does: a rule, with the scaling, clipping and decay of its gradient fused around it.

Composed here, once, before any engine: an engine gets the `Program` of a fused update and knows nothing of options.
Like a rule, a fused update is elementwise array-API code, so that each option has one meaning everywhere. What is
off is left out and costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from .backends.engines.program import KEPT, Program
from .rule import Hyper, Rule

__all__ = ["AVERAGE", "PRODUCT", "REPLACE", "SUM", "FusedUpdate", "averaging", "compose"]


@dataclass(frozen=True)
class FusedUpdate:
    """A rule and the options that are on.

    The gradient goes through, in this order: ``scale`` (the loss scale's inverse, the mean over accumulated
    micro-batches, −1 to maximize, one factor), clipping to ±``clip_value``, ``norm_scale`` (what clipping by norm
    asks for, one factor per tensor), coupled ``weight_decay``. Decoupled decay shrinks the parameter before the
    rule moves it, as Keras does. Where it is ``guarded``, a number ``skip`` other than 0 keeps everything as it was:
    for a number on a device, which the host cannot read without waiting (a 0-d array there, for eager use).
    ``stochastic`` says for each output by which slot's number it is rounded stochastically, or None.
    """

    rule: Rule
    scaled: bool = False
    clipped: bool = False
    normed: bool = False
    coupled: bool = False
    decoupled: bool = False
    guarded: bool = False
    stochastic: tuple[int | None, ...] = ()

    @property
    def scalars(self) -> tuple[str, ...]:
        """Names of the numbers that the update reads: hyperparameters, and those of the options that are on."""
        names = [*self.rule.hypers]
        names += ["step"] * self.rule.uses_step + ["scale"] * self.scaled + ["clip_value"] * self.clipped
        names += ["norm_scale"] * self.normed + ["weight_decay"] * (self.coupled or self.decoupled)
        names += ["skip"] * self.guarded
        return tuple(names)

    @property
    def program(self) -> Program:
        """The update as engines get it: the same object for equal updates."""
        return _program(self)

    def __call__(self, xp: Any, x: Any, g: Any, *state: Any, **s: Any) -> tuple[Any, ...]:
        """Compute the new parameter and state from the old ones, the gradient and the scalars `s`."""
        old = x, *state
        g = self.measured(xp, g, s)
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

    def measured(self, xp: Any, g: Any, s: Mapping[str, Any]) -> Any:
        """Scale and clip by value: the part of which clipping by norm takes the norm."""
        if self.scaled:
            g = g * s["scale"]
        if self.clipped:
            g = xp.clip(g, -s["clip_value"], s["clip_value"])
        return g


def compose(rule: Rule, options: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[FusedUpdate, dict[str, Any]]:
    """The update that the options of a group and of the step ask for, and the numbers of its step.

    Numbers may be callables of the step, or traced arrays; ``step`` itself is left out.
    """
    decay = not isinstance(options["weight_decay"], (int, float)) or options["weight_decay"] != 0
    if decay and options["decoupled"] and rule.returns_update:
        raise ValueError("decoupled: expected False, for the rule returns updates, got True")
    update = FusedUpdate(
        rule,
        scaled=options["maximize"] or settings["loss_scale"] != 1.0 or settings["accumulate"] > 1,
        clipped=options["clip_value"] is not None,
        normed=options["clip_norm"] is not None or settings["clip_global_norm"] is not None,
        coupled=decay and not options["decoupled"],
        decoupled=decay and options["decoupled"],
        stochastic=(None, *range(len(rule.slots))) if settings["state_rounding"] == "stochastic" else (),
    )
    numbers = {name: options[name] for name in (*rule.hypers, "weight_decay", "clip_value", "clip_norm")}
    numbers["scale"] = (-1.0 if options["maximize"] else 1.0) / (settings["loss_scale"] * settings["accumulate"])
    return update, numbers


def averaging(rule: Rule, settings: Mapping[str, Any]) -> FusedUpdate:
    """The update of the averages of the parameters, which are rounded as one more slot of the rule would be."""
    return AVERAGE if settings["state_rounding"] == "nearest" else replace(AVERAGE, stochastic=(len(rule.slots),))


# More than an engine keeps compiled: a program that is forgotten is another one when it is made again.
@lru_cache(maxsize=4 * KEPT)
def _program(update: FusedUpdate) -> Program:
    return Program(
        name=update.rule.name,
        function=update,
        measured=update.measured,
        slots=tuple(update.rule.slots),
        scalars=update.scalars,
        per_tensor=("norm_scale",) if update.normed else (),
        stochastic=update.stochastic if any(slot is not None for slot in update.stochastic) else (),
        returns_update=update.rule.returns_update,
        file=__file__,
    )


def _add(xp: Any, x: Any, g: Any) -> tuple[Any]:
    return (x + g,)


def _average(xp: Any, x: Any, g: Any, *, momentum: float) -> tuple[Any]:
    return (momentum * x + (1 - momentum) * g,)


def _product(xp: Any, x: Any, g: Any, *, factor: float) -> tuple[Any]:
    return (factor * x,)


def _replace(xp: Any, x: Any, g: Any) -> tuple[Any]:
    return (g,)


#: A sum, to which a gradient is added: accumulation over micro-batches.
SUM = FusedUpdate(Rule("accumulate", _add, slots={}, hypers={}))
#: An exponential moving average, which moves towards the parameter that stands in the gradient's place.
AVERAGE = FusedUpdate(Rule("average", _average, slots={}, hypers={"momentum": Hyper(0.99, low=0.0, high=1.0)}))
#: The parameter times a number; there is no gradient, but something must stand in its place.
PRODUCT = FusedUpdate(Rule("product", _product, slots={}, hypers={"factor": Hyper(1.0, low=0.0)}))
#: The gradient itself, after what is fused around it: clipping alone.
REPLACE = Rule("replace", _replace, slots={}, hypers={})
