"""Diagnosis equation by equation: mistakes that its tables were not made from are named rightly, or not at all."""

import numpy as np
import pytest
from multiopt.conformance.data.case import Case
from multiopt.conformance.data.specification import Config
from multiopt.conformance.parity.dissection import dissect
from multiopt.conformance.parity.stepwise import steps_of
from multiopt.conformance.targets.run import record

CONFIG = Config(lr=0.7, rho=0.9, eps=1e-6)
SHAPES = ((4,), (2, 2), ())


def case_of(dtype="float32", steps=12):
    rng = np.random.default_rng(5)
    start = [np.asarray(rng.uniform(-1, 1, shape), dtype) for shape in SHAPES]
    size = lambda shape: 10.0 ** rng.integers(-3, 1, shape)  # noqa: E731
    rows = [[np.asarray(rng.standard_normal(s) * size(s), dtype) for s in SHAPES] for _ in range(steps)]
    rows[3][0][1] = rows[7][1][0, 0] = 0.0
    return Case("", dtype, CONFIG, start, rows)


class Mutant:
    """Adadelta in plain NumPy, with parts that can be replaced; each gets the optimizer and the tensor's number."""

    name = "mutant"

    def __init__(self, case, **parts):
        self.x = [x.copy() for x in case.start]
        self.v, self.u, self.d = ([np.zeros_like(x) for x in self.x] for _ in range(3))
        self.dtype, self.t, self.rho, self.eps, self.lr, self.parts = case.dtype, 0, 0.9, 1e-6, 0.7, parts

    def part(self, name, i, right):
        made = self.parts[name](self, i) if name in self.parts else right()
        return np.asarray(made, self.dtype)

    def step(self, number, gradients):
        self.t += 1
        self.row = gradients
        for i in range(len(self.x)):
            if self.parts.get("left_out", lambda s, i: False)(self, i):
                continue
            v, u, x, last = self.v[i], self.u[i], self.x[i], self.d[i]
            self.g = g = self.part("g", i, lambda i=i: gradients[i])
            self.old, self.last = v, last
            self.v[i] = self.part("v", i, lambda v=v, g=g: 0.9 * v + 0.1 * g * g)
            self.d[i] = d = self.part("d", i, lambda i=i, u=u, g=g: self.update(u, self.v[i], g))
            self.u[i] = self.part("u", i, lambda u=u, d=d: 0.9 * u + 0.1 * d * d)
            self.x[i] = self.part("x", i, lambda x=x, d=d: x - 0.7 * d)
        self.before = gradients

    def update(self, u, v, g, upper=1e-6, lower=1e-6):
        return np.sqrt(u + upper) / np.sqrt(v + lower) * g

    def states(self):
        return {"x": [*self.x], "square_avg": [*self.v], "acc_delta": [*self.u]}


def single(values):
    return np.asarray(values, np.float32).astype(float)


def u_of(k, factor):
    return lambda s, i: k * s.u[i] + factor * s.d[i] ** 2


def v_of(k, factor):
    return lambda s, i: k * s.v[i] + factor * s.g**2


def d_of(read):
    return lambda s, i: s.update(*read(s, i))


#: By what each must be called: parts, and words that all have to occur.
WRONG = {
    # Bias correction.
    "lower root": ({"d": d_of(lambda s, i: (s.u[i], s.v[i] / (1 - 0.9 ** (s.t + 1)), s.g))},
                   "lower bias correction next"),
    "upper root": ({"d": d_of(lambda s, i: (s.u[i] / (1 - 0.9**s.t), s.v[i], s.g))}, "upper acc_delta bias correction"),
    "rate": ({"x": lambda s, i: s.x[i] - 0.7 / (1 - 0.9**s.t) * s.d[i]}, "learning rate bias correction"),
    # State that is missing.
    "u is never kept": ({"u": u_of(0, 0.1)}, "acc_delta keeps nothing"),
    "u is never updated": ({"u": u_of(1, 0)}, "acc_delta stays as it was"),
    "u is forgotten": ({"d": d_of(lambda s, i: (0 * s.u[i], s.v[i], s.g))}, "upper root 0, not acc_delta"),
    "a tensor is left out": ({"left_out": lambda s, i: i == 0}, "nothing happens params[0]"),
    # The wrong slot.
    "v goes on from u": ({"v": lambda s, i: 0.9 * s.u[i] + 0.1 * s.g**2}, "square_avg old acc_delta"),
    "the upper root reads v": ({"d": d_of(lambda s, i: (s.old, s.v[i], s.g))}, "upper root square_avg wrong slot"),
    # Factors.
    "rho of u": ({"u": u_of(0.97, 0.03)}, "acc_delta decays with 0.97"),
    "rho of v": ({"v": v_of(0.8, 0.2)}, "square_avg decays with 0.8,"),
    "squares of v": ({"v": v_of(0.9, 0.3)}, "square_avg squares 3 times"),
    "squares of u": ({"u": u_of(0.9, 0.05)}, "acc_delta squares 0.5 times"),
    "upper eps": ({"d": lambda s, i: s.update(s.u[i], s.v[i], s.g, upper=4e-6)}, "upper root 4e-06, 4 times"),
    "lower eps": ({"d": lambda s, i: s.update(s.u[i], s.v[i], s.g, lower=2e-7)}, "lower root 2e-07, 0.2 times"),
    "gradients": ({"g": lambda s, i: 8 * s.row[i]}, "gradient multiplied by 8"),
    # One step late.
    "gradients of before": (
        {"g": lambda s, i: s.before[i] if s.t > 1 else 0 * s.row[i]}, "gradient is of the step before"),
    "updates of before": ({"x": lambda s, i: s.x[i] - 0.7 * s.last},
                          "parameter moves by the update of the step before"),
    "u takes the last one": ({"u": lambda s, i: 0.9 * s.u[i] + 0.1 * s.last**2},
                             "acc_delta updates of the step before"),
    "the first step is missing": ({"left_out": lambda s, i: s.t == 1}, "nothing happens at step 1"),
    # The wrong tensor.
    "gradients of another": ({"g": lambda s, i: s.row[0].reshape(2, 2) if i == 1 else s.row[i]},
                             "gradient is of the tensor before in params[1]"),
    "updates of another": ({"x": lambda s, i: s.x[i] - 0.7 * (s.d[0].reshape(2, 2) if i == 1 else s.d[i])},
                           "update of the tensor before in params[1]"),
    "the mean of a tensor": ({"v": lambda s, i: 0.9 * s.v[i] + 0.1 * np.mean(s.g**2)},
                             "square_avg mean over each tensor"),
    # Rounding in one place.
    "float32 d": ({"d": lambda s, i: single(s.update(s.u[i], s.v[i], s.g))}, "the update is rounded to float32"),
    "float32 u": ({"u": lambda s, i: single(0.9 * s.u[i] + 0.1 * s.d[i] ** 2)}, "acc_delta is rounded to float32"),
    "float32 g": ({"g": lambda s, i: single(s.row[i])}, "gradient is rounded to float32"),
    # Others, and more than one at once.
    "clipped": ({"g": lambda s, i: np.clip(s.row[i], -0.25, 0.25)}, "clipped to ±0.25"),
    "rho of v, eps": ({"v": v_of(0.8, 0.2), "d": lambda s, i: s.update(s.u[i], s.v[i], s.g, upper=3e-6)},
                      "square_avg decays with 0.8, upper root 3e-06"),
    "v late, squares of u": ({"d": d_of(lambda s, i: (s.u[i], s.old, s.g)), "u": u_of(0.9, 0.2)},
                             "lower root before the step acc_delta squares 2 times"),
    "from a step on": ({"u": lambda s, i: u_of(0.9, 0.1 if s.t < 7 else 0.4)(s, i)},
                       "acc_delta squares 4 times from step 7 on"),
}  # fmt: skip
#: What nobody can name.
NAMELESS = {
    "noise": {"d": lambda s, i: s.update(s.u[i], s.v[i], s.g) * (1 + 0.01 * np.cos(s.t + 1e3 * s.g))},
    "a curve": {"x": lambda s, i: np.tanh(s.x[i] - 0.7 * s.d[i])},
    "another average": {"v": lambda s, i: np.sin(s.v[i]) / 2 + np.exp(-(s.g**2))},
    "three at once": {"u": lambda s, i: np.sqrt(0.9 * s.u[i] + np.sin(s.d[i]) ** 2), "x": lambda s, i: np.tanh(s.x[i])},
}  # fmt: skip


def told(**parts):
    case = case_of("float64" if "float32" in parts.pop("name", "") else "float32")
    return dissect(steps_of(record(Mutant(case, **parts), case), case))


def test_the_right_one_has_nothing_to_tell():
    for dtype in ("float32", "float64"):
        case = case_of(dtype)
        (found,) = dissect(steps_of(record(Mutant(case), case), case))
        assert found.causes == ()
        assert set(found.units) == {"square_avg", "acc_delta", "x"}


@pytest.mark.parametrize("name", [name for name, (_, words) in WRONG.items() if words])
def test_mistakes_are_named_and_no_others(name):
    parts, words = WRONG[name]
    found = told(name=name, **parts)
    assert found, "not found"
    first = "; ".join(found[0].texts)
    assert all(word in first for word in words.split(" ")), first
    assert len(found) <= 4
    assert all(finding.price == found[0].price for finding in found)


@pytest.mark.parametrize("name", NAMELESS)
def test_what_is_unknown_is_not_named(name):
    assert told(**NAMELESS[name]) == []
