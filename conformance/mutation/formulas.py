"""Wrong formulas: rules that differ from the published one in one place, to be run on the real engines.

Most of them are `assembled` from the parts of the right formula and one wrong part; the others are written out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from multiopt import ADADELTA, Rule

Formula = Callable[..., tuple[Any, Any, Any]]


def average(xp: Any, rho: Any, rest: Any, old: Any, new: Any) -> Any:
    """ρ a + (1 − ρ) n²: the right average, with ``rest`` for 1 − ρ."""
    return rho * old + rest * (new * new)


def update(xp: Any, g: Any, v: Any, u: Any, eps: Any) -> Any:
    """√(u + ε) / √(v + ε) · g: the right update."""
    return xp.sqrt(u + eps) / xp.sqrt(v + eps) * g


def numbers(lr: Any, rho: Any, eps: Any) -> tuple[Any, Any, Any, Any]:
    """Lr, ρ, 1 − ρ and ε, as they are used."""
    return lr, rho, 1 - rho, eps


def taken_by_u(lr: Any, g: Any, d: Any) -> Any:
    """Return the update: what u takes in."""
    return d


def assembled(
    average: Callable[..., Any] = average,
    update: Callable[..., Any] = update,
    numbers: Callable[..., Any] = numbers,
    taken_by_u: Callable[..., Any] = taken_by_u,
    average_of_v: Callable[..., Any] | None = None,
) -> Formula:
    """Return the formula with these parts; v has the average of u but where it is given one of its own."""

    def formula(xp: Any, x: Any, g: Any, square_avg: Any, acc_delta: Any, *, lr: Any, rho: Any, eps: Any) -> Any:
        lr, rho, rest, eps = numbers(lr, rho, eps)
        v = (average_of_v or average)(xp, rho, rest, square_avg, g)
        d = update(xp, g, v, acc_delta, eps)
        return x - lr * d, v, average(xp, rho, rest, acc_delta, taken_by_u(lr, g, d))

    return formula


# --- written out: the order of things is another one ---


def _u_updated_first(xp: Any, x: Any, g: Any, square_avg: Any, acc_delta: Any, *, lr: Any, rho: Any, eps: Any) -> Any:
    v = average(xp, rho, 1 - rho, square_avg, g)
    u = average(xp, rho, 1 - rho, acc_delta, update(xp, g, v, acc_delta, eps))
    return x - lr * update(xp, g, v, u, eps), v, u


def _v_updated_last(xp: Any, x: Any, g: Any, square_avg: Any, acc_delta: Any, *, lr: Any, rho: Any, eps: Any) -> Any:
    d = update(xp, g, square_avg, acc_delta, eps)
    v, u = average(xp, rho, 1 - rho, square_avg, g), average(xp, rho, 1 - rho, acc_delta, d)
    return x - lr * d, v, u


def _bias_corrected(
    xp: Any, x: Any, g: Any, square_avg: Any, acc_delta: Any, *, lr: Any, rho: Any, eps: Any, step: Any
) -> Any:
    v = average(xp, rho, 1 - rho, square_avg, g)
    d = update(xp, g, v / (1 - rho ** (step + 1)), acc_delta, eps)
    return x - lr * d, v, average(xp, rho, 1 - rho, acc_delta, d)


def _mean(xp: Any, rho: Any, rest: Any, old: Any, new: Any) -> Any:
    return old if 0 in new.shape else rho * old + rest * xp.mean(new * new)


# --- arithmetic ---


def single(number: Any, dropped: int = 29) -> Any:
    """Round a double to float32's 24 bits, or to so many fewer than 53, by arithmetic alone (Veltkamp 1968)."""
    scaled = number * (2.0**dropped + 1.0)
    return scaled - (scaled - number)


def contracted(xp: Any, rho: Any, rest: Any, old: Any, new: Any) -> Any:
    """ρ a + (1 − ρ) n² as one fused multiply-add, in float64: with the rounding errors of product and sum (Dekker)."""
    product, added = rho * old, rest * (new * new)
    total = product + added
    rho_high, old_high = single(rho, 27), single(old, 27)
    rho_low, old_low = rho - rho_high, old - old_high
    lost = ((rho_high * old_high - product) + rho_high * old_low + rho_low * old_high) + rho_low * old_low
    back = total - product
    lost = lost + ((product - (total - back)) + (added - back))
    # Infinite numbers have no rounding error.
    return total + xp.where(lost - lost == 0, lost, 0.0)


#: What is wrong, by name: a few words, and the formula.
FORMULAS: Mapping[str, tuple[str, Formula]] = {
    # Where ε and the roots stand.
    "eps-outside-root": ("ε is added outside the square roots",
        assembled(update=lambda xp, g, v, u, eps: (xp.sqrt(u) + eps) / (xp.sqrt(v) + eps) * g)),
    "eps-outside-lower-root": ("ε is added outside the lower square root",
        assembled(update=lambda xp, g, v, u, eps: xp.sqrt(u + eps) / (xp.sqrt(v) + eps) * g)),
    "eps-twice": ("ε is added within the lower root and outside it again",
        assembled(update=lambda xp, g, v, u, eps: xp.sqrt(u + eps) / (xp.sqrt(v + eps) + eps) * g)),
    "no-eps-above": ("ε is missing in the upper root: nothing ever starts to move",
        assembled(update=lambda xp, g, v, u, eps: xp.sqrt(u) / xp.sqrt(v + eps) * g)),
    "no-eps-below": ("ε is missing in the lower root",
        assembled(update=lambda xp, g, v, u, eps: xp.where(g == 0, g, xp.sqrt(u + eps) / xp.sqrt(v) * g))),
    "root-missing": ("The square roots are missing",
        assembled(update=lambda xp, g, v, u, eps: (u + eps) / (v + eps) * g)),
    "upper-root-missing": ("The upper square root is missing",
        assembled(update=lambda xp, g, v, u, eps: (u + eps) / xp.sqrt(v + eps) * g)),
    # What the accumulators take in, and when.
    "lr-inside-u": ("The learning rate is within the update that u takes in",
        assembled(taken_by_u=lambda lr, g, d: lr * d)),
    "u-updated-before-it-is-read": ("u is updated before the step is made with it (TensorFlow's first version)",
        _u_updated_first),
    "v-read-before-it-is-updated": ("The step is made with v as it was before", _v_updated_last),
    "u-of-gradients": ("u takes in the gradient, not the update", assembled(taken_by_u=lambda lr, g, d: g)),
    "one-minus-rho-dropped": ("1 − ρ is dropped: squares are added whole",
        assembled(numbers=lambda lr, rho, eps: (lr, rho, 1.0, eps))),
    "rho-swapped": ("ρ and 1 − ρ are swapped", assembled(numbers=lambda lr, rho, eps: (lr, 1 - rho, rho, eps))),
    "one-minus-rho-in-float32": ("1 − ρ is formed in float32, of ρ already rounded",
        assembled(numbers=lambda lr, rho, eps: (lr, rho, single(1 - single(rho)), eps))),
    "bias-corrected": ("v is divided by 1 − ρ^t when it is read, as in Adam", _bias_corrected),
    "one-v-per-tensor": ("v takes in the mean of a tensor's squares", assembled(average_of_v=_mean)),
    "v-of-magnitudes": ("v takes in |g| and no square",
        assembled(average_of_v=lambda xp, rho, rest, old, new: rho * old + rest * xp.abs(new))),
    "ascends": ("The update is added, not subtracted",
        assembled(numbers=lambda lr, rho, eps: (-lr, rho, 1 - rho, eps))),
    # Right on paper, other bits.
    "fused-multiply-add": ("ρ a + (1 − ρ) n² is one multiply-add, rounded once", assembled(average=contracted)),
    "reciprocal-root": ("The lower root is inverted first, then multiplied with",
        assembled(update=lambda xp, g, v, u, eps: xp.sqrt(u + eps) * (1.0 / xp.sqrt(v + eps)) * g)),
    "one-root-of-the-quotient": ("One root of the quotient, in place of a quotient of roots",
        assembled(update=lambda xp, g, v, u, eps: xp.sqrt((u + eps) / (v + eps)) * g)),
    "squares-scaled-first": ("(1 − ρ) n is formed before it is multiplied by n",
        assembled(average=lambda xp, rho, rest, old, new: rho * old + (rest * new) * new)),
    "lr-through-float32": ("The learning rate passes through float32",
        assembled(numbers=lambda lr, rho, eps: (single(lr), rho, 1 - rho, eps))),
    "hyperparameters-through-float32": ("ρ and ε pass through float32",
        assembled(numbers=lambda lr, rho, eps: (lr, single(rho), 1 - single(rho), single(eps)))),
}  # fmt: skip
#: Those that look at one element at a time, as engines that compile a rule demand.
ELEMENTWISE = FORMULAS.keys() - {"one-v-per-tensor"}


def rule_of(name: str) -> Rule:
    """Return the wrong rule of this name, with the state and the hyperparameters of Adadelta."""
    return Rule(name, FORMULAS[name][1], ADADELTA.slots, ADADELTA.hypers)
