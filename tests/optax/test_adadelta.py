"""The face of `optax.adadelta`: its signature, state, numbers and dtypes, alone; and the step in one pass."""

import inspect
from collections import namedtuple

import numpy as np
import pytest
from libraries import x64
from multiopt.conformance import assert_same_trajectory
from processes import run_python

from multiopt.convert import State

jax = pytest.importorskip("jax", reason="jax is not installed")
optax = pytest.importorskip("optax", reason="optax is not installed")

from multiopt import optax as ours  # noqa: E402

jnp = jax.numpy
EPS = float(np.finfo(np.float32).eps)
#: The arguments of `adadelta`, for parameters ``{"w": (3, 2), "deep": {"b": (4,)}}``.
ARGUMENTS = {
    "defaults": {},
    "rate": {"learning_rate": 0.5, "rho": 0.95, "eps": 1e-5},
    "arrays": {"learning_rate": jnp.float32(0.5), "rho": jnp.float32(0.75), "eps": np.float32(1e-5)},
    "negative rate": {"learning_rate": -0.5},
    "decay": {"learning_rate": 0.5, "weight_decay": 0.125},
    "array decay": {"learning_rate": 0.5, "weight_decay": jnp.float32(0.0625)},
    "schedules": {"learning_rate": lambda count: 1 / (1 + count), "weight_decay": lambda count: 0.125 * count},
    "mask": {"learning_rate": 0.5, "weight_decay": 0.25, "weight_decay_mask": {"w": True, "deep": False}},
    "mask of functions": {
        "learning_rate": 0.5, "weight_decay": lambda count: 0.5 / (1 + count),
        "weight_decay_mask": lambda tree: jax.tree.map(lambda a: a.ndim > 1, tree),
    },
    "mask without decay": {"learning_rate": 0.5, "weight_decay_mask": {"w": True, "deep": False}},
    "mask for all": {"learning_rate": 0.5, "weight_decay": 0.25, "weight_decay_mask": True},
}  # fmt: skip


@pytest.fixture
def operations(monkeypatch):
    """Nothing is compiled by Numba: for what the face does by itself, whoever computes."""
    monkeypatch.setattr("multiopt.backends.jax.JaxBackend.lower", lambda self, *given: None, raising=False)


def drawn(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)

    def one(*shape):
        made = rng.standard_normal(shape) * 10.0 ** rng.uniform(-3, 1, shape)
        made = made + 1j * rng.standard_normal(shape) if np.dtype(dtype).kind == "c" else made
        return jnp.asarray(made, dtype)

    return {"w": one(3, 2), "deep": {"b": one(4)}}


def both_calls(opt):
    """The usual two calls as one function like `step`."""

    def step(params, grads, state):
        updates, state = opt.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def run(step, params, state, seeds):
    for seed in seeds:
        params, state = step(params, drawn(seed), state)
    return params, state


def bits(tree):
    return [(a.dtype, a.shape, np.asarray(a).tobytes()) for a in jax.tree.leaves(tree)]


def types(tree):
    return jax.tree.structure(tree), [jax.typeof(a) for a in jax.tree.leaves(tree)]


def shapes(tree):
    return jax.tree.structure(tree), [(a.shape, a.dtype) for a in jax.tree.leaves(tree)]


def close(one, other, units=64):
    # Two compilations of the same equations: a step rounds about ten times here and there, and four to six steps add
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
    assert type(ours.scale_by_adadelta()) is type(optax.scale_by_adadelta())
    params = drawn(0)
    state = opt.init(params)
    assert bits(opt.update(params, state, params, value=1.0, of_no_use="here")) == bits(opt.update(params, state))


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_state_is_optax(operations, name):
    params, opt, theirs = drawn(0), ours.adadelta(**ARGUMENTS[name]), optax.adadelta(**ARGUMENTS[name])
    state = opt.init(params)
    assert types(state) == types(theirs.init(params))
    assert shapes(jax.eval_shape(opt.update, params, state, params)) == shapes((params, state))
    assert shapes(jax.eval_shape(opt.step, params, params, state)) == shapes((params, state))


def test_trees_of_any_kind(operations):
    kind = namedtuple("kind", "w rest")
    one = jnp.ones(2)
    tree = kind(one, [None, {"z": (one, None), "a": one, "masked": optax.MaskedNode()}])
    opt, theirs = ours.adadelta(0.5, weight_decay=0.1), optax.adadelta(0.5, weight_decay=0.1)
    for some in (tree, one, {}):
        assert types(opt.init(some)) == types(theirs.init(some))
        state = opt.init(some)
        assert types(jax.eval_shape(opt.update, some, state, some)) == types((some, state))
        assert types(jax.eval_shape(opt.step, some, some, state)) == types((some, state))
    assert types(opt.init(jax.eval_shape(lambda: tree))) == types(theirs.init(tree))
    # optax takes numbers and NumPy's arrays for arrays
    close(opt.update(0.5, opt.init(2.0), 2.0), theirs.update(0.5, theirs.init(2.0), 2.0))
    host = np.float32([0.5])
    array = jnp.asarray(host)
    assert bits(opt.update(host, opt.init(host), host)) == bits(opt.update(array, opt.init(array), array))


def test_tools_for_states():
    params = drawn(0)
    opt = ours.adadelta(lambda count: 0.5, weight_decay=0.1, weight_decay_mask={"w": True, "deep": False})
    _, state = opt.update(params, opt.init(params), params)
    doubled = optax.tree.map_params(opt, lambda a: 2 * a, state)
    assert bits(doubled[1]) == bits(jax.tree.map(lambda a: 2 * a, state[1]))
    assert int(doubled[2].count) == 1
    assert optax.tree.get(state, "e_g") is state[1].e_g
    kept = State.of(state)
    assert kept.steps == 1
    assert bits(kept.into(opt.init(params))) == bits(state)


def test_the_extra_is_named():
    code = """
import sys
for missing in "jax", "optax":
    sys.modules[missing] = None
    try:
        import multiopt.optax
    except ImportError as error:
        print(error)
    del sys.modules[missing]
"""
    assert run_python(code).splitlines() == ['multiopt.optax needs JAX and optax: pip install "multiopt[optax]"'] * 2


# --- its numbers ---


def test_the_trajectory_is_optax():
    # The limits are the conformance suite's, for one framework's whole run against another's (`tolerances.TRACE`).
    with x64():
        for name, dtype in (("defaults", np.float32), ("decay", np.float64)):
            params = [np.linspace(-1, 1, 5, dtype=dtype), np.full(5, 0.5, dtype)]
            opt, theirs = (module.adadelta(**ARGUMENTS[name]) for module in (ours, optax))
            assert set(assert_same_trajectory(opt, theirs, params=params)) == {"x", "square_avg", "acc_delta"}


def test_the_numbers_are_optax():
    grads = jax.tree.map(lambda *some: jnp.stack(some), *map(drawn, range(1, 5)))

    @jax.jit
    def of_all(params):
        def trained(opt):
            step = both_calls(opt)
            return jax.lax.scan(lambda carry, g: (step(carry[0], g, carry[1]), None), (params, opt.init(params)), grads)

        return {name: [trained(m.adadelta(**given))[0] for m in (ours, optax)] for name, given in ARGUMENTS.items()}

    found = of_all(drawn(0))
    for made, theirs in found.values():
        close(made, theirs)
    # Each of the arguments matters, but for a mask of what does not decay.
    ends = {name: bits(made[0]) for name, (made, _) in found.items()}
    assert sum(ends[a] == ends[b] for a in ends for b in ends if a < b) == 0
    assert int(found["mask of functions"][0][1][0].inner_state.count) == 4
    assert [int(found["schedules"][0][1][k].count) for k in (0, 2)] == [4, 4]


def test_scaling_alone():
    params, scaling, theirs = drawn(0), ours.scale_by_adadelta(0.75, eps=1e-4), optax.scale_by_adadelta(0.75, eps=1e-4)
    state = scaling.init(params)
    assert types(state) == types(theirs.init(params))
    for seed in range(3):
        updates, new = scaling.update(drawn(seed), state)
        close((updates, new), theirs.update(drawn(seed), state))
        state = new


def test_a_state_goes_on_with_either():
    arguments, params = ARGUMENTS["mask of functions"], drawn(0)
    opt, theirs = ours.adadelta(**arguments), optax.adadelta(**arguments)
    one, other, fused = jax.jit(both_calls(opt)), jax.jit(both_calls(theirs)), jax.jit(opt.step)
    want = run(other, params, theirs.init(params), range(1, 7))
    for first, then in ((one, other), (other, one), (fused, other), (other, fused)):
        close(run(then, *run(first, params, opt.init(params), range(1, 4)), range(4, 7)), want)


# --- the step in one pass ---


def test_the_step_has_the_bits_of_the_updates():
    opt, params = ours.adadelta(**ARGUMENTS["mask of functions"]), drawn(0)
    apart, once = jax.jit(both_calls(opt)), jax.jit(opt.step)
    half = run(once, params, opt.init(params), [1])
    want = run(once, *half, [2, 3])
    assert bits(run(apart, params, opt.init(params), [1, 2, 3])) == bits(want)
    assert bits(run(apart, *half, [2, 3])) == bits(want)
    # -0.0 + 0.0 is 0.0: an update of 0.0 would not leave it alone, as the step does.
    params, zero = jax.tree.map(lambda a: -0.0 * jnp.ones_like(a), params), jax.tree.map(jnp.zeros_like, params)
    assert bits(once(params, zero, half[1])[0]) == bits(apart(params, zero, half[1])[0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_step_in_16_bits_rounds_once(operations, dtype):
    opt, params, grads = ours.adadelta(2.0, eps=1e-2), drawn(0, dtype), drawn(1, dtype)
    state = opt.init(params)
    updates, after = opt.update(grads, state, params)
    new, same = opt.step(params, grads, state)
    assert bits(after) == bits(same)
    # The same in float32. The step is the number nearest to it; the longer way is at most half a unit of the update
    # and half a unit of the sum away.
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), (params, grads, state))
    exact = opt.step(*wide)[0]
    assert bits(new) == bits(jax.tree.map(lambda a: a.astype(dtype), exact))
    unit = float(jnp.finfo(dtype).eps) / 2
    for p, u, n in zip(*map(jax.tree.leaves, (params, updates, exact)), strict=True):
        apart, u, n = (np.asarray(a, np.float64) for a in (p + u, u, n))
        assert (np.abs(apart - n) <= unit * (np.abs(u) + np.abs(apart))).all()
    assert bits(new) != bits(optax.apply_updates(params, updates))


def test_gradients_of_none_leave_parameters_alone():
    params, opt = drawn(0), ours.adadelta(0.5, weight_decay=0.1)
    state, half = opt.init(params), {"w": params["w"], "deep": {"b": None}}
    updates, after = opt.update(half, state, params)
    assert updates["deep"]["b"] is None
    assert after[1].e_g["deep"]["b"] is state[1].e_g["deep"]["b"]
    new, same = opt.step(params, half, state)
    assert new["deep"]["b"] is params["deep"]["b"]
    assert bits(same) == bits(after)
    whole, moved = opt.update(params, state, params)
    assert bits((updates["w"], after[1].e_x["w"])) == bits((whole["w"], moved[1].e_x["w"]))


# --- dtypes ---


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"])
def test_dtypes_stay(operations, dtype):
    with x64():
        params = drawn(0, dtype)
        for rate in (0.5, jnp.float64(0.5), lambda count: jnp.float64(0.5)):
            opt = ours.adadelta(rate, weight_decay=jnp.float64(0.1))
            state = opt.init(params)

            def loop(params, state, opt=opt):
                carry = jax.lax.cond(True, opt.update, lambda g, s, p: (p, s), params, state, params)
                return jax.lax.scan(lambda c, _: (opt.step(c[0], params, c[1]), None), carry, length=2)[0]

            assert shapes(jax.eval_shape(loop, params, state)) == shapes((params, state))


def test_dtypes_that_differ_are_promoted(operations):
    narrow, plain, decaying = drawn(0, jnp.bfloat16), ours.adadelta(0.5), ours.adadelta(0.5, weight_decay=0.1)
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), narrow)
    for opt, params, grads in ((decaying, narrow, wide), (decaying, wide, narrow), (plain, wide, narrow)):
        state = opt.init(params)
        updates, after = opt.update(grads, state, params)
        assert shapes((updates, after)) == shapes((wide, state))  # as optax', which promotes too
        new, same = opt.step(params, grads, state)
        assert shapes(new) == shapes(params)
        assert bits(same) == bits(after)
        assert bits(new) == bits(optax.apply_updates(params, updates))


def test_a_wide_number_widens_nothing(operations):
    with x64():
        params, opts = drawn(0), [ours.adadelta(rate, eps=1e-3) for rate in (0.3, jnp.float64(0.3))]
        made = [opt.step(params, params, opt.init(params)) for opt in opts]
        assert bits(made[0]) == bits(made[1])


def test_a_complex_number_is_two_real_ones():
    params, opt = drawn(0, np.complex64), ours.adadelta(0.5, weight_decay=0.1)
    pairs = jax.tree.map(lambda a: (a.real, a.imag), params)
    for act in (opt.update, lambda grads, state, params: opt.step(params, grads, state)):
        whole, apart = (act(tree, opt.init(tree), tree)[0] for tree in (params, pairs))
        assert bits(jax.tree.map(lambda a: (a.real, a.imag), whole)) == bits(apart)


# --- it converges ---


def parabola(x):
    return jnp.sum(jnp.abs(x - jnp.asarray([1.0, -1.0, 1.0])) ** 2)


def shifted(z):
    return jnp.sum(jnp.abs(z - (1 + 1j)) ** 2)


def rosenbrock(x):
    return (1.0 - x[0]) ** 2 + 100.0 * (x[1] - x[0] ** 2) ** 2


@pytest.mark.parametrize(
    ("objective", "start", "end", "form"),
    [
        (parabola, np.array([-1.0, 10.0, 1.0], np.float32), np.array([1.0, -1.0, 1.0]), both_calls),
        (shifted, np.array([-1.0, 10.0, 1.0], np.complex64), np.full(3, 1 + 1j), both_calls),
        (rosenbrock, np.zeros(2, np.float32), np.ones(2), lambda opt: opt.step),
    ],
)
def test_it_converges(objective, start, end, form):
    opt, start = ours.adadelta(0.1), jnp.asarray(start)
    step = form(opt)

    def once(carry, _):
        return step(carry[0], jax.grad(objective)(carry[0]).conj(), carry[1]), None

    (params, _), _ = jax.jit(lambda carry: jax.lax.scan(once, carry, length=10_000))((start, opt.init(start)))
    np.testing.assert_allclose(np.asarray(params), end, rtol=3e-2, atol=3e-2)  # what optax asks of its own
