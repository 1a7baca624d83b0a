"""Adadelta against exact arithmetic, with each option; its presets, and defects that others have had."""

import numpy as np
import pytest
from exact import draw, exactly
from libraries import OPTIONS

import multiopt
from multiopt import Adadelta, schedules

CASES = {
    **OPTIONS,
    "hypers": {"lr": 0.3, "rho": 0.5, "eps": 1e-3},
    "rho 0": {"rho": 0.0, "eps": 1.0},
    "rho 1": {"rho": 1.0},
    "maximize alone": {"maximize": True},
    "clips that do nothing": {"clip_value": 100.0, "clip_norm": 100.0, "clip_global_norm": 1000.0},
    "small": {"loss_scale": 1024.0, "clip_value": 0.001, "eps": 1e-12},
    "ema 0": {"ema": 0.0},
    "every schedule": {
        "lr": schedules.InverseTime(0.8, 2, 0.5),
        "rho": lambda step: 0.5 + 0.1 * (step % 4),
        "eps": lambda step: 1e-3 / (1 + step),
        "weight_decay": schedules.Exponential(0.2, 3, 0.5),
    },
    "scheduled decoupled decay": {"weight_decay": lambda step: 0.01 * step, "decoupled": True},
    "coupled and maximize": {**OPTIONS["everything"], "decoupled": False, "lr": lambda step: 0.5 / (1 + step)},
}


def held(lib, opt):
    columns = {"params": opt.params, **{slot: [s[slot] for s in opt.state] for slot in opt.rule.slots}}
    if opt.ema is not None:
        columns["ema"] = opt.ema_params
    return {name: lib.backs(column) for name, column in columns.items()}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_each_option_is_what_it_says(plain, options):
    rng = np.random.default_rng(1)
    params, batches = draw(rng), [draw(rng) for _ in range(8)]
    batches[3][1] = None
    batches[6][0] = np.zeros(5)
    opt = Adadelta(plain.params(params), engine=plain.engine, **options)
    for batch in batches:
        opt.step(plain.grads(batch))
    assert opt.steps == len(batches) // options.get("accumulate", 1)
    expected = exactly(params, batches, **options)
    for name, arrays in held(plain, opt).items():
        for got, want in zip(arrays, expected[name], strict=True):
            assert got.dtype == np.float64
            # Some ten roundings of 1.1e-16 a step, over eight steps; the parameters move by a hundredth or so in all,
            # and cancellation shows only against their own size, which is about 1.
            np.testing.assert_allclose(got, want, rtol=3e-14, atol=1e-15 if name in ("params", "ema") else 0)


def test_every_option_per_group(plain):
    rng = np.random.default_rng(3)
    options = [
        {},
        {"lr": 0.25, "rho": 0.5, "eps": 1e-3},
        {"weight_decay": 0.2, "maximize": True},
        {"weight_decay": 0.2, "decoupled": True, "clip_value": 0.3},
        {"clip_norm": 0.4, "lr": schedules.InverseTime(1.0, 1, 1.0)},
    ]
    starts, batches = [draw(rng) for _ in options], [[draw(rng) for _ in options] for _ in range(3)]
    groups = [{"params": plain.params(start), **own} for start, own in zip(starts, options, strict=True)]
    opt = Adadelta(groups, lr=0.75, engine=plain.engine)
    for batch in batches:
        opt.step([plain.grads(grads) for grads in batch])
    for i, own in enumerate(options):
        want = exactly(starts[i], [batch[i] for batch in batches], **{"lr": 0.75, **own})
        for got, expected in zip(plain.backs(opt.params[i]), want["params"], strict=True):
            np.testing.assert_allclose(got, expected, rtol=3e-14, atol=1e-15)  # as above


def test_the_first_step_differs_2236_fold():
    first = {}
    for name in ("paper", "torch", "keras"):
        x = np.zeros(1)
        getattr(Adadelta, name)(x).step(np.ones(1))
        first[name] = -x[0]
    assert first["torch"] == pytest.approx(3.162e-3, rel=1e-3)  # the digits that are quoted
    assert first["paper"] == pytest.approx(4.472e-3, rel=1e-3)
    assert first["keras"] == pytest.approx(1.414e-6, rel=1e-3)
    assert first["torch"] / first["keras"] == pytest.approx(2236, abs=1)
    assert "2,236" in Adadelta.__doc__


def test_presets():
    x = np.zeros(2)
    expected = {
        "paper": {"lr": 1.0, "rho": 0.95, "eps": 1e-6, "decoupled": False},
        "torch": {"lr": 1.0, "rho": 0.9, "eps": 1e-6, "decoupled": False},
        "keras": {"lr": 0.001, "rho": 0.95, "eps": 1e-7, "decoupled": True},
    }
    for name, options in expected.items():
        opt = getattr(Adadelta, name)(x)
        assert {option: getattr(opt, option) for option in options} == options
        assert getattr(Adadelta, name)(x, lr=0.25, weight_decay=0.5).lr == 0.25
    opt = Adadelta(x)
    assert (opt.lr, opt.rho, opt.eps, opt.weight_decay) == (1.0, 0.9, 1e-6, 0.0)


def test_tensorflow_issue_9058():
    # rho = 0, eps = 1, g = 1 must move by -1/sqrt(2); an accumulator updated too early gave -0.866.
    x = np.zeros(1)
    Adadelta(x, rho=0.0, eps=1.0).step(np.ones(1))
    assert x[0] == pytest.approx(-(0.5**0.5), rel=1e-15)  # two roundings


@pytest.mark.parametrize("slope", [1.0, -1.0])
def test_descends(plain, slope):
    # An optimizer that climbs where it should descend passes any test of size.
    x = plain.param(np.full(3, 2.0))
    opt = Adadelta(x, engine=plain.engine)
    moved = plain.host(opt.step(plain.grad(np.full(3, slope)))) - 2.0
    assert (np.sign(moved) == -slope).all()


def test_version_and_names():
    assert set(multiopt.__all__) <= set(dir(multiopt))
    assert multiopt.__version__
