"""Recorded gradients through our optimizers: what was asked becomes a `Question`, the answer is a `Trace` of our own.

A framework's habits that are a matter of options (a learning rate rounded to float32, a clip that is ignored) can be
followed by giving ours the options that the framework acted on; `followed` does that. The rest of them are arithmetic
of its own, and are only told.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from multiopt import schedules

from ..data.inputs import Gradient, inputs_of
from ..data.rates import rates_of
from ..data.specification import Config, Scenario
from ..data.tracefile import Trace, gradient_arrays, without_nan_payload
from .players import Array, Player
from .stages import stage_of

#: Habits that are a matter of the learning rate: ours is given the rates that the framework used.
OF_RATE = frozenset(
    {
        "lr-through-float32",
        "boundary-belongs-to-next",
        "callable-lr-frozen",
        "step-in-parameter-dtype",
        "schedule-counts-micro-steps",
    }
)
#: A habit that traces show in their learning rates, where `quirks` names none, and how far the rates may then be off.
SCHEDULE = "schedule-in-float32"
SCHEDULE_ABOUT = "the schedule is computed in float32"
_SINGLE = 1e-6


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked of an optimizer: options, initial parameters, gradients.

    Attributes
    ----------
    scenario, about, dtype, shapes, config, missing
        As in `Trace`.
    start : sequence of arrays
    gradients : sequence of sequences
        By step and tensor.
    inputs : mapping
        The gradients as a trace holds them.
    rates : tuple of float or None
        Learning rates to use, one an update, in place of those that `config` says.
    """

    scenario: str
    about: str
    dtype: str
    shapes: tuple[tuple[int, ...], ...]
    config: Config
    missing: tuple[tuple[int, int], ...]
    start: Sequence[Array]
    gradients: Sequence[Sequence[Gradient]]
    inputs: Mapping[str, Array]
    rates: tuple[float, ...] | None = None

    @classmethod
    def of_trace(cls, trace: Trace) -> Question:
        """Ask what was asked of a recorded system, by the published rule."""
        inputs = {key: values for key, values in trace.arrays.items() if key.startswith("gradient")}
        gradients = [trace.gradients(step) for step in range(trace.steps)]
        config = replace(trace.config, defaults=False, floatx=None)
        return cls(
            trace.scenario, trace.about, trace.dtype, trace.shapes, config, trace.missing, trace.at("x", 0), gradients,
            inputs,
        )  # fmt: skip

    @classmethod
    def of_scenario(cls, scenario: Scenario) -> Question:
        """Ask what a scenario says."""
        given = inputs_of(scenario)
        return cls(
            scenario.name, scenario.about, scenario.dtype, scenario.shapes, scenario.config, (), given.start,
            given.gradients, gradient_arrays(given.gradients, given.start),
        )  # fmt: skip

    @property
    def steps(self) -> int:
        """How many gradients there are."""
        return len(self.gradients)

    @property
    def is_sparse(self) -> bool:
        """Whether the first tensor's gradients are sparse."""
        return "gradient.rows/p0" in self.inputs

    def first(self, steps: int) -> Question:
        """Return the question with no more than so many of its steps; for dense gradients."""
        if self.steps <= steps:
            return self
        return replace(
            self,
            missing=tuple(pair for pair in self.missing if pair[0] < steps),
            gradients=self.gradients[:steps],
            inputs={key: values[:steps] for key, values in self.inputs.items()},
        )

    def update_rates(self) -> list[float]:
        """Return the published learning rate of every update, by the suite's own formulas."""
        rates = rates_of(self.config, self.steps)[:: self.config.accumulate]
        return [1.0 if rate is None else rate for rate in rates]

    def learning_rate(self) -> float | Callable[[int], float]:
        """Return the learning rate as multiopt takes it: a number, one of its schedules, or a function."""
        if self.rates is not None:
            given = self.rates
            return lambda step: given[step]
        return learning_rate(self.config)

    @cached_property
    def key(self) -> str:
        """A hash of all that is asked."""
        sha = hashlib.sha256(repr((self.dtype, self.config, self.rates, self.missing)).encode())
        for name in sorted(self.inputs):
            sha.update(name.encode() + self.inputs[name].tobytes())
        for values in self.start:
            sha.update(repr(values.shape).encode() + values.tobytes())
        return sha.hexdigest()


def question_of(
    name: str,
    dtype: str,
    config: Config,
    start: Sequence[Array],
    gradients: Sequence[Sequence[Gradient]],
    rates: tuple[float, ...] | None = None,
) -> Question:
    """Return the question of these parameters and gradients; a gradient may be None."""
    missing = tuple((t, i) for t, row in enumerate(gradients) for i, g in enumerate(row) if g is None)
    shapes = tuple(tuple(values.shape) for values in start)
    return Question(
        name, "", dtype, shapes, config, missing, list(start), gradients, gradient_arrays(gradients, start), rates
    )


def first(trace: Trace, steps: int) -> Trace:
    """Return the beginning of a trace with dense gradients."""
    if trace.steps <= steps:
        return trace
    before_too = ("x/", "square_avg/", "acc_delta/", "average/", "iterations")
    arrays = {
        key: values[: steps + 1] if key.startswith(before_too) else values[:steps]
        for key, values in trace.arrays.items()
    }
    missing = tuple(pair for pair in trace.missing if pair[0] < steps)
    return replace(trace, steps=steps, missing=missing, arrays=arrays)


def learning_rate(config: Config) -> float | Callable[[int], float]:
    """Return the learning rate of a `Config` as multiopt takes it."""
    rate: float | Callable[[int], float] = 1.0 if config.lr is None else config.lr
    if config.schedule is not None:
        rate = _schedule(config.schedule.kind, config.schedule.parameters)
    if config.legacy_decay:
        decay = schedules.InverseTime(1.0, 1.0, config.legacy_decay)
        base = rate
        rate = lambda step: (base(step) if callable(base) else base) * decay(step)  # noqa: E731
    if config.first_iteration and callable(rate):
        late = rate
        return lambda step: late(step + config.first_iteration)
    return rate


def _schedule(kind: str, p: Mapping[str, Any]) -> Callable[[int], float]:
    match kind:
        case "exponential":
            return schedules.Exponential(p["initial"], p["decay_steps"], p["decay_rate"])
        case "inverse-time":
            return schedules.InverseTime(p["initial"], p["decay_steps"], p["decay_rate"])
        case "polynomial":
            return schedules.Polynomial(p["initial"], p["decay_steps"], p["end"], p["power"])
        case "cosine":
            return schedules.Cosine(p["initial"], p["decay_steps"], p["alpha"])
        case "piecewise":
            return schedules.Piecewise(p["boundaries"], p["values"])
        case "callable":
            return lambda step: p["values"][step]
    raise ValueError(f"Schedule.kind: unknown: {kind!r}")


def habits(trace: Trace) -> tuple[str, ...]:
    """Return a trace's quirks, and `SCHEDULE` where its learning rates show that."""
    if trace.config.schedule is None or not trace.has("lr") or OF_RATE & set(trace.quirks):
        return trace.quirks
    published = np.array(rates_of(trace.config, trace.steps), dtype=np.float64)
    apart = np.max(np.abs(trace.arrays["lr"] - published) / published)
    return (*trace.quirks, SCHEDULE) if 4 * np.finfo(np.float64).eps < apart <= _SINGLE else trace.quirks


def followed(trace: Trace) -> tuple[Question, tuple[str, ...]]:
    """Return the question as the framework took it, as far as options go, and the habits that are left."""
    question = Question.of_trace(trace)
    c, rates, left = question.config, None, []
    for quirk in habits(trace):
        if quirk in OF_RATE or quirk == SCHEDULE:
            # Under accumulation an update has the rate of its last gradient.
            rates = tuple(float(rate) for rate in trace.arrays["lr"][c.accumulate - 1 :: c.accumulate])
        elif quirk == "rho-through-float32":
            c = replace(c, rho=float(np.float32(c.rho)))
        elif quirk == "eps-through-float32":
            c = replace(c, eps=float(np.float32(c.eps)))
        elif quirk == "weight-decay-through-float32":
            c = replace(c, weight_decay=float(np.float32(c.weight_decay)))
        elif quirk == "eps-zero-becomes-1e-7":
            c = replace(c, eps=1e-7)
        elif quirk in ("nonpositive-clip-ignored", "norm-clip-wins"):
            c = replace(c, clipvalue=None)
        elif quirk == "ascends-without-lr":
            c = replace(c, maximize=True)
        else:
            left.append(quirk)
    return replace(question, config=c, rates=rates), tuple(left)


def play(player: Player, question: Question) -> Trace:
    """Step through a question's gradients, and return every state after every step.

    Raises
    ------
    ValueError
        If ours refuses the question: see `stages.refusal`.
    """
    library = player.load()
    with library.active(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras warns of missing gradients, JAX of overflow: the states show it
        stage = stage_of(player, library, question)
        seen = [stage.states()]
        for number, row in enumerate(question.gradients):
            stage.step(number, row)
            seen.append(stage.states())
    arrays = dict(question.inputs)
    for kind in seen[-1]:
        for i, shape in enumerate(question.shapes):
            values = np.stack([shot[kind][i] for shot in seen]).reshape(len(seen), *shape)
            arrays[f"{kind}/p{i}"] = without_nan_payload(values)
    rates = question.rates or question.update_rates()
    arrays["lr"] = np.repeat(np.array(rates), question.config.accumulate)[: question.steps]
    return Trace(
        system=player.name,
        scenario=question.scenario,
        about=question.about,
        dtype=question.dtype,
        shapes=question.shapes,
        steps=question.steps,
        config=question.config,
        # In 16 bits numbers are computed in float32, where they are normal.
        quirks=() if question.dtype in ("float16", "bfloat16") else player.quirks,
        missing=question.missing,
        arrays=arrays,
    )


def bits(trace: Trace) -> str:
    """Return a hash of every state of a trace, and of what was asked."""
    sha = hashlib.sha256(repr((trace.scenario, trace.dtype, trace.config, trace.quirks)).encode())
    for key in sorted(trace.arrays):
        sha.update(key.encode() + trace.arrays[key].tobytes())
    return sha.hexdigest()
