"""The one table of options: names, ranges, defaults, and whether an option belongs to a group or to the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
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
    "WEIGHT_DECAY",
    "Attribute",
    "Group",
    "Option",
    "check_number",
    "check_state_dtype",
    "check_switch",
    "check_threshold",
    "options_of",
    "table",
    "with_settings",
]

WEIGHT_DECAY = Hyper(0.0, low=0.0)
THRESHOLD = Hyper(1.0, low=0.0, open_low=True)
MOMENTUM = Hyper(0.99, low=0.0, high=1.0, open_high=True)
NONFINITE = ("propagate", "skip", "raise")
STATE_DTYPES = (None, "float16", "bfloat16", "float32", "float64")
Value = TypeVar("Value")


def check_number(name: str, value: Any, hyper: Hyper) -> Any:
    """A float, or a callable of the 0-based step, whose values are checked when they are used."""
    return value if callable(value) else hyper.check(name, value)


def check_optional(name: str, value: Any, hyper: Hyper) -> float | None:
    """A number, or None for off."""
    return None if value is None else hyper.check(name, value)


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
        Option("clip_norm", None, *_optional(THRESHOLD), "group", "bound of each gradient's norm"),
        Option("clip_global_norm", None, *_optional(THRESHOLD), "step", "bound of the norm of all gradients together"),
        Option("loss_scale", 1.0, f"a number in {THRESHOLD}", THRESHOLD.check, "step", "gradients are divided by it"),
        Option("nonfinite", "propagate", *_words(NONFINITE), "step", "what to do with infinite or NaN gradients"),
        Option("ema", None, *_optional(MOMENTUM), "step", "momentum of an average of the parameters"),
        Option("accumulate", 1, "an integer from 1", check_count, "fixed", "micro-batches averaged per update"),
        Option("state_dtype", None, *_words(STATE_DTYPES), "fixed", "dtype of the state; None: the parameter's"),
        Option("engine", "auto", *_words(("auto", *ENGINES)), "fixed", "what runs the update"),
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


def table(rule: Rule) -> str:
    """The options for a rule as a table in Markdown: the page ``docs/options.md``."""
    where = {"group": "each group", "step": "the step", "fixed": "the optimizer, fixed"}
    lines = ["| option | default | takes | belongs to | meaning |", "|---|---|---|---|---|"]
    for option in {**options_of(rule), **OPTIONS}.values():
        cells = f"`{option.name}`", f"`{option.default!r}`", option.takes, where[option.scope], option.meaning
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def with_settings(settings: Mapping[str, Any], changes: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """The options of the whole step with some of them changed; `where` begins the message of an error."""
    changed = {name: OPTIONS[name].check(f"{where}{name}", value) for name, value in changes.items()}
    if "ema" in changed and (changed["ema"] is None) != (settings["ema"] is None):
        expected = "None" if settings["ema"] is None else "a momentum"
        raise ValueError(f"{where}ema: expected {expected}, as when the optimizer was made, got {changed['ema']!r}")
    return {**settings, **changed}


class Holder(Protocol):
    """What holds parameters."""

    @property
    def params(self) -> list[Any]:
        """The parameters, in order."""


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
        #: What holds the parameters once they are bound.
        self.holder: Holder | None = None
        #: Incremented whenever an option is set.
        self.version = 0
        #: What an optimizer has composed from the options, after the version that it was composed from.
        self.composed: Any = None
        self._options: dict[str, Any] = {}
        for name, value in {**{name: option.default for name, option in options_of(rule).items()}, **options}.items():
            self[name] = value

    @property
    def params(self) -> list[Any]:
        """The parameters as they are now, in the structure's order."""
        return self.structure.leaves if self.holder is None else self.holder.params

    def __getitem__(self, name: str) -> Any:
        return self.structure.unflatten(self.params) if name == "params" else self._options[name]

    def __setitem__(self, name: str, value: Any) -> None:
        where = f"{self.where}{name}"
        if name == "params":
            raise TypeError(f"{where}: cannot be replaced; make a new optimizer, or write into the arrays")
        known = options_of(self.rule)
        if name not in known:
            raise TypeError(f"{where}: unknown option; expected one of {', '.join(known)}")
        self._options[name] = known[name].check(where, value)
        self.version += 1

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"{self.where}{name}: options cannot be removed")

    def __iter__(self) -> Iterator[str]:
        return iter(["params", *self._options])

    def __len__(self) -> int:
        return 1 + len(self._options)

    def options(self) -> dict[str, Any]:
        """The options, without the parameters."""
        return dict(self._options)

    def number(self, name: str, step: int) -> float:
        """The value of a number at a step: a schedule is called, and what it returns is checked."""
        value = self._options[name]
        if not callable(value):
            return value
        hyper = WEIGHT_DECAY if name == "weight_decay" else self.rule.hypers[name]
        return hyper.check(f"{self.where}{name} at step {step}", value(step))

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={_short(value)}" for name, value in self._options.items())
        return f"Group({len(self.structure.leaves)} arrays, {options})"


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
                opt.settings = with_settings(opt.settings, {self.name: value})
