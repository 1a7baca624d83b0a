"""Arrays that lie on several devices: each updates its own part, nothing is sent, and the bits are the same."""

import socket
import subprocess
import sys

import pytest
from processes import run_python

pytest.importorskip("jax")
pytest.importorskip("numba")

COMMON = """
import jax, numpy as np
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from multiopt import Adadelta
from multiopt.functional import State, init, update

rng = np.random.default_rng(0)
X = {"a": rng.standard_normal((16, 8)), "b": rng.standard_normal(64), "c": rng.standard_normal(3), "d": np.ones(())}
X = {name: x.astype(np.float32) for name, x in X.items()}
sine = lambda k: {name: np.asarray(np.sin(k * x)) for name, x in X.items()}
SPECS = {"a": P("i", "j"), "b": P(("i", "j")), "c": P(), "d": P()}
STOCHASTIC = {"state_dtype": "bfloat16", "state_rounding": "stochastic", "seed": 5}

def same(got, want):
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(*map(jax.tree.leaves, (got, want))))
"""
EIGHT = (
    COMMON
    + """
assert jax.device_count() == 8
mesh = jax.make_mesh((4, 2), ("i", "j"), axis_types=(AxisType.Auto,) * 2)
put = lambda tree, mesh=mesh: {k: jax.device_put(x, NamedSharding(mesh, SPECS[k])) for k, x in tree.items()}
G = sine(3)
want, state = update(X, G, init(X), lr=0.3)
p, g = put(X), put(G)
s = State(jnp.int32(0), {slot: put(arrays) for slot, arrays in init(X).slots.items()})
placed = lambda tree: {k: a.sharding.is_equivalent_to(p[k].sharding, a.ndim) for k, a in tree.items()}
SENT = ("all-gather", "all-reduce", "all-to-all", "collective-permute")

def check(name, step, *args):
    text = step.lower(*args).compile().as_text()
    assert "multiopt_update" in text and not any(what in text for what in SENT), name
    new = step(*args)
    assert same(new[0], want) and same(new[1].slots, state.slots), name
    assert all(placed(new[0]).values()), (name, placed(new[0]))

step = jax.jit(lambda p, g, s: update(p, g, s, lr=0.3))
check("automatic", step, p, g, s)
check("replicated gradients", step, p, {k: jax.device_put(x, NamedSharding(mesh, P())) for k, x in G.items()}, s)
new = update(p, g, s, lr=0.3)
assert same(new[0], want) and all(placed(new[0]).values())
explicit = jax.make_mesh((4, 2), ("i", "j"), axis_types=(AxisType.Explicit,) * 2)
with jax.set_mesh(explicit):
    q = put(X, explicit)
    new, _ = jax.jit(lambda p, g: update(p, g, init(p), lr=0.3))(q, put(G, explicit))
    assert same(new, want) and all(a.sharding.is_equivalent_to(q[k].sharding, a.ndim) for k, a in new.items())

own = jax.shard_map(
    lambda p, g, s, lr: update(p, g, State(0, s), lr=lr)[0], mesh=mesh,
    in_specs=(SPECS, SPECS, {slot: SPECS for slot in s.slots}, P()), out_specs=SPECS,
)
lr = np.float32(0.3)
assert same(jax.jit(own)(p, g, s.slots, lr), update(X, G, init(X), lr=float(lr))[0])
many = np.stack([X["b"]] * 8)
each = jax.pmap(lambda x: update(x, x, init(x), lr=0.3)[0])(many)
assert same(each[5], update(many[5], many[5], init(many[5]), lr=0.3)[0])
rows = jax.device_put(many, NamedSharding(mesh, P("i", "j")))
batch = jax.jit(jax.vmap(lambda x, lr: update(x, x, init(x), lr=lr)[0]))
lrs = np.linspace(0, 1, 8, dtype=np.float32)
assert not any(what in batch.lower(rows, lrs).compile().as_text() for what in SENT)
assert same(batch(rows, lrs), np.stack([update(x, x, init(x), lr=float(lr))[0] for x, lr in zip(many, lrs)]))

half, other = ({k: x.astype(jnp.bfloat16) for k, x in tree.items()} for tree in (X, G))
options = {"state_rounding": "stochastic", "seed": 7}
drawn = jax.jit(lambda p, g: update(p, g, init(p), **options))(put(half), put(other))
wanted = update(half, other, init(half), **options)
assert same(drawn[0], wanted[0]) and same(drawn[1].slots, wanted[1].slots)

for options in ({"clip_norm": 0.5, "weight_decay": 0.1}, {"clip_global_norm": 1.0, "nonfinite": "skip"}, STOCHASTIC):
    for donate in (False, True):
        one, two = Adadelta({k: x.copy() for k, x in X.items()}, **options), Adadelta(put(X), donate=donate, **options)
        assert two.bindings[0].buckets[0].engine.name == "xla"
        for k in range(3):
            grads = sine(k + 1)
            if k == 1 and "nonfinite" in options:
                grads["b"][40] = np.inf
            one.step(grads), two.step(put(grads))
        assert same(one.params, two.params) and same(one.state, two.state), options
        assert all(placed(two.params).values())
        assert one.steps == two.steps == (2 if "nonfinite" in options else 3)
        assert one.grad_norm is None or float(one.grad_norm) == float(two.grad_norm)
print("same")
"""
)
TWO = (
    COMMON
    + """
import sys
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[2], num_processes=2, process_id=int(sys.argv[1]))
mesh = jax.make_mesh((2, 2), ("i", "j"), axis_types=(AxisType.Auto,) * 2)

def put(tree):
    made = jax.make_array_from_callback
    return {k: made(x.shape, NamedSharding(mesh, SPECS[k]), lambda at, x=x: x[at]) for k, x in tree.items()}

for options in ({"clip_global_norm": 1.0}, {"clip_norm": 0.5, "nonfinite": "skip"}, STOCHASTIC):
    one, two = Adadelta({k: x.copy() for k, x in X.items()}, **options), Adadelta(put(X), **options)
    for k in range(3):
        grads = sine(k + 1)
        if k == 1 and "nonfinite" in options:
            grads["b"][40] = np.nan
        one.step(grads), two.step(put(grads))
    for name, array in two.params.items():
        for shard in array.addressable_shards:
            assert np.array_equal(np.asarray(shard.data), one.params[name][shard.index]), (options, name)
    assert (one.steps, one.skipped) == (two.steps, two.skipped)
    assert one.grad_norm is None or float(one.grad_norm) == float(two.grad_norm)
print("same")
"""
)


def devices(count):
    return {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}", "JAX_PLATFORMS": "cpu"}


def test_eight_devices():
    assert run_python(EIGHT, **devices(8)).endswith("same")


def test_two_processes(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for name, value in devices(2).items():
        monkeypatch.setenv(name, value)
    run = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, str(k), address], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for k in range(2)
    ]
    ends = [process.communicate(timeout=600) for process in run]
    assert all(out.strip().endswith("same") for out, _ in ends), [err[-3000:] for _, err in ends]
