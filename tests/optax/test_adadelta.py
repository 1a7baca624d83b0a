"""The face of `optax.adadelta`: its signature, state, numbers and dtypes, alone; and the step in one pass."""

import inspect
from collections import namedtuple

import numpy as np
import pytest
from libraries import x64
from processes import run_python

import multiopt
from multiopt.conformance import assert_published_rule, assert_same_trajectory

jax = pytest.importorskip("jax", reason="jax is not installed")
optax = pytest.importorskip("optax", reason="optax is not installed")

from multiopt import optax as ours  # noqa: E402

jnp = jax.numpy
EPS = float(np.finfo(np.float32).eps)
#: The arguments of `adadelta`, for parameters ``{"w": (3, 2), "b": (4,)}``.
ARGUMENTS = {
    "defaults": {},
    "rate": {"learning_rate": 0.5, "rho": 0.95, "eps": 1e-5},
    "arrays": {"learning_rate": jnp.float32(0.5), "rho": jnp.float32(0.75), "eps": np.float32(1e-5)},
    "negative rate": {"learning_rate": -0.5},
    "decay": {"learning_rate": 0.5, "weight_decay": 0.125},
    "array decay": {"learning_rate": 0.5, "weight_decay": jnp.float32(0.125)},
    "schedules": {"learning_rate": lambda count: 1 / (1 + count), "weight_decay": lambda count: 0.125 * count},
    "mask": {"learning_rate": 0.5, "weight_decay": 0.25, "weight_decay_mask": {"w": True, "b": False}},
    "mask of functions": {
        "learning_rate": 0.5, "weight_decay": lambda count: 0.5 / (1 + count),
        "weight_decay_mask": lambda tree: jax.tree.map(lambda a: a.ndim > 1, tree),
    },
    "mask without decay": {"learning_rate": 0.5, "weight_decay_mask": {"w": True, "b": False}},
}  # fmt: skip


def drawn(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)

    def one(*shape):
        made = rng.standard_normal(shape) * 10.0 ** rng.uniform(-3, 1, shape)
        made = made + 1j * rng.standard_normal(shape) if np.dtype(dtype).kind == "c" else made
        return jnp.asarray(made, dtype)

    return {"w": one(3, 2), "b": one(4)}


def updated(opt, params, state, seeds, dtype=np.float32):
    """The usual two calls, compiled together."""

    @jax.jit
    def both(params, grads, state):
        updates, state = opt.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for seed in seeds:
        params, state = both(params, drawn(seed, dtype), state)
    return params, state


def stepped(opt, params, state, seeds, dtype=np.float32):
    step = jax.jit(opt.step)
    for seed in seeds:
        params, state = step(params, drawn(seed, dtype), state)
    return params, state


def bits(tree):
    return [(a.dtype, a.shape, np.asarray(a).tobytes()) for a in jax.tree.leaves(tree)]


def types(tree):
    return jax.tree.structure(tree), [jax.typeof(a) for a in jax.tree.leaves(tree)]


def close(one, other, units=64):
    # Two compilers' orders and contractions: a step rounds about ten times here and there, which four to six steps add
    # up; what cancels, a parameter near zero, is as exact as what it was made of.
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=units * EPS, atol=units * EPS)


# --- what it is ---


@pytest.mark.parametrize("name", ["adadelta", "scale_by_adadelta"])
def test_the_arguments_are_optax(name):
    def arguments(module):
        return [(p.name, p.default, p.kind) for p in inspect.signature(getattr(module, name)).parameters.values()]

    assert arguments(ours) == arguments(optax)


def test_it_is_a_transformation():
    init, update = opt = ours.adadelta(0.5)
    assert isinstance(opt, optax.GradientTransformationExtraArgs)
    assert isinstance(opt, ours.Adadelta)
    assert (init, update) == (opt.init, opt.update)
    scaling = ours.scale_by_adadelta()
    assert type(scaling) is type(optax.scale_by_adadelta())
    params = drawn(0)
    updates, _ = opt.update(params, opt.init(params), params, value=1.0, of_no_use="here")  # arguments of others
    assert bits(updates) == bits(opt.update(params, opt.init(params), params)[0])


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_state_is_optax(name):
    arguments, params = ARGUMENTS[name], drawn(0)
    opt, theirs = ours.adadelta(**arguments), optax.adadelta(**arguments)
    state = opt.init(params)
    assert types(state) == types(theirs.init(params))
    updates, after = jax.jit(opt.update)(params, state, params)
    assert types(after) == types(state)
    assert types(after) == types(opt.step(params, params, state)[1])
    assert types(updates) == types(params)
    counts = [int(leaf) for leaf in jax.tree.leaves(after) if leaf.dtype == np.int32]
    assert counts == [1] * sum(map(callable, (arguments.get("learning_rate"), arguments.get("weight_decay"))))


def test_trees_of_any_kind():
    kind = namedtuple("kind", "w rest")
    one = jnp.ones(2)
    tree = kind(one, [None, {"z": (one, None), "a": one}])
    opt, theirs = ours.adadelta(0.5, weight_decay=0.1), optax.adadelta(0.5, weight_decay=0.1)
    state = opt.init(tree)
    assert types(state) == types(theirs.init(tree))
    updates, after = opt.update(tree, state, tree)
    close(updates, theirs.update(tree, state, tree)[0])
    assert types(after) == types(state)
    for alone in (one, jnp.ones(()), {}, None, jnp.ones((0, 3))):
        assert types(opt.init(alone)) == types(theirs.init(alone))
        assert types(opt.update(alone, opt.init(alone), alone)) == types(theirs.update(alone, opt.init(alone), alone))
    # optax takes numbers and NumPy's arrays for arrays
    close(opt.update(0.5, opt.init(2.0), 2.0), theirs.update(0.5, theirs.init(2.0), 2.0))
    host = np.ones(2, np.float32)
    assert bits(opt.update(host, opt.init(host), host)) == bits(opt.update(one, opt.init(one), one))
    shapes = jax.eval_shape(lambda: tree)
    assert types(opt.init(shapes)) == types(state)
    assert types(jax.eval_shape(opt.update, shapes, jax.eval_shape(opt.init, shapes), shapes)) == types((tree, state))


def test_tools_for_states():
    params = drawn(0)
    opt = ours.adadelta(lambda count: 0.5, weight_decay=0.1, weight_decay_mask={"w": True, "b": False})
    _, state = opt.update(params, opt.init(params), params)
    assert bits(optax.tree.map_params(opt, lambda a: -a, state)[1]) == bits(jax.tree.map(lambda a: -a, state[1]))
    assert optax.tree.get(state, "e_g") is state[1].e_g
    assert int(optax.tree.get(state, "count")) == 1
    kept = multiopt.convert.State.of(state)
    assert kept.steps == 1
    assert bits(kept.into(opt.init(params))) == bits(state)


def test_the_extra_is_named():
    code = """
import sys
import multiopt
for missing in "jax", "optax":
    kept = sys.modules.pop(missing, None)
    sys.modules[missing] = None
    try:
        import multiopt.optax
    except ImportError as error:
        print(error)
    del sys.modules[missing]
"""
    assert run_python(code) == "\n".join(['multiopt.optax needs JAX and optax: pip install "multiopt[optax]"'] * 2)


# --- its numbers ---


@pytest.mark.parametrize("name", ["defaults", "rate", "negative rate", "decay", "schedules"])
def test_the_trajectory_is_optax(name):
    # The limits are the conformance suite's, for one framework's whole run against another's (`tolerances.TRACE`).
    arguments = ARGUMENTS[name]
    with x64():
        for dtype in (np.float32, np.float64):
            params = [np.linspace(-1, 1, 5, dtype=dtype), np.full((2, 2), 0.5, dtype)]
            worst = assert_same_trajectory(ours.adadelta(**arguments), optax.adadelta(**arguments), params=params)
            assert set(worst) == {"x", "square_avg", "acc_delta"}


def test_the_published_rule():
    assert_published_rule(ours.adadelta(0.5), params=[np.ones(3, np.float32)], lr=0.5, rho=0.9, eps=1e-6)


@pytest.mark.parametrize("name", ["arrays", "array decay", "mask", "mask of functions", "mask without decay"])
def test_the_numbers_are_optax(name):
    arguments, params = ARGUMENTS[name], drawn(0)
    opt, theirs = ours.adadelta(**arguments), optax.adadelta(**arguments)
    state, seeds = opt.init(params), range(1, 5)
    close(updated(opt, params, state, seeds), updated(theirs, params, state, seeds))


def test_a_mask_for_whole_branches():
    params = {"deep": drawn(0), "b": jnp.ones(2)}
    for mask in ({"deep": True, "b": False}, {"deep": False, "b": True}, True, False):
        opt, theirs = (m.adadelta(0.5, weight_decay=0.25, weight_decay_mask=mask) for m in (ours, optax))
        close(opt.update(params, opt.init(params), params), theirs.update(params, theirs.init(params), params))


def test_scaling_alone():
    params, scaling, theirs = drawn(0), ours.scale_by_adadelta(0.75, eps=1e-4), optax.scale_by_adadelta(0.75, eps=1e-4)
    state = scaling.init(params)
    assert types(state) == types(theirs.init(params))
    for seed in range(3):
        grads = drawn(seed)
        updates, new = scaling.update(grads, state)
        close((updates, new), theirs.update(grads, state))
        state = new


def test_a_state_goes_on_with_either():
    arguments = ARGUMENTS["mask of functions"]
    opt, theirs, params = ours.adadelta(**arguments), optax.adadelta(**arguments), drawn(0)
    want = updated(theirs, params, theirs.init(params), range(1, 7))
    for first, then in ((opt, theirs), (theirs, opt)):
        half = updated(first, params, first.init(params), range(1, 4))
        close(updated(then, *half, range(4, 7)), want)
    half = stepped(opt, params, theirs.init(params), range(1, 4))
    close(updated(theirs, *half, range(4, 7)), want)


# --- the step in one pass ---


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
def test_the_step_has_the_bits_of_the_updates(dtype):
    with x64():
        for name in ("rate", "mask of functions"):
            opt, params = ours.adadelta(**ARGUMENTS[name]), drawn(0, dtype)
            params["b"] = params["b"].at[0].set(-0.0)  # -0.0 + 0.0 is 0.0: only the update -0.0 leaves it alone
            state = opt.init(params)
            zero = jax.tree.map(jnp.zeros_like, params)
            updates, _ = opt.update(zero, state, params)
            assert bits(opt.step(params, zero, state)[0]) == bits(optax.apply_updates(params, updates))
            apart, once = (run(opt, params, state, range(1, 4), dtype) for run in (updated, stepped))
            assert bits(apart) == bits(once)
            mixed = stepped(opt, *updated(opt, params, state, range(1, 3), dtype), [3], dtype)
            assert bits(mixed) == bits(once)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_step_in_16_bits_rounds_once(dtype):
    opt, params = ours.adadelta(2.0, eps=1e-2), drawn(0, dtype)
    state, grads = opt.init(params), drawn(1, dtype)
    updates, after = opt.update(grads, state, params)
    new, same = opt.step(params, grads, state)
    assert bits(after) == bits(same)

    # From the same update in float32: the step is the nearest number, the longer way at most half a unit of the update
    # and half a unit of the sum away.
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), (grads, state, params))
    exact = optax.apply_updates(wide[2], opt.update(*wide)[0])
    rounded = jax.tree.map(lambda a: a.astype(dtype), exact)
    assert bits(new) == bits(rounded)
    unit = float(jnp.finfo(dtype).eps) / 2
    for p, u, n in zip(*map(jax.tree.leaves, (params, updates, exact)), strict=True):
        apart = np.asarray(p + u, np.float64)
        assert (np.abs(apart - np.asarray(n)) <= unit * (np.abs(np.asarray(u, "f8")) + np.abs(apart))).all()
    assert bits(new) != bits(optax.apply_updates(params, updates))


def test_gradients_of_none_leave_parameters_alone():
    params = drawn(0)
    opt = ours.adadelta(0.5, weight_decay=0.1)
    state = opt.init(params)
    whole, half = params, {"w": params["w"], "b": None}
    updates, after = opt.update(half, state, params)
    assert updates["b"] is None
    assert after[1].e_g["b"] is state[1].e_g["b"]
    new, same = opt.step(params, half, state)
    assert new["b"] is params["b"]
    assert bits(same) == bits(after)
    assert bits((updates["w"], after[1].e_x["w"])) == bits(
        (opt.update(whole, state, params)[0]["w"], opt.update(whole, state, params)[1][1].e_x["w"])
    )


# --- dtypes ---


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"])
def test_dtypes_stay(dtype):
    with x64():
        params = drawn(0, dtype)
        for rate in (0.5, jnp.float64(0.5), lambda count: jnp.float64(0.5)):
            opt = ours.adadelta(rate, weight_decay=jnp.float64(0.1))
            state = opt.init(params)
            updates, after = jax.lax.cond(True, opt.update, lambda g, s, p: (p, s), params, state, params)
            assert types((updates, after)) == types((params, state))
            (new, last), _ = jax.lax.scan(lambda c, _: (opt.step(c[0], c[0], c[1]), None), (params, state), length=2)
            assert types((new, last)) == types((params, state))
            assert not any(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (new, params)), strict=True))


def test_dtypes_that_differ_are_promoted():
    narrow = drawn(0, jnp.bfloat16)
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), narrow)
    opt = ours.adadelta(0.5, weight_decay=0.1)
    for params, grads in ((narrow, wide), (wide, narrow)):
        state = opt.init(params)
        updates, after = opt.update(grads, state, params)
        assert types(updates) == types(wide)  # as optax', which promotes too
        assert types(after) == types(state)
        new, same = opt.step(params, grads, state)
        assert types(new) == types(params)
        assert bits(same) == bits(after)
        assert bits(new) == bits(optax.apply_updates(params, updates))


def test_a_complex_number_is_two_real_ones():
    params = drawn(0, np.complex64)
    pairs = jax.tree.map(lambda a: (a.real, a.imag), params)
    opt = ours.adadelta(0.5, weight_decay=0.1)
    updates, _ = opt.update(params, opt.init(params), params)
    apart, _ = opt.update(pairs, opt.init(pairs), pairs)
    assert bits(jax.tree.map(lambda a: (a.real, a.imag), updates)) == bits(apart)


# --- it converges ---


def parabola(x):
    return jnp.sum(jnp.abs(x - jnp.asarray([1.0, -1.0, 1.0])) ** 2)


def shifted(z):
    return jnp.sum(jnp.abs(z - (1 + 1j)) ** 2)


def rosenbrock(x):
    return (1.0 - x[0]) ** 2 + 100.0 * (x[1] - x[0] ** 2) ** 2


@pytest.mark.parametrize(
    ("objective", "start", "end"),
    [
        (parabola, np.array([-1.0, 10.0, 1.0], np.float32), np.array([1.0, -1.0, 1.0])),
        (shifted, np.array([-1.0, 10.0, 1.0], np.complex64), np.full(3, 1 + 1j)),
        (rosenbrock, np.zeros(2, np.float32), np.ones(2)),
    ],
)
@pytest.mark.parametrize("form", ["update", "step"])
def test_it_converges(objective, start, end, form):
    opt = ours.adadelta(0.1)

    def once(carry, _):
        params, state = carry
        grads = jax.grad(objective)(params).conj()
        if form == "step":
            return opt.step(params, grads, state), None
        updates, state = opt.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    start = jnp.asarray(start)
    (params, _), _ = jax.jit(lambda c: jax.lax.scan(once, c, length=10_000))((start, opt.init(start)))
    np.testing.assert_allclose(np.asarray(params), end, rtol=3e-2, atol=3e-2)  # what optax asks of its own
