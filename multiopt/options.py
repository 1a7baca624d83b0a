"""The one table of options: names, ranges, defaults, and whether an option belongs to a group or to the step."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any, Generic, Literal, Protocol, TypeVar, overload

from .backends import ENGINES
from .rule import Hyper, Rule
from .tree import Structure

__all__ = [
    "MOMENTUM",
    "OPTIONS",
    "THRESHOLD",
    "THRESHOLDS",
    "WEIGHT_DECAY",
    "Attribute",
    "Group",
    "Option",
    "check_fits",
    "check_number",
    "check_optional",
    "check_seeded",
    "check_state_dtype",
    "check_switch",
    "check_threshold",
    "narrowest",
    "options_of",
    "range_of",
    "table",
    "with_settings",
]

WEIGHT_DECAY = Hyper(0.0, low=0.0)
THRESHOLD = Hyper(1.0, low=0.0, open_low=True)
MOMENTUM = Hyper(0.99, low=0.0, high=1.0, open_high=True)
NORM_BOUND = "a number in (0, inf], or None"
NONFINITE = ("propagate", "skip", "raise")
STATE_ROUNDINGS = ("nearest", "stochastic")
STATE_DTYPES = (None, "float16", "bfloat16", "float32", "float64")
#: The smallest and the largest positive number of each dtype that updates are computed in.
EXTREMES = {"float32": (2.0**-149, (2.0 - 2.0**-23) * 2.0**127), "float64": (2.0**-1074, sys.float_info.max)}
#: Options whose numbers may be larger than what is compared with them: such a threshold is never met.
THRESHOLDS = ("clip_value", "clip_norm", "clip_global_norm")
Value = TypeVar("Value")


def check_number(name: str, value: Any, hyper: Hyper) -> Any:
    """A float, or a callable of the 0-based step, whose values are checked when they are used."""
    return value if callable(value) else hyper.check(name, value)


def check_optional(name: str, value: Any, hyper: Hyper) -> float | None:
    """A number, or None for off."""
    return None if value is None else hyper.check(name, value)


def check_norm(name: str, value: Any) -> float | None:
    """A bound of a norm, or None for off; an infinite one only has the norm measured."""
    return value if isinstance(value, float) and value == math.inf else check_optional(name, value, THRESHOLD)


def check_switch(name: str, value: Any) -> bool:
    """True or False; 1, 0 and NumPy's bools are rejected."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return value


def check_word(name: str, value: Any, words: Sequence[str | None]) -> Any:
    """One of some words."""
    if not any(value is word or (isinstance(value, str) and value == word) for word in words):
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, words))}, got {value!r}")
    return value


def check_count(name: str, value: Any) -> int:
    """A count that fits into 32 bits."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
        raise ValueError(f"{name}: expected an integer from 1 to 2**31 - 1, got {value!r}")
    return value


def check_seed(name: str, value: Any) -> int:
    """An integer of 64 bits, without a sign."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**64:
        raise ValueError(f"{name}: expected an integer from 0 to 2**64 - 1, got {value!r}")
    return value


def check_seeded(settings: Mapping[str, Any]) -> None:
    """Check that there is no seed where nothing would be drawn from it."""
    if settings["seed"] != 0 and settings["state_rounding"] != "stochastic":
        raise ValueError(f"seed: expected 0 without state_rounding='stochastic', got {settings['seed']}")


def check_fits(name: str, value: Any, computing: str, may_vanish: bool = False, may_overflow: bool = False) -> Any:
    """A value, which is neither 0 nor infinite in the dtype that computes if it is another number before."""
    low, high = EXTREMES[computing]
    if isinstance(value, float) and value != 0:
        for bad, bound, which in (
            (abs(value) < low and not may_vanish, f"at least {low!r}", "smallest"),
            (abs(value) > high and not may_overflow, f"at most {high!r}", "largest"),
        ):
            if bad:
                of = f"the {which} number of {computing}, in which it is computed"
                raise ValueError(f"{name}: expected a size of {bound}, {of}, got {value!r}")
    return value


check_threshold = partial(check_optional, hyper=THRESHOLD)
check_state_dtype = partial(check_word, words=STATE_DTYPES)


@dataclass(frozen=True)
class Option:
    """One option of an optimizer.

    Attributes
    ----------
    name : str
    default : object
    takes : str
        What values it takes, in words.
    check : callable
        ``check(where, value)`` returns the value, or raises an error that begins with `where`.
    scope : {"group", "step", "fixed"}
        Whether each group has its own value, or the whole step has one. A fixed option cannot be assigned later,
        because memory and engines were chosen by it.
    meaning : str
        A few words for the table.
    """

    name: str
    default: Any
    takes: str
    check: Callable[[str, Any], Any]
    scope: Literal["group", "step", "fixed"]
    meaning: str


def _scheduled(hyper: Hyper) -> tuple[str, Callable[[str, Any], Any]]:
    return f"a number in {hyper}, or a function of the step", partial(check_number, hyper=hyper)


def _optional(hyper: Hyper) -> tuple[str, Callable[[str, Any], Any]]:
    return f"a number in {hyper}, or None", partial(check_optional, hyper=hyper)


def _words(words: Sequence[str | None]) -> tuple[str, Callable[[str, Any], Any]]:
    return ", ".join(map(repr, words)), partial(check_word, words=words)


_SWITCH = "True or False", check_switch
#: The options that every rule has, in the order of documents and messages. A rule's hyperparameters come before them.
OPTIONS = {
    option.name: option
    for option in (
        Option("weight_decay", 0.0, *_scheduled(WEIGHT_DECAY), "group", "added to the gradient, times the parameter"),
        Option("decoupled", False, *_SWITCH, "group", "weight decay is not added to the gradient"),
        Option("maximize", False, *_SWITCH, "group", "maximize the objective"),
        Option("clip_value", None, *_optional(THRESHOLD), "group", "bound of each element of a gradient"),
        Option("clip_norm", None, NORM_BOUND, check_norm, "group", "bound of each gradient's norm"),
        Option("clip_global_norm", None, NORM_BOUND, check_norm, "step", "bound of the norm of all gradients together"),
        Option("loss_scale", 1.0, f"a number in {THRESHOLD}", THRESHOLD.check, "step", "gradients are divided by it"),
        Option("nonfinite", "propagate", *_words(NONFINITE), "step", "what to do with infinite or NaN gradients"),
        Option("ema", None, *_optional(MOMENTUM), "step", "momentum of an average of the parameters"),
        Option("accumulate", 1, "an integer from 1", check_count, "fixed", "micro-batches averaged per update"),
        Option("state_dtype", None, *_words(STATE_DTYPES), "fixed", "dtype of the state; None: the parameter's"),
        Option("state_rounding", "nearest", *_words(STATE_ROUNDINGS), "fixed", "how bfloat16 state is rounded"),
        Option("seed", 0, "an integer from 0 to 2**64 - 1", check_seed, "fixed", "of stochastic rounding"),
        Option("engine", "auto", *_words(("auto", *ENGINES)), "fixed", "what runs the update"),
        Option("donate", False, *_SWITCH, "fixed", "JAX: new parameters take the memory of the old ones"),
    )
}


@lru_cache(maxsize=256)
def options_of(rule: Rule) -> Mapping[str, Option]:
    """The options of a group of parameters for a rule: its hyperparameters, then those that every rule has."""
    hypers = {
        name: Option(name, hyper.default, *_scheduled(hyper), "group", "a hyperparameter of the rule")
        for name, hyper in rule.hypers.items()
    }
    return MappingProxyType(hypers | {name: option for name, option in OPTIONS.items() if option.scope == "group"})


def range_of(rule: Rule, name: str) -> Hyper:
    """The range of a number among the options of a group."""
    return {**rule.hypers, "weight_decay": WEIGHT_DECAY}.get(name, THRESHOLD)


def table(rule: Rule) -> str:
    """The options for a rule as a table in Markdown: the page ``docs/options.md``."""
    where = {"group": "each group", "step": "the step", "fixed": "the optimizer, fixed"}
    lines = ["| option | default | takes | belongs to | meaning |", "|---|---|---|---|---|"]
    for option in {**options_of(rule), **OPTIONS}.values():
        cells = f"`{option.name}`", f"`{option.default!r}`", option.takes, where[option.scope], option.meaning
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def with_settings(
    settings: Mapping[str, Any], groups: Iterable[Group], changes: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The options of the whole step with some of them changed; without changes, they are checked for the groups."""
    if changes is None:
        changes = {name: settings[name] for name, option in OPTIONS.items() if option.scope == "step"}
    changed = {name: OPTIONS[name].check(name, value) for name, value in changes.items()}
    if "ema" in changed and (changed["ema"] is None) != (settings["ema"] is None):
        expected = "None" if settings["ema"] is None else "a momentum"
        raise ValueError(f"ema: expected {expected}, as when the optimizer was made, got {changed['ema']!r}")
    computing = narrowest(group.computing for group in groups)
    for name in changed:
        if name == "loss_scale":
            _check_loss_scale(name, changed[name], settings["accumulate"], computing)
        else:
            check_fits(name, changed[name], computing, may_overflow=name in THRESHOLDS)
    return {**settings, **changed}


def _check_loss_scale(name: str, value: float, accumulate: int, computing: str) -> None:
    """Check what gradients are multiplied by, which is its inverse."""
    low, high = EXTREMES[computing]
    lowest, highest = 1.0 / high / accumulate, min(1.0 / low, sys.float_info.max) / accumulate
    while 1.0 / (lowest * accumulate) > high:  # it was rounded
        lowest = math.nextafter(lowest, math.inf)
    if not lowest <= value <= highest:
        raise ValueError(
            f"{name}: expected a number from {lowest!r} to {highest!r}, so that 1 / (loss_scale * accumulate) is "
            f"one in {computing}, in which it is computed, got {value!r}"
        )


def narrowest(dtypes: Iterable[str]) -> str:
    """The one of float32 and float64 that holds fewer numbers."""
    return "float32" if "float32" in list(dtypes) else "float64"


class Holder(Protocol):
    """What holds parameters."""

    @property
    def params(self) -> list[Any]:
        """The parameters, in order."""

    @property
    def computing(self) -> str:
        """The dtype in which their updates are computed; of several, the narrowest."""


class Group(MutableMapping[str, Any]):
    """A parameter group: its options, checked when they are set, and under ``"params"`` its parameters.

    Parameters
    ----------
    rule : Rule
    where : str
        What the names of its options begin with in messages.
    structure : Structure
        Of the parameters.
    options : mapping
        The options that are not the defaults.

    Raises
    ------
    TypeError
        If an option is unknown, or a value is of the wrong type.
    ValueError
        If a value is out of range.
    """

    def __init__(self, rule: Rule, where: str, structure: Structure, options: Mapping[str, Any]) -> None:
        self.where, self.structure, self.rule = where, structure, rule
        #: What holds the parameters once they are bound; see `bind`.
        self.holder: Holder | None = None
        #: Incremented whenever an option is set.
        self.version = 0
        #: What an optimizer has composed from the options, after the version that it was composed from.
        self.composed: Any = None
        self._options: dict[str, Any] = {}
        self.update({**{name: option.default for name, option in options_of(rule).items()}, **options})

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what can be composed again: it may hold a schedule that was replaced, and does not pickle."""
        return {**self.__dict__, "composed": None}

    def bind(self, holder: Holder) -> None:
        """Tell it what holds the parameters: its numbers must do for their dtypes from now on."""
        self.holder, self.structure.leaves = holder, []  # immutable arrays are replaced; the old ones may go
        self.checked(self._options)

    @property
    def computing(self) -> str:
        """The dtype in which the group's updates are computed; float64 before that is known."""
        return "float64" if self.holder is None else self.holder.computing

    @property
    def params(self) -> list[Any]:
        """The parameters as they are now, in the structure's order."""
        return self.structure.leaves if self.holder is None else self.holder.params

    def __getitem__(self, name: str) -> Any:
        return self.structure.unflatten(self.params) if name == "params" else self._options[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self.update({name: value})

    def update(self, other: Any = (), /, **options: Any) -> None:
        """Set several options, or none of them if one is refused."""
        self._options |= self.checked(dict(other, **options))
        self.version += 1

    def checked(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options as they would be held if they were set; see the class for what it raises."""
        known, made = options_of(self.rule), {}
        for name, value in options.items():
            where = f"{self.where}{name}"
            if name == "params":
                raise TypeError(f"{where}: cannot be replaced; make a new optimizer, or write into the arrays")
            if name not in known:
                raise TypeError(f"{where}: unknown option; expected one of {', '.join(known)}")
            made[name] = check_fits(
                where, known[name].check(where, value), self.computing, may_overflow=name in THRESHOLDS
            )
        return made

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"{self.where}{name}: options cannot be removed")

    def __iter__(self) -> Iterator[str]:
        return iter(["params", *self._options])

    def __len__(self) -> int:
        return 1 + len(self._options)

    def options(self) -> dict[str, Any]:
        """The options, without the parameters."""
        return dict(self._options)

    def numbers(self, fixed: Mapping[str, Any], step: int) -> dict[str, Any]:
        """Numbers of this group at a step: schedules are called, and what they return is checked."""
        return {name: self._called(name, value, step) if callable(value) else value for name, value in fixed.items()}

    def _called(self, name: str, schedule: Callable[[int], Any], step: int) -> float:
        hyper, where = range_of(self.rule, name), f"{self.where}{name} at step {step}"
        # A rate that decays to nothing is no mistake, and ends no training: it is 0 once it is that small.
        return check_fits(where, hyper.check(where, schedule(step)), self.computing, may_vanish=0.0 in hyper)

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={_short(value)}" for name, value in self._options.items())
        return f"Group({len(self.structure.names)} arrays, {options})"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value)


# --- options as attributes of an optimizer ---


class Attribute(Generic[Value]):
    """An option as an attribute of an optimizer.

    An option of the groups stands for ``opt[name]``; the others are in ``opt.settings``.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        self.scope = OPTIONS[name].scope if name in OPTIONS else "fixed" if name == "rule" else "group"

    @overload
    def __get__(self, opt: None, owner: type) -> Attribute[Value]: ...
    @overload
    def __get__(self, opt: Any, owner: type) -> Value: ...
    def __get__(self, opt: Any, owner: type) -> Any:
        if opt is None:
            return self
        if self.scope != "group":
            return opt.settings[self.name]
        try:
            return opt[self.name]
        except ValueError as error:  # an attribute that cannot be read is an AttributeError
            raise AttributeError(str(error)) from None

    def __set__(self, opt: Any, value: Value) -> None:
        if self.scope == "fixed":
            raise AttributeError(f"{self.name}: fixed when the optimizer was made; make another")
        if self.scope == "group":
            opt[self.name] = value
        else:
            with opt._step_lock:  # not within a step
                opt.settings = with_settings(opt.settings, opt.groups, {self.name: value})
