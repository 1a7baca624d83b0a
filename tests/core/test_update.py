"""The fused update: the order of what is done to a gradient, and that it is made when options change, and only then."""

import numpy as np
import pytest
from rules import DESCENT, LR, relative

from multiopt import ADADELTA, Adadelta, Optimizer, Rule, optimizer
from multiopt.update import FusedUpdate, compose


def test_the_order_of_options_is_the_documented_one():
    x, g = np.array([2.0, 2.0]), np.array([8.0, -24.0])
    # loss_scale 4: 2, -6. maximize: -2, 6. clip_value 3: -2, 3. clip_norm sqrt(13)/2: -1, 1.5. Then half of it, because
    # of the global norm. Then weight decay, of 0.25 * 2.
    clips = {"clip_value": 3.0, "clip_norm": 13**0.5 / 2, "clip_global_norm": 13**0.5 / 4}
    Optimizer(DESCENT, x, lr=1.0, loss_scale=4.0, maximize=True, weight_decay=0.25, **clips).step(g)
    np.testing.assert_allclose(2.0 - x, [-0.5 + 0.5, 0.75 + 0.5], rtol=1e-14, atol=1e-15)  # some roundings
    assert "The order" in Optimizer.__doc__


def test_decoupled_decay_comes_before_the_rule():
    opt = Optimizer(Rule("relative", relative, {}, LR), np.array([2.0]), lr=0.5, weight_decay=0.5, decoupled=True)
    opt.step(np.array([1.0]))
    # x: 2 -> 2 - 0.5 * 0.5 * 2 = 1.5; the rule, which takes g times the x it sees: 1.5 - 0.5 * 1.5.
    assert opt.params[0] == 0.75


def test_equal_updates_have_one_program():
    assert FusedUpdate(ADADELTA, scaled=True).program is FusedUpdate(ADADELTA, scaled=True).program
    assert FusedUpdate(ADADELTA, scaled=True).program is not FusedUpdate(ADADELTA, clipped=True).program


@pytest.fixture
def watched(monkeypatch):
    """An optimizer of two groups, the updates it makes, and the programs and numbers that its engine gets."""
    made, ran = [], []
    monkeypatch.setattr(optimizer, "compose", lambda *a: made.append(compose(*a)) or made[-1])
    opt = Adadelta([{"params": np.ones(2)}, {"params": np.ones(2), "lr": lambda step: 0.5}], engine="eager")
    engine = type(opt.bindings[0].buckets[0].engine)
    kept = engine.update
    monkeypatch.setattr(
        engine, "update", lambda self, j, s: ran.extend((j.program, row) for row in j.values) or kept(self, j, s)
    )
    return opt, made, ran


def test_nothing_is_made_again_while_options_stay(watched):
    opt, made, ran = watched
    assert len(made) == 2
    for _ in range(4):
        opt.step([np.ones(2), np.ones(2)])
    assert len(made) == 2
    assert {id(program) for program, _ in ran} == {id(FusedUpdate(ADADELTA).program)}


CHANGES = {
    "lr": (0.25, {"lr": 0.25}, False),
    "rho": (0.5, {"rho": 0.5}, False),
    "eps": (0.125, {"eps": 0.125}, False),
    "weight_decay": (0.1, {"weight_decay": 0.1}, True),
    "clip_value": (0.75, {"clip_value": 0.75}, True),
    "maximize": (True, {"scale": -1.0}, True),
    "loss_scale": (4.0, {"scale": 0.25}, True),
    "clip_norm": (1.0, {}, True),
    "clip_global_norm": (1.0, {}, True),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_option_is_in_the_next_step(watched, name):
    opt, made, ran = watched
    value, numbers, another = CHANGES[name]
    opt.step([np.ones(2), np.ones(2)])
    setattr(opt, name, value)
    for _ in range(2):
        opt.step([np.ones(2), np.ones(2)])
    assert len(made) == 4  # once more for each group, for both steps
    for program, values in ran[2:]:
        assert (program is not ran[0][0]) == another
        assert {key: values[key] for key in numbers} == numbers
        assert ("norm_scale" in program.scalars) == name.endswith("norm")


def test_an_option_of_one_group_leaves_the_others_alone(watched):
    opt, made, ran = watched
    opt.groups[1]["clip_value"] = 0.5
    opt.step([np.ones(2), np.ones(2)])
    assert len(made) == 3
    assert ["clip_value" in program.scalars for program, _ in ran] == [False, True]


def test_options_can_be_switched_on_later():
    x, y = np.linspace(-1, 1, 7), np.linspace(-1, 1, 7)
    late, early = Adadelta(x), Adadelta(y, clip_norm=0.5, maximize=True, weight_decay=0.1, decoupled=True)
    late.step(np.zeros(7))
    early.step(np.zeros(7))
    x[...] = y
    late.clip_norm, late.maximize, late.weight_decay, late.decoupled = 0.5, True, 0.1, True
    for opt in (late, early):
        opt.step(np.linspace(3, 5, 7))
    assert x.tobytes() == y.tobytes()


def test_assigning_numbers_compiles_nothing(numba):
    from multiopt.backends.engines.host import kernels, squares

    opt = Adadelta([np.ones(3), np.ones(())], weight_decay=0.1, clip_value=0.5, clip_norm=1.0, engine="host")
    opt.step([np.ones(3), np.ones(())])
    caches = kernels.update_kernel, squares.square_kernel
    compiled = [cache.cache_info().misses for cache in caches]
    for rate in (0.1, 2.0, 0.0, 1e-3):
        opt.lr, opt.rho, opt.eps = rate, 0.9 - rate / 10, 1e-6 + rate
        opt.groups[0]["weight_decay"], opt.clip_value, opt.clip_norm = rate / 7 + 0.1, rate + 0.1, rate + 0.2
        opt.step([np.ones(3), np.ones(())])
    assert [cache.cache_info().misses for cache in caches] == compiled
