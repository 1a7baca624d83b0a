"""What laws are tried on: small cases, drawn by hypothesis, the same ones in every run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ..data.case import Array, Case
from ..data.floats import rounded
from ..data.specification import HOLDERS, Config

#: Options by name. Few, because each asks a compiler for a kernel of its own.
OPTIONS: Mapping[str, Config] = {
    "plain": Config(),
    "paper": Config(lr=1.0, rho=0.95, eps=1e-6),
    "coupled": Config(lr=0.3, rho=0.5, eps=1e-3, weight_decay=0.1, decay_kind="coupled"),
    "decoupled": Config(weight_decay=0.1, decay_kind="decoupled"),
    "clipvalue": Config(rho=0.0, eps=0.1, clipvalue=0.5),
    "clipnorm": Config(clipnorm=0.75),
    "global-clipnorm": Config(rho=0.95, global_clipnorm=1.5),
    "accumulate": Config(accumulate=2),
    "ema": Config(ema_momentum=0.75),
}
#: Few again, and every kind: one element, none at all, no axis, several.
SHAPES: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (5,), (2, 3))


@st.composite
def drawn(draw: Any, labels: Sequence[str], dtypes: Sequence[str]) -> tuple[Case, int]:
    """Draw a case and the seed that it was made with; the first are the simplest."""
    label, dtype = draw(st.sampled_from(labels)), draw(st.sampled_from(dtypes))
    shapes = tuple(draw(st.lists(st.sampled_from(SHAPES[::-1]), min_size=1, max_size=3)))
    steps = draw(st.integers(1, 3))
    seed = draw(st.integers(0, 2**16))
    return make_case(label, dtype, shapes, steps, seed), seed


def make_case(
    label: str, dtype: str, shapes: tuple[tuple[int, ...], ...], steps: int, seed: int, config: Config | None = None
) -> Case:
    """Return a case with random parameters and gradients: several decades, some zeros, no number that anybody flushes.

    Its options are `config`, or those of the name `label` in `OPTIONS`. ``steps`` are updates: under accumulation
    there are more gradients.
    """
    rng = np.random.default_rng(seed)
    chosen = OPTIONS[label] if config is None else config
    half = dtype in ("float16", "bfloat16")
    if half and chosen.eps < 1e-3:
        chosen = replace(chosen, eps=1e-3)  # float16 has nothing near 1e-6

    def draw(shape: tuple[int, ...], low: int, high: int) -> Array:
        whole = (*shape, 2) if dtype.startswith("complex") else shape
        values = rng.uniform(1.0, 9.0, whole) * 10.0 ** rng.integers(low, high + 1, whole)
        values = values * rng.choice([-1.0, 1.0], whole) * (rng.random(whole) > 0.1)
        if dtype.startswith("complex"):
            values = values[..., 0] + 1j * values[..., 1]
        return rounded(np.asarray(values).astype(HOLDERS[dtype]), dtype)

    start = [draw(shape, -1, 0) for shape in shapes]
    low, high = (-2, 0) if half else (-4, 2)
    gradients = [[draw(shape, low, high) for shape in shapes] for _ in range(steps * chosen.accumulate)]
    return Case(label, dtype, chosen, start, gradients)
