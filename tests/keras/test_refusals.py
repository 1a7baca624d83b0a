"""What Keras' faces refuse has changed nothing: no variable, none of the optimizer's, no option, no count."""

import contextlib
import math

import numpy as np
import pytest
from keras_arrays import made
from libraries import PLAIN, library_of

from multiopt import keras


class Own(keras.Adadelta):
    """With an update of its own, so that nothing is fused."""

    def update_step(self, gradient, variable, learning_rate=None):
        super().update_step(gradient, variable, learning_rate)


ALL = {"use_ema": True, "global_clipnorm": 1.0, "weight_decay": 0.1, "loss_scale_factor": 2.0}
#: Each face and kind of step.
FACES = {
    "later": (keras.Adadelta, {}),
    "later, all": (keras.Adadelta, {**ALL, "gradient_accumulation_steps": 2}),
    "own update": (Own, {**ALL, "gradient_accumulation_steps": 2}),
    "legacy": (keras.legacy.Adadelta, {"global_clipnorm": 1.0, "decay": 0.1}),
}


@pytest.fixture(params=[lib for lib in PLAIN if lib.name in ("numpy", "torch", "jax")], ids=str)
def lib(request):
    with library_of(request.param) as library:
        yield library


def variables_of(lib):
    return [made(lib, np.ones(n), d, name=str(n)) for n, d in [(3, np.float32), (4, np.float64), (2, np.float32)]]


def gradients_of(lib, variables):
    return [lib.grad(np.linspace(1, 2, v.shape[0], dtype=v.dtype)) for v in variables]


def trained(lib, face, steps=3):
    """An optimizer in the middle of a training and, if it accumulates, of an update."""
    kind, options = FACES[face]
    variables = variables_of(lib)
    opt = kind(**options)
    for _ in range(steps):
        opt.apply_gradients(zip(gradients_of(lib, variables), variables, strict=True))
    return opt, variables, gradients_of(lib, variables)


def snapshot(opt, variables):
    own = opt.variables() if callable(opt.variables) else opt.variables
    numbers = {k: v for k, v in vars(opt).items() if isinstance(v, (bool, int, float, str, type(None)))}
    return [v.numpy().tobytes() for v in [*variables, *own]], numbers, list(getattr(opt, "_seen", []))


@contextlib.contextmanager
def refused(opt, variables, kind, message=None):
    before = snapshot(opt, variables)
    with pytest.raises(kind, match=message):
        yield
    assert snapshot(opt, variables) == before


def boom():
    raise ZeroDivisionError


BAD_RATES = [
    (lambda: None, TypeError), (lambda: "x", TypeError), (lambda: math.nan, ValueError), (lambda: -1.0, ValueError),
    (lambda: np.ones(2), TypeError), (boom, ZeroDivisionError),
]  # fmt: skip


@pytest.mark.parametrize("face", FACES)
def test_learning_rates(lib, face):
    opt, variables, grads = trained(lib, face)
    for rate, kind in BAD_RATES:
        opt.learning_rate = rate
        with refused(opt, variables, kind, "learning_rate" if rate is not boom else None):
            opt.apply_gradients(zip(grads, variables, strict=True))
    # The legacy documents name ValueError alone.
    of_type = ValueError if face == "legacy" else TypeError
    for value, kind in [(None, of_type), ("0.5", of_type), (math.nan, ValueError), (-1.0, ValueError)]:
        with refused(opt, variables, kind, "learning_rate"):
            opt.learning_rate = value
    opt.learning_rate = lambda: 0.5
    opt.apply_gradients(zip(grads, variables, strict=True))


@pytest.mark.parametrize("face", FACES)
def test_gradients(lib, face):
    opt, variables, grads = trained(lib, face)
    for last, kind in [
        (lib.grad(np.ones(5, np.float32)), ValueError),
        (lib.grad(np.ones(2, np.float64)), TypeError),
        (lib.grad(np.ones(2, np.int32)), TypeError),
        ("g", TypeError),
    ]:
        with refused(opt, variables, kind):
            opt.apply_gradients(zip([*grads[:2], last], variables, strict=True))
        # The first step of all leaves no trace either.
        fresh, others = FACES[face][0](**FACES[face][1]), variables_of(lib)
        with refused(fresh, others, kind):
            fresh.apply_gradients(zip([*grads[:2], last], others, strict=True))
    with refused(opt, variables, ValueError, "for at least one of"):
        opt.apply_gradients([(None, v) for v in variables])
    opt.apply_gradients(zip(grads, variables, strict=True))


#: Options that are assigned, with what is refused.
BAD_OPTIONS = {
    "rho": [None, "0.5", math.nan, 1.5],
    "epsilon": ["0.5", math.nan, -1.0],
    "weight_decay": ["0.5", math.nan, -1.0, math.inf],
    **{name: ["0.5", math.nan, -1.0, np.ones(2), lambda: 1.0] for name in ("clipnorm", "clipvalue", "global_clipnorm")},
    "use_ema": [1, None, "yes", False],
    "ema_momentum": [None, "0.5", 1.5, math.nan],
    "ema_overwrite_frequency": ["1", 0, 1.5],
    "loss_scale_factor": ["2", 0.0, math.nan],
    "gradient_accumulation_steps": ["2", 1, 4],
}
LEGACY = ("rho", "epsilon", "clipnorm", "clipvalue", "global_clipnorm")


@pytest.mark.parametrize("face", ["later, all", "own update", "legacy"])
def test_options_are_checked_when_they_are_assigned(lib, face):
    opt, variables, grads = trained(lib, face)
    for name in LEGACY if face == "legacy" else BAD_OPTIONS:
        for value in BAD_OPTIONS[name]:
            with refused(opt, variables, (TypeError, ValueError), f"^{name}: "):
                setattr(opt, name, value)
    opt.apply_gradients(zip(grads, variables, strict=True))


def test_a_first_step_that_is_refused_builds_nothing():
    """Variables that share memory are found when they are bound, after the optimizer's own have been made."""
    memory = np.ones(6, np.float32)
    whole, part, other = keras.Variable(memory), keras.Variable(memory[2:4]), keras.Variable(np.ones(3, np.float32))
    opt = keras.Adadelta(**ALL)
    for act in (
        lambda: opt.apply_gradients([(np.ones(6, np.float32), whole), (np.ones(2, np.float32), part)]),
        lambda: opt.build([whole, "w"]),
    ):
        with refused(opt, [whole, part], (TypeError, ValueError)):
            act()
        assert not opt.built
    opt.apply_gradients([(np.ones(3, np.float32), other)])
    assert opt.built
