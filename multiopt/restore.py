"""Taking over a snapshot, whole or not at all: what may be wrong with one is found before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np

from . import backends
from .backends.generic import Array
from .memory import Memory
from .options import OPTIONS, with_settings
from .snapshot import COUNTERS, ROUNDING, SETTINGS, Place, Trained, about, check_readable, places, sums

__all__ = ["Stored", "check", "load_state_dict", "take"]

#: What counters stay below, because schedules and rules compute with them.
LIMIT = 2**63
#: What `about` returns, as `check` reads it; more entries are no error. Options are checked by themselves.
SCHEMA = {
    "format": int,
    "rule": str,
    "accumulate": int,
    **dict.fromkeys(COUNTERS, int),
    **dict.fromkeys(SETTINGS, object),
    "accumulated": [[bool]],
    "groups": [{"names": [str]}],
}
WORDS = {int: "an integer", str: "a text", bool: "True or False"}


class Stored(Protocol):
    """One array of a snapshot or a file."""

    dtype: str
    shape: tuple[int, ...]

    def make(self, place: Place) -> Array:
        """Make an array for a place, with memory of its own."""


class InMemory:
    """An array of any library, given by the user."""

    def __init__(self, key: str, array: Array) -> None:
        self.array = np.asarray(array) if isinstance(array, np.generic) else array  # arithmetic makes these of 0-d ones
        self.backend = backends.of(self.array)
        check_readable(self.backend, self.array)
        self.dtype, self.shape = self.backend.dtype(self.array), tuple(self.array.shape)

    def make(self, place: Place) -> Array:
        own = place.backend
        if self.backend is own and own.mutable and own.device(self.array) == own.device(place.get()):
            return own.copy(self.array)
        return place.made(self.backend.to_host(self.array))


class Zeros:
    """The sums of an accumulation that has not begun."""

    def __init__(self, place: Place) -> None:
        self.dtype, self.shape = place.dtype, place.shape

    def make(self, place: Place) -> Array:
        return place.backend.full_like(place.get(), 0.0, place.dtype)


@dataclass
class Numbers:
    """Everything of an optimizer but its arrays."""

    options: list[dict[str, Any]]
    settings: dict[str, Any]
    counters: dict[str, int]
    #: Of each group, which parameters have had a gradient in this accumulation.
    seen: list[list[bool]]

    @classmethod
    def of(cls, opt: Trained) -> Numbers:
        counters = {name: getattr(opt, name) for name in COUNTERS}
        return cls([g.options() for g in opt.groups], opt.settings, counters, [a.seen for a in opt.accumulators])

    def put(self, opt: Trained) -> None:
        for group, options in zip(opt.groups, self.options, strict=True):
            group.update(options)
        opt.settings = self.settings
        for name, count in self.counters.items():
            setattr(opt, name, count)
        for accumulator, seen in zip(opt.accumulators, self.seen, strict=True):
            accumulator.seen = seen


def load_state_dict(opt: Trained, state: Mapping[str, Any]) -> None:
    """Take over a snapshot, of the same or another library.

    Copies of all its arrays are made first. If anything fails after that, an interrupt included, the optimizer gets
    back what it had.

    Raises
    ------
    ValueError
        If something is wrong with the snapshot, it belongs to another rule or other parameters, or an array of the
        optimizer cannot be written to. Nothing has been changed then.
    """
    whole = isinstance(state, Mapping) and all(isinstance(state.get(key), Mapping) for key in ("about", "arrays"))
    if not whole:
        raise ValueError("state: expected what state_dict() returns, a dict with the dicts 'about' and 'arrays'")
    take(opt, state["about"], state["arrays"], InMemory, params=False, where="state")


def take(
    opt: Trained,
    loaded: Mapping[str, Any],
    arrays: Mapping[str, Any],
    stored: Callable[[str, Any], Stored],
    *,
    params: bool,
    where: str,
    decode: Callable[[Any, Any], Any] = lambda value, current: value,
    keep: bool = True,
) -> None:
    """Check everything, then take it over.

    Parameters
    ----------
    opt : Trained
    loaded : mapping
        What `about` returned.
    arrays : mapping
        The arrays by their keys, in whatever form `stored` takes.
    stored : callable
        ``stored(key, entry)`` is the `Stored` of an entry of `arrays`.
    params : bool
        Whether the parameters are among the arrays.
    where : str
        What messages begin with.
    decode : callable
        ``decode(value, current)`` is the inverse of `about`'s `encode`; `current` is the option's value now.
    keep : bool
        Whether to hold all new arrays at once, so that the old values are put back if writing fails. Otherwise each
        is made twice, to be checked and to be written; new arrays of an immutable library are held in any case.

    Raises
    ------
    ValueError
        If something does not fit. Nothing has been changed then.
    """
    numbers = _read_about(opt, loaded, decode, where)
    unfinished = numbers.counters["micro_steps"] > 0
    targets = places(opt, params, unfinished)
    _check_keys(arrays, targets, where)
    pairs: list[tuple[Place, Stored]] = [(place, _source(place, stored, arrays[place.key], where)) for place in targets]
    pairs += [(place, Zeros(place)) for i in range(len(opt.bindings)) for place in sums(opt, i) if not unfinished]
    mutable = opt.bindings[0].backend.mutable
    if mutable:
        _check_own([place for place, _ in pairs], where)
    keep = keep or not mutable
    new: list[Array] = []
    for place, source in pairs:
        made = _made(place, source, where)
        new.append(made if keep else None)
    before, old = Numbers.of(opt), []
    try:
        for i, (place, source) in enumerate(pairs):
            made, new[i] = new[i] if keep else _made(place, source, where), None
            # An immutable one need not be copied, and one that was deleted cannot be.
            old.append(None if not keep else place.saved() if place.backend.mutable else place.get())
            place.put(made)
        numbers.put(opt)
    except BaseException as error:
        if keep:
            for (place, _), array in zip(pairs, old, strict=False):
                place.put(array)
        else:
            error.add_note(f"{where}: {len(old)} of {len(pairs)} arrays may be new, options and counters are as before")
        before.put(opt)
        raise


def _read_about(opt: Trained, loaded: Mapping[str, Any], decode: Callable[[Any, Any], Any], where: str) -> Numbers:
    """Check what can be checked without the arrays."""
    check(where, loaded, SCHEMA)
    own, groups = about(opt), loaded["groups"]
    for name in ("format", "rule", "accumulate"):
        if loaded[name] != own[name]:
            raise ValueError(f"{where}: {name}: expected {own[name]!r}, got {_shown(loaded[name])}")
    for name, limit in {**dict.fromkeys(COUNTERS, LIMIT), "micro_steps": own["accumulate"]}.items():
        if not 0 <= loaded[name] < limit:
            raise ValueError(f"{where}: {name}: expected a count below {limit}, got {_shown(loaded[name])}")
    ours, theirs = ([group["names"] for group in side] for side in (own["groups"], groups))
    if ours != theirs:
        raise ValueError(f"{where}: expected the parameters {_brief(ours)}, got {_brief(theirs)}")
    sizes = [len(bucket) for bucket in own["accumulated"]]
    if [len(bucket) for bucket in loaded["accumulated"]] != sizes:
        raise ValueError(f"{where}: accumulated: expected lists of {sizes} booleans")
    options = []
    for i, (group, mine, other) in enumerate(zip(opt.groups, own["groups"], groups, strict=True)):
        if mine.keys() != other.keys():
            raise ValueError(f"{where}: groups[{i}]: expected the options {sorted(mine)}, got {_shown(list(other))}")
        values = {}
        for name in mine.keys() - {"names"}:
            with _told(f"{where}: {group.where}{name}"):
                values[name] = decode(other[name], group[name])
        with _told(where):
            options.append(group.checked(values))
    with _told(where):
        settings = with_settings(opt.settings, opt.groups, {name: loaded[name] for name in SETTINGS})
        rounding = {name: OPTIONS[name].check(name, loaded[name]) for name in ROUNDING if name in loaded}
        if rounding.get("state_rounding") == settings["state_rounding"] == "stochastic":
            settings["seed"] = rounding["seed"]  # so that training goes on with the same bits
    seen, lists = [[False] * len(a.seen) for a in opt.accumulators], iter(loaded["accumulated"])
    for flags, binding in zip(seen, opt.bindings, strict=False):
        for i, flag in ((i, flag) for own in binding.places for i, flag in zip(own, next(lists), strict=True)):
            flags[i] = flag and loaded["micro_steps"] > 0
    return Numbers(options, settings, {name: loaded[name] for name in COUNTERS}, seen)


def _check_keys(arrays: Mapping[str, Any], targets: list[Place], where: str) -> None:
    expected = {place.key for place in targets}
    missing = [place.key for place in targets if place.key not in arrays]
    if missing or len(arrays) != len(expected):
        unknown = list(islice((key for key in arrays if key not in expected), 5))
        raise ValueError(f"{where}: missing {missing[:5]}, unexpected {_shown(unknown)}")


def _source(place: Place, stored: Callable[[str, Any], Stored], entry: Any, where: str) -> Stored:
    with _told(f"{where}: {place.key}"):
        source = stored(place.key, entry)
        if (place.shape, place.dtype) != (source.shape, source.dtype):
            raise ValueError(
                f"expected shape {place.shape} and dtype {place.dtype}, "
                f"got shape {_shown(source.shape)} and dtype {source.dtype}"
            )
    return source


def _made(place: Place, source: Stored, where: str) -> Array:
    with _told(f"{where}: {place.key}"):
        made = source.make(place)
        place.check(made)
    return made


def _check_own(targets: list[Place], where: str) -> None:
    """Check that the optimizer's own arrays, which are written to, are still what they were."""
    for place in targets:
        with _told(f"{where}: the optimizer's own {place.key}"):
            place.check(place.get())
            if not place.backend.writable(place.get()):
                raise ValueError("expected an array that can be written to, got a read-only one")
    if targets:
        arrays, names = [place.get() for place in targets], [f"{where}: {place.key}" for place in targets]
        Memory().plus(targets[0].backend, arrays, names)


# --- messages ---


def check(where: str, value: Any, schema: Any) -> None:
    """Check a value against a schema.

    Parameters
    ----------
    where : str
        What the message begins with.
    value : object
    schema : type, list or dict
        A type, which the value must have exactly (`object`: any); a list of one schema, for a list of such; a dict,
        for a mapping with at least these entries.

    Raises
    ------
    ValueError
        If it does not fit.
    """
    if schema is object or type(value) is schema:
        return
    if isinstance(schema, dict) and isinstance(value, Mapping):
        if missing := sorted(schema.keys() - value.keys()):
            raise ValueError(f"{where}: missing {missing}")
        for name, inner in schema.items():
            check(f"{where}: {name}", value[name], inner)
    elif isinstance(schema, list) and isinstance(value, list):
        for i, entry in enumerate(value):
            if type(entry) is not schema[0]:
                check(f"{where}[{i}]", entry, schema[0])
    else:
        expected = "a dict" if isinstance(schema, dict) else "a list" if isinstance(schema, list) else WORDS[schema]
        raise ValueError(f"{where}: expected {expected}, got {_shown(value)}")


@contextmanager
def _told(where: str) -> Iterator[None]:
    """What goes wrong in here, in other people's arrays too, is a `ValueError`; but not what the machine lacks."""
    try:
        yield
    except (MemoryError, OSError):
        raise
    except Exception as error:
        raise ValueError(f"{where}: {str(error) or type(error).__name__}") from error


def _shown(value: Any) -> str:
    """A value for a message: briefly, and whatever it is; an integer may be too long to be written."""
    try:
        return f"{value!r:.80}"
    except Exception:
        return f"a {type(value).__name__}"


def _brief(names: list[list[str]]) -> str:
    flat = [name for group in names for name in group]
    return f"{len(flat)} in {len(names)} group(s): {', '.join(flat[:4])}{', …' if len(flat) > 4 else ''}"
