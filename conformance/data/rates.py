"""The learning rate of every step, from the published formulas of the schedules."""

from __future__ import annotations

import math

from .specification import Config, Schedule


def rate_at(schedule: Schedule, t: int) -> float:
    """Return the learning rate of ``schedule`` at step ``t``, counted from 0, in double precision."""
    p = schedule.parameters
    match schedule.kind:
        case "exponential":
            return float(p["initial"] * p["decay_rate"] ** (t / p["decay_steps"]))
        case "inverse-time":
            return float(p["initial"] / (1.0 + p["decay_rate"] * t / p["decay_steps"]))
        case "polynomial":
            left = 1.0 - min(t, p["decay_steps"]) / p["decay_steps"]
            return float((p["initial"] - p["end"]) * left ** p["power"] + p["end"])
        case "cosine":
            done = min(t, p["decay_steps"]) / p["decay_steps"]
            wave = 0.5 * (1.0 + math.cos(math.pi * done))
            return float(p["initial"] * ((1.0 - p["alpha"]) * wave + p["alpha"]))
        case "piecewise":
            return float(p["values"][sum(t > boundary for boundary in p["boundaries"])])
        case "callable":
            return float(p["values"][t])
    raise ValueError(f"Schedule.kind: unknown: {schedule.kind!r}")


def update_rate(config: Config, update: int) -> float | None:
    """Return the learning rate of an update, counted from 0; None where there is no learning rate."""
    count = config.first_iteration + update
    rate = config.lr if config.schedule is None else rate_at(config.schedule, count)
    return rate / (1.0 + config.legacy_decay * count) if rate is not None and config.legacy_decay else rate


def rates_of(config: Config, steps: int) -> list[float | None]:
    """Return the learning rate for each of ``steps`` gradients; None where there is no learning rate.

    Under accumulation the schedule counts updates, so that the gradients of one update share a rate.
    """
    return [update_rate(config, t // config.accumulate) for t in range(steps)]
