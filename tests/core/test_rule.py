"""Rules of one's own: on every library and engine, with every option, with the same bits."""

import pickle

import numpy as np
import pytest
from libraries import LIBRARIES, gradients
from rules import ADAM, DESCENT, RULES

from multiopt import ADADELTA, Hyper, Optimizer, Rule, functional

#: Rules that divide an array by a number.
DIVIDES_BY_A_NUMBER = ("adam", "cubic")


def run(library, rule, dtype, subnormals, **options):
    rng = np.random.default_rng(0)
    shapes = [(5,), (), (33, 65)]
    opt = Optimizer(
        rule, library.params([np.asarray(rng.standard_normal(s)).astype(dtype) for s in shapes]),
        engine=library.engine, **options,
    )  # fmt: skip
    for _ in range(6):
        grads = [gradients(rng, s, dtype, (-12, 6) if subnormals else (-4, 3), subnormals) for s in shapes]
        opt.step(library.grads(grads))
    arrays = [*opt.params, *(s[slot] for s in opt.state for slot in rule.slots)]
    return library.backs(arrays)


def assert_same(rule, library, got, expected):
    for a, b in zip(got, expected, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if library.name == "jax" and rule in DIVIDES_BY_A_NUMBER:
            # XLA multiplies by the reciprocal there: a rounding more, at each step, and what becomes of it in six.
            np.testing.assert_allclose(a, b, rtol=1e2 * np.finfo(a.dtype).eps, atol=10 * np.finfo(a.dtype).eps)
        else:
            assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "float32") for name in RULES), ("adam", "float64"), ("cubic", "float64")]
)
def test_every_rule_has_the_same_bits_everywhere(plain, name, dtype):
    question = (RULES[name], dtype, plain.subnormals)
    assert_same(name, plain, run(plain, *question), run(LIBRARIES["numpy-eager"], *question))


@pytest.mark.parametrize("name", ["adam", "rmsprop"])
def test_every_option_comes_with_it(plain, name):
    options = {
        "weight_decay": 0.1, "maximize": True, "clip_value": 1.0, "clip_norm": 0.5, "accumulate": 2, "ema": 0.9,
        "lr": lambda step: 0.1 / (1 + step), "loss_scale": 8.0, "state_dtype": "float64",
    }  # fmt: skip
    question = (RULES[name], "float32", plain.subnormals)
    assert_same(name, plain, run(plain, *question, **options), run(LIBRARIES["numpy-eager"], *question, **options))


def test_adam_is_adam():
    """Against the textbook, in its own words, where the first step of Adam is lr times the sign."""
    x = np.array([1.0, -2.0, 3.0])
    opt = Optimizer(ADAM, x, lr=0.25)
    opt.step(np.array([5.0, -0.01, 1e3]))
    # eps is a millionth of the smallest gradient here.
    np.testing.assert_allclose(x, [0.75, -1.75, 2.75], rtol=1e-6)


def test_rules_with_other_state_and_without_any(plain, tmp_path):
    opt = Optimizer(RULES["cubic"], [plain.param(np.ones((2, 3)))])
    assert plain.host(opt.state[0]["peak"]).tolist() == [[0.5] * 3] * 2  # the slot's value at the start
    opt = Optimizer(DESCENT, {"x": plain.param(np.ones(3))}, engine=plain.engine)
    out = opt.step({"x": plain.grad(np.ones(3))})
    assert plain.host(out["x"]).tolist() == [0.9] * 3
    assert opt.state == {"x": {}}
    opt.save(tmp_path / "x")
    opt.load(tmp_path / "x")
    opt.load_state_dict(opt.state_dict())


def test_a_rules_own_hypers_are_options(plain):
    opt = Optimizer(ADAM, [plain.param(np.ones(2))], beta1=0.5, engine=plain.engine)
    opt["beta2"] = 0.75
    with pytest.raises(AttributeError):  # no attribute is made of a name that is not one
        opt.beta2 = 0.75
    assert (opt["beta1"], opt.groups[0]["beta2"]) == (0.5, 0.75)
    with pytest.raises(ValueError, match="beta1: expected a number in"):
        opt["beta1"] = 2.0
    with pytest.raises(TypeError, match="rho: unknown option; expected one of lr, beta1, beta2, eps, weight_decay"):
        Optimizer(ADAM, np.ones(2), rho=0.5)


def branching(xp, x, g, *, lr):
    if lr > 0.5:
        return (x - lr * g,)
    return (x - g,)


def summing(xp, x, g, *, lr):
    return (x - lr * g / (1 + xp.max(abs(g))),)


@pytest.mark.parametrize("function", [branching, summing])
def test_a_rule_that_cannot_be_compiled_runs_eagerly_and_says_so(function, numba):
    rule = Rule(function.__name__, function, {}, {"lr": Hyper(0.1)})
    x = np.ones(3)
    with pytest.warns(
        RuntimeWarning, match=r"test_rule.py:\d+: cannot trace .*; the eager engine runs it instead, slower"
    ):
        opt = Optimizer(rule, x)
    assert "engine=eager" in repr(opt)
    opt.step(np.ones(3))
    assert x[0] == pytest.approx({"branching": 0.0, "summing": 0.95}[function.__name__])
    opt.clip_norm = 0.5  # another program, which cannot be compiled either
    opt.step(np.ones(3))
    assert opt.steps == 2
    with pytest.raises(TypeError, match="cannot trace"):
        Optimizer(rule, np.ones(3), engine="host")


def test_rules_are_values():
    twin = pickle.loads(pickle.dumps(ADADELTA))
    assert twin == ADADELTA
    assert hash(twin) == hash(ADADELTA)
    assert Rule("adadelta", ADADELTA.function, {"square_avg": 1.0, "acc_delta": 0.0}, ADADELTA.hypers) != ADADELTA
    assert RULES["adam"] != ADADELTA
    assert repr(ADADELTA) == "Rule('adadelta', slots=(square_avg, acc_delta), lr=1, rho=0.9, eps=1e-06)"
    with pytest.raises(TypeError):
        ADADELTA.slots["more"] = 0.0


def test_rules_that_do_not_agree_with_themselves():
    def function(xp, x, g, v, *, lr, beta):
        return x, v

    hypers = {"lr": Hyper(1.0), "beta": Hyper(0.9)}
    assert Rule("good", function, {"v": 0.0}, hypers)
    with pytest.raises(ValueError, match=r"rule 'bad': its function takes \(xp, x, g, v\), expected \(xp, x, g, w\)"):
        Rule("bad", function, {"w": 0.0}, hypers)
    with pytest.raises(ValueError, match=r"takes the keywords \['beta', 'lr'\], its hypers are \['lr'\]"):
        Rule("bad", function, {"v": 0.0}, {"lr": Hyper(1.0)})
    with pytest.raises(ValueError, match=r"rule 'bad': slots called \['ema'\]; checkpoints call others so"):
        Rule("bad", lambda xp, x, g, ema, *, lr: (x, ema), {"ema": 0.0}, {"lr": Hyper(1.0)})
    with pytest.raises(ValueError, match="rule: expected one with a hyperparameter 'lr'"):
        Optimizer(Rule("no lr", lambda xp, x, g, *, beta: (x,), {}, {"beta": Hyper(0.9)}), np.ones(1))
    with pytest.raises(TypeError):
        Optimizer(ADADELTA, np.ones(1), beta=0.5)


def test_a_rule_that_returns_updates():
    rule = Rule("steps", lambda xp, x, g, *, lr: (-lr * g,), {}, {"lr": Hyper(0.5)}, returns_update=True)
    assert Rule(*rule.__reduce__()[1]) == rule
    x, g = np.ones(2), np.full(2, 4.0)
    updates, _ = functional.update(x, g, functional.init(x, rule=rule), rule=rule, weight_decay=2.0)
    assert updates.tolist() == [-3.0, -3.0]
    with pytest.raises(ValueError, match="decoupled: expected False, for the rule returns updates"):
        functional.update(x, g, functional.init(x, rule=rule), rule=rule, weight_decay=2.0, decoupled=True)
    with pytest.raises(ValueError, match=r"rule: expected one .* that returns parameters"):
        Optimizer(rule, x)
