"""What stands on an optimizer in optax: it does with ours what it does with `optax.adadelta`."""

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="jax is not installed")
optax = pytest.importorskip("optax", reason="optax is not installed")

from multiopt import optax as ours  # noqa: E402

jnp = jax.numpy
EPS = float(np.finfo(np.float32).eps)
ONE = {"w": True, "b": False}
#: Each makes a transformation from a module that has `adadelta`.
WRAPPERS = {
    "chain": lambda m: optax.chain(optax.clip_by_global_norm(1.0), m.scale_by_adadelta(0.8), optax.scale(-0.5)),
    "masked": lambda m: optax.masked(m.adadelta(0.5, weight_decay=0.1), ONE),
    "multi_transform": lambda m: optax.multi_transform(
        {"moves": m.adadelta(lambda count: 0.5), "stays": optax.set_to_zero()}, {"w": "stays", "b": "moves"}
    ),
    "MultiSteps": lambda m: optax.MultiSteps(m.adadelta(0.5), 2),
    "apply_if_finite": lambda m: optax.apply_if_finite(m.adadelta(0.5), 2),
    "schedule_free": lambda m: optax.contrib.schedule_free(m.adadelta(0.5), 0.5, b1=0.9),
    "sam": lambda m: optax.contrib.sam(m.adadelta(0.5), optax.sgd(0.01), sync_period=2),
    "mechanize": lambda m: optax.contrib.mechanize(m.adadelta(0.5), s_init=0.5),
    "split_real_and_imaginary": lambda m: optax.contrib.split_real_and_imaginary(m.adadelta(0.5)),
    "reduce_on_plateau": lambda m: optax.chain(m.adadelta(0.5), optax.contrib.reduce_on_plateau(patience=1)),
}
PARAMS = {"w": jnp.asarray([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.asarray([0.0, -1.0, 2.0])}


def loss(params):
    return jnp.sum((params["w"] - 1) ** 2) + jnp.sum(jnp.abs(params["b"]) ** 3)


def gone_on(opt, params, state, factor, valued):
    """A step; the gradients are multiplied by the factor."""
    value, grads = jax.value_and_grad(loss)(params)
    grads = jax.tree.map(lambda g: g * factor, grads)
    updates, state = opt.update(grads, state, params, **({"value": value} if valued else {}))
    return optax.apply_updates(params, updates), state


@pytest.mark.parametrize("name", WRAPPERS)
def test_it_does_as_with_optax(name):
    opts = [WRAPPERS[name](module) for module in (ours, optax)]
    factors = [1, 1, np.nan, 0.5, 1, 1] if name == "apply_if_finite" else [1, 1, 0.5, 1]

    @jax.jit
    def step(runs, factor):
        return [gone_on(opt, *run, factor, name == "reduce_on_plateau") for opt, run in zip(opts, runs, strict=True)]

    runs = [(PARAMS, opt.init(PARAMS)) for opt in opts]
    for factor in factors:
        runs = step(runs, jnp.float32(factor))
        assert jax.tree.structure(runs[0]) == jax.tree.structure(runs[1])
        for one, other in zip(*map(jax.tree.leaves, runs), strict=True):
            assert one.dtype == other.dtype
            # Two compilations of the same equations: about ten roundings a step, here and there, in four to six steps.
            np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=64 * EPS, atol=64 * EPS)
    assert np.isfinite(runs[0][0]["w"]).all()
    moved = {key: not np.array_equal(array, PARAMS[key]) for key, array in runs[0][0].items()}
    assert moved == {"w": name != "multi_transform", "b": True}


def test_numbers_that_change_compile_nothing():
    opt = optax.inject_hyperparams(ours.adadelta)(0.5, weight_decay=0.25, eps=1e-5)
    traced = []

    @jax.jit
    def update(params, state):
        traced.append(1)
        return opt.update(params, state, params)

    state = opt.init(PARAMS)
    for numbers in ({}, {"learning_rate": 2.0}, {"rho": 0.5}, {"eps": 1e-3}, {"weight_decay": 0.0}):
        state.hyperparams.update({key: jnp.asarray(value, jnp.float32) for key, value in numbers.items()})
        given = {key: float(value) for key, value in state.hyperparams.items()}
        alone = ours.adadelta(**given)
        want, after = alone.update(PARAMS, state.inner_state, PARAMS)
        updates, state = update(PARAMS, state)
        for a, b in zip(*map(jax.tree.leaves, ((updates, state.inner_state), (want, after))), strict=True):
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=8 * EPS)  # one step's roundings
    assert len(traced) == 1


def test_a_second_step_compiles_nothing():
    opt, traced = ours.adadelta(lambda count: 1 / (1 + count), weight_decay=0.1), []

    @jax.jit
    def both(params, grads, state):
        traced.append(1)
        updates, _ = opt.update(grads, state, params)
        return optax.apply_updates(params, updates), opt.step(params, grads, state)[1]

    params, state = PARAMS, opt.init(PARAMS)
    for _ in range(3):
        params, state = both(params, params, state)
    assert len(traced) == 1


def test_an_ensemble_has_rates_of_its_own():
    rates = jnp.asarray([0.1, 0.5, 2.0])
    together = jax.vmap(lambda rate: ours.adadelta(rate).update(PARAMS, ours.adadelta().init(PARAMS))[0])(rates)
    for i, rate in enumerate(rates):
        updates, _ = ours.adadelta(float(rate)).update(PARAMS, ours.adadelta().init(PARAMS))
        for key in PARAMS:
            np.testing.assert_allclose(np.asarray(together[key][i]), np.asarray(updates[key]), rtol=8 * EPS)
