"""What the optimizer computes: each option against exact arithmetic, presets, groups, schedules, structures."""

import numpy as np
import pytest
from libraries import snapshot
from mpmath import mp, mpf

import multiopt
from multiopt import ADADELTA, Adadelta, Optimizer, schedules

SHAPES = [(5,), (2, 3), ()]


def draw(rng, shapes=SHAPES, scale=1.0):
    return [np.asarray(scale * rng.standard_normal(shape)) for shape in shapes]


def of(value, step):
    return mpf(value(step)) if callable(value) else mpf(value)


def exactly(
    params, batches, *, lr=1.0, rho=0.9, eps=1e-6, weight_decay=0.0, decoupled=False, maximize=False, clip_value=None,
    clip_norm=None, clip_global_norm=None, accumulate=1, loss_scale=1.0, ema=None,
):  # fmt: skip
    """Zeiler's algorithm 1 and the documented order of options, in 40 digits, one number at a time."""
    mp.dps = 40
    x = [[mpf(float(a)) for a in p.ravel()] for p in params]
    v, u = ([[mpf(0)] * len(p) for p in x] for _ in range(2))
    mean = [list(p) for p in x]
    for step in range(len(batches) // accumulate):
        parts = batches[step * accumulate : (step + 1) * accumulate]
        g = [[mpf(0)] * len(p) for p in x]
        for batch in parts:
            for i, array in enumerate(batch):
                for k, number in enumerate([] if array is None else array.ravel()):
                    g[i][k] += mpf(float(number)) / mpf(loss_scale) / accumulate
        if maximize:
            g = [[-a for a in row] for row in g]
        if clip_value is not None:
            g = [[min(max(a, -mpf(clip_value)), mpf(clip_value)) for a in row] for row in g]
        if clip_norm is not None:
            g = [shrunk([row], clip_norm)[0] for row in g]
        if clip_global_norm is not None:
            g = shrunk(g, clip_global_norm)
        rate, decay, r, e = of(lr, step), of(weight_decay, step), of(rho, step), of(eps, step)
        for i, row in enumerate(g):
            if all(batch[i] is None for batch in parts):
                continue
            for k, grad in enumerate(row):
                if decoupled:
                    x[i][k] -= rate * decay * x[i][k]
                else:
                    grad += decay * x[i][k]
                v[i][k] = r * v[i][k] + (1 - r) * grad**2
                delta = mp.sqrt(u[i][k] + e) / mp.sqrt(v[i][k] + e) * grad
                u[i][k] = r * u[i][k] + (1 - r) * delta**2
                x[i][k] -= rate * delta
        if ema is not None:
            mean = [
                [mpf(ema) * m + (1 - mpf(ema)) * a for m, a in zip(*rows, strict=True)]
                for rows in zip(mean, x, strict=True)
            ]
    shaped = [[np.array(list(map(float, row))).reshape(p.shape) for row, p in zip(rows, params, strict=True)]
              for rows in (x, v, u, mean)]  # fmt: skip
    return dict(zip(("params", "square_avg", "acc_delta", "ema"), shaped, strict=True))


def shrunk(rows, limit):
    norm = mp.sqrt(sum(a**2 for row in rows for a in row))
    return [[a * mpf(limit) / norm for a in row] for row in rows] if norm > limit else rows


CASES = {
    "defaults": {},
    "hypers": {"lr": 0.3, "rho": 0.5, "eps": 1e-3},
    "rho 0": {"rho": 0.0, "eps": 1.0},
    "rho 1": {"rho": 1.0},
    "coupled": {"weight_decay": 0.1},
    "decoupled": {"weight_decay": 0.1, "decoupled": True, "lr": 0.5},
    "maximize": {"maximize": True},
    "maximize and decay": {"maximize": True, "weight_decay": 0.1},
    "clip_value": {"clip_value": 0.5},
    "clip_norm": {"clip_norm": 0.7},
    "clip_global_norm": {"clip_global_norm": 0.9},
    "every clip": {"clip_value": 0.9, "clip_norm": 1.2, "clip_global_norm": 1.5, "weight_decay": 0.3},
    "clips that do nothing": {"clip_value": 100.0, "clip_norm": 100.0, "clip_global_norm": 1000.0},
    "accumulate": {"accumulate": 4},
    "loss_scale": {"loss_scale": 1024.0, "clip_value": 0.001, "eps": 1e-12},
    "ema": {"ema": 0.9},
    "ema 0": {"ema": 0.0},
    "schedules": {
        "lr": schedules.InverseTime(0.8, 2, 0.5),
        "rho": lambda step: 0.5 + 0.1 * (step % 4),
        "eps": lambda step: 1e-3 / (1 + step),
        "weight_decay": schedules.Exponential(0.2, 3, 0.5),
    },
    "scheduled decoupled decay": {"weight_decay": lambda step: 0.01 * step, "decoupled": True},
    "everything": {
        "lr": lambda step: 0.5 / (1 + step),
        "rho": 0.8,
        "eps": 1e-4,
        "weight_decay": 0.05,
        "maximize": True,
        "clip_value": 0.8,
        "clip_norm": 1.1,
        "clip_global_norm": 1.3,
        "accumulate": 2,
        "loss_scale": 3.0,
        "ema": 0.7,
    },
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
    moved = np.asarray(plain.back(opt.step(plain.grad(np.full(3, slope))))) - 2.0
    assert (np.sign(moved) == -slope).all()


# --- the return convention ---


def test_step_returns_the_parameters_as_they_came(plain):
    a, b = np.ones(3, np.float32), np.ones((2, 2), np.float32)
    for build in (
        lambda p, q: p,
        lambda p, q: [p, q],
        lambda p, q: (p, q),
        lambda p, q: {"a": p, "b": q},
        lambda p, q: {"a": [p, {"deep": q}], "e": ()},
        lambda p, q: [{"params": [p]}, {"params": {"q": q}, "lr": 0.5}],
    ):
        params = build(plain.param(a), plain.param(b))
        grads = build(plain.grad(a), plain.grad(b))
        if isinstance(grads, list) and isinstance(grads[0], dict):
            grads = [group["params"] for group in grads]
            shaped = [group["params"] for group in params]
        else:
            shaped = params
        opt = Adadelta(params, engine=plain.engine)
        for _ in range(2):
            out = opt.step(grads)
            assert type(out) is type(shaped)
            assert structure(out) == structure(shaped) == structure(opt.params)
            same = [x is y for x, y in zip(leaves(out), leaves(shaped), strict=True)]
            assert same == [plain.mutable] * len(same)
            assert all(x is y for x, y in zip(leaves(out), leaves(opt.params), strict=True))
            changed = plain.backs(leaves(out))
            assert all((x < 1).all() for x in changed)


def structure(tree):
    if isinstance(tree, dict):
        return {key: structure(value) for key, value in tree.items()}
    return type(tree)(map(structure, tree)) if isinstance(tree, (list, tuple)) else "leaf"


def leaves(tree):
    if isinstance(tree, (dict, list, tuple)):
        return [leaf for part in (tree.values() if isinstance(tree, dict) else tree) for leaf in leaves(part)]
    return [tree]


def test_iterators():
    a, b = np.ones(3), np.ones(2)
    opt = Adadelta(x for x in (a, b))
    out = opt.step(x for x in (np.ones(3), np.ones(2)))
    assert out[0] is a
    assert out[1] is b


def test_named_tuples_and_ordered_dicts():
    from collections import OrderedDict, namedtuple

    pytest.importorskip("optree", reason="optree is not installed")
    kind = namedtuple("kind", "w b")
    params = kind(np.ones(2), OrderedDict(z=np.ones(1), a=np.ones(3)))
    opt = Adadelta(params)
    out = opt.step(kind(np.ones(2), OrderedDict(z=np.ones(1), a=None)))
    assert isinstance(out, kind)
    assert list(out.b) == ["z", "a"]
    assert out.b["a"][0] == 1
    assert out.b["z"][0] < 1
    assert set(opt.state.b["z"]) == {"square_avg", "acc_delta"}


def test_a_dicts_gradients_may_come_in_any_order():
    opt = Adadelta({"a": np.ones(2), "b": np.ones(3)})
    out = opt.step({"b": np.ones(3), "a": np.zeros(2)})
    assert list(out) == ["a", "b"]
    assert out["a"][0] == 1
    assert out["b"][0] < 1


def test_none_leaves_parameter_and_state_as_they_are(plain):
    rng = np.random.default_rng(0)
    params = draw(rng)
    opt = Adadelta(plain.params(params), engine=plain.engine, weight_decay=0.1, clip_global_norm=1.0, ema=0.5)
    opt.step(plain.grads(draw(rng)))
    before = held(plain, opt)
    opt.step([None, plain.grad(np.ones((2, 3))), None])
    after = held(plain, opt)
    for name in ("params", "square_avg", "acc_delta"):
        same = [a.tobytes() == b.tobytes() for a, b in zip(before[name], after[name], strict=True)]
        assert same == [True, False, True]
    before = snapshot(opt)
    with pytest.raises(ValueError, match="expected at least one gradient, got None for every parameter"):
        opt.step([None] * 3)
    assert snapshot(opt) == before


# --- assignment while training ---


def test_assigning_while_training_compiles_nothing(numba):
    from multiopt.backends.engines.host import kernels as numba_kernels

    rng = np.random.default_rng(2)
    params, batches = draw(rng), [draw(rng) for _ in range(5)]
    rates = [0.5, 0.1, 2.0, 0.0, 1e-3]
    opt = Adadelta(params, weight_decay=0.1, clip_value=0.5, engine="host")
    opt.step(batches[0])
    caches = numba_kernels.update_kernel, numba_kernels.square_kernel
    compiled = [cache.cache_info().misses for cache in caches]
    for batch, rate in zip(batches[1:], rates[1:], strict=True):
        opt.lr = rate
        opt.rho, opt.eps = 0.9 - rate / 10, 1e-6 + rate
        opt.groups[0]["weight_decay"], opt.clip_value = rate / 7 + 0.1, rate + 0.1
        opt.step(batch)
    assert [cache.cache_info().misses for cache in caches] == compiled


def test_assigned_numbers_are_used():
    rng = np.random.default_rng(2)
    params, batches = draw(rng), [draw(rng) for _ in range(4)]
    start = [p.copy() for p in params]
    opt = Adadelta(params)
    for step, batch in enumerate(batches):
        opt.lr, opt.rho, opt.eps, opt.weight_decay = 0.5 / (1 + step), 0.5 + 0.1 * step, 10.0**-step, 0.1 * step
        opt.step(batch)
    want = exactly(
        start,
        batches,
        lr=lambda t: 0.5 / (1 + t),
        rho=lambda t: 0.5 + 0.1 * t,
        eps=lambda t: 10.0**-t,
        weight_decay=lambda t: 0.1 * t,
    )
    for got, expected in zip(opt.params, want["params"], strict=True):
        np.testing.assert_allclose(got, expected, rtol=3e-14, atol=1e-15)  # as above


def test_options_can_be_switched_on_later():
    x, y = np.linspace(-1, 1, 7), np.linspace(-1, 1, 7)
    late, early = Adadelta(x), Adadelta(y, clip_norm=0.5, maximize=True, weight_decay=0.1, decoupled=True)
    late.clip_norm, late.maximize, late.weight_decay, late.decoupled = 0.5, True, 0.1, True
    for opt in (late, early):
        opt.step(np.linspace(3, 5, 7))
    assert x.tobytes() == y.tobytes()


def test_what_cannot_be_assigned_says_so():
    opt = Adadelta([np.ones(2)], ema=0.5)
    for name, value in [("accumulate", 2), ("state_dtype", "float64"), ("engine", "eager"), ("rule", ADADELTA)]:
        with pytest.raises(AttributeError, match=f"{name}: fixed when the optimizer was made"):
            setattr(opt, name, value)
    with pytest.raises(AttributeError):
        opt.params = [np.zeros(2)]
    with pytest.raises(TypeError, match="params: cannot be replaced"):
        opt.groups[0]["params"] = [np.zeros(2)]
    with pytest.raises(TypeError, match="lr: options cannot be removed"):
        del opt.groups[0]["lr"]
    with pytest.raises(ValueError, match="ema: expected a momentum, as when the optimizer was made, got None"):
        opt.ema = None
    opt.ema = 0.25
    opt.step([np.ones(2)])
    plain = Adadelta([np.ones(2)])
    with pytest.raises(ValueError, match=r"ema: expected None, .*got 0\.5"):
        plain.ema = 0.5
    with pytest.raises(AttributeError, match="ema_params: expected an optimizer made with ema"):
        plain.ema_params  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'learning_rate'"):
        plain.learning_rate  # noqa: B018


# --- groups ---


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


def test_the_global_norm_goes_over_all_groups():
    rng = np.random.default_rng(4)
    start, batch = draw(rng), draw(rng, scale=10)
    one, two = [p.copy() for p in start], [p.copy() for p in start]
    opt = Adadelta(one, clip_global_norm=0.3)
    opt.step(batch)
    grouped = Adadelta([{"params": two[:1]}, {"params": two[1:]}], clip_global_norm=0.3)
    grouped.step([batch[:1], batch[1:]])
    assert all(a.tobytes() == b.tobytes() for a, b in zip(one, two, strict=True))
    norm = np.sqrt(sum((g**2).sum() for g in batch))
    # Ours is exact until one rounding of the root; NumPy's sum has a dozen.
    assert float(opt.grad_norm) == float(grouped.grad_norm) == pytest.approx(norm, rel=1e-14)


def test_add_param_group(plain):
    x, y = (plain.param(np.ones(3)) for _ in range(2))
    opt = Adadelta([x], lr=0.5, engine=plain.engine, ema=0.5, accumulate=2)
    for _ in range(2):
        opt.step([plain.grad(np.ones(3))])
    opt.add_param_group({"params": {"y": y}, "rho": 0.5})
    assert [group["lr"] for group in opt.groups] == [0.5, 0.5]
    assert opt.groups[1]["rho"] == 0.5
    for _ in range(2):
        first, second = opt.step([[plain.grad(np.ones(3))], {"y": plain.grad(np.ones(3))}])
    assert opt.steps == 2
    assert (np.asarray(plain.back(second["y"])) < 1).all()
    assert (np.asarray(plain.back(first[0])) < np.asarray(plain.back(second["y"]))).all()
    assert len(opt.ema_params) == 2
    with pytest.raises(ValueError, match=r"groups\[0\].grads\[0\]: expected shape \(3,\)"):
        opt.step([[plain.grad(np.ones(4))], {"y": plain.grad(np.ones(3))}])
    # Nothing tells it from one that was made with both groups.
    other = Adadelta(
        [{"params": [plain.param(np.ones(3))]}, {"params": {"y": plain.param(np.ones(3))}, "rho": 0.5}],
        lr=0.5,
        engine=plain.engine,
        ema=0.5,
        accumulate=2,
    )
    other.load_state_dict(opt.state_dict())


def test_attributes_that_differ_between_groups():
    opt = Adadelta([{"params": np.ones(1), "lr": 0.5}, {"params": np.ones(1)}])
    with pytest.raises(AttributeError, match=r"lr differs between groups \(\[0.5, 1.0\]\); see groups"):
        opt.lr  # noqa: B018
    opt.lr = 0.25
    assert opt.lr == 0.25
    assert [group["lr"] for group in opt.groups] == [0.25, 0.25]


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
    out = skip.step([plain.grad(good), plain.grad(g)])
    assert structure(out) == ["leaf", "leaf"]
    assert (skip.skipped, skip.steps, skip.micro_steps) == (1, 0, 1)
    assert snapshot(skip)[0] == before
    before = snapshot(strict)
    with pytest.raises(FloatingPointError, match=r"infinite or NaN elements for params\[1\]"):
        strict.step([plain.grad(good), plain.grad(g)])
    assert snapshot(strict) == before
    for _ in range(2):
        free.step([plain.grad(good), plain.grad(g)])
    assert np.isnan(np.asarray(plain.back(free.params[1]))[1])
    assert np.isfinite(np.asarray(plain.back(free.params[0]))).all()


def test_nan_is_not_clipped_away(plain):
    opt = Adadelta(plain.param(np.ones(2)), engine=plain.engine, clip_value=1.0)
    assert np.isnan(np.asarray(plain.back(opt.step(plain.grad(np.array([np.nan, 1.0])))))).tolist() == [True, False]


def test_infinite_gradients_and_clipping():
    x = np.ones(3)
    Adadelta(x, clip_value=1.0).step(np.array([np.inf, 1.0, 1.0]))
    assert x[0] == x[1] < 1  # the bound
    for option in ("clip_norm", "clip_global_norm"):
        x, y = np.ones(3), np.ones(2)
        opt = Adadelta([x, y], **{option: 1.0})
        opt.step([np.array([np.inf, 1.0, 1.0]), np.ones(2)])
        assert np.isnan(x[0])
        assert x[1] == 1  # the rest shrinks to nothing, beside an infinite norm
        assert y[0] == (1.0 if option == "clip_global_norm" else y[1])


def test_grad_norm():
    opt = Adadelta([np.ones(3), np.ones(4)], clip_global_norm=1.0)
    assert opt.grad_norm is None
    opt.step([np.full(3, 2.0), np.full(4, 1.0)])
    assert float(opt.grad_norm) == 4.0


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


def test_version_and_names():
    assert set(multiopt.__all__) <= set(dir(multiopt))
    assert multiopt.__version__
