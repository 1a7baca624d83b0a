"""Sums of squares: exact to their grid, in any order; and what clipping makes of them."""

import math
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multiopt.backends.engines import norms
from multiopt.backends.engines.norms import COLUMNS, LEVELS, clip_factors, lowest_exponent, square_sums, units

from multiopt import Adadelta


def draw(seed, size, decades=(-30, 30)):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(size) * 10.0 ** rng.uniform(*decades, size)


def value(row, lowest):
    """A row of the table as an exact number."""
    return sum(Fraction(units(lowest)[level]) * int(row[level]) for level in range(LEVELS))


@given(st.integers(0, 10**6), st.integers(0, 200), st.floats(1e-10, 1e10), st.lists(st.integers(0, 200), max_size=4))
def test_a_row_is_the_sum_of_rounded_squares_in_any_order_and_split(seed, size, threshold, cuts):
    g, lowest = draw(seed, size), lowest_exponent(threshold)
    whole = square_sums(np, g, lowest)
    # Each square, rounded in float64, is rounded once more to whole units of the lowest level: half a unit each.
    exact = sum(Fraction(float(a * a)) for a in g)
    assert abs(value(whole, lowest) - exact) <= Fraction(2) ** lowest * size / 2
    assert whole[LEVELS:] == [0, 0]
    assert square_sums(np, np.random.default_rng(seed).permutation(g), lowest) == whole
    parts = [square_sums(np, part, lowest) for part in np.split(g, sorted(min(c, size) for c in cuts))]
    together = [sum(column) for column in zip(*parts, strict=True)]
    # Levels may be filled differently, above one another; what they are worth together is the same number.
    assert value(together, lowest) == value(whole, lowest)


@pytest.mark.parametrize("threshold", [1e-150, 1e-20, 1.0, 1e20, 1e150])
def test_extremes(threshold):
    lowest = lowest_exponent(threshold)
    tiny, huge = np.finfo(np.float64).smallest_subnormal, math.sqrt(norms.HUGE)
    near = min(threshold, huge / 2)
    for g in ([], [0.0, -0.0], [tiny], [1e-160] * 3, [huge / 2], [near], [huge / 2, 1e-5, near]):
        row = square_sums(np, np.array(g), lowest)
        assert row[LEVELS:] == [0, 0]
        assert abs(value(row, lowest) - sum(Fraction(a * a) for a in g)) <= Fraction(2) ** lowest * len(g) / 2
    with np.errstate(over="ignore"):
        row = square_sums(np, np.array([np.inf, np.nan, -np.inf, 1e200, 1.0, np.nan]), lowest)
    assert row[LEVELS:] == [3, 2]
    assert value(row, lowest) == value(square_sums(np, np.array([1.0]), lowest), lowest)


def test_no_level_can_overflow():
    # 2**32 elements of at most 2**31 units: within 63 bits.
    lowest = lowest_exponent(1.0)
    for exponent in range(-40, 400, 7):
        row = square_sums(np, np.array([math.ldexp(1.9999, exponent)]), lowest)
        assert all(abs(entry) <= 2**31 for entry in row)
    assert 2**31 * 2**32 <= 2**63


@cache
def question(dtype, size):
    """Arrays of some sizes; the norm from one table, and the exact one."""
    decades = {"float16": (-3, 2), "float32": (-20, 15), "float64": (-100, 100)}[dtype]
    shapes = [(7,), (0,), (), (31, 33), (size,)]
    arrays = [np.asarray(draw(i, shape, decades)).astype(dtype) for i, shape in enumerate(shapes)]
    wide = [np.atleast_1d(a).astype(np.float64).ravel() for a in arrays]
    table = np.array([square_sums(np, a, lowest_exponent(3.0)) for a in wide])
    exact = math.sqrt(sum(Fraction(x) ** 2 for a in wide for x in a.tolist()))
    return arrays, clip_factors(np, table, lowest_exponent(3.0), None, 3.0)[1], exact


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_every_engine_fills_the_same_table(lib, dtype):
    """The norm that is reported is the exact one, whoever computes it, in whatever pieces."""
    if dtype == "float16" and not lib.half:
        pytest.skip(f"{lib} has no float16")
    with np.errstate(over="ignore", under="ignore"):
        arrays, norm, exact = question(dtype, 701 if lib.slow else 70_001)
        opt = Adadelta(lib.params(arrays), engine=lib.engine, clip_global_norm=3.0)
        opt.step(lib.grads(arrays))
        assert float(opt.grad_norm) == float(norm[0])
        assert float(opt.grad_norm) == pytest.approx(exact, rel=1e-15)  # two roundings


@given(st.lists(st.floats(0, 1e12), min_size=1, max_size=8), st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_factors(lengths, own, together):
    lowest = lowest_exponent(min(own, together))
    table = np.array([square_sums(np, np.array([a]), lowest) for a in lengths])
    factors, norm = clip_factors(np, table, lowest, own, together)
    clipped = [min(a, own) for a in lengths]
    total = math.sqrt(math.fsum(a * a for a in clipped))
    # Elements below 2**-32 of the threshold are rounded to its grid: they are nothing beside it.
    grid = math.sqrt(len(lengths)) * min(own, together) * 2.0**-32
    assert float(norm[0]) == pytest.approx(total, rel=1e-14, abs=grid)
    for factor, length, short in zip(factors, lengths, clipped, strict=True):
        want = short * min(1.0, together / total if total else 1.0)
        assert float(factor) * length == pytest.approx(want, rel=1e-9, abs=grid)
        assert 0 <= factor <= 1
    after = math.sqrt(math.fsum((f * a) ** 2 for f, a in zip(factors, lengths, strict=True)))
    assert after <= together * (1 + 1e-9)


def test_factors_of_what_is_not_finite():
    lowest = lowest_exponent(1.0)
    with np.errstate(all="ignore"):
        table = np.array([square_sums(np, np.array([a]), lowest) for a in (np.inf, np.nan, 4.0, 0.5)])
        factors, norm = clip_factors(np, table, lowest, 2.0, None)
    assert factors[0] == 0
    assert np.isnan(factors[1])
    assert factors[2:].tolist() == [0.5, 1.0]
    assert np.isnan(norm[0])


def test_any_namespace_gives_the_same_factors():
    strict = pytest.importorskip("array_api_strict")
    lowest = lowest_exponent(0.7)
    table = np.array([square_sums(np, draw(i, 100, (-5, 5)), lowest) for i in range(5)])
    assert table.shape == (5, COLUMNS)
    limits = [0.5, np.inf, 3.0, 0.7, 1e9]
    for own in (None, 0.9, limits):
        for together in (None, 0.7):
            mine, norm = clip_factors(np, table, lowest, np.array(limits) if own is limits else own, together)
            theirs, its = clip_factors(
                strict, strict.asarray(table), lowest, strict.asarray(limits) if own is limits else own, together
            )
            assert np.asarray(theirs).tobytes() == mine.tobytes()
            assert np.asarray(its).tobytes() == norm.tobytes()
