"""Inside `jax.jit` on the CPU: NumPy's bits, written where the donated arrays lie, and nothing copied."""

import numpy as np
import pytest
from libraries import gradients

import multiopt
from multiopt import functional

jax = pytest.importorskip("jax", reason="jax is not installed")
optax = pytest.importorskip("optax", reason="optax is not installed")
pytest.importorskip("numba", reason="numba is not installed")

from multiopt import optax as ours  # noqa: E402
from multiopt.optax.advance import UPDATE  # noqa: E402

jnp = jax.numpy
NUMBERS = {"rho": 0.75, "eps": 1e-5, "weight_decay": 0.125}


def both_calls(opt):
    def step(params, grads, state):
        updates, state = opt.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def test_the_bits_are_those_of_numpy():
    rng = np.random.default_rng(0)
    # With subnormals, which XLA's own operations would flush, the addition of `apply_updates` too.
    params = given = [gradients(rng, shape, np.float32) for shape in ((40, 5), (7,), ())]
    core = multiopt.Adadelta([x.copy() for x in given], lr=0.5, **NUMBERS)
    opt = ours.adadelta(0.5, **NUMBERS)
    step, update, state = jax.jit(opt.step), jax.jit(opt.update), opt.init(given)
    for i in range(4):
        grads = [gradients(rng, x.shape, np.float32) for x in given]
        grads[0][0] = [np.inf, -np.inf, np.nan, -0.0, 1e30]
        slots = {slot: [s[slot].copy() for s in core.state] for slot in ("square_avg", "acc_delta")}
        from_zero, _ = functional.update(
            [x.copy() for x in core.params], grads, functional.State(i, slots), rule=UPDATE, lr=0.5, **NUMBERS
        )
        core.step(grads)
        updates, apart = update(grads, state, params)
        params, state = step(params, grads, state)
        held = [[s[slot] for s in core.state] for slot in slots]
        for made, want in (
            (params, core.params), (state[1].e_g, held[0]), (state[1].e_x, held[1]),
            (updates, from_zero), (apart[1].e_g, held[0]), (apart[1].e_x, held[1]),
        ):  # fmt: skip
            for a, b in zip(made, want, strict=True):
                a = np.asarray(a)
                np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
                assert (np.nan_to_num(a, nan=0.0).tobytes()) == np.nan_to_num(b, nan=0.0).tobytes()


@pytest.mark.parametrize("form", [lambda opt: opt.step, both_calls])
@pytest.mark.parametrize("decay", [0.0, 0.125])
def test_donated_arrays_are_written_where_they_lie(form, decay):
    opt, params = ours.adadelta(0.5, weight_decay=decay), {"w": jnp.ones((300, 7)), "b": jnp.ones(5)}
    state, grads = opt.init(params), jax.tree.map(jnp.ones_like, params)
    compiled = jax.jit(form(opt), donate_argnums=(0, 2)).lower(params, grads, state).compile()
    text = compiled.as_text()
    assert "multiopt_update" in text
    assert " copy(" not in text  # an update that took its parameter's place would have that copied first
    places = [a.unsafe_buffer_pointer() for a in jax.tree.leaves((params, state))]
    made = compiled(params, grads, state)
    assert [a.unsafe_buffer_pointer() for a in jax.tree.leaves(made)] == places


def test_derivatives_go_through_the_update():
    target = jnp.asarray([1.0, -2.0, 0.5])

    def after(rate, module):
        opt, params = module.adadelta(rate, eps=1e-2), jnp.zeros(3)
        state = opt.init(params)
        for _ in range(3):
            updates, state = opt.update(2 * (params - target), state, params)
            params = optax.apply_updates(params, updates)
        return jnp.sum((params - target) ** 2)

    slopes = [jax.jit(jax.grad(after), static_argnums=1)(0.5, module) for module in (ours, optax)]
    assert float(slopes[1]) < -1
    # Some roundings in each of three steps, forward and back.
    np.testing.assert_allclose(slopes[0], slopes[1], rtol=64 * np.finfo(np.float32).eps)
