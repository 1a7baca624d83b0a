"""Every equation by itself: which of them fails, where, and which entry of the tables mends it.

What is found has to mend every number that fails, and to leave those that do not. The fewest mistakes are told; all of
them, where several explain the numbers alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from ..data.case import Array
from .hypotheses import Guess, inputs, of_acc_delta, of_square_avg
from .motions import of_x, updates
from .stepwise import EVIDENCE, Steps, places

#: As many mistakes at once, at most; one that is made in some places only counts as more than one made everywhere.
MOST = 5.0
_ELSEWHERE = 0.5


@dataclass(frozen=True)
class Finding:
    """Mistakes that together explain every number: their causes, what they are in words, how much they ask for.

    ``units``: how far each kind of state is from what follows, at worst.
    """

    causes: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    price: float = 0.0
    units: Mapping[str, float] = field(default_factory=dict)

    def __add__(self, other: Finding) -> Finding:
        return Finding(self.causes + other.causes, self.texts + other.texts, self.price + other.price,
                       {**self.units, **other.units})  # fmt: skip


def dissect(s: Steps) -> list[Finding]:
    """Return the cheapest explanations; empty: none, or nothing fails."""
    with np.errstate(all="ignore"):
        found = _equations(s, MOST)
        failing = np.any([~ok for ok in _held(s).values()], axis=0)
        for where, at in places(s, failing) if failing.sum() >= EVIDENCE else ():
            price = 1.0 + _ELSEWHERE * bool(where)
            for cause, text, changed in inputs(s, at):
                left = _least(found) - price
                if left < 0:
                    break
                # Cheap to see: it must give the right square_avg, and something that failed.
                held = _held(changed)
                if held["square_avg"].all() and np.any([~ok for ok in held.values()], axis=0).sum() < failing.sum():
                    head = Finding((cause,), (f"{text} {where}".strip(),), price)
                    found += [head + rest for rest in _equations(changed, left)]
    return _cheapest(found)


def spoken(s: Steps) -> str:
    """Say which equations hold, and from when on the others do not."""
    with np.errstate(all="ignore"):
        held = _held(s)
    good = " and ".join(kind for kind, ok in held.items() if ok.all())
    bad = " and ".join(f"{kind} not from step {_first(~ok)} on ({np.mean(~ok):.0%} of its numbers)"
                       for kind, ok in held.items() if not ok.all())  # fmt: skip
    return f"from one step to the next, {good or 'nothing'} is as it should be, {bad}"


def _first(wrong: Array) -> int:
    return int(np.flatnonzero(wrong.any(axis=1))[0]) + 1


def _held(s: Steps, d: Array | None = None) -> dict[str, Array]:
    d, rest = s.update() if d is None else d, 1 - s.rho
    right = {"square_avg": (s.rho * s.v0 + rest * s.g**2, s.v0), "acc_delta": (s.rho * s.u0 + rest * d**2, s.u0),
             "x": (s.x0 - s.lr * d, s.x0)}  # fmt: skip
    return {kind: s.holds(kind, np.where(s.given, value, old)) for kind, (value, old) in right.items()}


def _equations(s: Steps, limit: float) -> list[Finding]:
    """Return explanations of one equation after the other, the update being what acc_delta and x have in common."""
    averages = _mended(s, "square_avg", s.rho * s.v0 + (1 - s.rho) * s.g**2, lambda at: of_square_avg(s, at))
    limit -= _least(averages)
    if not averages or limit < 0:
        return []
    right, held = s.update(), _held(s)
    wrong_u, wrong_x = ~held["acc_delta"], ~held["x"]
    wrong = wrong_u | wrong_x
    if not wrong.any():
        return [one + other for one in averages for other in _with_update(s, right, [], limit)]
    # Not both, or something else than the update is wrong, and the update explains one of the two.
    table, says = updates(s, wrong) if limit >= 1 else [], _says(s, wrong_x)
    mends = zip(table, _mend(s, table, "acc_delta", wrong_u), _mend(s, table, "x", wrong_x), strict=True)
    told = [(guess, bool(u and x)) for guess, u, x in mends if u or (x and says)]
    motions: list[Finding] = []
    for both in (True, False):
        for where, at in places(s, wrong):
            for guess, mends_both in told:
                head = Finding(
                    (guess.cause,), (f"{guess.text} {where}".strip(),), guess.changes + _ELSEWHERE * bool(where)
                )
                left = min(limit, _least(motions)) - head.price
                if mends_both is both and left >= 0:
                    motions += [head + rest for rest in _with_update(s, np.where(at, guess.value, right), told, left)]
        if both and _least(motions) >= 1:
            motions += _with_update(s, right, told, min(limit, _least(motions)))
    return [one + other for one in averages for other in _cheapest(motions)]


def _mend(s: Steps, table: list[Guess], kind: str, wrong: Array) -> Array:
    """Tell which updates mend a few of the numbers of this kind that are wrong."""
    places, few = s.some(wrong if wrong.any() else ~wrong)
    if not table:
        return np.zeros(0, dtype=bool)
    d = np.stack([np.broadcast_to(guess.value, wrong.shape).ravel()[places] for guess in table])
    value, old = (few.x0 - few.lr * d, few.x0) if kind == "x" else (s.rho * few.u0 + (1 - s.rho) * d**2, few.u0)
    return np.asarray(few.holds(kind, np.where(few.given, value, old)).all(axis=1))


def _says(s: Steps, wrong: Array) -> bool:
    """Whether x can tell updates apart: where it fails, enough of it moves."""
    return bool(np.sum(wrong & (np.abs(s.x1 - s.x0) > 1e3 * s.epsilon * np.abs(s.x0))) > EVIDENCE)


def _with_update(s: Steps, d: Array, told: list[tuple[Guess, bool]], limit: float) -> list[Finding]:
    """Return what mends acc_delta and x where this is the update."""
    right = s.rho * s.u0 + (1 - s.rho) * d**2, s.x0 - s.lr * d
    wrong = sum(not s.holds(kind, np.where(s.given, value, old)).all() for kind, value, old in
                (("acc_delta", right[0], s.u0), ("x", right[1], s.x0)))  # fmt: skip
    if wrong > limit:
        return []
    averages = _mended(s, "acc_delta", right[0], lambda at: of_acc_delta(s, d, at))
    if not averages:
        return []
    # Whole updates that are others are in the table of x itself.
    singles = [guess for guess, _ in told if guess.changes < 2 and not guess.cause.startswith("update-")]
    return [one + other for one in averages for other in _mended(s, "x", right[1], lambda at: of_x(s, d, singles, at))]


def _mended(s: Steps, kind: str, right: Array, table: Callable[[Array], Iterable[Guess]]) -> list[Finding]:
    """Return what mends one equation: nothing, where it holds; or the cheapest entries of a table."""
    old = {"square_avg": s.v0, "acc_delta": s.u0, "x": s.x0}[kind]
    right = np.where(s.given, right, old)
    failing = ~s.holds(kind, right)
    if not failing.any():
        return [Finding(units={kind: float(s.apart(kind, right).max())})]
    if failing.sum() < EVIDENCE:
        return []
    found: list[Finding] = []
    few_places, few = s.some(failing)
    for where, at in places(s, failing):
        extra = _ELSEWHERE * bool(where)
        for guess in table(at):
            there = np.broadcast_to(guess.value, at.shape).ravel()[few_places]
            if not few.holds(kind, there).all():
                continue
            value = np.where(at, guess.value, right)
            if s.holds(kind, value).all():
                told = f"{guess.text} {where}".strip()
                units = {kind: float(s.apart(kind, value).max())}
                found.append(Finding((guess.cause,), (told,), guess.changes + extra, units))
        if found and min(finding.price for finding in found) <= 1:
            break
    return _cheapest(found)


def _least(found: Iterable[Finding]) -> float:
    return min((finding.price for finding in found), default=MOST)


def _cheapest(found: Iterable[Finding]) -> list[Finding]:
    """Return the cheapest, each cause once."""
    found = list(found)
    least = _least(found)
    first: dict[tuple[str, ...], Finding] = {}
    for finding in found:
        if finding.price <= least:
            first.setdefault(finding.causes, finding)
    return list(first.values())
