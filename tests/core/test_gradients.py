"""Gradients on their way to the step: accumulation, loss scale, and the order of what is done to them."""

import numpy as np
import pytest
from rules import DESCENT, LR, relative

from multiopt import Adadelta, Optimizer, Rule


def probe(options, grads, x=0.0):
    """What of the gradients arrives at the rule: the step of plain descent, from float64."""
    params = [np.full_like(np.asarray(g), x) for g in grads[0]]
    opt = Optimizer(DESCENT, params, lr=1.0, **options)
    for batch in grads:
        opt.step([np.asarray(g) for g in batch])
    return [-(p - x) for p in params]


def test_the_order_of_options_is_the_documented_one():
    g = np.array([8.0, -24.0])
    # loss_scale 4: 2, -6. maximize: -2, 6. clip_value 3: -2, 3. clip_norm sqrt(13)/2: -1, 1.5. Then half of it, because
    # of the global norm. Then weight decay, of 0.25 * 2.
    (got,) = probe(
        {
            "loss_scale": 4.0,
            "maximize": True,
            "clip_value": 3.0,
            "clip_norm": 13**0.5 / 2,
            "clip_global_norm": 13**0.5 / 4,
            "weight_decay": 0.25,
        },
        [[g]],
        x=2.0,
    )
    np.testing.assert_allclose(got, [-0.5 + 0.5, 0.75 + 0.5], rtol=1e-14, atol=1e-15)  # some roundings
    assert "The order" in Optimizer.__doc__


def test_decoupled_decay_comes_before_the_rule():
    opt = Optimizer(Rule("relative", relative, {}, LR), np.array([2.0]), lr=0.5, weight_decay=0.5, decoupled=True)
    opt.step(np.array([1.0]))
    # x: 2 -> 2 - 0.5 * 0.5 * 2 = 1.5; the rule, which takes g times the x it sees: 1.5 - 0.5 * 1.5.
    assert opt.params[0] == 0.75


def test_accumulation_is_the_mean(plain):
    rng = np.random.default_rng(0)
    batches = [[np.asarray(rng.standard_normal(s)) for s in ((3, 2), (), (0,))] for _ in range(4)]
    mean = [sum(parts) * 0.25 for parts in zip(*batches, strict=True)]
    start = [np.ones_like(g) for g in mean]
    slow = Adadelta(plain.params(start), accumulate=4, engine=plain.engine, clip_norm=0.5)
    fast = Adadelta(plain.params(start), engine=plain.engine, clip_norm=0.5)
    for i, batch in enumerate(batches):
        assert slow.micro_steps == i
        before = [a.tobytes() for a in plain.backs(slow.params)]
        slow.step(plain.grads(batch))
        assert (before == [a.tobytes() for a in plain.backs(slow.params)]) == (i < 3)
    fast.step(plain.grads([np.asarray(g) for g in mean]))
    assert (slow.steps, slow.micro_steps) == (1, 0)
    # A quarter is exact, and the sums are in the same order.
    for a, b in zip(plain.backs(slow.params), plain.backs(fast.params), strict=True):
        assert a.tobytes() == b.tobytes()


def test_a_gradient_missing_in_some_micro_batches_counts_as_zero_there():
    x, y, z = np.ones(1), np.ones(1), np.ones(1)
    opt = Adadelta([x, y, z], accumulate=2)
    opt.step([np.ones(1), None, None])
    opt.step([np.ones(1), np.ones(1), None])
    one = np.ones(1), np.ones(1)
    Adadelta(list(one)).step([np.ones(1), np.full(1, 0.5)])
    assert (x[0], y[0], z[0]) == (one[0][0], one[1][0], 1.0)
    # What was seen is forgotten after the update: a parameter without gradients stays where it is.
    kept = opt.state[0]["square_avg"].copy()
    opt.step([None, None, np.ones(1)])
    opt.step([None, None, np.ones(1)])
    assert opt.state[0]["square_avg"] == kept
    assert (x[0], y[0]) == (one[0][0], one[1][0])
    assert z[0] < 1


@pytest.mark.parametrize("state_dtype", [None, "float32"])
def test_sums_are_kept_in_the_state_dtype(plain, state_dtype):
    if not plain.half:
        pytest.skip(f"{plain} has no float16")
    # 2048 + 1 is 2048 in float16: five ones are lost there, and kept in float32.
    one, many = np.full(3, 1, np.float16), np.full(3, 2048, np.float16)
    opt = Adadelta(plain.param(one * 0), accumulate=8, state_dtype=state_dtype, rho=0.0, engine=plain.engine)
    for g in (many, one, one, one, one, one, -many, one * 0):
        opt.step(plain.grad(g))
    square = np.asarray(plain.back(opt.state["square_avg"]))[0]
    assert square == (0.0 if state_dtype is None else (5 / 8) ** 2)


def test_a_loss_scale_of_a_power_of_two_changes_no_bit(plain):
    rng = np.random.default_rng(1)
    a, b = (
        Adadelta(plain.param(np.ones(50, np.float32)), engine=plain.engine, **o) for o in ({}, {"loss_scale": 256.0})
    )
    for _ in range(5):
        g = rng.standard_normal(50).astype(np.float32)
        a.step(plain.grad(g))
        b.step(plain.grad(g * 256))
    assert np.asarray(plain.back(a.params)).tobytes() == np.asarray(plain.back(b.params)).tobytes()
    b.loss_scale = 1.0
    a.step(plain.grad(g))
    b.step(plain.grad(g))
    assert np.asarray(plain.back(a.params)).tobytes() == np.asarray(plain.back(b.params)).tobytes()


def test_gradients_are_not_written_to(lib):
    g = np.linspace(-3, 3, 12, dtype=np.float32).reshape(3, 4)
    given = lib.grad(g)
    opt = Adadelta(lib.param(g), engine=lib.engine, clip_value=1.0, clip_norm=0.5, maximize=True, weight_decay=0.1)
    for _ in range(2):
        opt.step(given)
    assert np.asarray(lib.back(given)).tobytes() == np.ascontiguousarray(lib.back(lib.grad(g))).tobytes()


def test_averages_start_at_the_parameters_and_keep_the_state_dtype(plain):
    x = np.array([1.0, 2.0], np.float32)
    opt = Adadelta(plain.param(x), ema=0.75, state_dtype="float64", lr=0.5, engine=plain.engine)
    assert np.asarray(plain.back(opt.ema_params)).tolist() == [1.0, 2.0]
    expected = x.astype(np.float64)
    for _ in range(4):
        new = np.asarray(plain.back(opt.step(plain.grad(np.ones(2, np.float32)))))
        expected = 0.75 * expected + 0.25 * new.astype(np.float64)
    got = np.asarray(plain.back(opt.ema_params))
    assert got.dtype == np.float64
    assert got.tobytes() == expected.tobytes()
