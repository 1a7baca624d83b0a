"""TensorFlow's schedules by name, and configurations that go to real Keras and come from it."""

import copy
import inspect
import json
import os
import pickle

import numpy as np
import pytest

from multiopt import keras
from multiopt import schedules as core
from multiopt.keras import schedules
from multiopt.keras.schedules import (
    CosineDecay,
    CosineDecayRestarts,
    ExponentialDecay,
    InverseTimeDecay,
    LearningRateSchedule,
    PiecewiseConstantDecay,
    PolynomialDecay,
)

EXAMPLES = [
    ExponentialDecay(0.1, 7, 0.9),
    ExponentialDecay(0.1, 7, 0.9, staircase=True),
    InverseTimeDecay(0.1, 3, 0.5),
    InverseTimeDecay(0.1, 3, 0.5, staircase=True, name="mine"),
    PolynomialDecay(1.0, 10),
    PolynomialDecay(1.0, 10, 0.01, power=2.0, cycle=True),
    PiecewiseConstantDecay([3, 7], [1.0, 0.5, 0.25]),
    CosineDecay(1.0, 10, alpha=0.1),
    CosineDecay(0.25, 10, warmup_target=1.0, warmup_steps=4),
    CosineDecayRestarts(1.0, 5),
    CosineDecayRestarts(1.0, 5, t_mul=1.5, m_mul=0.5, alpha=0.1),
]
#: What tf_keras 2.21 and Keras 3.15 wrote, word for word.
LEGACY = {
    "module": "keras.optimizers.legacy",
    "class_name": "Adadelta",
    "config": {
        "name": "Adadelta",
        "learning_rate": {
            "module": "keras.optimizers.schedules",
            "class_name": "ExponentialDecay",
            "config": {
                "initial_learning_rate": 1.0, "decay_steps": 2, "decay_rate": 0.5, "staircase": False, "name": None,
            },
            "registered_name": None,
        },
        "decay": 0.0,
        "rho": 0.95,
        "epsilon": 1e-07,
    },
    "registered_name": None,
}  # fmt: skip
TF_KERAS = {
    "module": "keras.optimizers",
    "class_name": "Adadelta",
    "config": {
        "name": "Adadelta", "weight_decay": None, "clipnorm": None, "global_clipnorm": None, "clipvalue": None,
        "use_ema": False, "ema_momentum": 0.99, "ema_overwrite_frequency": None, "jit_compile": False,
        "is_legacy_optimizer": False, "learning_rate": 0.30000001192092896, "rho": 0.95, "epsilon": 1e-07,
    },
    "registered_name": None,
}  # fmt: skip
KERAS_3 = {
    "module": "keras.optimizers",
    "class_name": "Adadelta",
    "config": {
        "name": "adadelta",
        "learning_rate": {
            "module": "keras.optimizers.schedules",
            "class_name": "CosineDecay",
            "config": {
                "initial_learning_rate": 1.0, "decay_steps": 2, "alpha": 0.0, "name": "CosineDecay",
                "warmup_target": None, "warmup_steps": 0,
            },
            "registered_name": None,
        },
        "weight_decay": None, "clipnorm": None, "global_clipnorm": None, "clipvalue": None, "use_ema": False,
        "ema_momentum": 0.99, "ema_overwrite_frequency": None, "loss_scale_factor": None,
        "gradient_accumulation_steps": None, "rho": 0.95, "epsilon": 1e-07,
    },
    "registered_name": None,
}  # fmt: skip


class Sawtooth(LearningRateSchedule):
    """A schedule of somebody's own."""

    def __init__(self, top, teeth=2):
        self.top, self.teeth = top, teeth

    def __call__(self, step):
        return self.top * (1 - step % self.teeth / self.teeth)

    def get_config(self):
        return {"top": self.top, "teeth": self.teeth}


@pytest.fixture(scope="module")
def real():
    """Keras 3, with whatever backend is there."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    return pytest.importorskip("keras")


@pytest.mark.feature("ADE:schedule")
@pytest.mark.parametrize("schedule", EXAMPLES, ids=repr)
def test_it_is_that_of_keras(schedule, real):
    theirs = real.optimizers.schedules.deserialize(schedules.serialize(schedule))
    assert type(theirs).__name__ == type(schedule).__name__
    back = schedules.deserialize(real.optimizers.schedules.serialize(theirs))
    assert back.get_config() == schedule.get_config()
    for step in range(25):
        assert isinstance(schedule(step), float)
        # Keras computes in float32: some operations, each 2^-24 of the largest rate, which is at most 1.
        assert schedule(step) == pytest.approx(float(np.asarray(theirs(step))), rel=1e-6, abs=4 * 2.0**-24)


@pytest.mark.parametrize("schedule", EXAMPLES, ids=repr)
def test_signature_and_defaults_are_those_of_keras(schedule, real):
    theirs = getattr(real.optimizers.schedules, type(schedule).__name__)
    expected = {n: p.default for n, p in inspect.signature(theirs).parameters.items()}
    assert {n: p.default for n, p in inspect.signature(type(schedule)).parameters.items()} == expected


@pytest.mark.parametrize("schedule", EXAMPLES, ids=repr)
def test_configuration(schedule):
    text = json.dumps(schedules.serialize(schedule))
    for twin in (
        schedules.deserialize(json.loads(text)),
        type(schedule).from_config(schedule.get_config()),
        copy.deepcopy(schedule),
        pickle.loads(pickle.dumps(schedule)),
    ):
        assert type(twin) is type(schedule)
        assert twin.get_config() == schedule.get_config()
        assert [twin(step) for step in range(9)] == [schedule(step) for step in range(9)]


def test_arguments_are_attributes():
    schedule = ExponentialDecay(0.1, 7, 0.9)
    assert (schedule.initial_learning_rate, schedule.decay_steps, schedule.staircase) == (0.1, 7, False)
    with pytest.raises(AttributeError, match="no attribute 'power'"):
        _ = schedule.power


@pytest.mark.parametrize(
    "schedule",
    [
        core.Constant(0.5), core.Exponential(0.1, 7, 0.9, True), core.InverseTime(0.1, 3, 0.5),
        core.Polynomial(1.0, 10, 0.1, 2.0, True), core.Piecewise([3, 7], [1.0, 0.5, 0.25]), core.Cosine(1.0, 9, 0.1),
        core.CosineRestarts(1.0, 5, 1.5, 0.5, 0.1), core.WarmUp(core.Cosine(1.0, 9), 4, 0.2),
    ],
    ids=lambda s: type(s).__name__,
)  # fmt: skip
def test_the_cores_schedules_have_names_in_keras(schedule):
    twin = schedules.deserialize(schedules.serialize(schedule))
    assert [twin(step) for step in range(25)] == [schedule(step) for step in range(25)]


def test_what_keras_has_not_and_what_is_no_configuration_is_refused():
    for wrong in ("ExponentialDecay", {}, {"class_name": "ExponentialDecay"}):
        with pytest.raises(TypeError, match="'class_name' and 'config'"):
            schedules.deserialize(wrong)
    with pytest.raises(TypeError, match="expected one that TensorFlow has too"):
        schedules.serialize(core.WarmUp(core.Constant(1.0), 4))
    with pytest.raises(TypeError, match="expected a LearningRateSchedule"):
        schedules.serialize(0.5)


@pytest.mark.feature("ABE:custom_objects")
def test_a_schedule_of_ones_own_comes_back_by_its_name():
    stored = json.loads(json.dumps(schedules.serialize(Sawtooth(0.5, 4))))
    assert stored["class_name"] == "Sawtooth"
    twin = schedules.deserialize(stored, custom_objects={"Sawtooth": Sawtooth})
    assert twin.get_config() == {"top": 0.5, "teeth": 4}
    with pytest.raises(ValueError, match="unknown class 'Sawtooth'"):
        schedules.deserialize(stored)
    opt = keras.legacy.Adadelta(Sawtooth(0.5, 4))
    twin = keras.legacy.Adadelta.from_config(opt.get_config(), custom_objects={"Sawtooth": Sawtooth})
    assert twin.get_config() == opt.get_config()


# --- optimizers ---


@pytest.mark.feature("AB:get_config", "AB:from_config")
def test_a_legacy_configuration_loads():
    opt = keras.deserialize(LEGACY)
    assert type(opt) is keras.legacy.Adadelta
    assert opt.learning_rate(2) == 0.5
    stored = json.loads(json.dumps(keras.serialize(opt)))
    assert stored == LEGACY
    older = {"class_name": "Adadelta", "config": {**LEGACY["config"], "lr": 0.5, "learning_rate": 0.5}}
    assert type(keras.deserialize(older)) is keras.legacy.Adadelta  # written before there was a later API


@pytest.mark.feature("D:get_config", "D:from_config")
@pytest.mark.parametrize("stored", [TF_KERAS, KERAS_3], ids=["tf_keras", "keras 3"])
def test_a_later_configuration_loads(stored):
    opt = keras.deserialize(stored)
    assert type(opt) is keras.Adadelta
    back = json.loads(json.dumps(keras.serialize(opt)))
    assert back["class_name"] == "Adadelta"
    assert back["module"] == "keras.optimizers"
    for key, value in stored["config"].items():
        if key in back["config"]:
            assert back["config"][key] == value


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # Keras' own, with PyTorch and NumPy 2
def test_real_keras_loads_ours(real):
    ours = keras.Adadelta(ExponentialDecay(0.5, 2, 0.9), rho=0.9, clipnorm=1.0)
    theirs = real.optimizers.deserialize(json.loads(json.dumps(keras.serialize(ours))))
    assert type(theirs).__name__ == "Adadelta"
    assert (theirs.rho, theirs.clipnorm) == (0.9, 1.0)
    again = keras.deserialize(real.optimizers.serialize(theirs))
    assert again.get_config()["learning_rate"] == ours.get_config()["learning_rate"]
    config = real.optimizers.Adadelta(0.5, weight_decay=0.1, gradient_accumulation_steps=3).get_config()
    taken = keras.Adadelta.from_config(config).get_config()
    assert taken.pop("jit_compile")
    assert taken == config == real.optimizers.Adadelta.from_config(taken).get_config()


def half():
    return 0.5


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning", "ignore:.*`lambda`:UserWarning")
def test_functions_that_keras_3_writes(real):
    """A function by its name, which is looked up; a lambda as bytecode, which is not run."""
    named = real.optimizers.serialize(real.optimizers.Adadelta(half))
    assert keras.deserialize(named, custom_objects={"half": half}).learning_rate == 0.5
    inner = {**named["config"], "learning_rate": {**named["config"]["learning_rate"], "config": "mine>half"}}
    assert keras.Adadelta.from_config(inner, custom_objects={"half": half}).learning_rate == 0.5
    with pytest.raises(ValueError, match="unknown function 'half'; give it in custom_objects"):
        keras.deserialize(named)
    stored = real.optimizers.serialize(real.optimizers.Adadelta(lambda: 0.5))
    with pytest.raises(ValueError, match=r"Keras writes a lambda as bytecode, .* put a number"):
        keras.deserialize(stored)
    stored["config"]["learning_rate"] = half
    assert keras.deserialize(stored).learning_rate == 0.5


def test_a_configuration_for_tf_keras():
    stored = keras.serialize(keras.Adadelta(0.3, jit_compile=False), to="tf_keras")
    assert stored["config"]["is_legacy_optimizer"] is False
    assert set(stored["config"]) == set(TF_KERAS["config"])
    assert keras.deserialize(stored).get_config() == keras.Adadelta(0.3, jit_compile=False).get_config()
    assert keras.serialize(keras.deserialize(LEGACY), to="tf_keras") == LEGACY
    with pytest.raises(ValueError, match="loss_scale_factor: expected None, as tf_keras has no such option"):
        keras.serialize(keras.Adadelta(loss_scale_factor=2.0), to="tf_keras")
    with pytest.raises(ValueError, match="expected 'keras' or 'tf_keras'"):
        keras.serialize(keras.Adadelta(), to="optax")
    with pytest.raises(TypeError, match=r"expected an optimizer of multiopt\.keras"):
        keras.serialize(3)


def test_get():
    opt = keras.get("Adadelta")
    assert type(opt) is keras.Adadelta
    assert keras.get(opt) is opt
    assert type(keras.get(LEGACY)) is keras.legacy.Adadelta
    with pytest.raises(ValueError, match="expected one of adadelta, got 'adam'"):
        keras.get("adam")
    with pytest.raises(TypeError, match="a name, a configuration or an optimizer"):
        keras.get(3)
    with pytest.raises(ValueError, match="unknown class 'Adam'"):
        keras.deserialize({"class_name": "Adam", "config": {}})
    with pytest.raises(TypeError, match="'class_name' and 'config'"):
        keras.deserialize({"class_name": "Adadelta"})
