"""Why two trajectories part: guesses are tried on the data until one gives every number that was seen.

First each side by itself: is it the published rule, with some options? Options are those that it says it was asked
for, those of frameworks' defaults, and those that its numbers give away. Where one side is the rule and the other is
not, the other is compared with every mistake in `mutants`, made with the options of the first. A guess counts only if
it gives all states after all steps within the tolerances for two frameworks, so that the answer is not an opinion.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace

import numpy as np

from ..data.case import Array
from ..data.specification import Config
from ..data.trajectory import Trajectory
from ..mutation.mutants import JUDGED_AS, MUTANTS
from ..reference.reference import Reference
from ..reference.tolerances import TRACE
from ..targets import run
from ..targets.build import rejection, unsupported
from ..targets.protocol import Options
from .estimates import estimated
from .trajectory import options_in, with_options, worst

LIMITS = {kind: tolerance.limit for kind, tolerance in TRACE.items()}
#: Defaults of frameworks: lr, rho, eps.
DEFAULTS: Mapping[str, Config] = {
    "PyTorch": Config(lr=1.0, rho=0.9, eps=1e-6),
    "the paper": Config(lr=1.0, rho=0.95, eps=1e-6),
    "Keras": Config(lr=0.001, rho=0.95, eps=1e-7),
    "TensorFlow 1": Config(lr=0.001, rho=0.95, eps=1e-8),
    # Without a learning rate, optax.adadelta ascends.
    "optax": Config(lr=1.0, rho=0.9, eps=1e-6, maximize=True),
}
#: Elements that a diagnosis looks at, at most, where no norm needs them all.
MOST = 4000


@dataclass(frozen=True)
class Explanation:
    """What a difference looks like.

    Attributes
    ----------
    cause : str
        Name of a mutant, or ``"options"``, ``"rounding"``.
    text : str
        In words.
    units : mapping
        How well the guess fits: the worst distance of each kind of state from what was seen.
    """

    cause: str
    text: str
    units: Mapping[str, float]

    def __str__(self) -> str:
        fit = max(self.units.values(), default=0.0)
        return f"{self.text} (this gives every number that was seen, within {fit:.2g} units)"


def explain(a: Trajectory, b: Trajectory) -> list[Explanation]:
    """Return what the difference between two trajectories looks like, the most likely first; empty if unknown.

    Parameters
    ----------
    a, b : Trajectory
        With gradients, of the same start.
    """
    a, b = with_gradients_of(a, b), with_gradients_of(b, a)
    if not a.case.gradients:
        return []
    a, b = _smaller(a), _smaller(b)
    rule_a, rule_b = _rule(a, b), _rule(b, a)
    if rule_a is not None and rule_b is not None:
        return [_both(a, b, rule_a, rule_b)]
    if rule_a is not None:
        return _mistakes(b, rule_a, options_in(b))
    if rule_b is not None:
        return _mistakes(a, rule_b, options_in(a))
    known = [(side, options) for side in (a, b) if (options := options_in(side)) is not None]
    return [told for side, options in known for told in _mistakes(side, options, None)]


def with_gradients_of(a: Trajectory, b: Trajectory) -> Trajectory:
    """Return `a` with the gradients of `b`, where its own are not known."""
    return a if a.case.gradients else replace(a, case=replace(a.case, gradients=b.case.gradients))


def simulate(trajectory: Trajectory, guess: Options, reference: type[Reference] = Reference) -> Trajectory | None:
    """Return what a guess would have done, or None where it is no possible one."""
    case = with_options(trajectory, guess)
    if unsupported(JUDGED_AS, case) or rejection(JUDGED_AS, case):
        return None
    return run.record(reference(case), case)


def fits(trajectory: Trajectory, guess: Options, reference: type[Reference] = Reference) -> dict[str, float] | None:
    """Return how far a guess is from what was seen, or None if it is too far."""
    made = simulate(trajectory, guess, reference)
    if made is None:
        return None
    if trajectory.states.keys() - made.states.keys():
        return None  # it has averages, say, and the guess has none
    far = worst(made, trajectory, LIMITS)
    return far if all(far[kind] <= LIMITS[kind] for kind in far) else None


# --- one side by itself ---


def _rule(one: Trajectory, other: Trajectory) -> Options | None:
    """Return the options with which the published rule does what `one` did, or None."""
    for guess in _guesses(one, other):
        if fits(one, guess) is not None:
            return guess
    return None


def _guesses(one: Trajectory, other: Trajectory) -> Iterator[Options]:
    bases = [options for t in (one, other) if (options := options_in(t)) is not None]
    yield from bases
    yield from (Options(config) for config in DEFAULTS.values())
    for base in [*bases, *(Options(config) for config in DEFAULTS.values())]:
        yield from (Options(config, base.rates) for config in estimated(one, base))


def _both(a: Trajectory, b: Trajectory, rule_a: Options, rule_b: Options) -> Explanation:
    units = {**(fits(a, rule_a) or {})}
    for kind, far in (fits(b, rule_b) or {}).items():
        units[kind] = max(far, units.get(kind, 0.0))
    told = differing(rule_a, rule_b)
    if told:
        text = f"both follow the rule, with other options: {told}"
        if _numbers(rule_a.config) != _numbers(rule_b.config):
            for name, one in (("a", rule_a), ("b", rule_b)):
                owner = next((who for who, c in DEFAULTS.items() if _alike(c, one.config)), None)
                text += f"; those of {name} are the defaults of {owner}" if owner else ""
        return Explanation("options", text, units)
    for who, side, base in (("a", a, rule_a), ("b", b, rule_b)):
        if not _exact(side, base, Reference):
            same = (mutant for mutant in MUTANTS.values() if _exact(side, base, mutant.reference))
            if mutant := next(same, None):
                return Explanation(mutant.name, f"{who} has the bits of this: {_lower(mutant.about)}", units)
    return Explanation("rounding", "both follow the rule with the same options, and round in other places", units)


def _exact(side: Trajectory, base: Options, reference: type[Reference]) -> bool:
    made = simulate(side, base, reference)
    return made is not None and not any(worst(made, side, LIMITS).values())


def _numbers(c: Config) -> tuple[float, float, float]:
    return 1.0 if c.lr is None else c.lr, c.rho, c.eps


def _alike(c: Config, other: Config) -> bool:
    # Keras says its learning rate after it has passed through float32.
    return c.maximize == other.maximize and np.allclose(_numbers(c), _numbers(other), rtol=1e-7, atol=0.0)


_NAMES = {"decay_kind": "weight decay", "clipvalue": "clip_value", "clipnorm": "clip_norm", "ema_momentum": "ema",
          "global_clipnorm": "clip_global_norm"}  # fmt: skip


def differing(a: Options, b: Options) -> str:
    """Say in words in which options two differ."""
    told = []
    for name in (field.name for field in fields(Config)):
        one, other = getattr(a.config, name), getattr(b.config, name)
        if one == other or name in ("defaults", "floatx") or (name == "lr" and (a.rates or b.rates)):
            continue
        if name == "decay_kind" and None in (one, other):
            continue
        text = f"{_NAMES.get(name, name)} {one} in a and {other} in b"
        if name == "rho" and abs(one + other - 1.0) < 1e-9:
            text += " (one is 1 minus the other: are they swapped?)"
        if isinstance(one, float) and isinstance(other, float):
            for who, value, exact in (("a", one, other), ("b", other, one)):
                text += f" ({who}'s has passed through float32)" if value == float(np.float32(exact)) else ""
        told.append(text)
    if a.rates != b.rates:
        told.append(f"learning rates {_some(a)} in a and {_some(b)} in b{_shifted(a.rates, b.rates)}")
    return ", ".join(told)


def _some(asked: Options) -> str:
    return ", ".join(f"{rate:.6g}" for rate in asked.rates[:3]) + ", …" if asked.rates else f"{asked.config.lr}"


def _shifted(a: tuple[float, ...] | None, b: tuple[float, ...] | None) -> str:
    if a is None or b is None:
        return ""
    late = a[:-1] == b[1:], b[:-1] == a[1:]
    return f" ({'b' if late[0] else 'a'}'s schedule is one step late)" if any(late) else ""


# --- one side with a mistake ---


def _mistakes(side: Trajectory, base: Options, own: Options | None) -> list[Explanation]:
    """Return the mistakes that give what `side` did: with the options `base`, or else with its own, if it says."""
    for guess in [base] if own is None or own == base else [base, own]:
        options = "" if guess is base else ", with the options that it says it has"
        found = [
            Explanation(name, f"{side.name} makes this difference{options}: {_lower(mutant.about)}", far)
            for name, mutant in MUTANTS.items()
            if (far := fits(side, guess, mutant.reference)) is not None
        ]
        if found:
            return found
    return []


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def _smaller(trajectory: Trajectory) -> Trajectory:
    """Return some elements of each tensor, where there are many and none depends on another."""
    total = sum(x.size for x in trajectory.case.start)
    config = trajectory.config
    if total <= MOST or config.clipnorm is not None or config.global_clipnorm is not None:
        return trajectory
    each = max(1, MOST // len(trajectory.case.start))

    def cut(values: Array, axis: int) -> Array:
        flat = values.reshape(*values.shape[:axis], -1)
        stride = max(1, flat.shape[-1] // each)
        return flat[..., ::stride][..., :each]

    states = {kind: [cut(v, 1) for v in column] for kind, column in trajectory.states.items()}
    rows = [[None if g is None else cut(np.asarray(g), 0) for g in row] for row in trajectory.case.gradients]
    start = [column[0] for column in states["x"]]
    return replace(trajectory, states=states, case=replace(trajectory.case, start=start, gradients=rows))
