"""What the update, and what a parameter moves by, may be instead: the second half of the table of hypotheses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from ..data.case import Array
from .hypotheses import Entry, Guess, changed, others
from .stepwise import Steps, fitted, narrower, rounder

#: Cause, words, and the root of a state with ε.
Root = tuple[str, str, Callable[[Array, float], Array]]
ROOTS: tuple[Root, ...] = (
    ("", "", lambda a, eps: np.sqrt(a + eps)),
    ("eps-outside", "ε is added outside the {} root", lambda a, eps: np.sqrt(a) + eps),
    ("root-missing", "the {} root is missing", lambda a, eps: a + eps),
    ("no-eps", "ε is missing in the {} root", lambda a, eps: np.sqrt(a)),
    ("eps-largest", "the {} root is that of the larger of state and ε, not of their sum",
     lambda a, eps: np.sqrt(np.maximum(a, eps))),
    ("eps-twice", "ε is added inside and outside the {} root", lambda a, eps: np.sqrt(a + eps) + eps),
    ("eps-squared", "ε is squared in the {} root", lambda a, eps: np.sqrt(a + eps * eps)),
    ("cube-root", "the {} root is a cube root", lambda a, eps: np.cbrt(a + eps)),
    ("fourth-root", "the {} root is a fourth root", lambda a, eps: np.sqrt(np.sqrt(a + eps))),
)  # fmt: skip


def updates(s: Steps, at: Array) -> list[Guess]:
    """Return what the update may be, those with the fewest changes first."""
    with np.errstate(all="ignore"):
        uppers, lowers = _roots(s, "upper"), _roots(s, "lower")
        ratios = [_of(upper, lower) for upper in uppers for lower in lowers] + list(_with_other_eps(s, at))
        found = [replace(ratio, value=ratio.value * s.g) for ratio in ratios]
        for cause, text, value in _gradients(s):
            found += [
                Guess("+".join(filter(None, (f"update-gradient-{cause}", ratio.cause))),
                      f"{ratio.text or 'the update is made'}, with the gradient {text}", ratio.value * value,
                      ratio.changes + 1) for ratio in ratios if ratio.changes < 2
            ]  # fmt: skip
        found += [Guess(f"update-{cause}", f"the update is {text}", value)
                  for cause, text, value in changed(s, s.update())]  # fmt: skip
    made = [guess for guess in found if guess.changes]
    return sorted(made, key=lambda guess: guess.changes)


def _gradients(s: Steps) -> Iterator[Entry]:
    yield from changed(s, s.g)
    yield "sign", "reduced to its sign", np.sign(s.g)
    yield "magnitude", "without its sign", np.abs(s.g)
    yield "unprocessed", "as it came, neither clipped nor decayed", s.raw


def _of(upper: tuple[int, str, str, Array], lower: tuple[int, str, str, Array]) -> Guess:
    """Return what the gradient is multiplied with."""
    value = upper[3] / lower[3]
    causes = [part[1] for part in (upper, lower) if part[0]]
    # The same mistake in both roots is hardly more than one.
    alike = len(causes) == 2 and causes[0].replace("upper", "") == causes[1].replace("lower", "")
    texts = [part[2] for part in (upper, lower) if part[0]]
    told = " and ".join(texts)
    return Guess("+".join(causes), told and f"in the update {told}", value, 1.25 if alike else upper[0] + lower[0])


def _roots(s: Steps, which: str) -> list[tuple[int, str, str, Array]]:
    """Return, for one of the two roots, how much is wrong, cause, words, and values: the right one first."""
    made = []
    for k, (cause, text, root) in enumerate(ROOTS):
        state = s.u0 if which == "upper" else s.v1
        made.append((min(k, 1), f"{which}-{cause}", text.format(which), root(state, s.eps)))
    right = ROOTS[0][2]
    for cause, text, state in _read(s, which):
        made.append((1, f"{which}-{cause}", f"the {which} root reads {text}", right(state, s.eps)))
    for name, through in narrower(s.dtype):
        state = s.u0 if which == "upper" else s.v1
        made.append((1, f"{which}-root-through-{name}", f"the {which} root is rounded to {name}",
                     through(right(state, s.eps))))  # fmt: skip
    made.append((1, f"{which}-one", f"the {which} root is missing: 1 stands there", np.ones_like(s.g)))
    return made


def _read(s: Steps, which: str) -> list[Entry]:
    """Return what a root may read in place of its state."""
    upper = which == "upper"
    state, name, other = (s.u0, "acc_delta", s.v1) if upper else (s.v1, "square_avg", s.u0)
    correct = 1 - s.rho**s.t
    found: list[Entry] = [
        ("bias-corrected", f"{name} / (1 − ρ^t), a bias correction", state / correct),
        ("bias-corrected", f"{name} / (1 − ρ^(t+1)), a bias correction of the next step",
         state / (1 - s.rho ** (s.t + 1))),
        ("bias-corrected", f"{name} / (1 − ρ^(t−1)), a bias correction of the step before",
         np.where(s.t == 1, state, state / np.where(s.t == 1, 1.0, 1 - s.rho ** (s.t - 1)))),
        ("bias-multiplied", f"{name} · (1 − ρ^t), a bias correction upside down", state * correct),
        ("wrong-slot", "square_avg, the wrong slot" if upper else "acc_delta, the wrong slot", other),
        ("largest", f"the largest {name} so far", np.maximum.accumulate(state, axis=0)),
        ("forgotten", f"0, not {name}", np.zeros_like(state)),
        ("early" if upper else "one-step-late", f"{name} as it is {'after' if upper else 'before'} the step",
         s.u1 if upper else s.v0),
        ("wrong-slot", f"{'square_avg' if upper else 'acc_delta'} of the other end of the step, the wrong slot",
         s.v0 if upper else s.u1),
    ]  # fmt: skip
    found += [(cause, f"{name} {text}", value) for cause, text, value in changed(s, state)]
    when, values = ("after", s.u1) if upper else ("before", s.v0)
    return found + [
        ("wrong-tensor", f"{name} of {whose}, as it is {when} the step", v) for whose, v in others(s, values)
    ]


def _with_other_eps(s: Steps, at: Array) -> Iterator[Guess]:
    """Yield updates with another ε in one root or both, or longer ones, as the numbers give them away."""
    rest, u, v, g2 = 1 - s.rho, s.u0, s.v1, s.g**2
    of_u, of_x = (s.u1 - s.rho * u) / rest, ((s.x0 - s.x1) / s.lr) ** 2
    error = s.epsilon * s.u1 / rest, 2 * np.abs(s.x0 - s.x1) * s.epsilon * np.abs(s.x0) / s.lr**2
    for q, wrong in zip((of_u, of_x), error, strict=True):
        for name, eps, spread in (
            ("upper", q * (v + s.eps) / g2 - u, wrong * (v + s.eps) / g2),
            ("lower", (u + s.eps) * g2 / q - v, wrong * (u + s.eps) * g2 / q**2 + s.epsilon * v),
            ("both", (q * v - u * g2) / (g2 - q), wrong * (v + s.eps) / np.abs(g2 - q)),
        ):
            for value in _values(eps, spread, at):
                upper, lower = (value if name in (which, "both") else s.eps for which in ("upper", "lower"))
                where = "both roots" if name == "both" else f"the {name} root"
                yield Guess(f"{name}-eps", f"ε in {where} is {value:.6g}, {value / s.eps:.6g} times {s.eps:g}",
                            np.sqrt(u + upper) / np.sqrt(v + lower))  # fmt: skip
        if found := fitted(s, q, [s.update() ** 2], at & (q > 0) & (wrong < 1e-3 * q)):
            for factor in rounder(float(np.sqrt(max(found[0], 0.0)))):
                yield Guess("update-factor", f"the update is {factor:.6g} times as long",
                            factor * np.sqrt(u + s.eps) / np.sqrt(v + s.eps))  # fmt: skip


def _values(eps: Array, spread: Array, at: Array) -> list[float]:
    """Return what an ε may be: the median of the sharpest estimates, and rounder numbers beside it."""
    usable = at & np.isfinite(eps) & (eps > 0) & np.isfinite(spread)
    if not usable.any():
        return []
    order = np.argsort(spread[usable] / eps[usable])
    return rounder(float(np.median(eps[usable][order][:7])))


def of_x(s: Steps, d: Array, singles: Sequence[Guess], at: Array) -> Iterator[Guess]:
    """Yield what may be wrong with a parameter, given the update; ``singles`` are updates with one mistake."""
    with np.errstate(all="ignore"):
        yield Guess("x-frozen", "the parameter stays as it was", s.x0)
        yield from _lengths(s, d, at)
        for cause, text, value in changed(s, d):
            yield Guess(f"x-{cause}", f"the parameter moves by the update {text}", s.x0 - s.lr * value)
        for cause, text, value in changed(s, s.x0):
            yield Guess(f"x-{cause}", f"the step begins at the parameter {text}", value - s.lr * d)
        for name, through in narrower(s.dtype):
            yield Guess(f"x-through-{name}", f"the parameter is rounded to {name}", through(s.x0 - s.lr * d))
            yield Guess(
                f"x-motion-through-{name}", f"lr times the update is rounded to {name}", s.x0 - through(s.lr * d)
            )
        for guess in singles:
            yield Guess(f"x-{guess.cause}", f"{guess.text}, as the parameter gets it", s.x0 - s.lr * guess.value)
        if found := fitted(s, s.x1, [s.x0, d], at):
            for decay in rounder(1 - found[0]):
                for weight, words in (
                    (decay, f"{decay:.6g} of itself"),
                    (decay * s.lr, f"lr times {decay:.6g} of itself"),
                ):
                    yield Guess(
                        "x-decay", f"the parameter also loses {words}: weight decay", s.x0 * (1 - weight) - s.lr * d
                    )
        moved = s.x1 - s.x0
        if found := fitted(s, s.x1 - s.x0, [s.before(moved), d], at & (np.abs(moved) > 100 * s.epsilon * np.abs(s.x0))):
            for momentum in rounder(found[0]):
                for length in (-s.lr, found[1]):
                    yield Guess("x-momentum", f"the parameter keeps {momentum:.6g} of the last step's motion: momentum",
                                s.x0 + momentum * s.before(moved) + length * d)  # fmt: skip


def _lengths(s: Steps, d: Array, at: Array) -> Iterator[Guess]:
    """Yield steps of another length: by a factor, by one that changes with the step, along another direction."""
    correct = 1 - s.rho**s.t
    for text, factor in (
        ("√(1 − ρ^t), a bias correction", np.sqrt(correct)), ("1 − ρ^t, a bias correction", correct),
        ("1 / (1 − ρ^t), a bias correction", 1 / correct), ("1 / √(1 − ρ^t), a bias correction", 1 / np.sqrt(correct)),
        ("1 / t", 1 / s.t), ("1 / √t", 1 / np.sqrt(s.t)), ("ρ^t", s.rho**s.t), ("ρ^(t−1)", s.rho ** (s.t - 1)),
    ):  # fmt: skip
        cause = "bias-corrected" if "bias" in text else "lr-falls"
        yield Guess(f"x-{cause}", f"the learning rate is multiplied by {text}", s.x0 - s.lr * factor * d)
    if s.lr.min() != s.lr.max():
        late = np.concatenate([s.lr[:1], s.lr[:-1]])
        yield Guess("x-lr-one-step-late", "the learning rate is that of the step before", s.x0 - late * d)
    rooted = s.g / np.sqrt(s.v1 + s.eps)
    for cause, text, along in (
        ("", "the update", d), ("gradient", "the gradient itself: gradient descent", s.g),
        ("sign", "the gradient's sign", np.sign(s.g)), ("rmsprop", "g / √(v + ε): RMSprop", rooted),
        ("rmsprop", "g / (√v + ε): RMSprop", s.g / (np.sqrt(s.v1) + s.eps)),
    ):  # fmt: skip
        moved = s.x0 - s.x1
        sharp = np.abs(moved) > 100 * s.epsilon * np.abs(s.x0)
        found = fitted(s, moved / s.lr, [along], at & sharp)
        if found is None:
            continue
        if cause:
            for k in rounder(found[0]):
                yield Guess(f"x-{cause}", f"the parameter moves by {k:.6g} lr times {text}", s.x0 - s.lr * k * along)
            continue
        for k in rounder(found[0]):
            turned = "; it is added, not subtracted" if k < 0 else ""
            yield Guess("x-factor", f"the step is {k:.6g} times as long as lr times the update{turned}",
                        s.x0 - s.lr * k * along)  # fmt: skip
        weight = np.where(sharp & np.isfinite(along), 1.0, 0.0)
        many = weight.sum(axis=1, keepdims=True) > 2
        size = np.sum(weight * along**2, axis=1, keepdims=True)
        each = np.where(many & (size > 0), np.sum(weight * along * moved / s.lr, axis=1, keepdims=True) / size, 1.0)
        told = ", ".join(f"{length:.4g}" for length in each[:4, 0])
        yield Guess("x-lr-changes", f"the step is as long as lr times the update times {told}, … in turn",
                    s.x0 - s.lr * each * along, 2)  # fmt: skip
