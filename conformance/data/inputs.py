"""The case of a scenario, with initial values and gradients: the same numbers on every machine.

Only IEEE arithmetic on a PCG64 stream of uniform doubles; no library's logarithm or normal generator, whose last
bits differ from one machine to another. The seed is the scenario's name.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from .case import Case, Gradient, Sparse
from .floats import rounded, without_nan_payload
from .specification import HOLDERS, Draw, Scenario


def _numbers(draw: Draw, count: int, offset: int, rng: np.random.Generator, is_complex: bool) -> NDArray[np.generic]:
    if draw.kind == "listed":
        places = (offset + np.arange(count)) % len(draw.values)
        return np.asarray(draw.values)[places]
    parts = 2 * count if is_complex else count
    if draw.kind == "uniform":
        flat = draw.low + (draw.high - draw.low) * rng.random(parts)
    elif draw.kind == "decades":
        # Read, not computed: ``10.0**k`` differs from one machine to another.
        powers = np.array([float(f"1e{k}") for k in range(int(draw.low), int(draw.high) + 1)])
        sign = np.where(rng.random(parts) < 0.5, -1.0, 1.0)
        which = (rng.random(parts) * len(powers)).astype(np.int64)
        flat = sign * (1.0 + 9.0 * rng.random(parts)) * powers[which]
    else:
        raise ValueError(f"Draw.kind: expected 'uniform', 'decades' or 'listed', got {draw.kind!r}")
    return flat.view(np.complex128) if is_complex else flat


def case_of(scenario: Scenario) -> Case:
    """Return the case of ``scenario``, with initial values and gradients rounded to its data type.

    bfloat16 values come in float32 arrays, which hold them exactly.
    """
    seed = int.from_bytes(hashlib.sha256(scenario.name.encode()).digest()[:16], "little")
    rng = np.random.Generator(np.random.PCG64(seed))
    is_complex = scenario.dtype.startswith("complex")
    offset = 0

    def draw(source: Draw, shape: tuple[int, ...]) -> NDArray[np.generic]:
        nonlocal offset
        count = int(np.prod(shape, dtype=np.int64))
        values = _numbers(source, count, offset, rng, is_complex)
        offset += count
        with np.errstate(over="ignore", under="ignore"):
            held = values.astype(HOLDERS[scenario.dtype])
        return without_nan_payload(rounded(held, scenario.dtype)).reshape(shape)

    def gradient(step: int, i: int, shape: tuple[int, ...]) -> Gradient:
        if not {(step, i), (step, -1)}.isdisjoint(scenario.missing):
            return None
        if i > 0 or not scenario.rows:
            return draw(scenario.gradients, shape)
        indices = np.array(scenario.rows[step % len(scenario.rows)], dtype=np.int64)
        return Sparse(indices, draw(scenario.gradients, (len(indices), *shape[1:])))

    start = tuple(draw(scenario.start, shape) for shape in scenario.shapes)
    offset = 0
    steps = [[gradient(t, i, shape) for i, shape in enumerate(scenario.shapes)] for t in range(scenario.steps)]
    return Case(scenario.name, scenario.dtype, scenario.config, start, steps, scenario.about)
