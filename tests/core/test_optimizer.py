"""The optimizer: groups, schedules, counters, non-finite gradients, None, and what it says of itself."""

import pickle

import numpy as np
import pytest
from libraries import refused, snapshot

from multiopt import ADADELTA, Adadelta, Optimizer, backends, schedules


def test_none_leaves_parameter_and_state_as_they_are(plain):
    params = plain.params([np.ones(5), np.ones((2, 3)), np.ones(())])
    grads = plain.grads([np.ones(5), np.ones((2, 3)), np.ones(())])
    opt = Adadelta(params, engine=plain.engine, weight_decay=0.1, clip_global_norm=1.0, ema=0.5)
    opt.step(grads)
    columns = lambda: [plain.backs(c) for c in (opt.params, *zip(*(s.values() for s in opt.state), strict=True))]  # noqa: E731
    before = columns()
    opt.step([None, grads[1], None])
    for was, now in zip(before, columns(), strict=True):
        assert [(a == b).all() for a, b in zip(was, now, strict=True)] == [True, False, True]
    with refused(opt, ValueError, "grads: expected at least one gradient, got None for every parameter"):
        opt.step([None] * 3)


# --- groups ---


def test_add_param_group(plain):
    def ones(shape=3):
        return plain.grad(np.ones(shape))

    opt = Adadelta([plain.param(np.ones(3))], lr=0.5, engine=plain.engine, ema=0.5, accumulate=2)
    for _ in range(2):
        opt.step([ones()])
    opt.add_param_group({"params": {"y": plain.param(np.ones(3))}, "rho": 0.5})
    assert [group["lr"] for group in opt.groups] == [0.5, 0.5]
    assert opt.groups[1]["rho"] == 0.5
    for _ in range(2):
        first, second = opt.step([[ones()], {"y": ones()}])
    assert opt.steps == 2
    assert (plain.host(first[0]) < plain.host(second["y"])).all()
    assert (plain.host(second["y"]) < 1).all()
    assert len(opt.ema_params) == 2
    with refused(opt, ValueError, r"groups\[0\].grads\[0\]: expected shape \(3,\)"):
        opt.step([[ones(4)], {"y": ones()}])
    # Nothing tells it from one that was made with both groups.
    groups = [{"params": [plain.param(np.ones(3))]}, {"params": {"y": plain.param(np.ones(3))}, "rho": 0.5}]
    other = Adadelta(groups, lr=0.5, engine=plain.engine, ema=0.5, accumulate=2)
    other.load_state_dict(opt.state_dict())


def test_bad_groups_are_not_added():
    opt = Adadelta([np.ones(2)])
    for group, kind, message in [
        ({"lr": 1.0}, TypeError, r"groups\[1\]: expected a mapping with 'params'"),
        (np.ones(2), TypeError, r"groups\[1\]: expected a mapping with 'params'"),
        ({"params": np.ones(2, int)}, TypeError, r"groups\[1\].params: expected one of the dtypes"),
        ({"params": np.ones(2), "rh": 0.5}, TypeError, r"groups\[1\].rh: unknown option"),
        ({"params": np.ones(2), "accumulate": 2}, TypeError, r"groups\[1\].accumulate: unknown option"),
        ({"params": []}, ValueError, r"groups\[1\].params: expected at least one array"),
        ({"params": opt.params[0]}, ValueError, r"groups\[1\].params: expected memory of its own"),
    ]:
        with refused(opt, kind, message):
            opt.add_param_group(group)
        assert len(opt.groups) == 1
        assert opt.groups[0].where == ""
        opt.step([np.ones(2)])


# --- schedules, counting, guard ---


def test_schedules_see_each_update_once(plain):
    seen = []
    opt = Adadelta(plain.param(np.ones(2)), lr=lambda step: seen.append(step) or 0.1, accumulate=2, engine=plain.engine)
    for _ in range(6):
        opt.step(plain.grad(np.ones(2)))
    # A schedule may be asked at every micro-batch; what it is asked is the 0-based number of the update.
    assert seen == [0, 0, 1, 1, 2, 2]
    assert all(type(step) is int for step in seen)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_gradients(plain, bad):
    good, g = np.ones(3), np.array([1.0, bad, 1.0])
    skip, strict, free = (
        Adadelta([plain.param(good), plain.param(good)], engine=plain.engine, nonfinite=how, accumulate=2)
        for how in ("skip", "raise", "propagate")
    )
    skip.step([plain.grad(good), None])
    before = snapshot(skip)[0]
    assert len(skip.step([plain.grad(good), plain.grad(g)])) == 2
    assert (skip.skipped, skip.steps, skip.micro_steps) == (1, 0, 1)
    assert snapshot(skip)[0] == before
    with refused(strict, FloatingPointError, r"infinite or NaN elements for params\[1\]"):
        strict.step([plain.grad(good), plain.grad(g)])
    for _ in range(2):
        free.step([plain.grad(good), plain.grad(g)])
    assert np.isnan(plain.host(free.params[1]))[1]
    assert np.isfinite(plain.host(free.params[0])).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", [{}, {"loss_scale": 1e-9}, {"clip_value": 1.0}], ids=str)
def test_with_clipping_by_norm_what_is_not_finite_is_found_in_the_same_reading(numba, monkeypatch, dtype, options):
    engine, questions = type(backends.engine("host")), []
    for name in ("finite", "norm_table"):
        method = getattr(engine, name)
        monkeypatch.setattr(engine, name, lambda *args, m=method, n=name: (questions.append(n), m(*args))[1])
    good = [np.full(5000, np.finfo(dtype).max / 4 if "loss_scale" in options else 1.0, dtype), np.ones(3, dtype), None]
    params = [np.ones(5000, dtype), np.ones(3, dtype), np.ones(2, dtype)]
    opt = Adadelta(params, engine="host", nonfinite="skip", clip_global_norm=1.0, **options)
    opt.step(good)  # of which the scaled ones may overflow: that is not the gradients' fault
    assert (opt.steps, opt.skipped, questions) == (1, 0, ["norm_table"])
    for i, bad in ((0, np.nan), (0, -np.inf), (1, np.inf)):
        grads = [g if g is None else g.copy() for g in good]
        grads[i][-1] = bad
        before = snapshot(opt)[0]
        opt.step(grads)
        assert snapshot(opt)[0] == before
    assert (opt.steps, opt.skipped, questions) == (1, 3, ["norm_table"] * 4)
    plain = Adadelta(
        [np.ones(5000, dtype), np.ones(3, dtype), np.ones(2, dtype)], engine="eager", clip_global_norm=1.0, **options
    )
    with np.errstate(all="ignore"):
        plain.step(good)
    np.testing.assert_array_equal(opt.params[0], plain.params[0])
    assert opt.grad_norm == plain.grad_norm


def test_repr_says_what_it_is(plain):
    opt = Adadelta([plain.param(np.ones(2)), plain.param(np.ones(3))], lr=schedules.Constant(0.5), engine=plain.engine)
    text = repr(opt)
    for part in ("Adadelta(adadelta, 2 ", "arrays on", f"engine={opt.bindings[0].buckets[0].engine.name}", "steps=0",
                 "lr=Constant(", "rho=0.9", "eps=1e-06"):  # fmt: skip
        assert part in text
    assert repr(Optimizer(ADADELTA, [plain.param(np.ones(2))])).startswith("Optimizer(adadelta, 1 ")


def test_state_is_live():
    opt = Adadelta({"w": np.ones(2)})
    assert opt.state["w"]["square_avg"] is opt.state["w"]["square_avg"]
    opt.step({"w": np.ones(2)})
    assert (opt.state["w"]["square_avg"] > 0).all()


def test_a_schedule_that_was_replaced_is_forgotten():
    opt = Adadelta(np.ones(3), lr=lambda step: 0.1)  # which does not pickle
    opt.step(np.ones(3))
    opt.lr = 0.1
    twin = pickle.loads(pickle.dumps(opt))
    assert (twin.lr, twin.steps) == (0.1, 1)
