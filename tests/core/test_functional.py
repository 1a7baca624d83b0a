"""The functional form: pure, over trees, the same bits eagerly, and inside the compilers of JAX and PyTorch."""

import warnings
from collections import namedtuple

import numpy as np
import pytest
from libraries import OPTIONS, gradients
from rules import ADAM, MOMENTUM_LIKE

from multiopt import Adadelta, Optimizer
from multiopt.functional import State, init, update

OPTIONS = {name: OPTIONS[name] for name in ("plain", "coupled", "decoupled", "maximize", "clip_value", "schedules")}
OPTIONS["hypers"] = {"lr": 0.3, "rho": 0.5, "eps": 1e-3}
SHAPES = {"w": (5, 3), "b": (7,), "s": ()}


def draw(rng, dtype=np.float32, subnormals=False):
    return {name: gradients(rng, shape, dtype, (-4, 3), subnormals) for name, shape in SHAPES.items()}


def put(lib, tree):
    return {name: lib.grad(array) for name, array in tree.items()}


def bits(lib, *trees):
    return [(a.dtype, a.tobytes()) for tree in trees for a in lib.backs(tree.values())]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, "float32") for name in OPTIONS), *(("coupled", dtype) for dtype in ("float64", "complex64", "float16"))],
)
def test_the_bits_are_those_of_the_optimizer(plain, name, dtype):
    options = OPTIONS[name]
    if dtype == "float16" and not plain.half:
        pytest.skip(f"{plain} has no float16")
    rng = np.random.default_rng(0)
    real = "float32" if dtype == "complex64" else dtype
    start = {name: np.asarray(a).astype(dtype) for name, a in draw(rng, np.float32).items()}
    opt = Adadelta(put(plain, start), engine="eager", **options)
    params, state = put(plain, start), init(put(plain, start))
    for _ in range(4):
        grads = {name: np.asarray(a).astype(dtype) for name, a in draw(rng, real).items()}
        opt.step(put(plain, grads))
        params, state = update(params, put(plain, grads), state, **options)
    assert state.step == 4
    held = [{name: s[slot] for name, s in opt.state.items()} for slot in ("square_avg", "acc_delta")]
    assert bits(plain, params, *state.slots.values()) == bits(plain, opt.params, *held)


def laid_out(rng, dtype, state=False):
    """Arrays of one shape, whose elements lie in memory in all manner of ways."""

    def drawn(*shape):
        made = gradients(rng, shape, dtype, (-4, 3), False)
        return np.abs(made) if state and dtype != "complex64" else made

    n, m = 70, 300
    x = drawn(n, m)
    return [
        x, np.asfortranarray(x), drawn(2 * n, m)[::2], drawn(n, 3 * m)[:, ::-3], drawn(n, m + 2)[:, 1:-1],
        drawn(m, 2 * n)[:, ::2].T, np.broadcast_to(drawn(m), (n, m)), drawn(n, 2, m)[:, 1],
        x.astype(x.dtype.newbyteorder()), np.frombuffer(b"?" + x.tobytes(), np.uint8)[1:].view(x.dtype).reshape(n, m),
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "complex64"])
@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_arrays_that_nobody_traces_get_the_compiled_engine_however_they_lie(name, dtype, monkeypatch):
    pytest.importorskip("numba", reason="numba is not installed")
    lib = pytest.importorskip(name)
    rng = np.random.default_rng(7)
    drawn = [laid_out(rng, dtype, state) for state in (False, False, True, True)]
    if name == "torch":
        fit = [i for i, a in enumerate(drawn[0]) if a.dtype.isnative and a.flags.aligned and min(a.strides) >= 0]
        drawn = [[lib.from_numpy(column[i].copy() if i == 6 else column[i]) for i in fit] for column in drawn]
        drawn[1][0] = drawn[1][0].expand_as(drawn[1][0])
        if dtype == "complex64":
            drawn[0][0], drawn[1][1] = drawn[0][0].conj(), drawn[1][1].conj().imag + 0j * drawn[1][1]
    (a, b, u, v), options = drawn, {"weight_decay": 0.1, "clip_value": 1.0}
    state = State(0, {"square_avg": u, "acc_delta": v})
    for params, grads in ((a, b), (a, b[::-1]), (a, a)):
        got = update(params, grads, state, **options)
        with monkeypatch.context() as patch:
            patch.setattr("multiopt.backends.engines.host.engine.HostEngine.compute", lambda *given, **rest: None)
            expected = update(params, grads, state, **options)
        for new, old in zip((got[0], *got[1].slots.values()), (expected[0], *expected[1].slots.values()), strict=True):
            for one, other in zip(new, old, strict=True):
                assert type(one) is type(other)
                assert one.dtype == other.dtype
                assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def test_the_compiled_engine_is_used_where_nobody_looks_on(monkeypatch, torch):
    pytest.importorskip("numba", reason="numba is not installed")
    used = []
    engine = "multiopt.backends.engines.host.engine.HostEngine.compute"
    monkeypatch.setattr(engine, lambda self, backend, *given, **rest: used.append(backend.name))
    x, t = np.ones(3, np.float32), torch.ones(3)

    def count(x, **hypers):
        used.clear()
        update(x, x, init(x), **hypers)
        return len(used)

    assert [count(x), count(t), count(torch.nn.Parameter(t)), count(x, lr=lambda step: 0.5)] == [1, 1, 1, 1]

    class Own(torch.Tensor):
        pass

    assert [count(t.as_subclass(Own)), count(t, lr=torch.tensor(0.5)), count(x, lr=np.float32(0.5))] == [0, 0, 0]
    torch.func.vmap(lambda x: update(x, x, init(x))[0])(torch.ones(2, 3))
    with torch._subclasses.FakeTensorMode() as mode:
        count(mode.from_tensor(t))
    assert used == []
    monkeypatch.setattr("numba.config.DISABLE_JIT", True)
    assert count(x) == 0


def test_it_is_pure(plain):
    rng = np.random.default_rng(1)
    params, grads = ({name: plain.param(a) for name, a in draw(rng).items()} for _ in range(2))
    state = init(params)
    before = bits(plain, params, grads, *state.slots.values())
    new, after = update(params, grads, state, weight_decay=0.1, clip_value=1.0)
    again, _ = update(params, grads, state, weight_decay=0.1, clip_value=1.0)
    assert bits(plain, params, grads, *state.slots.values()) == before
    assert bits(plain, new) == bits(plain, again)
    assert (state.step, after.step) == (0, 1)
    if plain.mutable:
        new["w"][...] = 0.0
        assert bits(plain, params, grads, *state.slots.values()) == before


def test_none_leaves_a_parameter_alone(plain):
    params = {"a": plain.grad(np.ones(2)), "b": plain.grad(np.ones(3))}
    new, state = update(params, {"a": None, "b": plain.grad(np.ones(3))}, init(params))
    assert new["a"] is params["a"]
    assert plain.host(state.slots["square_avg"]["a"]).tolist() == [0, 0]
    assert (plain.host(new["b"]) < 1).all()


def test_trees_of_any_kind(plain):
    pytest.importorskip("optree", reason="optree is not installed")
    kind = namedtuple("kind", "w rest")
    one = plain.grad(np.ones(2))
    for tree in (one, [one, one], (one,), {"b": one, "a": one}, kind(one, [one, {"z": (one,), "a": one}])):
        new, state = update(tree, tree, init(tree))
        assert type(new) is type(tree)
        assert type(state) is State
        assert type(state.slots["acc_delta"]) is type(tree)
    assert list(update({"b": one, "a": one}, {"a": one, "b": one}, init({"b": one, "a": one}))[0]) == ["b", "a"]


def test_state_dtype(plain):
    params = {"w": plain.grad(np.ones(3, np.float32)), "z": plain.grad(np.ones(3, np.complex64))}
    state = init(params, state_dtype="float64")
    new, state = update(params, params, state)
    dtypes = [plain.host(a).dtype for a in (*new.values(), *state.slots["square_avg"].values())]
    assert dtypes == ["float32", "complex64", "float64", "complex128"]


def test_what_is_rejected(plain):
    one, long, wide = (plain.grad(np.ones(n, dtype)) for n, dtype in ((2, "f4"), (3, "f4"), (2, "f8")))
    state = init([one])
    for call, kind, message in [
        (lambda: init([plain.grad(np.ones(2, np.int32))]), TypeError, r"params\[0\]: expected one of the dtypes"),
        (lambda: init([1.0]), TypeError, r"params\[0\]: expected an array, got builtins.float"),
        (lambda: init([one], state_dtype="int32"), ValueError, "state_dtype: expected one of None, 'float16'"),
        (lambda: update([one], [long], state), ValueError, r"grads\[0\]: expected shape"),
        (lambda: update([one], [wide], state), TypeError, r"grads\[0\]: expected dtype float32"),
        (lambda: update([one], [1.0], state), TypeError, r"grads\[0\]: expected an array"),
        (lambda: update([one], one, state), ValueError, "grads: expected a list or tuple, as params is"),
        (lambda: update([one], [one, one], state), ValueError, "grads: expected 1 entries"),
        (lambda: update([one, one], [one, one], state), ValueError, r"state.slots\['square_avg'\]: expected 2 entries"),
        (lambda: update([one], [one], state, rule=ADAM), TypeError, "state: expected what init"),
        (lambda: update([one], [one], None), TypeError, "state: expected what init"),
        (lambda: update([one], [one], init([long])), ValueError, r"square_avg of params\[0\]: expected shape \(2,\)"),
    ]:
        with pytest.raises(kind, match=message):
            call()
    for options, kind, message in [
        ({"rho": 2.0}, ValueError, r"rho: expected a number in \[0, 1\], got 2"),
        ({"lr": -1}, ValueError, "lr: expected a number"),
        ({"lr": lambda step: -1}, ValueError, "lr: expected a number"),
        ({"weight_decay": -1}, ValueError, "weight_decay: expected a number"),
        ({"clip_value": 0}, ValueError, "clip_value: expected a number"),
        ({"eps": 0}, ValueError, "eps: expected a number"),
        ({"eps": "1"}, TypeError, "eps: expected a real number"),
        ({"maximize": 1}, TypeError, "maximize: expected True or False"),
        ({"weight_decay": 0.1, "decoupled": 1}, TypeError, "decoupled: expected True"),
        ({"beta": 0.5}, TypeError, r"unknown \['beta'\]; expected some of lr"),
    ]:
        with pytest.raises(kind, match=message):
            update([one], [one], state, **options)


# --- inside jax.jit ---


def close(got, want):
    # The compiler contracts to FMA and XLA flushes subnormals: some roundings a step, over four steps.
    eps = np.finfo(np.float32).eps
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=50 * eps, atol=50 * eps)


def alike(params, state, other, plain):
    for name in SHAPES:
        close(params[name], other[name])
        for slot in ("square_avg", "acc_delta"):
            close(state.slots[slot][name], plain.slots[slot][name])


@pytest.mark.parametrize("name", ["decoupled", "maximize", "clip_value", "schedules"])
def test_inside_jit(jax, name):
    options = OPTIONS[name]
    compiled = jax.jit(lambda params, grads, state: update(params, grads, state, **options))
    rng = np.random.default_rng(2)
    start = draw(rng)
    params = other = {name: jax.numpy.asarray(a) for name, a in start.items()}
    state, plain = init(params), init(params)
    for _ in range(4):
        grads = {name: jax.numpy.asarray(a) for name, a in draw(rng).items()}
        params, state = compiled(params, grads, state)
        other, plain = update(other, grads, plain, **options)
    assert int(state.step) == 4
    alike(params, state, other, plain)


def test_traced_numbers_do_not_recompile(jax):
    traces = []
    step = jax.jit(lambda p, g, s, **numbers: traces.append(1) or update(p, g, s, **numbers))
    x = jax.numpy.ones(5)
    params, state, other, plain = x, init(x), x, init(x)
    # The first two differ in the type of the step: a Python number at first, an array from then on.
    for i in range(6):
        numbers = {"lr": 1.0 / (1 + i), "rho": 0.9 - i / 10, "weight_decay": i / 20}
        params, state = step(params, x * i, state, **numbers)
        other, plain = update(other, x * i, plain, **numbers)
        close(params, other)
    assert len(traces) <= 2


def test_a_rule_whose_slots_are_not_sorted_inside_jit(jax):
    # `jax.jit` gives dicts back with their keys sorted; slots are not what they are by their place.
    rule = MOMENTUM_LIKE
    assert list(rule.slots) != sorted(rule.slots)
    x = jax.numpy.linspace(-1, 1, 5)
    params, state, opt = x, init(x, rule=rule), Optimizer(rule, np.linspace(-1, 1, 5, dtype=np.float32))
    step = jax.jit(lambda p, g, s: update(p, g, s, rule=rule))
    for i in range(4):
        params, state = step(params, x + i, state)
        opt.step(np.linspace(-1, 1, 5, dtype=np.float32) + np.float32(i))
    close(params, opt.params)


def test_grad_scan_and_donation(jax):
    def loss(params):
        return sum(((a - 1) ** 2).sum() for a in jax.tree.leaves(params))

    params = {"w": jax.numpy.zeros((3, 2)), "deep": [jax.numpy.zeros(4)]}

    def body(carry, _):
        params, state = carry
        params, state = update(params, jax.grad(loss)(params), state, lr=1.0, eps=1e-2)
        return (params, state), loss(params)

    state = init(params)
    state = State(jax.numpy.asarray(0), state.slots)
    (params, state), losses = jax.lax.scan(body, (params, state), None, length=60)
    assert int(state.step) == 60
    assert losses[-1] < 0.1 * losses[0]
    step = jax.jit(lambda p, s: update(p, p, s), donate_argnums=(0, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some platforms cannot donate, and say so
        params, state = step(params, state)
    assert int(state.step) == 61


def test_vmap(jax):
    xs = jax.numpy.asarray(np.random.default_rng(0).standard_normal((4, 3)), dtype="float32")
    batched = jax.vmap(lambda x: update(x, x, init(x))[0])(xs)
    for x, new in zip(xs, batched, strict=True):
        close(new, update(x, x, init(x))[0])


def test_the_optimizer_rejects_traced_arrays(jax):
    with pytest.raises(TypeError, match=r"params: got a traced array; under jax\.jit use"):
        jax.jit(lambda x: Adadelta(x).step(x))(jax.numpy.ones(3))


# --- inside torch.compile ---


def test_inside_torch_compile(torch):
    rng = np.random.default_rng(3)
    options = {"weight_decay": 0.1, "clip_value": 1.0}

    def step(params, grads, state, lr):
        return update(params, grads, state, lr=lr, **options)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own deprecations are not ours to mend
        torch.compiler.reset()
        from torch._dynamo.testing import CompileCounterWithBackend

        counter = CompileCounterWithBackend("inductor")
        compiled = torch.compile(step, fullgraph=True, backend=counter)
        params = other = {name: torch.from_numpy(np.array(a)) for name, a in draw(rng).items()}
        state = plain = init(params)
        start = {name: tensor.clone() for name, tensor in params.items()}
        kept = dict(params)
        for i in range(5):
            grads = {name: torch.from_numpy(np.array(a)) for name, a in draw(rng).items()}
            lr = torch.tensor(1.0 / (1 + i))
            params, state = compiled(params, grads, state, lr)
            other, plain = update(other, grads, plain, lr=lr, **options)
    assert state.step == plain.step == 5
    assert all(torch.equal(kept[name], start[name]) for name in SHAPES)
    alike(params, state, other, plain)
    # Once for the first step, whose number is a constant at first, and once for all the others.
    assert counter.frame_count <= 2
