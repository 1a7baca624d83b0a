"""Binding arrays: what cannot be a parameter or a gradient, with nothing changed; gradients in parameters' memory."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from libraries import LIBRARIES, PLAIN, library_of, refused, snapshot

from multiopt import Adadelta

SHAPES = {"a": (2, 3), "b": (4,)}
GOOD = {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}


def train(lib):
    """An optimizer in the middle of things, with everything on."""
    opt = Adadelta(
        {name: lib.param(array) for name, array in GOOD.items()},
        engine=lib.engine, accumulate=2, ema=0.5, clip_global_norm=1.0, weight_decay=0.1,
    )  # fmt: skip
    for scale in (1, 2, 3):
        opt.step({name: lib.grad(scale * array) for name, array in GOOD.items()})
    return opt


# --- parameters ---


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool"])
def test_integer_parameters(plain, dtype):
    with pytest.raises(TypeError, match=rf"params\[1\]: expected one of the dtypes float16, .*, got {dtype}"):
        Adadelta([plain.param(np.ones(2, np.float32)), plain.param(np.ones(2, dtype))])


@pytest.mark.parametrize(
    ("params", "kind", "message"),
    [
        ([], ValueError, "params: expected at least one array, got none"),
        ({}, ValueError, "params: expected at least one array, got none"),
        (iter(()), ValueError, "params: expected at least one array, got none"),
        (None, TypeError, "params: expected an array, got builtins.NoneType"),
        ([1.0], TypeError, r"params\[0\]: expected an array, got builtins.float"),
        ({"a": [np.ones(1), None]}, TypeError, r"params\['a'\]\[1\]: expected an array, got builtins.NoneType"),
        (np.array(["a"]), TypeError, "params: expected one of the dtypes"),
        (np.array([object()]), TypeError, "params: expected one of the dtypes"),
        (np.ones(2, np.longdouble), TypeError, "params: expected one of the dtypes"),
        (np.float32(3), TypeError, "params: expected a numpy.ndarray"),
        ([{"params": np.ones(1)}, {"params": []}], ValueError, r"groups\[1\].params: expected at least one array"),
    ],
)
def test_parameters(params, kind, message):
    with pytest.raises(kind, match=message):
        Adadelta(params)


# --- gradients ---

GRADIENTS = [
    (np.ones((3, 2), np.float32), ValueError, r"expected shape \(2, 3\), .* got \(3, 2\)"),
    (np.ones((1, 3), np.float32), ValueError, r"expected shape \(2, 3\), .* got \(1, 3\)"),
    (np.array(1, np.float32), ValueError, r"expected shape \(2, 3\), .* got \(\)"),
    *(
        (np.ones((2, 3), dtype), TypeError, f"expected dtype float32, .* got {dtype}")
        for dtype in ("float64", "int32", "bool", "complex64")
    ),
    (1.0, TypeError, "expected an array, got builtins.float"),
    ("abc", TypeError, "expected an array, got builtins.str"),
    (object(), TypeError, "expected an array, got builtins.object"),
]


def test_gradients(plain):
    opt = train(plain)
    for g, kind, message in GRADIENTS:
        # The good one comes first, and must not have been applied.
        grads = {"b": plain.grad(GOOD["b"]), "a": plain.grad(g) if isinstance(g, np.ndarray) else g}
        with refused(opt, kind, rf"^grads\['a'\]: {message}"):
            opt.step(grads)


def test_two_libraries_in_one_call(plain):
    with library_of(PLAIN[PLAIN.index(plain) - 1]) as other:
        opt = train(plain)
        with refused(opt, TypeError, rf"^grads\['b'\]: expected a {plain.name} array, .* got a {other.name} array"):
            opt.step({"a": plain.grad(GOOD["a"]), "b": other.grad(GOOD["b"])})
        with pytest.raises(TypeError, match=rf"params\[1\]: expected a {plain.name} array, as params\[0\] is, got a "):
            Adadelta([plain.param(GOOD["a"]), other.param(GOOD["b"])])
        with refused(opt, TypeError, f"expected a {plain.name} array"):
            opt.add_param_group({"params": other.param(GOOD["a"])})


def test_two_devices_in_one_call():
    strict = pytest.importorskip("array_api_strict")
    devices = strict.Device("device1"), strict.Device("CPU_DEVICE")
    x, y = (strict.ones(3, dtype=strict.float32, device=device) for device in devices)
    opt = Adadelta([x, y])
    assert [str(s["square_avg"].device) for s in opt.state] == [str(a.device) for a in (x, y)]
    opt.step([strict.ones(3, dtype=strict.float32, device=device) for device in devices])
    before = [np.array(strict.asarray(a, device=y.device)) for a in (x, y)]
    with pytest.raises(ValueError, match=r"grads\[0\]: expected device .*device1.*, got .*CPU"):
        opt.step([strict.ones(3, dtype=strict.float32)] * 2)
    assert all((np.array(strict.asarray(a, device=y.device)) == b).all() for a, b in zip((x, y), before, strict=True))


@st.composite
def gradient(draw, name, lib):
    """A gradient for one parameter: good, none, or wrong in some way; and whether it is good."""
    kind = draw(st.sampled_from(["good", "good", "none", "array", "junk"]))
    if kind == "none":
        return None, True
    if kind == "junk":
        return draw(st.one_of(st.integers(), st.floats(), st.text(max_size=2), st.just({}), st.just(()))), False
    shape, dtype = SHAPES[name], "float32"
    if kind == "array":
        shape = draw(st.lists(st.integers(0, 4), max_size=3).map(tuple) | st.just(shape))
        dtype = draw(st.sampled_from(["float32", "float64", "int32", "bool", "complex64"]))
    return lib.grad(np.ones(shape, dtype)), (shape, dtype) == (SHAPES[name], "float32")


@settings(max_examples=50)
@given(data=st.data())
@pytest.mark.parametrize("name", ["torch", "array_api_strict"])
def test_any_gradients_are_taken_or_refused_whole(name, data):
    with library_of(LIBRARIES[name]) as lib:
        opt = train(lib)
    drawn = {key: data.draw(gradient(key, lib), key) for key in SHAPES}
    grads = {key: g for key, (g, _) in drawn.items()}
    if all(ok for _, ok in drawn.values()) and any(g is not None for g in grads.values()):
        before = snapshot(opt)
        opt.step(grads)
        assert snapshot(opt) != before
    else:
        with refused(opt, (TypeError, ValueError), "grads.*expected"):
            opt.step(grads)


# --- gradients in the memory of parameters ---

ALIASES = {
    "itself": lambda w: [(w[:40], w[:40])],
    "backwards": lambda w: [(w[:40], w[:40][::-1])],
    "shifted up": lambda w: [(w[:40], w[1:41])],
    "shifted down": lambda w: [(w[1:41], w[:40])],
    "the other": lambda w: [(w[:40], w[40:80]), (w[40:80], w[:40])],
    "across two": lambda w: [(w[:40], w[20:60]), (w[40:80], w[30:70])],
    "strided": lambda w: [(w[:80:2], w[:40]), (w[1:80:2], w[40:80])],
    "nested": lambda w: [(w[:80:10], w[80:88]), (w[1:9], w[18:10:-1]), (w[11:19], w[8:0:-1]), (w[21:29], w[2:10])],
    # Two wide views with others in their gaps; the second's gradient lies on an element of the first.
    "between": lambda w: [
        (w[:80:20], w[90:94]),
        (w[1:5], w[94:98]),
        (w[7:80:20], w[38:42]),
        (w[11:15], w[98:102]),
        (w[21:25], w[102:106]),
        (w[31:35], w[106:110]),
    ],
    "one for all": lambda w: [(w[:40], w[80:]), (w[40:80], w[80:])],
}


@pytest.mark.parametrize("kind", ALIASES)
@pytest.mark.parametrize("grouped", [False, True])
def test_gradients_may_lie_in_the_memory_of_parameters(kind, grouped, engine, monkeypatch):
    from multiopt.backends.engines.host import engine as host

    monkeypatch.setattr(host, "SERIAL", 0)
    monkeypatch.setattr(host, "PIECE", 7)
    results = []
    for copied, threads in [(True, "1"), (False, "1"), (False, "3")]:
        monkeypatch.setenv("MULTIOPT_NUM_THREADS", threads)
        whole = np.linspace(-3, 5, 120)
        params, grads = zip(*ALIASES[kind](whole), strict=True)
        opt = Adadelta([{"params": x} for x in params] if grouped else list(params), engine=engine, eps=0.1)
        for _ in range(2):
            opt.step([g.copy() for g in grads] if copied else list(grads))
        results.append(whole.tobytes())
    assert results[0] == results[1] == results[2]


def test_a_gradient_of_another_dtype_may_be_a_view_of_a_parameter(engine):
    results = []
    for copied in (False, True):
        x = np.linspace(1, 2, 8, dtype=np.float32)
        y, g = np.linspace(1, 2, 4), x.view(np.float64)
        opt = Adadelta([x, y], engine=engine, eps=0.5)
        opt.step([np.ones(8, np.float32), g.copy() if copied else g])
        results.append(x.tobytes() + y.tobytes())
    assert results[0] == results[1]


def test_an_average_that_was_swapped_is_rejected_before_anything_is_written():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    weights = torch.ones(3)
    opt = Adadelta([weights], ema=0.5)
    opt.step([torch.ones(3)])
    before = weights.clone()
    opt.ema_params[0].data = torch.ones(2)
    with pytest.raises(ValueError, match=r"params\[0\]: expected .* as when the optimizer was made"):
        opt.step([torch.ones(3)])
    assert torch.equal(weights, before)
    assert opt.steps == 1


def test_a_group_has_the_parameters_as_they_are_now(plain):
    opt = Adadelta([plain.param(np.ones(3, np.float32))], engine=plain.engine)
    opt.step([plain.grad(np.ones(3, np.float32))])
    assert opt.groups[0].params[0] is opt.params[0] is opt.groups[0]["params"][0]
    assert (plain.back(opt.groups[0].params[0]) < 1).all()
