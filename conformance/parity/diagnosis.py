"""Why two trajectories differ: guesses are tried on the data until one gives every number that was seen.

First each side by itself: is it the published rule, with some options? Options are those that it says it was asked
for, those of frameworks' defaults, and those that its numbers give away. Where one side is the rule and the other is
not, the other is compared with every mutant, made with the options of the first. Where none of these is it, its
equations are looked at one by one, each step from the states before it (`dissection`); and at last it is compared with
other optimizers (`others`). A guess counts only if it gives all states after all steps within the tolerances, so that
the answer is not an opinion; if several do, all of them are told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np

from ..data.case import Array, Case
from ..data.specification import Config
from ..data.trajectory import Trajectory
from ..mutation.mutants import MUTANTS, TRUE, Mutant
from ..targets.build import unsupported
from ..targets.run import run_target
from .differences import LIMITS, worst
from .dissection import dissect, spoken
from .estimates import estimated
from .others import another
from .stepwise import Steps, steps_of

#: Defaults of frameworks: lr, rho, eps.
DEFAULTS: Mapping[str, Config] = {
    "PyTorch": Config(lr=1.0, rho=0.9, eps=1e-6),
    "the paper": Config(lr=1.0, rho=0.95, eps=1e-6),
    "Keras": Config(lr=0.001, rho=0.95, eps=1e-7),
    "TensorFlow 1": Config(lr=0.001, rho=0.95, eps=1e-8),
    # Without a learning rate, optax.adadelta ascends.
    "optax": Config(lr=1.0, rho=0.9, eps=1e-6, maximize=True),
}
#: Steps that a guess is tried on before all of them.
FIRST = 3
#: Elements that a diagnosis looks at, at most, where no norm needs them all.
MOST = 4000


@dataclass(frozen=True)
class Explanation:
    """What a difference looks like."""

    #: Name of a mutant, or ``"options"``, ``"rounding"``; and the same in words.
    cause: str
    text: str
    #: How well the guess fits: the worst distance of each kind of state from what was seen.
    units: Mapping[str, float]
    #: Whether each step is begun at the states that were seen before it; else errors add up.
    from_step_to_step: bool = False

    def __str__(self) -> str:
        fit, what = max(self.units.values(), default=0.0), "every step" if self.from_step_to_step else "every number"
        return f"{self.text} (this gives {what} that was seen, within {fit:.2g} units)"


class Diagnosis(NamedTuple):
    """What a difference looks like, the most likely first; or, if that is not known, what can be said all the same."""

    explanations: list[Explanation]
    notes: list[str]


def explain(a: Trajectory, b: Trajectory) -> Diagnosis:
    """Return what the difference between two trajectories looks like."""
    gradients = a.case.gradients or b.case.gradients
    if not gradients:
        return Diagnosis([], [])
    a, b = (_smaller(replace(side, case=replace(side.case, gradients=gradients))) for side in (a, b))
    rule_a, rule_b = _rule(a, b), _rule(b, a)
    if rule_a is not None and rule_b is not None:
        return Diagnosis([_both(a, b, rule_a, rule_b)], [])
    # Which rule is meant: that of the side which follows it, or else the one that is asked for.
    wrong: list[tuple[Trajectory, Case | None]] = (
        [(b, rule_a)] if rule_a else [(a, rule_b)] if rule_b else [(s, s.case) for s in (a, b) if s.options_known]
    )
    found = [told for side, rule in wrong if rule for told in _mistakes(side, rule)]
    found = found or [told for side, _ in wrong or [(a, None), (b, None)] for told in _another(side)]
    return Diagnosis(found, [] if found else [note for side, rule in wrong if rule for note in _notes(side, rule)])


def simulate(case: Case, mutant: Mutant = TRUE) -> Trajectory | None:
    """Return what the rule, or a mutant, would have done, or None where the options are impossible."""
    target = mutant.target("eager")
    try:
        return None if unsupported(target, case) else run_target(target, case)
    except ValueError:
        return None


def fits(seen: Trajectory, case: Case, mutant: Mutant = TRUE) -> dict[str, float] | None:
    """Return how far a guess is from what was seen, or None if it is too far."""
    far: dict[str, float] = {}
    # Most guesses are wrong from the start.
    for steps in sorted({min(FIRST, case.steps), case.steps}):
        made = simulate(case.first(steps), mutant)
        if made is None or seen.states.keys() - made.states.keys():
            return None  # it has averages, say, and the guess has none
        far = worst(made, seen.first(steps))
        if not all(far[kind] <= LIMITS[kind] for kind in far):
            return None
    return far


# --- one side by itself ---


def _rule(one: Trajectory, other: Trajectory) -> Case | None:
    """Return the case, with its options, in which the published rule does what `one` did, or None."""
    return next((guess for guess in _guesses(one, other) if fits(one, guess) is not None), None)


def _guesses(one: Trajectory, other: Trajectory) -> Iterator[Case]:
    told = [t.case for t in (one, other) if t.options_known]
    bases = [replace(one.case, config=case.config, rates=case.rates) for case in told]
    bases += [replace(one.case, config=config, rates=None) for config in DEFAULTS.values()]
    yield from bases
    for base in bases:
        yield from estimated(one, base)


def _both(a: Trajectory, b: Trajectory, rule_a: Case, rule_b: Case) -> Explanation:
    units: dict[str, float] = {}
    for side, rule in ((a, rule_a), (b, rule_b)):
        units |= {kind: max(far, units.get(kind, 0.0)) for kind, far in (fits(side, rule) or {}).items()}
    if told := differing(rule_a, rule_b):
        text = f"both follow the rule, with other options: {told}"
        if _numbers(rule_a.config) != _numbers(rule_b.config):
            for name, rule in (("a", rule_a), ("b", rule_b)):
                owners = [who for who, c in DEFAULTS.items() if _alike(c, rule.config)]
                text += f"; those of {name} are the defaults of {owners[0]}" if owners else ""
        return Explanation("options", text, units)
    for who, side, case in (("a", a, rule_a), ("b", b, rule_b)):
        exact = next((mutant for mutant in (TRUE, *MUTANTS.values()) if _exact(side, case, mutant)), TRUE)
        if exact is not TRUE:
            return Explanation(exact.name, f"{who} has the bits of this: {_lower(exact.about)}", units)
    return Explanation("rounding", "both follow the rule with the same options, and round in other places", units)


def _exact(side: Trajectory, case: Case, mutant: Mutant) -> bool:
    made = simulate(case, mutant)
    return made is not None and not any(worst(made, side).values())


def _numbers(c: Config) -> tuple[float, float, float]:
    return 1.0 if c.lr is None else c.lr, c.rho, c.eps


def _alike(c: Config, other: Config) -> bool:
    # Keras says its learning rate after it has passed through float32.
    return c.maximize == other.maximize and np.allclose(_numbers(c), _numbers(other), rtol=1e-7, atol=0.0)


_NAMES = {"decay_kind": "weight decay", "clipvalue": "clip_value", "clipnorm": "clip_norm", "ema_momentum": "ema",
          "global_clipnorm": "clip_global_norm"}  # fmt: skip


def differing(a: Case, b: Case) -> str:
    """Say in words in which options two cases differ."""
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


def _some(case: Case) -> str:
    return ", ".join(f"{rate:.6g}" for rate in case.rates[:3]) + ", …" if case.rates else f"{case.config.lr}"


def _shifted(a: tuple[float, ...] | None, b: tuple[float, ...] | None) -> str:
    late = [who for who, one, other in (("b", a, b), ("a", b, a)) if one and other and one[:-1] == other[1:]]
    return f" ({late[0]}'s schedule is one step late)" if late else ""


# --- one side with a mistake ---


def _mistakes(side: Trajectory, rule: Case) -> list[Explanation]:
    """Return the mistakes that give what `side` did: with the options of `rule`, or else with its own, if it says."""
    guesses = [(replace(side.case, config=rule.config, rates=rule.rates), "")]
    if side.options_known:
        guesses.append((side.case, ", with the options that it says it has"))
    for case, options in guesses:
        found = [
            Explanation(name, f"{side.name} makes this difference{options}: {_lower(mutant.about)}", far)
            for name, mutant in MUTANTS.items()
            if (far := fits(side, case, mutant)) is not None
        ]
        found = found or _dissected(side, case, options)
        if found:
            return found
    return []


def _dissected(side: Trajectory, case: Case, options: str) -> list[Explanation]:
    """Return what is wrong with the equations, each looked at by itself, one step at a time."""
    steps = _steps(side, case)
    return [] if steps is None else [
        Explanation("+".join(found.causes), f"{side.name} makes this difference{options}: {'; '.join(found.texts)}",
                    found.units, from_step_to_step=True)
        for found in dissect(steps)
    ]  # fmt: skip


def _steps(side: Trajectory, case: Case) -> Steps | None:
    """Return the steps of a side; where accumulators are not shown, with those that the rule has."""
    made = None if side.has("square_avg") and side.has("acc_delta") else simulate(case)
    return steps_of(side if made is None else replace(side, states={**made.states, **side.states}), case)


def _another(side: Trajectory) -> list[Explanation]:
    """Return the optimizer that it is, if it is no Adadelta."""
    if (found := another(side)) is None:
        return []
    name, lr, far = found
    text = f"{side.name} is not Adadelta at all: its parameters move as by {name}, with a learning rate of {lr:.6g}"
    return [Explanation("not-adadelta", text, {"x": far})]


def _notes(side: Trajectory, case: Case) -> list[str]:
    steps = _steps(side, replace(side.case, config=case.config, rates=case.rates))
    return [] if steps is None else [f"{side.name}: {spoken(steps)}"]


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def _smaller(trajectory: Trajectory) -> Trajectory:
    """Return some elements of each tensor, where there are many and none depends on another."""
    case = trajectory.case
    norms = case.config.clipnorm is not None or case.config.global_clipnorm is not None
    if sum(x.size for x in case.start) <= MOST or (norms and trajectory.options_known):
        return trajectory
    each = max(1, MOST // len(case.start))

    def cut(values: Array, axis: int) -> Array:
        flat = values.reshape(*values.shape[:axis], -1)
        stride = max(1, flat.shape[-1] // each)
        return flat[..., ::stride][..., :each]

    states = {kind: [cut(v, 1) for v in column] for kind, column in trajectory.states.items()}
    rows = [[None if g is None else cut(np.asarray(g), 0) for g in row] for row in case.gradients]
    start = [cut(np.asarray(values), 0) for values in case.start]
    return replace(trajectory, states=states, case=replace(case, start=start, gradients=rows))
