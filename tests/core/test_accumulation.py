"""Accumulation over micro-batches, loss scale, and averages of the parameters."""

import numpy as np
import pytest

from multiopt import Adadelta


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
    square = plain.host(opt.state["square_avg"])[0]
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
    assert plain.host(a.params).tobytes() == plain.host(b.params).tobytes()
    b.loss_scale = 1.0
    a.step(plain.grad(g))
    b.step(plain.grad(g))
    assert plain.host(a.params).tobytes() == plain.host(b.params).tobytes()


def test_gradients_are_not_written_to(lib):
    g = np.linspace(-3, 3, 12, dtype=np.float32).reshape(3, 4)
    given = lib.grad(g)
    opt = Adadelta(lib.param(g), engine=lib.engine, clip_value=1.0, clip_norm=0.5, maximize=True, weight_decay=0.1)
    for _ in range(2):
        opt.step(given)
    assert lib.host(given).tobytes() == np.ascontiguousarray(lib.back(lib.grad(g))).tobytes()


def test_averages_start_at_the_parameters_and_keep_the_state_dtype(plain):
    x = np.array([1.0, 2.0], np.float32)
    opt = Adadelta(plain.param(x), ema=0.75, state_dtype="float64", lr=0.5, engine=plain.engine)
    assert plain.host(opt.ema_params).tolist() == [1.0, 2.0]
    expected = x.astype(np.float64)
    for _ in range(4):
        new = plain.host(opt.step(plain.grad(np.ones(2, np.float32))))
        expected = 0.75 * expected + 0.25 * new.astype(np.float64)
    got = plain.host(opt.ema_params)
    assert got.dtype == np.float64
    assert got.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_averages_are_moved_by_the_call_that_updates(numba, monkeypatch, dtype):
    """In blocks that several tensors share, without a gradient too, and with one that lies in an average's memory."""

    def train(engine):
        rng, called = np.random.default_rng(0), []
        draw = lambda: [rng.standard_normal(n).astype(dtype) for n in (600_001, 5, 70_001, 0, (7, 3))]  # noqa: E731
        params = [*draw(), np.ones((600, 2), dtype)[:, 0]]
        opt = Adadelta(params, engine=engine, ema=0.9, clip_norm=3.0)
        kind = type(opt.bindings[0].buckets[0].engine)
        update = kind.update
        monkeypatch.setattr(kind, "update", lambda *args: (called.append(engine), update(*args))[1])
        for gap in (False, True):  # where one is copied, averages wait for it
            grads = [*draw(), np.ones(600, dtype)]
            grads[2], grads[0] = None, opt.ema_params[0][::-1]
            if not gap:
                grads[-1] = None
            opt.step(grads)
        monkeypatch.undo()
        return [a.tobytes() for a in (*opt.params, *opt.ema_params)], len(called)

    assert [train("host"), train("eager")] == [(train("eager")[0], count) for count in (2, 4)]


def test_an_average_in_its_parameters_memory_waits(numba, torch):
    found = []
    for engine in ("host", "eager"):
        memory, x = torch.linspace(-1, 1, 400_001), torch.nn.Parameter(torch.zeros(400_000))
        opt = Adadelta(x, engine=engine, ema=0.5)
        x.data, opt.ema_params.data = memory[1:], memory[:-1]
        opt.step(torch.ones(400_000))
        found.append(memory.numpy().tobytes())
    assert found[0] == found[1]
