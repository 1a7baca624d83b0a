"""Schedules against Keras, PyTorch and optax, and against their own definitions."""

import copy
import math
import os
import pickle
import warnings

import numpy as np
import pytest

from multiopt import Adadelta
from multiopt import schedules as s
from multiopt.keras import schedules as named

# Keras reads its backend when it is first imported.
os.environ.setdefault("KERAS_BACKEND", "torch")

#: One of each, with parameters that reach every branch within 60 steps.
ALL = [
    s.Constant(0.25),
    s.Exponential(0.5, 7, 0.6),
    s.Exponential(0.5, 7, 0.6, staircase=True),
    s.InverseTime(0.5, 7, 0.6),
    s.InverseTime(0.5, 7, 0.6, staircase=True),
    s.Polynomial(0.5, 20, 0.01, power=0.5),
    s.Polynomial(0.5, 20, 0.01, power=2.0, cycle=True),
    s.Piecewise([5, 11, 30], [1.0, 0.5, 0.1, 0.02]),
    s.Cosine(0.5, 20, alpha=0.1),
    s.CosineRestarts(0.5, 5, t_mul=2.0, m_mul=0.8, alpha=0.1),
    s.CosineRestarts(0.5, 5, t_mul=3.0),
    s.CosineRestarts(0.5, 5, t_mul=1.0, m_mul=0.9),
    s.WarmUp(s.Cosine(0.5, 20, alpha=0.1), steps=10, initial=0.05),
    s.WarmUp(s.WarmUp(s.Exponential(0.5, 7, 0.6), 3), steps=0),
]
assert {type(schedule).__name__ for schedule in ALL} == set(s.__all__) - {"Schedule"}


# Keras has no constant, and no warm-up but the cosine's.
@pytest.mark.parametrize("schedule", ALL[1:-1], ids=str)
def test_as_keras_computes_it(schedule):
    from keras.optimizers import schedules as keras_schedules

    theirs = keras_schedules.deserialize(named.serialize(schedule))
    for step in range(60):
        # Keras computes in float32: some roundings of 6e-8 each, in values up to 1.
        assert schedule(step) == pytest.approx(float(theirs(step)), rel=2e-6, abs=2e-7), step


@pytest.mark.parametrize(
    ("schedule", "make", "steps"),
    [
        (s.Exponential(0.5, 1, 0.9), lambda t, o: t.ExponentialLR(o, 0.9), 50),
        (s.Exponential(0.5, 7, 0.6, staircase=True), lambda t, o: t.StepLR(o, 7, 0.6), 50),
        (s.Polynomial(0.5, 20, power=1.5), lambda t, o: t.PolynomialLR(o, 20, 1.5), 30),
        (s.Piecewise([9, 19], [0.5, 0.05, 0.005]), lambda t, o: t.MultiStepLR(o, [10, 20], 0.1), 30),
        # PyTorch's formula goes up again after T_max; ours stays down, as Keras' does.
        (s.Cosine(0.5, 20, alpha=0.1), lambda t, o: t.CosineAnnealingLR(o, 20, eta_min=0.05), 21),
        (s.CosineRestarts(0.5, 5, alpha=0.1), lambda t, o: t.CosineAnnealingWarmRestarts(o, 5, 2, 0.05), 60),
        (s.CosineRestarts(0.5, 5, t_mul=1), lambda t, o: t.CosineAnnealingWarmRestarts(o, 5, 1), 60),
        (s.CosineRestarts(0.5, 5, t_mul=3), lambda t, o: t.CosineAnnealingWarmRestarts(o, 5, 3), 70),
        (s.WarmUp(s.Constant(0.5), 10, 0.05), lambda t, o: t.LinearLR(o, 0.1, 1.0, 10), 20),
    ],
    ids=lambda value: str(value) if isinstance(value, s.Schedule) else "",
)
def test_as_pytorch_computes_it(torch, schedule, make, steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    scheduler = make(torch.optim.lr_scheduler, optimizer)
    for step in range(steps):
        # Both in double; PyTorch multiplies step by step, which gathers a rounding of 1e-16 at each.
        assert schedule(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-13, abs=1e-16)
        optimizer.step()
        scheduler.step()


def test_as_optax_computes_it():
    optax = pytest.importorskip("optax")
    wave = {"init_value": 0.0, "peak_value": 0.5, "warmup_steps": 0, "end_value": 0.05}
    restarts = [{"decay_steps": n, **wave} for n in (5, 10, 20, 40)]
    pairs = [
        (s.Constant(0.25), optax.constant_schedule(0.25)),
        (s.Exponential(0.5, 7, 0.6), optax.exponential_decay(0.5, 7, 0.6)),
        (s.Exponential(0.5, 7, 0.6, staircase=True), optax.exponential_decay(0.5, 7, 0.6, staircase=True)),
        (s.Polynomial(0.5, 20, 0.01, power=2.0), optax.polynomial_schedule(0.5, 0.01, 2.0, 20)),
        (s.Cosine(0.5, 20, alpha=0.1), optax.cosine_decay_schedule(0.5, 20, alpha=0.1)),
        (s.Piecewise([4, 10], [1.0, 0.5, 0.05]), optax.piecewise_constant_schedule(1.0, {5: 0.5, 11: 0.1})),
        # optax counts the warm-up in its decay_steps.
        (s.WarmUp(s.Cosine(0.5, 20), 10, 0.05), optax.warmup_cosine_decay_schedule(0.05, 0.5, 10, 30)),
        (s.CosineRestarts(0.5, 5, alpha=0.1), optax.sgdr_schedule(restarts)),
    ]
    for ours, theirs in pairs:
        for step in range(60):
            # optax computes in float32.
            assert ours(step) == pytest.approx(float(theirs(step)), rel=2e-6, abs=2e-7), (ours, step)


def test_against_definitions():
    assert s.Exponential(0.1, 3, 0.9)(5) == 0.1 * 0.9 ** (5 / 3)  # in double
    assert s.Cosine(1.0, 7)(3) == 0.5 * (1 + math.cos(math.pi * 3 / 7))
    # A boundary belongs to the piece before.
    assert [s.Piecewise([9], [1.0, 0.1])(step) for step in (0, 9, 9.5, 10)] == [1.0, 1.0, 0.1, 0.1]
    assert s.Piecewise((), (0.3,))(5) == 0.3
    # lr/(1+.5t), as TensorFlow 2.x's Keras with decay=.5 was seen to do: 1, .667, .5, .4
    assert [s.InverseTime(1.0, 1, 0.5)(t) for t in range(4)] == pytest.approx([1, 2 / 3, 1 / 2, 2 / 5], rel=1e-15)


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_gives_python_floats_and_survives_copies_and_files(schedule, tmp_path):
    for step in (0, 3, 3.5, np.int64(3), np.float32(3.5), 10**12):
        value = schedule(step)
        assert type(value) is float
        assert 0.0 <= value <= 1.0
    Adadelta(np.ones(2), lr=schedule).save(tmp_path / "x")
    loaded = Adadelta(np.ones(2))
    loaded.load(tmp_path / "x")
    for twin in (loaded.lr, copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule))):
        assert twin == schedule
        assert hash(twin) == hash(schedule)
        assert twin(17) == schedule(17)


@pytest.mark.parametrize("t_mul", [1.0, 1.5, 2.0, 3.0, 10.0])
def test_every_restart_is_at_its_step(t_mul):
    schedule, begin, length = s.CosineRestarts(1.0, 10, t_mul=t_mul, m_mul=0.9), 0.0, 10.0
    for wave in range(8):
        # At its very step a wave is at its height: a wrong one would be down at 0. The sum of lengths and the
        # closed formula differ by some roundings, so that the phase is off by about 1e-15.
        assert schedule(begin) == pytest.approx(0.9**wave, rel=1e-12)
        begin, length = begin + length, length * t_mul


def test_warm_up_shows_its_schedule_whole_steps_from_zero():
    seen = []
    schedule = s.WarmUp(lambda step: seen.append(step) or 0.5, steps=2)
    assert [schedule(step) for step in range(4)] == [0.0, 0.25, 0.5, 0.5]
    assert seen == [0, 0, 0, 1]
    assert all(type(step) is int for step in seen)
    nested = s.WarmUp(s.WarmUp(s.Constant(1.0), steps=2), steps=2)
    assert [nested(step) for step in range(5)] == [0.0, 0.0, 0.0, 0.5, 1.0]


@pytest.mark.parametrize("schedule", ALL, ids=str)
@pytest.mark.parametrize("library", ["numpy", "array_api_strict", "jax", "jax.jit", "torch", "torch.compile"])
def test_array_steps(library, schedule):
    name, _, compiler = library.partition(".")
    make = pytest.importorskip("jax.numpy" if name == "jax" else name).asarray
    function = schedule
    with warnings.catch_warnings():
        if compiler == "jit":
            function = pytest.importorskip("jax").jit(schedule)
        elif compiler:
            torch = pytest.importorskip("torch")
            torch.compiler.reset()
            function = torch.compile(schedule, backend="eager", fullgraph=True)
            warnings.simplefilter("ignore")  # the compiler's own deprecations are not ours to mend
        for step in (0, 5, 6, 13, 20, 59):
            # Where the library's default is float32, some roundings of 6e-8.
            assert float(function(make(step))) == pytest.approx(schedule(step), rel=2e-6, abs=2e-7), step


WRONG = [
    (lambda: s.Constant("0.1"), TypeError, r"Constant\.value: expected a real number"),
    (lambda: s.Constant(-1.0), ValueError, r"Constant\.value: expected a number in \[0, inf\), got -1\.0"),
    (lambda: s.Constant(math.nan), ValueError, r"Constant\.value: .*nan"),
    (lambda: s.Constant(math.inf), ValueError, r"Constant\.value: .*inf"),
    (lambda: s.Exponential(1.0, 0, 0.5), ValueError, r"Exponential\.decay_steps: expected .*\(0, inf\), got 0"),
    (lambda: s.InverseTime(1.0, 5, -0.5), ValueError, r"InverseTime\.rate: .*got -0\.5"),
    (lambda: s.Exponential(1.0, 5, 0.5, 1), TypeError, r"Exponential\.staircase: expected True or False, got 1"),
    (lambda: s.Polynomial(1.0, 5, cycle="yes"), TypeError, r"Polynomial\.cycle: .*'yes'"),
    (lambda: s.Polynomial(1.0, 5, power=-1), ValueError, r"Polynomial\.power"),
    (lambda: s.CosineRestarts(1.0, 5, t_mul=0.5), ValueError, r"t_mul: expected a number in \[1, inf\)"),
    (lambda: s.Piecewise([5, 5], [1, 2, 3]), ValueError, r"boundaries: expected them to increase"),
    (lambda: s.Piecewise([5], [1, 2, 3]), ValueError, r"values: expected 2 of them.* got 3"),
    (lambda: s.Piecewise([5], [1, None]), TypeError, r"Piecewise\.values\[1\]: .*None"),
    (lambda: s.Piecewise(5, [1, 2]), TypeError, r"Piecewise\.boundaries: expected a sequence .*got 5"),
    (lambda: s.WarmUp(0.5, 10), TypeError, r"WarmUp\.schedule: expected a function of the step, got 0\.5"),
    (lambda: s.WarmUp(s.Constant(1.0), -1), ValueError, r"WarmUp\.steps"),
    (lambda: s.Constant(1.0)(-1), ValueError, r"step: expected .* not negative, got -1"),
    (lambda: s.Constant(1.0)(math.nan), ValueError, r"step: .*nan"),
    (lambda: s.Constant(1.0)("3"), TypeError, r"expected an array, got builtins\.str"),
    (lambda: s.Exponential(1.0, 1, 2.0)(5000), OverflowError, r"Exponential\(.*at step 5000 is too large"),
    (lambda: setattr(s.Constant(1.0), "value", 2.0), AttributeError, "value"),
]


@pytest.mark.parametrize(("make", "error", "message"), WRONG, ids=[message for *_, message in WRONG])
def test_what_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
