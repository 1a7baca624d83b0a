"""State that moves between frameworks: what one began, another continues with the same trajectory."""

from importlib.util import find_spec

import numpy as np
import pytest
from processes import run_python

import multiopt
from multiopt import convert
from multiopt import keras as ours
from multiopt.keras import schedules
from multiopt.keras.legacy import Adadelta as Legacy

SHAPES = [(3, 4), (5,), ()]
#: Hyperparameters that float32 holds, so that no framework rounds them; decoupled decay where there is one.
HYPERS = {"lr": 0.5, "rho": 0.75, "eps": 2.0**-10}
KERAS = {"learning_rate": 0.5, "rho": 0.75, "epsilon": 2.0**-10}
#: Frameworks order the operations differently: a few roundings of float64 a step.
CLOSE = {"rtol": 1e-13, "atol": 1e-15}


def numbers(seed):
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.normal(size=shape)) for shape in SHAPES]


def run(opt, params, steps, apply):
    for t in steps:
        apply(opt, [np.asarray(np.cos(x + t)) for x in numbers(7)], params)


def core(**options):
    params = numbers(0)
    return multiopt.Adadelta(params, **{**HYPERS, **options}), params


def step(opt, grads, params):
    opt.step(grads)


def apply(opt, grads, params):
    opt.apply_gradients(zip(grads, params, strict=True))


def expected(steps, **options):
    opt, params = core(**options)
    run(opt, params, range(steps), step)
    return opt, params


def same(params, others, **close):
    for a, b in zip(params, others, strict=True):
        np.testing.assert_allclose(np.asarray(a), b, **close or {"rtol": 0})


def ours_keras(**options):
    params = numbers(0)
    opt = ours.Adadelta(**KERAS, **options)
    opt.build(params)
    return opt, params, apply


def ours_legacy(**options):
    params = [ours.Variable(x) for x in numbers(0)]
    opt = Legacy(**KERAS, **options)
    opt._create_all_weights(params)
    return opt, params, apply


def ours_core(**options):
    return *core(**options), step


@pytest.mark.parametrize("target", [ours_core, ours_keras, ours_legacy])
@pytest.mark.parametrize("source", [ours_core, ours_keras, ours_legacy])
def test_ours_continue_each_other_bit_for_bit(source, target):
    _, want = expected(9)
    opt, params, drive = source()
    run(opt, params, range(4), drive)
    state = convert.State.of(opt)
    assert state.steps == 4
    assert {name: state.options[name] for name in HYPERS} == HYPERS
    other, fresh, drive = target()
    for x, now in zip(fresh, params, strict=True):
        (x.value if isinstance(x, ours.Variable) else x)[...] = np.asarray(now)
    state.into(other)
    run(other, fresh, range(4, 9), drive)
    same(fresh, want)
    assert convert.State.of(other).steps == 9


def test_averages_and_options_move_too():
    options = {"weight_decay": 0.1, "ema": 0.5, "clip_value": 0.5, "clip_global_norm": 0.75, "accumulate": 2}
    opt, params = core(decoupled=True, **options)
    run(opt, params, range(4), step)
    state = convert.State.of(opt)
    twin = ours.Adadelta.from_config(convert.keras_config(state))
    assert twin.get_config() == {
        **ours.Adadelta().get_config(), **KERAS, "weight_decay": 0.1, "clipvalue": 0.5, "global_clipnorm": 0.75,
        "gradient_accumulation_steps": 2, "use_ema": True, "ema_momentum": 0.5,
        "loss_scale_factor": 1.0,
    }  # fmt: skip
    boxes = [x.copy() for x in params]
    twin.build(boxes)
    state.into(twin)
    assert int(twin.iterations) == 2
    back = convert.State.of(twin)
    assert back.options.items() <= state.options.items()
    assert state.options.keys() - back.options.keys() == {"clip_norm", "maximize"}
    for slot in ("square_avg", "acc_delta", "average"):
        same(getattr(state, slot), getattr(back, slot))
    run(opt, params, range(2), step)
    run(twin, boxes, range(2), apply)
    same(boxes, params)
    twin.apply_gradients([(np.zeros_like(boxes[0]), boxes[0])] + [(np.zeros_like(x), x) for x in boxes[1:]])
    with pytest.raises(ValueError, match="finish them first"):
        convert.State.of(twin)
    plain = core()[0]
    with pytest.raises(ValueError, match="average: expected"):
        state.into(plain)


def small(**options):
    return convert.State(1, [np.zeros(2)], [np.zeros(2)], options=options)


WRONG_SHAPE = convert.State(1, numbers(1), [np.zeros(2), *numbers(1)[1:]])
TWO_GROUPS = [{"params": numbers(0), "lr": 0.5}, {"params": numbers(1)}]
WEIGHTS = [np.array(3), *[np.zeros(2)] * 3]
HALF_DONE = [np.array(3), np.array(0.5), *[np.zeros(2)] * 3]


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: convert.keras_config(small(weight_decay=0.1, decoupled=False)), "coupled decay"),
        (lambda: convert.keras_config(small(maximize=True)), "maximize"),
        (lambda: convert.to_torch(small(weight_decay=0.1, decoupled=True)), "decoupled decay"),
        (lambda: convert.to_torch(small(clip_value=0.1)), "clip_value"),
        (lambda: convert.from_keras(HALF_DONE, {"gradient_accumulation_steps": 2}), "finish them first"),
        (lambda: convert.from_tf_keras(WEIGHTS), "a counter and 2 arrays for each"),
        (lambda: convert.from_tf_keras_legacy(WEIGHTS), "a counter and 2 arrays for each"),
        (lambda: convert.State.of(3), "expected an Adadelta"),
        (lambda: convert.State.of(ours.Adadelta()), "built"),
        (lambda: convert.State.of(multiopt.Adadelta(TWO_GROUPS)), "same options"),
        (lambda: convert.from_optax((1, 2)), "one ScaleByAdaDeltaState"),
        (lambda: convert.to_keras(convert.State(1, [None], [None])), "which never had gradients"),
        (lambda: small().into(core()[0]), "square_avg: expected 3 arrays"),
        (lambda: WRONG_SHAPE.into(core()[0]), r"acc_delta\[0\]: expected shape \(3, 4\)"),
        (lambda: WRONG_SHAPE.into(ours_keras()[0]), r"acc_delta\[0\]: expected shape \(3, 4\)"),
        (lambda: small().into(ours_keras()[0]), "square_avg: expected 3 arrays"),
    ],
)
def test_what_would_mean_something_else_is_rejected(act, message):
    with pytest.raises(TypeError if "Adadelta" in message else ValueError, match=message):
        act()


def test_configurations():
    config = {"learning_rate": np.float32(0.5), "decay": 0.25, "rho": 0.75, "epsilon": 1e-7}
    options = convert.from_tf_keras_legacy([np.array(0)], config).options
    assert options == {"lr": multiopt.schedules.InverseTime(0.5, 1.0, 0.25), "rho": 0.75, "eps": 1e-7}
    rate = schedules.ExponentialDecay(0.5, 10, 0.75)
    scheduled = ours.Adadelta(rate)
    scheduled.build([np.zeros(2)])
    found = convert.State.of(scheduled).options["lr"]
    assert [found(t) for t in range(3)] == [rate(t) for t in range(3)]
    assert convert.keras_config(convert.State.of(scheduled))["learning_rate"] == schedules.serialize(rate)
    with pytest.raises(ValueError, match="decay"):
        convert.from_tf_keras_legacy([np.array(0)], {"learning_rate": schedules.serialize(rate), "decay": 0.1})


# --- PyTorch ---


@pytest.mark.parametrize("kind", ["torch.optim", "multiopt.torch"])
def test_pytorch(kind):
    torch = pytest.importorskip("torch")
    make = torch.optim.Adadelta if kind == "torch.optim" else __import__("multiopt.torch").torch.Adadelta
    options = {"weight_decay": 0.125}

    def optimizer():
        params = [torch.nn.Parameter(torch.tensor(x)) for x in numbers(0)]
        return make(params, **HYPERS, **options), params

    def drive(opt, grads, params):
        for p, g in zip(params, grads, strict=True):
            p.grad = torch.tensor(g)
        opt.step()

    _, want = expected(9, **options)
    opt, params = optimizer()
    run(opt, params, range(4), drive)
    state = convert.State.of(opt)
    assert state.steps == 4
    assert state.options == {**HYPERS, **options, "maximize": False, "decoupled": False}
    # PyTorch to NumPy.
    arrays = [p.detach().numpy().copy() for p in params]
    continued = multiopt.Adadelta(arrays, **state.options)
    state.into(continued)
    run(continued, arrays, range(4, 9), step)
    same(arrays, want, **CLOSE)
    # NumPy to PyTorch, by the object and by plain data.
    begun, arrays = expected(4, **options)
    for way in ("object", "data"):
        opt, params = optimizer()
        for p, x in zip(params, arrays, strict=True):
            p.data.copy_(torch.tensor(x))
        if way == "object":
            convert.State.of(begun).into(opt)
        else:
            plain = convert.to_torch(convert.State.of(begun))
            assert all(isinstance(a, np.ndarray) for entry in plain["state"].values() for a in entry.values())
            tensors = {i: {k: torch.tensor(a) for k, a in e.items()} for i, e in plain["state"].items()}
            opt.load_state_dict({**plain, "state": tensors})
        run(opt, params, range(4, 9), drive)
        same([p.detach() for p in params], want, **CLOSE)


@pytest.mark.parametrize("kind", ["torch.optim", "multiopt.torch"])
def test_pytorch_parameters_that_never_had_a_gradient(kind):
    # There is no state of them: zeros, of a state_dict unknown until a target says the shapes.
    torch = pytest.importorskip("torch")
    make = torch.optim.Adadelta if kind == "torch.optim" else __import__("multiopt.torch").torch.Adadelta
    opt = make([torch.nn.Parameter(torch.tensor(x)) for x in numbers(0)])
    opt.param_groups[0]["params"][0].grad = torch.ones(SHAPES[0], dtype=torch.float64)
    opt.step()
    state, saved = convert.State.of(opt), convert.from_torch(opt.state_dict())
    assert [a.shape for a in state.square_avg] == SHAPES
    assert [a.dtype.name for a in state.acc_delta] == ["float64"] * 3
    assert saved.square_avg[1] is None is saved.acc_delta[2]
    assert len(convert.to_keras(state)) == 2 + 2 * len(SHAPES)
    with pytest.raises(ValueError, match=r"none for \[1, 2\].*knows the shapes"):
        convert.to_keras(saved)
    for given in (state, saved):
        for target in (core()[0], ours_keras()[0], ours_legacy()[0], make(opt.param_groups[0]["params"])):
            assert given.into(target) is target
            found = convert.State.of(target)
            for slot in ("square_avg", "acc_delta"):
                same(getattr(found, slot), getattr(state, slot))
            assert state.square_avg[0].all()
            assert not state.square_avg[1].any()


# --- optax ---


@pytest.mark.parametrize("rate", [0.5, "schedule"])
def test_optax(rate):
    optax = pytest.importorskip("optax")
    jax = pytest.importorskip("jax")
    names = ["w", "b", "a"]  # JAX sorts them
    schedule = multiopt.schedules.Exponential(0.5, 2.0, 0.5) if rate == "schedule" else 0.5

    def tree(arrays):
        return dict(zip(names, map(jax.numpy.asarray, arrays), strict=True))

    tx = optax.adadelta(schedule, rho=0.75, eps=2.0**-10)

    def drive(held, grads, params):
        updates, held["state"] = tx.update(tree(grads), held["state"], params)
        params.update(optax.apply_updates(params, updates))

    with (
        jax.enable_x64(True) if hasattr(jax, "enable_x64") else __import__("jax.experimental").experimental.enable_x64()
    ):
        _, want = expected(9, lr=schedule)
        params = tree(numbers(0))
        held = {"state": tx.init(params)}
        run(held, params, range(4), drive)
        state = convert.from_optax(held["state"], params=dict.fromkeys(names))
        assert state.steps == (4 if rate == "schedule" else 0)
        arrays = [np.array(params[name]) for name in names]
        continued = multiopt.Adadelta(arrays, **{**HYPERS, "lr": schedule})
        state.into(continued)
        run(continued, arrays, range(4, 9), step)
        same(arrays, want, **CLOSE)
        # And back.
        begun, arrays = expected(4, lr=schedule)
        params = tree(arrays)
        held = {"state": convert.to_optax(convert.State.of(begun), like=tx.init(params), params=dict.fromkeys(names))}
        run(held, params, range(4, 9), drive)
        same([params[name] for name in names], want, **CLOSE)
        # In the state's own order: JAX sorts the names.
        resumed = convert.from_optax(held["state"]).into(tx.init(params))
        assert jax.tree.structure(resumed) == jax.tree.structure(held["state"])
        for a, b in zip(jax.tree.leaves(resumed), jax.tree.leaves(held["state"]), strict=True):
            np.testing.assert_array_equal(a, b)
        unused = convert.State(1, [None] * 3, [None] * 3).into(tx.init(params))
        assert not any(leaf.any() for leaf in jax.tree.leaves(unused[0]))
        assert convert.to_optax(state)["e_g"][0].shape == SHAPES[0]


# --- Keras ---

PRELUDE = """
import warnings
warnings.simplefilter("ignore")  # what the frameworks warn of among themselves
import numpy as np
import multiopt
from multiopt import convert, keras as ours
SHAPES = [(3, 4), (5,), ()]
rng = np.random.default_rng(0)
start = [np.asarray(rng.normal(size=s)) for s in SHAPES]
KERAS = {"learning_rate": 0.5, "rho": 0.75, "epsilon": 2.0**-10}

def grads(t):
    return [np.asarray(np.cos(np.arange(x.size).reshape(x.shape) + t)) for x in start]

def check(real, drive, host, face, close):
    # What a framework's optimizer began, it continues itself, and so do the core, our optimizer for Keras and a twin.
    opt, variables = real(start)
    for t in range(4):
        drive(opt, variables, t)
    state, values = convert.State.of(opt), [host(v) for v in variables]
    averaged, mine, back = "ema" in state.options, None, None
    arrays = [np.array(x) for x in values]
    core = multiopt.Adadelta(arrays, **state.options)
    if not averaged:
        state.into(core)
    if face:
        boxes = [ours.Variable(x) for x in values]
        mine = face.from_config(opt.get_config() if face is ours.legacy.Adadelta else convert.keras_config(state))
        getattr(mine, "_create_all_weights" if face is ours.legacy.Adadelta else "build")(boxes)
        state.into(mine)
        back, backs = real(values)
        convert.State.of(mine).into(back)
    for t in range(4, 8):
        drive(opt, variables, t)
        core.step(grads(t))
        if face:
            mine.apply_gradients(zip(grads(t), boxes))
            drive(back, backs, t)
    for i, v in enumerate(variables):
        if not averaged:
            np.testing.assert_allclose(arrays[i], host(v), **close)
        if face:
            np.testing.assert_allclose(boxes[i].numpy(), host(v), **close)
            np.testing.assert_array_equal(host(backs[i]), host(v))
    if face:
        held = [o.variables() if callable(o.variables) else o.variables for o in (opt, back)]
        for a, b in zip(*held, strict=True):
            np.testing.assert_array_equal(host(a), host(b))
    return state, opt
"""
#: Keras 3, on PyTorch. Its norm passes through float32 there, and the schedule does too.
KERAS3 = """
import keras
keras.config.set_floatx("float64")

def real(values):
    variables = [keras.Variable(x, dtype="float64") for x in values]
    opt = keras.optimizers.Adadelta(**{**KERAS, **options})
    opt.build(variables)
    return opt, variables

def drive(opt, variables, t):
    opt.apply([keras.ops.convert_to_tensor(g) for g in grads(t)], variables)

def host(v):
    return np.array(keras.ops.convert_to_numpy(v.value))

for options in (
    {},
    {"weight_decay": 0.125, "clipnorm": 0.5},
    {"gradient_accumulation_steps": 2, "use_ema": True, "ema_momentum": 0.5},
    {"learning_rate": keras.optimizers.schedules.ExponentialDecay(0.5, 2, 0.5)},
):
    close = {"rtol": 1e-6, "atol": 1e-7} if options else {"rtol": 1e-13, "atol": 1e-15}
    state, opt = check(real, drive, host, ours.Adadelta, close)
    assert state.steps == (2 if "gradient_accumulation_steps" in options else 4)
    by_object, by_data = convert.State.of(opt), convert.from_keras([host(v) for v in opt.variables], opt.get_config())
    for a, b in zip(by_object.square_avg + by_object.acc_delta, by_data.square_avg + by_data.acc_delta, strict=True):
        assert np.array_equal(a, b)
print("done")
"""
#: All hyperparameters but lr under decay are exact in float32.
TF_KERAS = """
import tensorflow as tf, tf_keras

def real(values):
    variables = [tf.Variable(x) for x in values]
    opt = kind(**KERAS, **options)
    (opt._create_all_weights if hasattr(opt, "_create_all_weights") else opt.build)(variables)
    return opt, variables

def drive(opt, variables, t):
    opt.apply_gradients(zip(map(tf.constant, grads(t)), variables))

new, legacy = tf_keras.optimizers.Adadelta, tf_keras.optimizers.legacy.Adadelta
for kind, face, options in (
    (legacy, ours.legacy.Adadelta, {}),
    (legacy, None, {"decay": 0.5}),
    (new, ours.Adadelta, {}),
    (new, ours.Adadelta, {"weight_decay": 0.125, "use_ema": True, "ema_momentum": 0.5}),
):
    close = {"rtol": 1e-6, "atol": 1e-7} if "decay" in options else {"rtol": 1e-13, "atol": 1e-15}
    assert check(real, drive, lambda v: v.numpy().copy(), face, close)[0].steps == 4
print("done")
"""


@pytest.mark.parametrize(
    ("framework", "code", "environment"),
    [
        ("keras", KERAS3, {"KERAS_BACKEND": "torch"}),
        ("tf_keras", TF_KERAS, {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}),
    ],
    ids=["keras", "tf_keras on tensorflow"],
)
def test_keras(framework, code, environment):
    if find_spec(framework) is None or (framework == "keras" and find_spec("torch") is None):
        pytest.skip(f"{framework} or torch is not installed")
    assert run_python(PRELUDE + code, **environment) == "done"


def test_no_framework_is_imported():
    code = (
        "import sys, numpy as np, multiopt; from multiopt import convert\n"
        "opt = multiopt.Adadelta([np.ones(3)]); state = convert.State.of(opt)\n"
        "convert.to_torch(state), convert.to_keras(state), convert.to_optax(state), convert.keras_config(state)\n"
        "print([m for m in ('torch', 'jax', 'keras', 'tensorflow', 'optax') if m in sys.modules])"
    )
    assert run_python(code) == "[]"
