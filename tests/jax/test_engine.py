"""`multiopt.Adadelta` on JAX arrays: the engine inside XLA, what it donates, and what is left when something fails."""

import copy
import math

import numpy as np
import pytest

from multiopt import Adadelta

pytest.importorskip("jax")
pytest.importorskip("numba")

import jax
import jax.numpy as jnp
from multiopt.backends.engines.xla.engine import XlaEngine

OPTIONS = [
    {"weight_decay": 0.01, "clip_norm": 0.5},
    {"clip_value": 0.1, "clip_global_norm": 0.3, "loss_scale": 8.0},
    {"accumulate": 2, "maximize": True, "ema": 0.9, "nonfinite": "skip"},
    {"state_dtype": "bfloat16", "state_rounding": "stochastic", "seed": 3},
    {"engine": "xla", "donate": True, "clip_global_norm": math.inf, "nonfinite": "skip"},
]


def trained(array, options, steps=4):
    rng = np.random.default_rng(0)
    starts = [rng.standard_normal(shape).astype(np.float32) for shape in ((16, 8), (64,), (), (0, 3))]
    own = options if array is jnp.array else {k: v for k, v in options.items() if k not in ("engine", "donate")}
    opt = Adadelta([array(x) for x in starts], **own)
    for k in range(steps):
        grads = [array(np.sin(x * (k + 1))) for x in starts]
        if k == 2:
            grads[0] = array(np.full((16, 8), np.nan, np.float32)) if "nonfinite" in options else None
        opt.step(grads)
    return opt


def equal(a, b):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(a)] == [
        np.asarray(x).tobytes() for x in jax.tree.leaves(b)
    ]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_has_numpys_bits(options):
    one, two = trained(np.array, options), trained(jnp.array, options)
    assert two.bindings[0].buckets[0].engine.name == "xla"
    assert equal(one.params, two.params)
    assert equal(one.state, two.state)
    assert (one.steps, one.skipped) == (two.steps, two.skipped)
    assert one.grad_norm is None or float(one.grad_norm) == float(two.grad_norm)
    if one.ema is not None:
        assert equal(one.ema_params, two.ema_params)


def test_state_is_donated_and_parameters_if_asked_for():
    x, g = jnp.ones(3), jnp.ones(3)
    for donate in (False, True):
        opt = Adadelta(jnp.array(x), donate=donate)
        params, state = opt.params, opt.state
        held = [a.unsafe_buffer_pointer() for a in jax.tree.leaves(opt.state)]
        opt.step(g)
        assert params.is_deleted() == donate
        assert all(a.is_deleted() for a in jax.tree.leaves(state))
        assert held == [a.unsafe_buffer_pointer() for a in jax.tree.leaves(opt.state)]
    with pytest.raises(ValueError, match=r"^donate: expected False for numpy arrays on cpu, got True"):
        Adadelta(np.ones(3), donate=True)
    with pytest.raises(ValueError, match=r"^donate: expected False for jax arrays on .*, got True"):
        Adadelta(x, donate=True, engine="eager")


def test_what_others_hold_stays():
    x = jnp.linspace(-1, 1, 5)
    opt = Adadelta([x, x], ema=0.5, accumulate=2, donate=True)  # one array twice is two parameters
    kept = opt.state_dict()
    for _ in range(4):
        opt.step([opt.params[0], jnp.ones(5)])  # a parameter may be its own gradient
    twin, later = copy.deepcopy(opt), opt.state_dict()
    opt.load_state_dict(kept)
    for _ in range(2):
        opt.step([jnp.ones(5)] * 2)
    opt.load_state_dict(later)
    assert equal(opt.state, twin.state)
    assert equal(opt.ema_params, twin.ema_params)


def test_groups_may_share_arrays_that_are_donated():
    x, y = np.linspace(-1, 1, 3, dtype=np.float32), np.linspace(1, 2, 3, dtype=np.float32)
    shared = jnp.array(x)
    opt = Adadelta([{"params": [shared]}, {"params": [shared, jnp.array(y)]}], donate=True)
    twin = Adadelta([{"params": [x]}, {"params": [x.copy(), y]}])
    for _ in range(2):
        (a,), _ = opt.params
        opt.step([[jnp.ones(3)], [a, jnp.ones(3)]])  # the gradient of one group is the parameter of another
        twin.step([[np.ones(3, np.float32)], [twin.params[0][0].copy(), np.ones(3, np.float32)]])
    assert equal(opt.params, twin.params)
    assert equal(opt.state, twin.state)


def test_memory_of_others_is_not_written():
    raw = np.zeros(4096 + 64, np.uint8)
    lies = raw[-raw.ctypes.data % 64 :][:4096].view(np.float32)
    x = jax.device_put(lies, may_alias=True)
    assert x.unsafe_buffer_pointer() == lies.ctypes.data  # or this shows nothing
    opt = Adadelta(x, donate=True)
    opt.step(jnp.ones(1024))
    assert not lies.any()
    assert np.all(np.asarray(opt.params) != 0)


@pytest.mark.parametrize("which", ["gradient", "parameter", "state"])
def test_deleted_arrays_are_refused_before_anything_is_written(which):
    groups = [{"params": [jnp.ones(2)]}, {"params": [jnp.ones(3)]}]
    opt = Adadelta(groups, donate=True)
    grads = [[jnp.ones(2)], [jnp.ones(3)]]
    gone = {"gradient": grads[1][0], "parameter": opt.params[1][0], "state": opt.state[1][0]["acc_delta"]}[which]
    gone.delete()
    name = {"state": "acc_delta of groups"}.get(which, "groups" if which == "parameter" else "gradient of groups")
    with pytest.raises(ValueError, match=rf"^{name}\[1\]\.params\[0\]: expected memory, got an array that was deleted"):
        opt.step(grads)
    assert opt.steps == 0
    assert not opt.params[0][0].is_deleted()
    assert np.array_equal(opt.params[0][0], np.ones(2))


class Failure(Exception):
    pass


@pytest.mark.parametrize("donate", [False, True])
def test_after_a_failure_the_optimizer_goes_on(monkeypatch, donate):
    # Of two groups the second fails: the first was donated, so that its new arrays stay, as those of other libraries.
    opt = Adadelta([{"params": [jnp.ones(2)]}, {"params": [jnp.ones(3)]}], donate=donate)
    real, calls = XlaEngine.update, []

    def update(self, job, scales):
        if calls:
            raise Failure
        calls.append(real(self, job, scales))

    monkeypatch.setattr(XlaEngine, "update", update)
    with pytest.raises(Failure):
        opt.step([[jnp.ones(2)], [jnp.ones(3)]])
    monkeypatch.setattr(XlaEngine, "update", real)
    assert opt.steps == 0
    assert not any(a.is_deleted() for a in jax.tree.leaves((opt.params, opt.state)))
    assert np.array_equal(opt.params[1][0], np.ones(3))
    opt.step([[jnp.ones(2)], [jnp.ones(3)]])
    assert opt.steps == 1


def test_steps_compile_once():
    # Arrays that are bound to a device, and others, are two kinds to JAX: the state is of its parameter's.
    for x in (jnp.ones(3), jax.device_put(jnp.ones(3), jax.devices()[0])):
        opt = Adadelta([x, x])
        opt.step([x, x])
        assert [a.committed for a in jax.tree.leaves(opt.state)] == [x.committed] * 4
        assert [a.committed for a in opt.params] == [x.committed] * 2


def test_the_number_of_threads_is_heeded(monkeypatch):
    x = np.linspace(-1, 1, 1_200_000, dtype=np.float32)  # new arrays of this size are made of large pages
    want = Adadelta(x.copy())
    want.step(np.cos(x))
    for count in ("1", "3"):
        monkeypatch.setenv("MULTIOPT_NUM_THREADS", count)
        opt = Adadelta(jnp.array(x))
        opt.step(jnp.asarray(np.cos(x)))
        assert equal(opt.params, want.params)
    monkeypatch.setenv("MULTIOPT_NUM_THREADS", "none")
    with pytest.raises(ValueError, match="MULTIOPT_NUM_THREADS: expected a positive integer"):
        opt.step(jnp.asarray(x))
    assert opt.steps == 1
