"""Bad input: an error when it is called or traced, which begins with the path of the leaf; nothing is changed."""

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="jax is not installed")
optax = pytest.importorskip("optax", reason="optax is not installed")

from multiopt import optax as ours  # noqa: E402

jnp = jax.numpy


def params():
    return {"w": jnp.ones((2, 3)), "deep": [jnp.ones(2), jnp.ones(())]}


def donated():
    array = jnp.ones(2)
    jax.jit(lambda a: a + 1, donate_argnums=0)(array)
    assert array.is_deleted()
    return array


def changed(**leaves):
    made = params()
    for name, leaf in leaves.items():
        made["deep"][0] = leaf if name == "deep" else made["deep"][0]
        made["w"] = leaf if name == "w" else made["w"]
    return made


FLOAT0 = np.zeros((2, 3), jax.dtypes.float0)
WITHOUT = {"w": jnp.ones((2, 3)), "deep": [jnp.ones(2)]}
OTHER = {"w": jnp.ones((2, 3)), "deep": (jnp.ones(2), jnp.ones(()))}
#: Gradients, and what is said of them after their name.
GRADIENTS = {
    "shape": (lambda: changed(w=jnp.ones((3, 2))), ValueError, r"\['w'\]: expected shape \(2, 3\), as {}\['w'\], got"),
    "scalar": (lambda: changed(deep=1.0), ValueError, r"\['deep'\]\[0\]: expected shape \(2,\), as {}\['deep'\]\[0\]"),
    "integers": (lambda: changed(w=jnp.ones((2, 3), int)), TypeError, r"\['w'\]: expected one of the dtypes float16, "),
    "float8": (lambda: changed(w=jnp.ones((2, 3), "float8_e5m2")), TypeError, r"\['w'\]: expected one of the dtypes"),
    "complex": (lambda: changed(w=1j * jnp.ones((2, 3))), TypeError, r"\['w'\]: expected a real dtype, as {}\['w'\]"),
    "float0": (lambda: changed(w=FLOAT0), TypeError, r"\['w'\]: expected a gradient, got float0"),
    "text": (lambda: changed(deep="text"), TypeError, r"\['deep'\]\[0\]: expected an array, got str"),
    "donated": (lambda: changed(deep=donated()), ValueError, r"\['deep'\]\[0\]: expected memory, got an array that"),
    "missing": (lambda: WITHOUT, ValueError, r": expected the tree of {}, got one without \['deep'\]\[1\]"),
    "more": (lambda: {**params(), "b": 1.0}, ValueError, r": expected the tree of {}, got one with \['b'\]"),
    "a branch": (lambda: changed(deep=[1.0]), ValueError, r": expected the tree of {}, got one without .*\] and with"),
    "other nodes": (lambda: OTHER, ValueError, ": expected the tree of {}, got one of other nodes: "),
    "none at all": (lambda: None, ValueError, r": expected the tree of {}, got one without \['deep'\]\[0\], "),
}  # fmt: skip


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients(name):
    make, kind, said = GRADIENTS[name]
    opt, given = ours.adadelta(0.5), params()
    state = opt.init(given)
    with pytest.raises(kind, match="^updates" + said.format("state.e_g")):
        opt.update(make(), state, given)
    with pytest.raises(kind, match="^grads" + said.format("params")):
        opt.step(given, make(), state)
    if name not in ("donated", "text", "float0"):  # nor does JAX take these as arguments
        with pytest.raises(kind, match="^grads" + said.format("params")):
            jax.jit(opt.step, donate_argnums=(0, 1, 2))(given, make(), state)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((given, state)))


@pytest.mark.parametrize(
    ("make", "kind", "said"),
    [
        (lambda good: good[1], TypeError, r"state: expected what init\(params\) returns, got ScaleByAdaDeltaState"),
        (lambda good: good[:2], TypeError, r"state: expected what init\(params\) returns, got \(EmptyState"),
        (lambda good: None, TypeError, r"state: expected what init\(params\) returns, got None"),
        (lambda good: (good[1], good[0], good[2]), TypeError, "state: expected an optax.ScaleByAdaDeltaState in its"),
        (
            lambda good: (good[0], good[1]._replace(e_x=changed(w=jnp.ones(2))), good[2]), ValueError,
            r"state.e_x\['w'\]: expected shape \(2, 3\), as params\['w'\], got \(2,\)",
        ),
        (
            lambda good: (good[0], good[1]._replace(e_g=changed(w=jnp.ones((2, 3), int))), good[2]), TypeError,
            r"state.e_g\['w'\]: expected one of the dtypes",
        ),
        (
            lambda good: (good[0], good[1]._replace(e_g=changed(deep=donated())), good[2]), ValueError,
            r"state.e_g\['deep'\]\[0\]: expected memory",
        ),
        (
            lambda good: (good[0], good[1]._replace(e_g=WITHOUT), good[2]), ValueError,
            r"state.e_g: expected the tree of params, got one without \['deep'\]\[1\]",
        ),
    ],
)  # fmt: skip
def test_states(make, kind, said):
    opt = ours.adadelta(0.5)
    with pytest.raises(kind, match=f"^{said}"):
        opt.step(params(), params(), make(opt.init(params())))


def test_a_state_without_a_count():
    plain, scheduled = ours.adadelta(0.5), ours.adadelta(lambda count: 0.5)
    with pytest.raises(TypeError, match="state: expected a count of updates for the schedule learning_rate"):
        scheduled.update(params(), plain.init(params()), params())
    decaying = ours.adadelta(0.5, weight_decay=lambda count: 0.5)
    with pytest.raises(TypeError, match="state: expected a count of updates for the schedule weight_decay"):
        decaying.update(params(), plain.init(params()), params())


def test_parameters():
    opt = ours.adadelta(0.5, weight_decay=0.1)
    state = opt.init(params())
    with pytest.raises(ValueError, match=r"^params: expected the parameters, which decay, got None"):
        opt.update(params(), state)
    with pytest.raises(ValueError, match=r"^params\['w'\]: expected shape \(2, 3\), as state.e_g\['w'\], got \(1,\)"):
        opt.update(params(), state, changed(w=jnp.ones(1)))
    for bad, kind, said in (
        (changed(w=jnp.ones(2, int)), TypeError, r"params\['w'\]: expected one of the dtypes"),
        (changed(w="text"), TypeError, r"params\['w'\]: expected an array, got str"),
        (changed(deep=donated()), ValueError, r"params\['deep'\]\[0\]: expected memory"),
        (jax.ShapeDtypeStruct((2,), int), TypeError, "params: expected one of the dtypes"),
    ):
        for make in (opt, ours.scale_by_adadelta()):
            with pytest.raises(kind, match=f"^{said}"):
                make.init(bad)


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        ({"learning_rate": "fast"}, TypeError, "learning_rate: expected a real number in"),
        ({"learning_rate": np.inf}, ValueError, "learning_rate: expected a number in"),
        ({"learning_rate": jnp.ones(3)}, ValueError, r"learning_rate: expected a number or a 0-d array, got .* \(3,\)"),
        ({"learning_rate": jnp.asarray(1j)}, TypeError, "learning_rate: expected a real number, got an array of"),
        ({"rho": 1.5}, ValueError, r"rho: expected a number in \[0, 1\], got 1.5"),
        ({"rho": lambda count: 0.9}, TypeError, "rho: expected a real number"),
        ({"eps": -1e-6}, ValueError, "eps: expected a number in"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay: expected a number in"),
        ({"weight_decay": None}, TypeError, "weight_decay: expected a real number"),
    ],
)
def test_numbers(arguments, kind, said):
    with pytest.raises(kind, match=f"^{said}"):
        ours.adadelta(**arguments)


def test_what_a_schedule_gives():
    for rate, kind, said in (
        (lambda count: np.nan, ValueError, "learning_rate: expected a number in"),
        (lambda count: jnp.ones(2), ValueError, "learning_rate: expected a number or a 0-d array"),
        (lambda count: None, TypeError, "learning_rate: expected a real number"),
    ):
        opt = ours.adadelta(rate)
        with pytest.raises(kind, match=f"^{said}"):
            jax.jit(opt.step)(params(), params(), opt.init(params()))


def test_an_eps_of_zero_is_taken_as_optax_takes_it():
    opt, theirs = ours.adadelta(0.5, eps=0), optax.adadelta(0.5, eps=0)
    grads = jnp.asarray([0.0, 1.0])
    updates, _ = opt.update(grads, opt.init(grads), grads)
    assert bool(jnp.isnan(updates[0]))
    np.testing.assert_array_equal(updates, theirs.update(grads, theirs.init(grads), grads)[0])
