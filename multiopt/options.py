"""What each option of a parameter group is, which values it takes, and how it is checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from functools import partial
from typing import Any

from .rule import Hyper, Rule
from .tree import Structure

__all__ = ["Group", "check_number", "check_state_dtype", "check_switch", "check_threshold"]

#: Options that every rule has, per group, with their defaults. The rule's hyperparameters come on top.
COMMON: dict[str, Any] = {
    "weight_decay": 0.0,
    "decoupled": False,
    "maximize": False,
    "clip_value": None,
    "clip_norm": None,
}
WEIGHT_DECAY = Hyper(0.0, low=0.0)
THRESHOLD = Hyper(1.0, low=0.0, open_low=True)


def check_number(name: str, value: Any, hyper: Hyper) -> Any:
    """A float, or a callable of the 0-based step, whose values are checked when they are used."""
    return value if callable(value) else hyper.check(name, value)


def check_threshold(name: str, value: Any) -> float | None:
    """A positive number, or None for off."""
    return None if value is None else THRESHOLD.check(name, value)


def check_state_dtype(value: str | None) -> str | None:
    """The name of a real floating dtype, or None for the parameter's own."""
    if value not in (None, "float16", "bfloat16", "float32", "float64"):
        raise ValueError(f"state_dtype: expected None or a real floating dtype's name, got {value!r}")
    return value


def check_switch(name: str, value: Any) -> bool:
    """True or False, and nothing that merely looks like it."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return value


def checkers(rule: Rule) -> dict[str, Callable[[str, Any], Any]]:
    """For each option of a group, what checks it."""
    table: dict[str, Callable[[str, Any], Any]] = {}
    for name, hyper in {**rule.hypers, "weight_decay": WEIGHT_DECAY}.items():
        table[name] = partial(check_number, hyper=hyper)
    table["decoupled"] = table["maximize"] = check_switch
    table["clip_value"] = table["clip_norm"] = check_threshold
    return table


class Group(MutableMapping[str, Any]):
    """A parameter group: its options, checked when they are set, and under ``"params"`` its parameters.

    Raises
    ------
    TypeError
        If an option is unknown, or a value is of the wrong type.
    ValueError
        If a value is out of range.
    """

    def __init__(self, rule: Rule, where: str, structure: Structure, options: Mapping[str, Any]) -> None:
        self.where, self.structure, self.rule = where, structure, rule
        #: The arrays, in the structure's order; the optimizer keeps them up to date.
        self.params: list[Any] = list(structure.leaves)
        self._options: dict[str, Any] = {}
        defaults = {name: hyper.default for name, hyper in rule.hypers.items()}
        for name, value in {**defaults, **COMMON, **options}.items():
            self[name] = value

    def __getitem__(self, name: str) -> Any:
        return self.structure.unflatten(self.params) if name == "params" else self._options[name]

    def __setitem__(self, name: str, value: Any) -> None:
        known = checkers(self.rule)
        where = f"{self.where}{name}"
        if name == "params":
            raise TypeError(f"{where}: cannot be replaced; make a new optimizer, or write into the arrays")
        if name not in known:
            raise TypeError(f"{where}: unknown option; expected one of {', '.join(known)}")
        self._options[name] = known[name](where, value)

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
        return f"Group({len(self.params)} arrays, {options})"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value)
