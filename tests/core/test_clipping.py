"""Clipping, alone and in a step: exact norms on every library, in place and not, and what is not finite."""

import math

import numpy as np
import pytest

from multiopt import Adadelta
from multiopt.clipping import clip, multiply, total_norm

SHAPES = [(5,), (), (0,), (3, 7)]
WAYS = {
    "value": {"value": 0.7},
    "norm": {"norm": 1.3},
    "global norm": {"global_norm": 2.1},
    "all": {"value": 0.9, "norm": 1.9, "global_norm": 1.7},
    "nothing to clip": {"value": 1e3, "norm": 1e3, "global_norm": 1e3},
}


def draw():
    rng = np.random.default_rng(7)
    return [np.asarray(rng.standard_normal(shape)) for shape in SHAPES]


def length(arrays):
    return math.sqrt(math.fsum(x * x for a in arrays for x in a.ravel().tolist()))


def clipped(arrays, value=math.inf, norm=math.inf, global_norm=math.inf):
    """What clipping makes of the arrays, by sums that `math.fsum` rounds once; and the norm before the last step."""
    arrays = [np.clip(a, -value, value) for a in arrays]
    arrays = [a * min(1.0, norm / (length([a]) or 1.0)) for a in arrays]
    total = length(arrays)
    return [a * min(1.0, global_norm / total) for a in arrays], total


@pytest.mark.parametrize("way", WAYS)
def test_clipping_is_exact(plain, way):
    start, names = draw(), [f"g{i}" for i in range(len(SHAPES))]
    want, total = clipped(start, **WAYS[way])
    given = plain.params(start)
    out, norm = clip(given, names, **WAYS[way])
    for got, expected in zip(plain.backs(out), want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-15, atol=0)  # the factors' roundings
    assert (norm is None) == (way == "value")
    assert norm is None or float(norm[0]) == pytest.approx(total, rel=4e-16)
    assert all((a == b).all() for a, b in zip(plain.backs(given), start, strict=True))


def test_a_norm_alone_and_a_product(plain):
    start, names = draw(), [f"g{i}" for i in range(len(SHAPES))]
    given = plain.params(start)
    assert float(total_norm(given, names)[0]) == pytest.approx(length(start), rel=2.3e-16)
    assert float(total_norm([*given, *given], [*names, *names])[0]) == pytest.approx(length(start + start), rel=2.3e-16)
    if plain.mutable:
        multiply(given, names, 0.3)
        assert all((a == b * 0.3).all() for a, b in zip(plain.backs(given), start, strict=True))


def test_norms_over_processes():
    arrays, seen = draw(), []

    def reduce(xp, table, rows):
        seen.extend(rows)
        return table + table  # another process with the same shards

    out, norm = clip(arrays, "abcd", global_norm=1.0, reduce=reduce)
    assert seen == [(0, i) for i in range(4)]
    assert float(norm[0]) == pytest.approx(length(arrays + arrays), rel=4e-16)
    assert length(out + out) == pytest.approx(1.0, rel=1e-15)


def test_what_cannot_be_clipped():
    x = np.ones(6)
    with pytest.raises(ValueError, match="b: expected memory of its own, got an array that overlaps a"):
        multiply([x[:4], x[3:]], ["a", "b"], 2.0)
    assert [out.shape for out in clip([x[:4], x[3:]], ["a", "b"], norm=1.0)[0]] == [(4,), (3,)]
    for bad, message in [(1.0, "b: expected an array"), (np.ones(3, int), "b: expected one of the dtypes")]:
        for refused in (lambda a: clip(a, ["a", "b"], norm=1.0), lambda a: multiply(a, ["a", "b"], 2.0)):
            with pytest.raises(TypeError, match=message):
                refused([x, bad])
        with pytest.raises(TypeError, match=message):
            total_norm([x, bad], ["a", "b"])
    assert (x == 1).all()


# --- in a step ---


def test_the_global_norm_goes_over_all_groups():
    grads = [np.asarray(10 * g) for g in draw()]
    one, two = [np.ones(shape) for shape in SHAPES], [np.ones(shape) for shape in SHAPES]
    opt = Adadelta(one, clip_global_norm=0.3)
    assert opt.grad_norm is None
    opt.step(grads)
    grouped = Adadelta([{"params": two[:1]}, {"params": two[1:]}], clip_global_norm=0.3)
    grouped.step([grads[:1], grads[1:]])
    assert all(a.tobytes() == b.tobytes() for a, b in zip(one, two, strict=True))
    assert float(opt.grad_norm) == float(grouped.grad_norm) == pytest.approx(length(grads), rel=4e-16)


def test_a_norm_at_the_threshold_is_left_alone():
    x, y = np.zeros(2), np.zeros(2)
    opt = Adadelta(x, clip_norm=5.0)
    opt.step(np.array([3.0, 4.0]))
    Adadelta(y).step(np.array([3.0, 4.0]))
    assert float(opt.grad_norm) == 5.0
    assert x.tobytes() == y.tobytes()


@pytest.mark.parametrize("option", ["clip_norm", "clip_global_norm"])
def test_an_infinite_threshold_watches_the_norm(engine, option, tmp_path):
    x, y = np.zeros(2), np.zeros(2)
    opt = Adadelta(x, engine=engine, **{option: math.inf})
    opt.save(tmp_path / "opt")
    opt.load(tmp_path / "opt")
    for g in (np.array([3.0, 4.0]) * 1e-10, np.array([3.0, 4.0]) * 1e200):
        opt.step(g)
        # In units of float64's last place: both are right to one.
        assert abs(float(opt.grad_norm) - math.hypot(*g)) <= 2 * math.ulp(math.hypot(*g))
    other = Adadelta(y)
    other.step(np.array([3.0, 4.0]) * 1e-10)
    other.step(np.array([3.0, 4.0]) * 1e200)
    assert x.tobytes() == y.tobytes()


def test_nan_is_not_clipped_away(plain):
    opt = Adadelta(plain.param(np.ones(2)), engine=plain.engine, clip_value=1.0)
    assert np.isnan(plain.host(opt.step(plain.grad(np.array([np.nan, 1.0]))))).tolist() == [True, False]


def test_infinite_gradients():
    x = np.ones(3)
    Adadelta(x, clip_value=1.0).step(np.array([np.inf, 1.0, 1.0]))
    assert x[0] == x[1] < 1  # the bound
    for option in ("clip_norm", "clip_global_norm"):
        x, y = np.ones(3), np.ones(2)
        Adadelta([x, y], **{option: 1.0}).step([np.array([np.inf, 1.0, 1.0]), np.ones(2)])
        assert np.isnan(x[0])
        assert x[1] == 1  # the rest shrinks to nothing, beside an infinite norm
        assert (y[0] == 1.0) == (option == "clip_global_norm")
