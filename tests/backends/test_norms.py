"""Sums of squares, exact in any order and split; norms, right to a unit in the last place; and factors."""

import math

import ml_dtypes
import numpy as np
import pytest
from exact_norms import norm, spread, squares, units_off, worth
from hypothesis import given
from hypothesis import strategies as st
from multiopt.backends.engines.norms import (
    BITS,
    array_factors,
    clip_factors,
    columns,
    norms_of,
    square_sums,
    widened,
)  # fmt: skip

from multiopt import Adadelta

KINDS = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32, "float64": np.float64}
SEEDS = st.integers(0, 10**9)


def draw(seed, size, dtype):
    with np.errstate(over="ignore"):
        made = spread(np.random.default_rng(seed), size, dtype).astype(KINDS[dtype])
    return np.where(np.isfinite(made), made, 1).astype(made.dtype)


def table_of(parts, computing):
    with np.errstate(all="ignore"):
        return np.array([square_sums(np, np.asarray(part, np.float64), computing) for part in parts])


def norm_of(parts, computing):
    with np.errstate(over="ignore"):
        return norms_of(np, table_of(parts, computing).sum(axis=0, keepdims=True))[0]


# --- the definition ---


@given(SEEDS, st.integers(0, 300), st.sampled_from(["float32", "float64"]), st.lists(st.integers(0, 300), max_size=4))
def test_a_row_is_the_exact_sum_in_any_order_and_split(seed, size, dtype, cuts):
    g = draw(seed, size, dtype).astype(np.float64)
    (whole,) = table_of([g], dtype)
    assert worth(whole, dtype) == (squares(g), 0, 0)
    parts = np.split(np.random.default_rng(seed).permutation(g), sorted(min(c, size) for c in cuts))
    together = table_of(parts, dtype).sum(axis=0)
    assert worth(together, dtype) == worth(whole, dtype)
    one, other = (norms_of(np, row[None])[0] for row in (whole, together))
    assert one == other == norms_of(np, widened(np, together[None]))[0]
    assert units_off(one, g) <= 1


@pytest.mark.parametrize("x", [5e-324, 1e-320, 2.3e-308, 1e-300, 1e-45, 1.0, 1e38, 1e300, np.finfo(np.float64).max])
def test_extremes(x):
    assert norm_of([[x]], "float64") == x  # and the root of a square is what was squared
    assert norm_of([[0.0, x], [-0.0]], "float64") == x
    if x < 1e308:
        assert units_off(norm_of([[x, -x, x]], "float64"), [x, x, x]) <= 1
        assert units_off(norm_of([[x, x * 1e-200, x * 1e-100]], "float64"), [x, x * 1e-200, x * 1e-100]) <= 1
    else:
        assert norm_of([[x, x]], "float64") == np.inf


def test_what_is_not_finite_is_counted():
    (row,) = table_of([[np.inf, np.nan, -np.inf, 1e200, 1.0, np.nan]], "float64")
    assert worth(row, "float64")[1:] == (2, 2)
    assert math.isnan(norm_of([[np.inf, 1.0], [np.nan]], "float32"))
    assert norm_of([[np.inf, 1.0], [2.0]], "float32") == np.inf


@given(st.lists(st.integers(0, 2**33), min_size=19, max_size=19), st.integers(0, 18))
def test_the_same_number_in_other_digits_has_the_same_norm(digits, at):
    # Whatever the digits, also where a carry runs through many that are all ones.
    digits[at // 2 : at] = [2**32 - 1] * (at - at // 2)
    total = sum(digit << 32 * k for k, digit in enumerate(digits)) % 2 ** (32 * 19)
    only = [total >> 32 * k & 0xFFFFFFFF for k in range(19)]
    one, other = (norms_of(np, np.array([[*row, 0, 0]]))[0] for row in (digits, only))
    assert one == other


def test_no_digit_can_overflow():
    # A block adds less than 2**32 to a digit; so 2**31 blocks are within 63 bits. Largest numbers, and levels.
    largest = float(np.finfo(np.float32).max)
    (row,) = table_of([np.full(5000, largest)], "float32")
    assert max(row) < 2**32
    assert BITS + 11 <= 62
    assert norm_of([np.full(1 << 16, largest)] * 3, "float32") == pytest.approx(largest * math.sqrt(3 << 16), rel=1e-15)


# --- the engines ---


def numbers(dtype, size, seed=0):
    """A gradient whose blocks differ: narrow, wide, tiny, huge, all zeros."""
    parts = [draw(seed + k, size, dtype) for k in range(9)]
    rng = np.random.default_rng(seed)
    narrow = rng.standard_normal(4 * size) * 1e-3
    return np.concatenate([*parts, np.zeros(size, KINDS[dtype]), narrow.astype(KINDS[dtype])])


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_every_engine_finds_the_same_norm(lib, dtype):
    """Whoever computes it, in whatever pieces; and whatever the threshold."""
    if dtype in ("float16", "bfloat16") and not lib.half:
        pytest.skip(f"{lib} has no {dtype}")
    flat = numbers(dtype, 60 if lib.slow else 2100)
    if str(lib).startswith("jax"):  # which flushes subnormal numbers
        flat = flat[np.abs(flat.astype(np.float64)) > 1e-37]
    arrays = [np.asarray(part) for part in np.split(flat, [7, 7, len(flat) // 3])]
    arrays[-1] = arrays[-1][: len(arrays[-1]) // 3 * 3].reshape(3, -1)
    expected = norm_of([flat[: sum(a.size for a in arrays)]], "float64" if dtype == "float64" else "float32")
    assert units_off(expected, np.concatenate([a.ravel() for a in arrays])) <= 1
    with np.errstate(over="ignore", under="ignore"):
        for threshold in (1e-9, 1e9):
            opt = Adadelta(lib.params(arrays), engine=lib.engine, clip_global_norm=threshold)
            opt.step(lib.grads(arrays))
            assert float(opt.grad_norm) == expected


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_compiled_blocks_are_the_definition(numba, dtype):
    from multiopt.backends.engines.host.squares import BLOCK, ROOM, square_kernel

    from multiopt.update import REPLACE, FusedUpdate

    computing = "float64" if dtype == "float64" else "float32"

    def row(g, scaled=False):
        kernel = square_kernel(FusedUpdate(REPLACE, scaled=scaled, normed=True).program, dtype)
        out = np.zeros((1, columns(computing) + 1), np.int64)
        table = np.array([[g.size, g.ctypes.data, g.ctypes.data]])
        kernel(table, np.array([[0.5]]), np.zeros(1, np.int64), np.empty(ROOM), out, 0, 0, g.size)
        assert bool(out[0, -1]) == (scaled and not np.isfinite(g.astype(computing)).all())
        return worth(out[0, :-1], computing)

    for seed in range(60):
        rng = np.random.default_rng(seed)
        g = draw(seed, int(rng.integers(1, 2 * BLOCK + 2)), dtype)
        if seed % 4 == 0:
            g[rng.integers(0, g.size, 3)] = [np.inf, np.nan, -np.inf]
        assert row(g) == worth(table_of([g], computing)[0], computing)
        half = (g.astype(computing) * np.dtype(computing).type(0.5)).astype(computing)
        assert row(g, scaled=True) == worth(table_of([half], computing)[0], computing)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_make_no_difference(numba, monkeypatch, threads):
    monkeypatch.setenv("MULTIOPT_NUM_THREADS", str(threads))
    g = np.resize(numbers("float32", 2100, seed=3), 1_200_000)
    opt = Adadelta([np.zeros_like(g)], engine="host", clip_global_norm=1.0)
    opt.step([g])
    assert float(opt.grad_norm) == norm_of([g], "float32")


def test_dtypes_of_one_step_meet_in_one_norm(lib):
    if lib.slow or not lib.half:
        pytest.skip("one of each kind will do")
    arrays = [numbers(dtype, 30)[40:].copy() for dtype in ("float32", "float64", "float16")]
    with np.errstate(over="ignore", under="ignore"):
        if str(lib).startswith("jax"):
            arrays = [a[np.abs(a.astype(np.float64)) > 1e-37] for a in arrays]
        opt = Adadelta(lib.params(arrays), engine=lib.engine, clip_global_norm=1.0)
        opt.step(lib.grads(arrays))
    assert units_off(float(opt.grad_norm), np.concatenate([a.astype(np.float64) for a in arrays])) <= 1


# --- factors ---


@given(st.lists(st.floats(0, 1e150), min_size=1, max_size=8), st.floats(1e-150, 1e150), st.floats(1e-150, 1e150))
def test_factors(lengths, own, together):
    table = table_of([[a] for a in lengths], "float64")
    with np.errstate(all="ignore"):
        factors, total = clip_factors(np, table, own, together)
        alone, plain = clip_factors(np, table, None, together)
        backwards = clip_factors(np, table[::-1], own, together)
    clipped = [min(a, own) for a in lengths]
    lost = 1e-300  # what is below float64's range
    assert units_off(total[0], clipped) <= 1
    assert units_off(plain[0], lengths) <= 1
    assert (total == backwards[1]).all()
    assert (factors == backwards[0][::-1]).all()
    both, one = (min(1.0, together / (norm(a) or 1.0)) for a in (clipped, lengths))
    for factor, only, length, short in zip(factors, alone, lengths, clipped, strict=True):
        # The roundings of the norms, the factors and the products.
        assert float(factor) * length == pytest.approx(short * both, rel=1e-15, abs=lost)
        assert float(only) * length == pytest.approx(length * one, rel=1e-15, abs=lost)
        assert 0 <= factor <= 1


def test_factors_of_what_is_not_finite():
    table = table_of([[np.inf], [np.nan], [4.0], [0.5]], "float32")
    with np.errstate(all="ignore"):
        factors, total = clip_factors(np, table, 2.0, None)
        assert clip_factors(np, table[2:], None, np.inf)[0].tolist() == [1.0, 1.0]
        assert clip_factors(np, table[[0, 2]], None, 1.0)[0].tolist() == [0.0, 0.0]
    assert factors[0] == 0
    assert np.isnan(factors[1])
    assert factors[2:].tolist() == [0.5, 1.0]
    assert np.isnan(total[0])


@pytest.mark.parametrize("computing", ["float32", "float64"])
def test_compiled_factors_are_those_of_arrays(numba, computing):
    rng, width = np.random.default_rng(5), columns(computing)
    for k in range(40):
        # Few digits, or many; ones that are to be carried, also through digits that are all ones; zeros; what is odd.
        table = rng.integers(0, 2 ** rng.integers(1, 50), (int(rng.integers(1, 7)), width))
        table[:, -5:] = 0  # so that the highest digit takes no more than it can
        table[:, rng.integers(0, width) :][rng.random(table.shape[0]) < 0.5] = 0
        table[:, 3 : 3 + k % 9] = 2**32 - 1
        table[rng.random(table.shape[0]) < 0.2] = 0
        if k % 5 == 0:
            table[rng.integers(0, len(table)), rng.integers(-2, 0)] = 1
        with np.errstate(all="ignore"):
            typical = float(np.median(norms_of(np, table)))
            thresholds = np.where(rng.random(len(table)) < 0.3, np.inf, typical * 10.0 ** rng.uniform(-3, 3))
            for own in (None, thresholds, np.float64(1.0)):
                for together in (None, 1.0, typical if 0 < typical < np.inf else 3.0, np.inf):
                    pairs = (array_factors(np, table, own, together), clip_factors(np, table, own, together))
                    for expected, got in zip(*pairs, strict=True):
                        np.testing.assert_array_equal(got, expected, strict=True)


def strict_namespace():
    return pytest.importorskip("array_api_strict")


def torch_namespace():
    torch = pytest.importorskip("torch")

    class Namespace:
        """PyTorch's, as it is on CUDA: on the CPU its roots are not correctly rounded."""

        def __getattr__(self, name):
            return getattr(pytest.importorskip("array_api_compat.torch"), name)

        def sqrt(self, x):
            return torch.from_numpy(np.sqrt(x.numpy()))

    return Namespace()


@pytest.mark.parametrize("namespace", [strict_namespace, torch_namespace])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_any_namespace_gives_the_same(dtype, namespace):
    other = namespace()
    parts = [draw(i, 50, dtype).astype(np.float64) for i in range(5)]
    table = table_of(parts, dtype)
    limits = [0.5, np.inf, 3.0, 0.7, 1e9]
    with np.errstate(all="ignore"):
        assert [square_sums(other, other.asarray(part), dtype) for part in parts] == table.tolist()
        for own in (None, 0.9, limits):
            for together in (None, 0.7):
                results = [
                    clip_factors(
                        xp, xp.asarray(table), xp.asarray(own, dtype=xp.float64) if own is limits else own, together
                    )
                    for xp in (np, other)
                ]
                mine, theirs = ([np.asarray(a).tobytes() for a in result] for result in results)
                assert mine == theirs
