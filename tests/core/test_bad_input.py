"""Bad input: an error of the right type that says which parameter, what was expected and what came; nothing changes."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from libraries import LIBRARIES, PLAIN, library_of, snapshot

from multiopt import ADADELTA, Adadelta, Hyper, Optimizer, Rule


def train(lib, **options):
    """An optimizer in the middle of things, with everything on."""
    opt = Adadelta(
        {"a": lib.param(np.ones((2, 3), np.float32)), "b": lib.param(np.ones(4, np.float32))},
        engine=lib.engine,
        **{"accumulate": 2, "ema": 0.5, "clip_global_norm": 1.0, "weight_decay": 0.1, **options},
    )
    for scale in (1, 2, 3):
        opt.step({name: lib.grad(np.full(shape, scale, np.float32)) for name, shape in SHAPES.items()})
    return opt


SHAPES = {"a": (2, 3), "b": (4,)}
GOOD = {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}


def refuse(opt, act, kind, message):
    before = snapshot(opt)
    with pytest.raises(kind) as caught:
        act()
    assert re.search(message, str(caught.value)), str(caught.value)
    assert snapshot(opt) == before


# --- gradients ---

STRUCTURES = {
    "None": (None, r"grads: expected a dict, as params is, got None"),
    "array": (GOOD["a"], r"grads: expected a dict, as params is, got a ndarray"),
    "list": ([GOOD["a"], GOOD["b"]], "grads: expected a dict, as params is, got a list"),
    "missing": ({"a": GOOD["a"]}, r"missing \['b'\], unexpected \[\]"),
    "more": ({**GOOD, "c": GOOD["a"]}, r"missing \[\], unexpected \['c'\]"),
    "other": ({"a": GOOD["a"], "c": GOOD["b"]}, r"missing \['b'\], unexpected \['c'\]"),
    "nothing": ({"a": None, "b": None}, "expected at least one gradient, got None for every parameter"),
    "empty": ({}, r"missing \['a', 'b'\]"),
}


@pytest.mark.parametrize("case", STRUCTURES)
def test_structure(case):
    lib = PLAIN[0]
    grads, message = STRUCTURES[case]
    opt = train(lib)
    refuse(opt, lambda: opt.step(grads), ValueError, message)


def test_structure_of_lists_groups_and_nested():
    opt = Adadelta([np.ones(1), np.ones(1)])
    refuse(opt, lambda: opt.step([np.ones(1)]), ValueError, "grads: expected 2 entries, one for each of params, got 1")
    refuse(opt, lambda: opt.step({"a": 1}), ValueError, "grads: expected a list or tuple, as params is, got a dict")
    one = Adadelta(np.ones(1))
    refuse(one, lambda: one.step([np.ones(1)]), ValueError, "grads: expected one array, as params is, got a list")
    grouped = Adadelta([{"params": np.ones(1)}, {"params": [np.ones(1)]}])
    refuse(grouped, lambda: grouped.step(np.ones(1)), ValueError, "one entry for each of 2 groups, got a ndarray")
    refuse(grouped, lambda: grouped.step([np.ones(1)]), ValueError, "one entry for each of 2 groups, got 1 entries")
    refuse(
        grouped,
        lambda: grouped.step([np.ones(1), [np.ones(2)]]),
        ValueError,
        r"groups\[1\].grads\[0\]: expected shape \(1,\), as its parameter's, got \(2,\)",
    )
    nested = Adadelta({"x": [np.ones(1), np.ones(2)], "y": np.ones(3)})
    bad = {"x": [np.ones(1)], "y": np.ones(3)}
    refuse(nested, lambda: nested.step(bad), ValueError, r"grads: .*missing \[\"grads\['x'\]\[1\]\"\]")
    bad = {"x": (np.ones(1), np.ones(2)), "y": np.ones(3)}
    refuse(nested, lambda: nested.step(bad), ValueError, "grads: expected the structure")


ARRAYS = {
    "shape": (
        lambda lib: lib.grad(np.ones((3, 2), np.float32)),
        ValueError,
        r"expected shape \(2, 3\), .* got \(3, 2\)",
    ),
    "broadcastable": (lambda lib: lib.grad(np.ones((1, 3), np.float32)), ValueError, r"expected shape \(2, 3\)"),
    "0-d": (lambda lib: lib.grad(np.array(1, np.float32)), ValueError, r"expected shape \(2, 3\), .* got \(\)"),
    "float64": (lambda lib: lib.grad(np.ones((2, 3))), TypeError, "expected dtype float32, .* got float64"),
    "int": (lambda lib: lib.grad(np.ones((2, 3), np.int32)), TypeError, "expected dtype float32, .* got int32"),
    "bool": (lambda lib: lib.grad(np.ones((2, 3), bool)), TypeError, "expected dtype float32, .* got bool"),
    "complex": (lambda lib: lib.grad(np.ones((2, 3), np.complex64)), TypeError, "expected dtype float32.* complex64"),
    "number": (lambda lib: 1.0, TypeError, "expected an array, got builtins.float"),
    "text": (lambda lib: "abc", TypeError, "expected an array, got builtins.str"),
    "object": (lambda lib: object(), TypeError, "expected an array, got builtins.object"),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_gradients(lib, case):
    make, kind, message = ARRAYS[case]
    opt = train(lib)
    # The good one comes first, and must not have been applied.
    refuse(opt, lambda: opt.step({"b": lib.grad(GOOD["b"]), "a": make(lib)}), kind, rf"grads\['a'\]: {message}")


@pytest.mark.parametrize("other", PLAIN, ids=str)
def test_two_libraries_in_one_call(plain, other):
    if plain is other:
        pytest.skip("one library")
    with library_of(other):
        opt = train(plain)
        grads = {"a": plain.grad(GOOD["a"]), "b": other.grad(GOOD["b"])}
        message = rf"grads\['b'\]: expected a {plain.package.partition('.')[0]} array, .* got a {other.package[:4]}"
        refuse(opt, lambda: opt.step(grads), TypeError, message)
        with pytest.raises(TypeError, match=r"params\[1\]: expected a .* array, as params\[0\] is, got a "):
            Adadelta([plain.param(GOOD["a"]), other.param(GOOD["b"])])
        refuse(opt, lambda: opt.add_param_group({"params": other.param(GOOD["a"])}), TypeError, "expected a .* array")


def test_two_devices_in_one_call():
    strict = pytest.importorskip("array_api_strict")
    one = strict.Device("device1")
    x, y = (strict.ones(3, dtype=strict.float32, device=d) for d in (one, strict.Device("CPU_DEVICE")))
    opt = Adadelta([x, y])
    assert [str(s["square_avg"].device) for s in opt.state] == [str(a.device) for a in (x, y)]
    opt.step([strict.ones(3, dtype=strict.float32, device=a.device) for a in (x, y)])
    grads = [strict.ones(3, dtype=strict.float32)] * 2
    before = [np.array(strict.asarray(a, device=y.device)) for a in (x, y)]
    with pytest.raises(ValueError, match=r"grads\[0\]: expected device .*device1.*, got .*CPU"):
        opt.step(grads)
    assert all((np.array(strict.asarray(a, device=y.device)) == b).all() for a, b in zip((x, y), before, strict=True))


# --- parameters ---


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8", "bool"])
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
        ([{"params": np.ones(1)}, {"params": []}], ValueError, r"groups\[1\].params: expected at least one array"),
        ([{"params": np.ones(1), "lr": -1}], ValueError, r"groups\[0\].lr: expected a number in \[0, inf\), got -1"),
        ([{"params": np.ones(1), "learning_rate": 1}], TypeError, r"groups\[0\].learning_rate: unknown option; .*lr"),
        ([{"params": np.ones(1), "accumulate": 2}], TypeError, r"groups\[0\].accumulate: unknown option"),
        (np.float32(3), TypeError, "params: expected a numpy.ndarray"),
    ],
)  # fmt: skip
def test_parameters(params, kind, message):
    with pytest.raises(kind, match=message):
        Adadelta(params)


def test_bad_groups_are_not_added():
    opt = Adadelta([np.ones(2)])
    for group, kind, message in [
        ({"lr": 1.0}, TypeError, r"groups\[1\]: expected a mapping with 'params'"),
        (np.ones(2), TypeError, r"groups\[1\]: expected a mapping with 'params'"),
        ({"params": np.ones(2, int)}, TypeError, r"groups\[1\].params: expected one of the dtypes"),
        ({"params": np.ones(2), "rho": 2}, ValueError, r"groups\[1\].rho: expected a number in \[0, 1\], got 2"),
        ({"params": np.ones(2), "rh": 0.5}, TypeError, r"groups\[1\].rh: unknown option"),
        ({"params": opt.params[0]}, ValueError, r"groups\[1\].params: expected memory of its own"),
    ]:
        refuse(opt, lambda group=group: opt.add_param_group(group), kind, message)
        assert len(opt.groups) == 1
        assert opt.groups[0].where == ""
        opt.step([np.ones(2)])


# --- numbers ---

BAD = {
    "lr": [-1.0, math.nan, math.inf, -math.inf],
    "rho": [-0.1, 1.5, math.nan, math.inf],
    "eps": [0.0, -1e-6, math.nan, math.inf],
    "weight_decay": [-0.1, math.nan, math.inf],
    "clip_value": [0.0, -1.0, math.nan, math.inf],
    "clip_norm": [0.0, -1.0, math.nan],
    "clip_global_norm": [0.0, -1.0, math.nan],
    "loss_scale": [0.0, -1.0, math.nan, math.inf],
    "ema": [-0.1, 1.0, 1.5, math.nan],
    "accumulate": [0, -1, 1.5, True, "2", None],
    "nonfinite": ["ignore", None, True],
    "state_dtype": ["int32", "float8", np.float32, 4],
    "engine": ["gpu", None, 3],
}
OF_ANOTHER_TYPE = {
    **{name: ["0.5", None, True, [1.0], 1j, b"1", {}] for name in ("lr", "rho", "eps", "weight_decay")},
    **{name: ["0.5", True, [1.0]] for name in ("clip_value", "clip_norm", "clip_global_norm")},
    **{name: [1, 0, None, "yes", np.True_] for name in ("decoupled", "maximize")},
    "loss_scale": ["1", None, True],
    "ema": ["0.5", True],
    "unknown": [1],
    "learning_rate": [0.1],
}


@pytest.mark.parametrize("name", BAD)
def test_numbers_out_of_range(name):
    for value in BAD[name]:
        with pytest.raises(ValueError, match=rf"{name}: expected .*got|{name}: .* does not serve"):
            Adadelta(np.ones(2), **{name: value})


@pytest.mark.parametrize("name", OF_ANOTHER_TYPE)
def test_values_of_another_type(name):
    for value in OF_ANOTHER_TYPE[name]:
        with pytest.raises(TypeError, match=rf"{name}: (expected .*got|unknown option)"):
            Adadelta(np.ones(2), **{name: value})


@pytest.mark.parametrize("name", ["lr", "rho", "eps", "weight_decay", "clip_value", "clip_norm"])
def test_assigning_bad_numbers(name):
    opt = train(PLAIN[0])
    for value in BAD[name]:
        refuse(opt, lambda value=value: setattr(opt, name, value), ValueError, f"^{name}: expected a number in")
        refuse(opt, lambda value=value: opt.groups[0].update({name: value}), ValueError, f"^{name}: expected a number")
    for value in OF_ANOTHER_TYPE[name]:
        refuse(opt, lambda value=value: setattr(opt, name, value), TypeError, f"^{name}: expected a real number")


@pytest.mark.parametrize("name", ["clip_global_norm", "loss_scale", "nonfinite", "ema"])
def test_assigning_bad_options_of_the_whole(name):
    opt = train(PLAIN[0])
    for value in BAD[name]:
        refuse(opt, lambda value=value: setattr(opt, name, value), ValueError, f"^{name}: expected")


@pytest.mark.parametrize("name", ["lr", "rho", "eps", "weight_decay"])
def test_schedules_that_return_nonsense(plain, name):
    good = {"lr": 0.5, "rho": 0.5, "eps": 0.5, "weight_decay": 0.5}
    for bad, kind in [(-1.0, ValueError), (math.nan, ValueError), ("x", TypeError), (None, TypeError)]:
        opt = train(plain, **{name: lambda step, bad=bad: bad if step == 3 else good[name]}, accumulate=1)
        grads = {key: plain.grad(array) for key, array in GOOD.items()}
        refuse(opt, lambda opt=opt, grads=grads: opt.step(grads), kind, f"{name} at step 3: expected a (real )?number")


def test_a_schedule_that_raises_changes_nothing():
    def fail(step):
        raise RuntimeError("no more")

    opt = train(PLAIN[0], weight_decay=0.1)
    opt.lr = fail
    refuse(opt, lambda: opt.step(GOOD), RuntimeError, "no more")


def test_rules_that_do_not_agree_with_themselves():
    def function(xp, x, g, v, *, lr, beta):
        return x, v

    hypers = {"lr": Hyper(1.0), "beta": Hyper(0.9)}
    assert Rule("good", function, {"v": 0.0}, hypers)
    with pytest.raises(ValueError, match=r"rule 'bad': its function takes \(xp, x, g, v\), expected \(xp, x, g, w\)"):
        Rule("bad", function, {"w": 0.0}, hypers)
    with pytest.raises(ValueError, match=r"takes the keywords \['beta', 'lr'\], its hypers are \['lr'\]"):
        Rule("bad", function, {"v": 0.0}, {"lr": Hyper(1.0)})
    with pytest.raises(ValueError, match="rule: expected a rule with a hyperparameter 'lr'"):
        Optimizer(Rule("no lr", lambda xp, x, g, *, beta: (x,), {}, {"beta": Hyper(0.9)}), np.ones(1))
    with pytest.raises(TypeError):
        Optimizer(ADADELTA, np.ones(1), beta=0.5)


# --- fuzz ---

LIBS = [LIBRARIES[name] for name in ("numpy", "numpy-eager", "torch", "array_api_strict")]
DTYPES = ["float32", "float64", "int32", "bool", "complex64"]


@st.composite
def gradient(draw, name, lib):
    """A gradient for one parameter: good, none, or wrong in some way; and whether it is good."""
    kind = draw(st.sampled_from(["good", "good", "none", "shape", "dtype", "junk"]))
    if kind == "none":
        return None, True
    if kind == "junk":
        return draw(st.one_of(st.integers(), st.floats(), st.text(max_size=2), st.just({}), st.just(()))), False
    shape = draw(st.lists(st.integers(0, 4), max_size=3).map(tuple)) if kind == "shape" else SHAPES[name]
    dtype = draw(st.sampled_from(DTYPES)) if kind == "dtype" else "float32"
    return lib.grad(np.ones(shape, dtype)), (shape, dtype) == (SHAPES[name], "float32")


@given(data=st.data())
def test_any_gradients_are_taken_or_refused_whole(data):
    lib = data.draw(st.sampled_from(LIBS), "library")
    lib.need()
    opt = train(lib)
    drawn = {name: data.draw(gradient(name, lib), name) for name in SHAPES}
    grads = {name: g for name, (g, _) in drawn.items()}
    good = all(ok for _, ok in drawn.values()) and any(g is not None for g in grads.values())
    before, message = snapshot(opt), None
    try:
        opt.step(grads)
    except (TypeError, ValueError) as error:
        message = str(error)
    if good:
        assert message is None
        assert snapshot(opt) != before
    else:
        assert message is not None
        assert snapshot(opt) == before
        assert "grads" in message
        assert "expected" in message


NUMBERS = st.one_of(st.floats(), st.integers(-(10**400), 10**400), st.none(), st.booleans(), st.text(max_size=2))


@given(st.dictionaries(st.sampled_from([*BAD, "decoupled", "maximize", "betas"]), NUMBERS, min_size=1, max_size=3))
def test_any_options_make_an_optimizer_or_an_error(options):
    x = np.ones(2)
    try:
        opt = Adadelta(x, **{"engine": "eager", **options})
    except (TypeError, ValueError) as error:
        assert any(name in str(error) for name in options)  # noqa: PT017
    else:
        # What was accepted makes sense, and works.
        assert opt.lr >= 0
        assert 0 <= opt.rho <= 1
        assert opt.eps > 0
        opt.step(np.ones(2))
        assert not np.isnan(x).any() or opt.lr > 1e150 or opt.weight_decay > 1e150 or opt.loss_scale < 1e-150


@given(NUMBERS, st.sampled_from(["lr", "rho", "eps", "weight_decay", "clip_value", "clip_norm"]))
def test_any_assignment_is_taken_or_refused(value, name):
    opt = Adadelta([{"params": np.ones(1)}, {"params": np.ones(1), "lr": 0.5}], engine="eager")
    before, message = snapshot(opt), None
    try:
        setattr(opt, name, value)
    except (TypeError, ValueError) as error:
        message = str(error)
    if message is None:
        assert all(group[name] == (None if value is None else float(value)) for group in opt.groups)
    else:
        assert snapshot(opt) == before
        assert message.startswith(f"groups[0].{name}: expected")
