"""`functional.update` inside `jax.jit`: the bits are NumPy's, whatever transforms it."""

import re

import numpy as np
import pytest
from libraries import gradients, x64

from multiopt import functional
from multiopt.functional import State, init, update
from multiopt.rule import Hyper, Rule

pytest.importorskip("jax")
pytest.importorskip("numba")

import jax
import jax.numpy as jnp

OPTIONS = {
    "plain": {},
    "coupled": {"weight_decay": 0.01, "clip_value": 1e-3, "maximize": True},
    "decoupled": {"weight_decay": 0.01, "decoupled": True, "lr": 0.5},
}
STOCHASTIC = {"state_rounding": "stochastic", "seed": 2**40 + 7}


def bits(tree):
    return [(np.asarray(a).dtype, np.asarray(a).shape, np.asarray(a).tobytes()) for a in jax.tree.leaves(tree)]


def drawn(dtype, seed=0, shapes=((5, 7), (1000,), (), (0, 3))):
    rng = np.random.default_rng(seed)
    return [gradients(rng, shape, np.dtype(jnp.dtype(dtype)), (-30, 3)) for shape in shapes]


def on_jax(tree):
    return jax.tree.map(jnp.array, tree)


def both(step, params, steps=4, jitted=None, **options):
    """Params and state after some steps on NumPy's arrays, and after as many of a jitted function on JAX's."""
    jitted = jitted or jax.jit(step, donate_argnums=(0, 2))
    one, two = (params, init(params)), (on_jax(params), init(on_jax(params)))
    for k in range(steps):
        grads = drawn(params[0].dtype, 1 + k, [p.shape for p in params])
        one = update(*(one[0], grads, one[1]), **options)
        two = jitted(two[0], [jnp.asarray(g) for g in grads], two[1])
    return one, two


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16", "complex64"])
def test_the_bits_are_numpys(dtype, options):
    chosen = OPTIONS[options]
    with x64():
        one, two = both(lambda p, g, s: update(p, g, s, **chosen), drawn(dtype), **chosen)
        assert bits(one[0]) == bits(two[0])
        assert bits(one[1].slots) == bits(two[1].slots)


def test_stochastic_rounding():
    one, two = both(lambda p, g, s: update(p, g, s, **STOCHASTIC), drawn("bfloat16"), **STOCHASTIC)
    assert bits(one[0]) == bits(two[0])
    assert bits(one[1].slots) == bits(two[1].slots)
    plain, _ = both(lambda p, g, s: update(p, g, s), drawn("bfloat16"))
    assert bits(one[1].slots) != bits(plain[1].slots)


def test_subnormals_and_what_is_not_finite():
    x = np.array([1e-40, -1e-45, np.inf, np.nan, 0.0, -0.0, 3e38], np.float32)
    g = np.array([1e-42, 1e-40, 1.0, 1.0, -0.0, np.inf, 3e38], np.float32)
    options = {"lr": 1e-3, "eps": 1e-30}
    want = update([x], [g], init([x]), **options)
    got = jax.jit(lambda x, g: update(x, g, init(x), **options))([jnp.asarray(x)], [jnp.asarray(g)])
    assert bits(got[0]) == bits(want[0])
    assert np.any((np.asarray(got[0][0]) != 0) & (np.abs(got[0][0]) < np.finfo(np.float32).tiny))


def test_many_tensors_are_few_calls():
    params = [np.full(3, k, np.float32) for k in range(70)]
    step = jax.jit(lambda p, g, s: update(p, g, s), donate_argnums=(0, 2))
    one, two = both(None, params, steps=2, jitted=step)
    assert bits(one[0]) == bits(two[0])
    text = step.lower(params, params, init(params)).as_text()
    assert len(set(re.findall(r"custom_call @(multiopt_update_\w+)", text))) == 1
    assert text.count("custom_call @multiopt_update") == 3


def test_numbers_may_be_traced_and_are_taken_as_they_are():
    x, g = drawn("float32")[:2], drawn("float32", 1)[:2]
    traces = []

    @jax.jit
    def step(x, g, s, lr, rho, decay):
        traces.append(1)
        return update(x, g, s, lr=lr, rho=rho, weight_decay=decay)

    for lr, rho, decay in ((0.3, 0.9, 0.1), (0.7, 0.95, 0.0)):
        numbers = np.float32(lr), np.float32(rho), np.float16(decay)
        got = step(*on_jax((x, g)), init(on_jax(x)), *numbers)[0]
        lr, rho, decay = map(float, numbers)
        assert bits(got) == bits(update(x, g, init(x), lr=lr, rho=rho, weight_decay=decay)[0])
    assert len(traces) == 1
    with x64():
        own = on_jax((x, g))
        got = jax.jit(lambda lr: update(*own, init(own[0]), lr=lr)[0])(jnp.float64(0.1))
        assert bits(got) == bits(update(x, g, init(x), lr=0.1)[0])


def test_a_rule_that_counts_steps_and_forms_numbers():
    def formula(xp, x, g, m, *, lr, beta, step):
        m = beta * m + (1 - beta) * g
        return x - lr / (1 - beta ** (step + 1)) * m, m

    rule = Rule("counted", formula, slots={"m": 0.0}, hypers={"lr": Hyper(0.1), "beta": Hyper(0.9)})
    x, g = drawn("float32")[:2], drawn("float32", 1)[:2]
    one, two, step = (x, init(x, rule=rule)), on_jax(x), jax.jit(lambda *a: update(*a, rule=rule))
    two = two, init(two, rule=rule)._replace(step=jnp.int32(0))
    for _ in range(3):
        one, two = update(one[0], g, one[1], rule=rule), step(two[0], on_jax(g), two[1])
    assert bits(one[0]) == bits(two[0])


def test_in_place_if_donated_and_not_otherwise():
    x, g = jnp.ones(3000), jnp.linspace(-1, 1, 3000)
    state = init(x)
    before = np.asarray(x).copy()
    kept, _ = jax.jit(lambda *a: update(*a))(x, g, state)
    assert np.array_equal(x, before)
    assert kept.unsafe_buffer_pointer() != x.unsafe_buffer_pointer()
    held = [a.unsafe_buffer_pointer() for a in jax.tree.leaves((x, state.slots))]
    given, state = jax.jit(lambda *a: update(*a), donate_argnums=(0, 2))(x, g, state)
    assert held == [a.unsafe_buffer_pointer() for a in jax.tree.leaves((given, state.slots))]
    assert bits(given) == bits(kept)


def test_scan_and_an_old_value_that_is_used_again():
    x, g = drawn("float32")[:2], drawn("float32", 1)[:2]

    def body(carry, _):
        new = update(carry[0], on_jax(g), carry[1], lr=0.1)
        return new, [a - b for a, b in zip(carry[0], new[0], strict=True)]

    start = jax.tree.map(jnp.asarray, x), State(jnp.int32(0), init(jax.tree.map(jnp.asarray, x)).slots)
    (params, state), moved = jax.jit(lambda c: jax.lax.scan(body, c, None, length=3))(start)
    want = x, init(x)
    for k in range(3):
        old, want = want, update(want[0], g, want[1], lr=0.1)
        assert bits([m[k] for m in moved]) == bits([a - b for a, b in zip(old[0], want[0], strict=True)])
    assert bits(params) == bits(want[0])
    assert int(state.step) == 3


def test_vmap_over_arrays_numbers_and_both():
    x = np.stack(drawn("float32", 0, [(3, 4)] * 6)).reshape(2, 3, 3, 4)
    g, lrs = drawn("float32", 1, [(3, 4)])[0], np.array([[0.1, 0.2, 0.3], [1.0, 2.0, 3.0]], np.float32)

    def step(x, lr):
        return update(x, jnp.asarray(g), init(x), lr=lr)[0]

    def numpys(x, lr):
        return update(x, g, init(x), lr=float(lr))[0]

    want = np.array([[numpys(x[i, j], lrs[i, j]) for j in range(3)] for i in range(2)])
    for mapped in (jax.vmap(jax.vmap(step)), jax.jit(jax.vmap(jax.vmap(step)))):
        assert bits(mapped(x, lrs)) == bits(want)
    one = jax.vmap(step, in_axes=(None, 0))(jnp.asarray(x[0, 0]), lrs[0])
    assert bits(one) == bits(np.array([numpys(x[0, 0], lr) for lr in lrs[0]]))
    last = jax.vmap(step, in_axes=(2, None), out_axes=2)(np.moveaxis(x[0], 0, 2), np.float32(0.5))
    assert bits(last) == bits(np.stack([numpys(a, 0.5) for a in x[0]], axis=2))


def test_vmap_rounds_each_as_if_it_were_alone():
    many = np.stack(drawn("bfloat16", 2, [(8, 9)] * 3))
    got = jax.jit(jax.vmap(lambda x: update(x, x, init(x), **STOCHASTIC)[1].slots))(many)
    for k in range(3):
        want = update(many[k], many[k], init(many[k]), **STOCHASTIC)[1].slots
        assert bits({slot: v[k] for slot, v in got.items()}) == bits(want)


@pytest.mark.parametrize("wrapped", [lambda f: f, jax.jit, jax.checkpoint])
def test_derivatives_are_those_of_the_operations(wrapped, monkeypatch):
    x, g = jnp.linspace(-1, 1, 5), jnp.linspace(0.5, 2, 5)

    def loss(x, g, lr):
        state = init(x)
        for _ in range(2):
            x, state = update(x, g, state, lr=lr, eps=1e-2)
        return jnp.sum(x**2)

    got = jax.grad(wrapped(loss), argnums=(0, 1, 2))(x, g, jnp.float32(0.5))
    forward = jax.jvp(wrapped(loss), (x, g, jnp.float32(0.5)), (x, g, jnp.float32(1)))[1]
    monkeypatch.setattr(type(functional.backend_of("x", x)), "lower", lambda *a: None)
    want = jax.grad(loss, argnums=(0, 1, 2))(x, g, jnp.float32(0.5))
    # The derivative is taken of the operations, at values that may differ by roundings from the engine's.
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    np.testing.assert_allclose(forward, sum(np.vdot(a, b) for a, b in zip(want, (x, g, 1.0), strict=True)), rtol=1e-5)


def test_ahead_of_time_and_export():
    x = jnp.linspace(-1, 1, 5)
    step = jax.jit(lambda x: update(x, x, init(x))[0])
    want = update(np.asarray(x), np.asarray(x), init(np.asarray(x)))[0]
    assert bits(step.lower(x).compile()(x)) == bits(want)
    with pytest.raises(ValueError, match="no compatibility guarantees"):
        jax.export.export(step)(x)
    name = re.search(r"multiopt_update_\w+", step.lower(x).as_text())[0]
    allowed = [jax.export.DisabledSafetyCheck.custom_call(name)]
    assert bits(jax.export.export(step, disabled_checks=allowed)(x).call(x)) == bits(want)
    elsewhere = jax.export.export(step, platforms=["tpu"])(x)
    assert "multiopt_update" not in elsewhere.mlir_module()


def test_leaves_without_a_gradient_stay():
    x = [jnp.ones(3), jnp.ones(2)]
    new, state = jax.jit(lambda x, g: update(x, [g, None], init(x)))(x, x[0])
    assert bits(new[1]) == bits(x[1])
    assert bits(state.slots["acc_delta"][1]) == bits(jnp.zeros(2))
    assert bits(new[0]) == bits(update(np.ones(3, np.float32), np.ones(3, np.float32), init(np.ones(3, np.float32)))[0])


def test_what_is_wrong_is_refused_by_name_while_it_is_traced():
    x = {"w": jnp.ones(3), "b": jnp.ones(2)}
    state = init(x)
    gone = jnp.ones(3)
    gone.delete()
    for grads, own, kind, message in [
        ({**x, "w": jnp.ones(4)}, state, ValueError, r"grads\['w'\]: expected shape \(3,\)"),
        ({**x, "w": jnp.ones(3, jnp.float16)}, state, TypeError, r"grads\['w'\]: expected dtype float32"),
        ({**x, "w": jnp.ones(3, int)}, state, TypeError, r"grads\['w'\]: expected dtype float32.*, got int32"),
        ({**x, "w": np.zeros(3, jax.dtypes.float0)}, state, TypeError, r"grads\['w'\]"),
        ({"w": x["w"]}, state, ValueError, "grads"),
        (x, init({"w": x["w"]}), ValueError, r"state\.slots\['square_avg'\]"),
        (x, init({**x, "w": jnp.ones(4)}), ValueError, r"square_avg of params\['w'\]: expected shape"),
    ]:
        for step in (update, jax.jit(lambda g, p, s: update(p, g, s))):
            args = (x, grads, own) if step is update else (grads, x, own)
            if step is not update and grads["w"].dtype == jax.dtypes.float0:
                continue  # `jit` itself refuses it
            with pytest.raises(kind, match=message):
                step(*args)
    with pytest.raises(ValueError, match=r"params\['w'\]: expected memory, got .* that was deleted"):
        update(x, {**x, "w": gone}, state)
