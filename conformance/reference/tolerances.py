"""The one table of tolerances: for each kind of comparison how much is allowed, and why. Nothing else sets limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    """At most so many units, and why."""

    limit: float
    unit: str
    reason: str


#: For each kind of state.
Table = Mapping[str, Tolerance]


def _limits(square_avg: float, acc_delta: float, x: float, *reasons: str) -> Table:
    """Return a table with reasons for each kind in turn, or one for all."""
    limits = {"square_avg": square_avg, "acc_delta": acc_delta, "x": x, "average": x}
    why = dict(zip(limits, (*reasons, "as for x") if len(reasons) > 1 else reasons * 4, strict=True))
    return {
        kind: Tolerance(limit, "motion" if kind in ("x", "average") else "ulp", why[kind])
        for kind, limit in limits.items()
    }


#: One step, begun at the state before it, against the reference. Worst seen in the traces: 5.6, 5.2, 1.4 and 1.6.
STEP = _limits(
    8, 8, 2,
    "two products, a sum and a square round; a gradient scaled by a norm brings its own, squared",
    "two roots, a quotient and a product round, squared, and then as for square_avg",
    "one rounding of the difference, and the update's own in proportion to the motion",
)  # fmt: skip
#: A whole run against a reference that runs by itself: errors add up. Worst seen: 6.5, 37, 4.7 and 2.6.
RUN = _limits(
    16, 64, 8,
    "old errors fade with rho: those of the last 20 steps count, and not all point one way",
    "each update is made with the root of the old one: errors feed back on themselves",
    "a thousand roundings add up like a random walk, against a path of a thousand steps",
)  # fmt: skip
#: A whole run against a framework's whole run.
TRACE = _limits(32, 128, 16, "we and they are each within half of this of the exact value")
#: A whole run of a compiler that contracts to multiply-add against the run without.
COMPILED = _limits(
    64, 256, 32, "as against a framework's run, and twice that where decay cancels the gradient's leading bits"
)
#: One step in 16 bits against the reference.
HALF_STEP = _limits(
    0.51, 0.51, 0.51, "computed in float32 and rounded once: half a unit, and float32's own 1e-3 of one"
)
#: Learning rates against the published formulas in double precision.
RATE = Tolerance(4.0, "ulp", "a power or a cosine, a quotient, a product and a sum, in double precision")
#: Between libraries that are promised the same bits.
BITS = Tolerance(0.0, "values that differ", "the rule is the same and IEEE 754 leaves no choice: the same bits")


def against_oracle(kind: str, dtype: str, *, stepwise: bool) -> Tolerance:
    """Return what is allowed from the reference."""
    if not stepwise:
        return RUN[kind]
    return HALF_STEP[kind] if dtype in ("float16", "bfloat16") else STEP[kind]


def everything() -> dict[str, Tolerance]:
    """Return the whole table, by name, for those who print it."""
    named = {
        "one step against the reference": STEP,
        "one step in 16 bits": HALF_STEP,
        "a run against the reference": RUN,
        "a run against a framework's": TRACE,
        "a compiled run against NumPy's": COMPILED,
    }
    rows = {f"{name}: {kind}": entry for name, table in named.items() for kind, entry in table.items()}
    return {**rows, "learning rates": RATE, "across libraries": BITS}
