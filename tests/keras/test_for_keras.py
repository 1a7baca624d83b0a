"""Our Adadelta inside real Keras 3: a model is compiled, fitted, saved, reloaded and fitted again, on each backend."""

from importlib.util import find_spec

import pytest
from keras_arrays import run_example
from processes import run_python

PROGRAM = """
import os, sys, warnings
import numpy as np
# What Keras, PyTorch and JAX warn of among themselves is not ours to mend.
warnings.simplefilter("ignore")
import keras
from multiopt.keras import schedules
from multiopt.keras.for_keras import for_keras

rng = np.random.default_rng(0)
X, Y = rng.normal(size=(48, 8)).astype("float32"), rng.normal(size=(48, 3)).astype("float32")
PATH = os.environ["MODEL"]

def model(optimizer):
    keras.utils.set_random_seed(0)
    dense = keras.layers.Dense
    made = keras.Sequential([keras.Input((8,)), dense(9, "tanh"), keras.layers.BatchNormalization(), dense(3)])
    made.compile(optimizer=optimizer, loss="mse")
    return made

def fit(model, epochs=2):
    return model.fit(X, Y, epochs=epochs, batch_size=16, verbose=0, shuffle=False).history["loss"]

def host(variable):
    return np.asarray(keras.ops.convert_to_numpy(variable.value))

def agree(one, two):
    pairs = [*zip(one.variables, two.variables), *zip(one.optimizer.variables, two.optimizer.variables)]
    for a, b in pairs:
        # The same formula in another order of operations: a few float32 roundings, over six steps.
        np.testing.assert_allclose(host(a), host(b), rtol=1e-5, atol=1e-6)
"""

FIT = """
for options in (
    {"weight_decay": 0.01, "clipnorm": 0.5},
    {"global_clipnorm": 0.2, "gradient_accumulation_steps": 2},
    {"clipvalue": 0.01, "use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 3},
):
    ours, theirs = model(for_keras(1.0, **options)), model(keras.optimizers.Adadelta(1.0, **options))
    losses = fit(ours), fit(theirs)
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert losses[0][1] < losses[0][0], (options, losses)
    agree(ours, theirs)
    for a, b in zip(ours.optimizer.variables, theirs.optimizer.variables):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)

# A schedule of ours becomes one of Keras; options that are off make no difference.
scheduled = for_keras(schedules.ExponentialDecay(1.0, 2, 0.5), 0.9, 1e-6, weight_decay=0.01)
ours, theirs = model(scheduled), model(
    keras.optimizers.Adadelta(keras.optimizers.schedules.ExponentialDecay(1.0, 2, 0.5), 0.9, 1e-6, weight_decay=0.01)
)
fit(ours), fit(theirs)
agree(ours, theirs)
config = scheduled.get_config()
assert (config["rho"], config["epsilon"], config["learning_rate"]["class_name"]) == (0.9, 1e-6, "ExponentialDecay")
ours.save(PATH)
again = keras.models.load_model(PATH)
assert type(again.optimizer) is type(ours.optimizer) and again.optimizer.get_config() == config
fit(ours), fit(again)
for a, b in [*zip(ours.variables, again.variables), *zip(ours.optimizer.variables, again.optimizer.variables)]:
    assert host(a).tobytes() == host(b).tobytes(), a.path

# Weights that Keras' own optimizer trained go on here.
weights = [host(v) for v in theirs.optimizer.variables]
fresh = for_keras(schedules.ExponentialDecay(1.0, 2, 0.5), 0.9, 1e-6, weight_decay=0.01)
fresh.build(theirs.trainable_variables)
fresh.set_weights(weights)
g = [keras.ops.ones(v.shape) for v in theirs.trainable_variables]
fresh.apply(g)
one = [host(v) for v in theirs.trainable_variables]
assert int(host(fresh.iterations)) == int(weights[0]) + 1

# A shared row of an embedding: its gradients are added up, on every backend.
table = keras.Sequential([keras.Input((3,), dtype="int32"), keras.layers.Embedding(5, 2), keras.layers.Flatten()])
table.compile(optimizer=for_keras(1.0), loss="mse")
start = host(table.layers[0].embeddings)
table.fit(np.array([[1, 1, 3]]), np.zeros((1, 6), "float32"), verbose=0)
moved = host(table.layers[0].embeddings) - start
assert not moved[[0, 2, 4]].any() and moved[[1, 3]].all()
# loss = mean of squares: the gradient of a row is 2/6 of it for each time it occurs.
square = 0.05 * (np.array([2, 1])[:, None] / 3 * start[[1, 3]]) ** 2
held = host(table.optimizer._accumulated_grads[0])
np.testing.assert_allclose(held[[1, 3]], square, rtol=1e-5)

# Sparse gradients, where Keras' backend has them, with options that Keras' own may not take them with.
if keras.backend.backend() != "torch":
    rows, places = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], "float32"), [2, 0, 2]
    if keras.backend.backend() == "jax":
        from jax.experimental import sparse
        rows = sparse.BCOO((rows, np.array(places)[:, None]), shape=(4, 2))
    else:
        import tensorflow as tf
        rows = tf.IndexedSlices(tf.constant(rows), tf.constant(places), tf.constant([4, 2]))
    full = np.array([[3.0, 4.0], [0.0, 0.0], [6.0, 8.0], [0.0, 0.0]], "float32")
    for options in ({}, {"clipnorm": 1.0}, {"gradient_accumulation_steps": 2}, {"loss_scale_factor": 4.0}):
        found = []
        for g in (rows, keras.ops.convert_to_tensor(full)):
            variable = keras.Variable(np.ones((4, 2), "float32"))
            sparsely = for_keras(1.0, **options)
            for _ in range(2):
                sparsely.apply([g], [variable])
            found.append(host(variable))
        np.testing.assert_array_equal(*found)
        assert (found[0][[0, 2]] != 1).all() and (found[0][[1, 3]] == 1).all()

# Names are numbered as Keras does, together with its own.
keras.utils.clear_session()
kinds = (for_keras, keras.optimizers.Adadelta, for_keras)
assert [make().name for make in kinds] == ["adadelta", "adadelta_1", "adadelta_2"]
assert for_keras(name="mine").name == "mine"

# Half precision: computed in float32, rounded once.
keras.config.set_dtype_policy("bfloat16")
half = model(for_keras(1.0))
assert fit(half, 1)[0] > 0 and half.optimizer.variables[2].dtype == "bfloat16"

for bad, error in (({"rho": 2.0}, ValueError), ({"epsilon": -1.0}, ValueError), ({"momentum": 1.0}, ValueError)):
    try:
        for_keras(1.0, **bad)
    except error:
        continue
    raise AssertionError(bad)
if keras.backend.backend() == "torch":
    engine, = set(ours.optimizer._tensors.update.engines)
    print(engine)
"""

#: On JAX, the step that `fit` compiles holds our engine's call, and the bits are NumPy's.
ON_JAX = """
import jax, re
import multiopt.keras

held = [ours.trainable_variables, ours.non_trainable_variables, ours.optimizer.variables, ours.metrics_variables]
state = tuple([variable.value for variable in column] for column in held)
step = jax.jit(ours.train_step, donate_argnums=0).lower(state, (X[:16], Y[:16])).as_text()
print("host" if re.search(r"custom_call @multiopt", step) else "traced")

start = [rng.normal(size=shape).astype("float32") for shape in ((40, 3), (7,))]
grads = [[rng.normal(size=x.shape).astype("float32") * np.float32(scale) for x in start] for scale in (1, 1e-40, 3)]
# A rate with which rate times decay is the same number in float32 and in double.
for rate, options in ((0.3, {}), (0.5, {"weight_decay": 0.01, "clipvalue": 0.7})):
    jitted, alone = for_keras(rate, **options), multiopt.keras.Adadelta(rate, **options)
    jitted.build([keras.Variable(x) for x in start])
    params, state = [jax.numpy.array(x) for x in start], [v.value for v in jitted.variables]
    arrays = [x.copy() for x in start]
    alone.build(arrays)
    step = jax.jit(jitted.stateless_apply, donate_argnums=(0, 2))
    for g in grads:
        params, state = step(state, g, params)
        alone.apply(g)
    for a, b in zip(params, arrays):
        assert np.asarray(a).tobytes() == b.tobytes(), options
"""

RELOAD = """
from multiopt.keras.for_keras import register
try:
    keras.models.load_model(PATH)
except TypeError:
    pass  # Keras does not know the class before it is registered
else:
    raise AssertionError
register()
again = keras.models.load_model(PATH)
assert int(host(again.optimizer.iterations)) == 6
fit(again)
print("done")
"""

BACKENDS = ["torch", "jax", "tensorflow"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_trains_with_it(backend, tmp_path):
    for package in ("keras", backend):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    environment = {
        "KERAS_BACKEND": backend,
        "MODEL": str(tmp_path / "model.keras"),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
    }
    compiled = backend != "tensorflow" and find_spec("numba")
    more = ON_JAX if compiled and backend == "jax" else ""
    assert run_python(PROGRAM + FIT + more, timeout=240, **environment) == ("host" if compiled else "")
    assert run_python(PROGRAM + RELOAD, timeout=240, **environment) == "done"


def test_without_keras(monkeypatch):
    import sys

    from multiopt.keras.for_keras import for_keras

    monkeypatch.setitem(sys.modules, "keras", None)
    monkeypatch.delitem(sys.modules, "multiopt.keras.for_keras.adadelta", raising=False)
    with pytest.raises(ImportError, match="for_keras needs Keras 3"):
        for_keras()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_example(backend):
    if find_spec("keras") is None:
        pytest.skip("keras is not installed")
    (line,) = run_example("keras_three_backends.py", backend).splitlines()
    assert line.split()[0] == backend
    if find_spec(backend) is None:
        assert line.endswith("is not installed")
    else:
        assert float(line.split()[1].removesuffix("%")) > 90, line
