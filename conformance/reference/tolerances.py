"""The one table of tolerances: for each kind of comparison how much is allowed, and why. Nothing else sets limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .accuracy import WITHIN_STEP, WITHIN_TRACE

_HALVES = ("float16", "bfloat16")


@dataclass(frozen=True)
class Tolerance:
    """At most so many units, and why."""

    limit: float
    unit: str
    reason: str


def _table(limits: Mapping[str, float], factor: float, reasons: Mapping[str, str]) -> dict[str, Tolerance]:
    return {
        kind: Tolerance(factor * limit, "motion" if kind in ("x", "average") else "ulp", reasons[kind])
        for kind, limit in limits.items()
    }


#: One step, begun at the state before it, against the oracle.
STEP = _table(
    WITHIN_STEP,
    1,
    {
        "square_avg": "two products, a sum and a square round; a gradient scaled by a norm brings its own, squared",
        "acc_delta": "two roots, a quotient and a product round, squared, and then as for square_avg",
        "x": "one rounding of the difference, and the update's own in proportion to the motion",
        "average": "as for x",
    },
)
#: A whole run against an oracle that runs by itself: errors add up.
RUN = _table(
    WITHIN_TRACE,
    1,
    {
        "square_avg": "old errors fade with rho: those of the last 20 steps count, and not all point one way",
        "acc_delta": "each update is made with the root of the old one: errors feed back on themselves",
        "x": "a thousand roundings add up like a random walk, against a path of a thousand steps",
        "average": "as for x",
    },
)
_BOTH = "we and they are each within half of this of the exact value"
#: A whole run against a framework's whole run.
TRACE = _table(WITHIN_TRACE, 2, dict.fromkeys(WITHIN_TRACE, _BOTH))
#: A whole run of a compiler that contracts to multiply-add against the run without.
COMPILED = _table(
    WITHIN_TRACE,
    4,
    dict.fromkeys(
        WITHIN_TRACE, "as against a framework's run, and twice that where decay cancels the gradient's leading bits"
    ),
)
#: One step in 16 bits against the oracle.
HALF_STEP = _table(
    dict.fromkeys(WITHIN_STEP, 0.51),
    1,
    dict.fromkeys(WITHIN_STEP, "computed in float32 and rounded once: half a unit, and float32's own 1e-3 of one"),
)
#: Learning rates against the published formulas in double precision.
RATE = Tolerance(4.0, "ulp", "a power or a cosine, a quotient, a product and a sum, in double precision")
#: Between libraries that are promised the same bits.
BITS = Tolerance(0.0, "values that differ", "the rule is the same and IEEE 754 leaves no choice: the same bits")


def against_oracle(kind: str, dtype: str, *, stepwise: bool) -> Tolerance:
    """Return what is allowed from the oracle."""
    if not stepwise:
        return RUN[kind]
    return HALF_STEP[kind] if dtype in _HALVES else STEP[kind]


def everything() -> dict[str, Tolerance]:
    """Return the whole table, by name, for those who print it."""
    named = {
        "one step against the oracle": STEP,
        "one step in 16 bits": HALF_STEP,
        "a run against the oracle": RUN,
        "a run against a framework's": TRACE,
        "a compiled run against NumPy's": COMPILED,
    }
    rows = {f"{name}: {kind}": entry for name, table in named.items() for kind, entry in table.items()}
    return {**rows, "learning rates": RATE, "across libraries": BITS}
