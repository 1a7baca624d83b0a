"""What may be wrong, as tables: with the gradients, with an average, with what a parameter moves by.

Each entry is a cause, a few words, and the numbers that would follow; some have a factor that is fitted first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..data.case import Array
from .stepwise import Steps, fitted, narrower, rounder

#: Cause, words, numbers.
Entry = tuple[str, str, Array]


@dataclass(frozen=True)
class Guess:
    """A mistake, the numbers that it gives, and how many things are wrong with it at once."""

    cause: str
    text: str
    value: Array
    changes: float = 1.0


def others(s: Steps, values: Array) -> Iterator[tuple[str, Array]]:
    """Yield whose values, and these values, where tensors are mixed up."""
    numbers = [int(i) for i in s.tensors]
    if len(numbers) > 1:
        place = {i: k for k, i in enumerate(numbers)}
        yield "the next tensor", s.of_tensor(values, lambda i: numbers[(place[i] + 1) % len(numbers)])
        yield "the tensor before", s.of_tensor(values, lambda i: numbers[place[i] - 1])
        for number in numbers[:4]:
            yield f"params[{number}]", s.of_tensor(values, dict.fromkeys(numbers, number).__getitem__)


def changed(s: Steps, values: Array) -> Iterator[tuple[str, str, Array]]:
    """Yield the causes that any number has: of another step, of another tensor, rounded, averaged."""
    yield "one-step-late", "of the step before", s.before(values)
    for whose, theirs in others(s, values):
        yield "wrong-tensor", f"of {whose}", theirs
    for name, through in narrower(s.dtype):
        yield f"through-{name}", f"rounded to {name}", through(values)
    yield "mean-of-tensor", "as the mean over each tensor", s.mean(values)


# --- gradients and states that are others from the start ---


def inputs(s: Steps, at: Array) -> Iterator[tuple[str, str, Steps]]:
    """Yield causes with what everything would have been given."""
    yield "step-left-out", "nothing happens", replace(s, given=s.given & ~at)
    for cause, text, g in gradients(s, at):
        yield f"gradient-{cause}", f"the gradient is {text}", replace(s, g=np.where(at, g, s.g))
    zero = np.zeros_like(s.g)
    states: list[tuple[str, str, Array, Array]] = [
        ("state-lost", "the state begins again from 0", zero, zero),
        ("state-one-step-late", "the state is that of one step before", s.before(s.v0), s.before(s.u0)),
        *(("state-of-wrong-tensor", f"the state is that of {whose}", v, u)
          for (whose, v), (_, u) in zip(others(s, s.v0), others(s, s.u0), strict=True)),
        ("wrong-slot", "the old state is read from the other slot: square_avg and acc_delta are exchanged", s.u0, s.v0),
    ]  # fmt: skip
    for cause, text, v, u in states:
        yield cause, text, replace(s, v0=np.where(at, v, s.v0), u0=np.where(at, u, s.u0))
    if at.all():
        yield ("wrong-slot", "square_avg holds what acc_delta should, and acc_delta what square_avg should",
               replace(s, v0=s.u0, v1=s.u1, u0=s.v0, u1=s.v1))  # fmt: skip


def gradients(s: Steps, at: Array) -> Iterator[Entry]:
    """Yield other gradients."""
    yield from changed(s, s.g)
    g = s.g
    yield "sign-turned", "taken with the other sign", -g
    yield "unprocessed", "taken as it came, neither clipped nor decayed", s.raw
    yield "magnitude", "taken without its sign", np.abs(g)
    yield "sign", "reduced to its sign", np.sign(g)
    yield "dropped", "taken as 0", np.zeros_like(g)
    yield "centred", "centred: less its mean over the tensor", g - s.mean(g)
    yield "normalized", "divided by its norm", g / s.norm(g)
    for beta in dict.fromkeys((0.9, 0.95, 0.99, 0.5, s.rho)):
        for weight, words in ((1 - beta, "averaged over steps"), (1.0, "summed over steps")):
            m, averages = np.zeros(g.shape[1]), []
            for row in g:
                averages.append(m := beta * m + weight * row)
            yield "momentum", f"{words}, as momentum {beta:g}", np.array(averages)
    with np.errstate(all="ignore"):
        squares = (s.v1 - s.rho * s.v0) / (1 - s.rho)
    at = at & (squares > 0.01 * s.v1)  # where the difference has lost few digits
    if found := fitted(s, squares, [g * g], at):
        for k in rounder(float(np.sqrt(max(found[0], 0.0)))):
            yield "factor", f"multiplied by {k:.6g}", k * g
    known = at & np.isfinite(squares)
    if known.any():
        for bound in rounder(float(np.sqrt(squares[known].max()))):
            yield "clipped", f"clipped to ±{bound:.6g}", np.clip(g, -bound, bound)
    if found := fitted(s, squares, [g * g, g * s.x0, s.x0**2], at):
        for decay in rounder(found[1] / 2):
            yield "decayed", f"increased by {decay:.6g} times the parameter: weight decay", g + decay * s.x0


# --- averages ---


def averages(s: Steps, slot: str, old: Array, seen: Array, news: Sequence[Entry], olds: Sequence[Entry],
             at: Array) -> Iterator[Guess]:  # fmt: skip
    """Yield what ρ a + (1 − ρ) n may have been instead; of ``news`` and ``olds`` the first entry is the right one."""
    rho, rest = s.rho, 1 - s.rho
    for cause, text, new in news:
        if weights := _weights(s, slot, old, new, seen, at):
            a, b = weights
            wrong = (a, b) != (rho, rest)
            told = [text, *([_weighed(a, b, rho)] if wrong else [])]
            causes = [cause, *([_cause_of(a, b, rho)] if wrong else [])]
            yield Guess(f"{slot}-{'-'.join(filter(None, causes))}", f"{slot} {' and '.join(filter(None, told))}",
                        a * old + b * new, len([c for c in causes if c]))  # fmt: skip
    new = news[0][2]
    for cause, text, other in olds[1:]:
        yield Guess(f"{slot}-{cause}", f"{slot} goes on from {text}", rho * other + rest * new)
    right = rho * old + rest * new
    for name, through in narrower(s.dtype):
        yield Guess(f"{slot}-through-{name}", f"{slot} is rounded to {name}", through(right))
    earlier = 1 - rho ** (s.t - 1)
    yield Guess(f"{slot}-bias-corrected", f"{slot} is kept divided by 1 − ρ^t, as a bias correction",
                (rho * earlier * old + rest * new) / (1 - rho**s.t))  # fmt: skip
    for power in (s.t - 1, s.t, s.t + 1):
        yield Guess(f"{slot}-rho", f"{slot} decays with ρ to the power of the step", rho**power * old
                    + (1 - rho**power) * new)  # fmt: skip
    yield Guess(f"{slot}-mean", f"{slot} is the mean of all steps", ((s.t - 1) * old + new) / s.t)
    yield Guess(f"{slot}-largest", f"{slot} never falls: the larger of old and new is kept", np.maximum(old, right))
    yield Guess(f"{slot}-root", f"{slot} is kept as its square root", np.sqrt(rho * old**2 + rest * new))
    with np.errstate(all="ignore"):
        if found := fitted(
            s, seen - right, [np.ones_like(right)], at & (np.abs(seen - right) > 1e3 * s.epsilon * seen)
        ):
            for value in rounder(found[0] / rho):
                yield Guess(f"{slot}-start", f"{slot} has {value:.6g} more before the step", right + rho * value)
            for value in rounder(found[0]):
                yield Guess(f"{slot}-offset", f"{slot} has {value:.6g} more after the step", right + value)


def _weights(s: Steps, slot: str, old: Array, new: Array, seen: Array, at: Array) -> tuple[float, float] | None:
    """Return the simplest factors of the old value and the new one that give what was seen, or None."""
    rho, rest = s.rho, 1 - s.rho

    def fits(a: float, b: float, there: Array = at) -> bool:
        return bool(s.holds(slot, a * old + b * new)[there].all())

    if fits(rho, rest):
        return rho, rest
    found = fitted(s, seen, [old, new], at)
    if found is None:  # nothing is old yet
        weight = fitted(s, seen, [new], at & (old == 0))
        found = None if weight is None else [rho, weight[0]]
    # A factor that should be 0 and is fitted as nearly that does not give zeros.
    if found is None or not fits(found[0], found[1], at & (seen != 0)):
        return (1.0, 0.0) if fits(1.0, 0.0) else (0.0, 0.0) if fits(0.0, 0.0) else None
    for a in _near(found[0], [rho, 0.0, 1.0, rest, *map(_single, (rho,)), *rounder(found[0])]):
        weights = [1 - a, rest, 0.0, 1.0, rho, *(k * rest for k in rounder(found[1] / rest)), *rounder(found[1])]
        for b in _near(found[1], weights):
            if fits(a, b):
                return a, b
    return (found[0], found[1]) if fits(found[0], found[1]) else None


def _near(value: float, choice: Sequence[float]) -> list[float]:
    return [number for number in choice if abs(number - value) <= 1e-3 * max(abs(value), 1e-3)]


def _single(value: float) -> float:
    return float(np.float32(value))


def _cause_of(a: float, b: float, rho: float) -> str:
    if b == 0:
        return "frozen" if a == 1 else "nothing-new"
    return "not-kept" if a == 0 else "sum" if (a, b) == (1, 1) else "factor" if a == rho else "rho"


def _weighed(a: float, b: float, rho: float) -> str:
    """Say with which factors an average is made, where they are not ρ and 1 − ρ."""
    rest = 1 - rho
    if (a, b) == (1, 0):
        return "stays as it was"
    if (a, b) == (1, 1):
        return "adds squares up without decay, as Adagrad does"
    if a == 0:
        return "is always 0" if b == 0 else f"keeps nothing of the step before, and is {b:.6g} times the new square"
    if b == 0:
        return f"only decays, with {a:.6g}, and takes in nothing"
    if a == rho:
        return f"takes in squares {b / rest:.6g} times as much: {b:.6g} for 1 − ρ = {rest:.6g}"
    if abs(b - (1 - a)) < 1e-12:
        single = " (it has passed through float32)" if a == _single(rho) else ""
        return f"decays with {a:.9g}, not with ρ = {rho:g}{single}"
    kept = f"keeps {a:.6g} of the old, not ρ = {rho:g}"
    return kept + ("" if b == rest else f", and takes in {b:.6g} of the new, not 1 − ρ = {rest:.6g}")


def of_square_avg(s: Steps, at: Array) -> Iterator[Guess]:
    """Yield what may be wrong with square_avg."""
    g, update = s.g, s.update()
    news: list[Entry] = [("", "", g * g)]
    news += [(cause, f"takes in squares of gradients {text}", value**2) for cause, text, value in changed(s, g)]
    news += [(cause, f"takes in the squares {text}", value) for cause, text, value in changed(s, g * g)
             if cause == "mean-of-tensor" or cause.startswith("through")]  # fmt: skip
    news += [
        ("magnitude", "takes in |g|, not its square", np.abs(g)), ("unsquared", "takes in g, not its square", g),
        ("fourth-power", "takes in the fourth power of g", g**4), ("norm", "takes in the squared norm of the tensor",
        s.norm(g) ** 2), ("unprocessed", "takes in gradients as they came, neither clipped nor decayed", s.raw**2),
        ("wrong-slot", "takes in squares of the update, which are acc_delta's", update**2),
        ("centred", "takes in squares of the gradient less its mean", (g - s.mean(g)) ** 2),
        ("parameter", "takes in squares of the parameter", s.x0**2),
    ]  # fmt: skip
    yield from averages(s, "square_avg", s.v0, s.v1, news, _olds(s, s.v0, s.u0, "acc_delta"), at)


def of_acc_delta(s: Steps, d: Array, at: Array) -> Iterator[Guess]:
    """Yield what may be wrong with acc_delta, given the update."""
    news: list[Entry] = [("", "", d * d)]
    news += [("lr-inside", "takes in the update times the learning rate", (s.lr * d) ** 2)]
    news += [(cause, f"takes in squares of updates {text}", value**2) for cause, text, value in changed(s, d)]
    news += [(cause, f"takes in the squares {text}", value) for cause, text, value in changed(s, d * d)
             if cause == "mean-of-tensor" or cause.startswith("through")]  # fmt: skip
    news += [
        ("wrong-slot", "takes in squares of the gradient, which are square_avg's", s.g**2),
        ("magnitude", "takes in the update's magnitude, not its square", np.abs(d)),
        ("unsquared", "takes in the update, not its square", d), ("product", "takes in update times gradient", d * s.g),
        ("motion", "takes in squares of the parameter's motion, decay included", (s.x1 - s.x0) ** 2),
        ("norm", "takes in the squared norm of the tensor's update", s.norm(d) ** 2),
        ("update-before-u", "takes in the update that acc_delta, updated, would give", s.update(upper=s.u1) ** 2),
    ]  # fmt: skip
    yield from averages(s, "acc_delta", s.u0, s.u1, news, _olds(s, s.u0, s.v0, "square_avg"), at)


def _olds(s: Steps, old: Array, other: Array, name: str) -> list[Entry]:
    found: list[Entry] = [("", "", old), ("wrong-slot", f"the old {name}", other)]
    return found + [(cause, f"the old value {text}", value) for cause, text, value in changed(s, old)]
