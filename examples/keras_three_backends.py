"""One Keras model, trained with multiopt's Adadelta on each backend that is installed: PyTorch, JAX, TensorFlow.

Run it with ``python examples/keras_three_backends.py``, or name some of them: ``... tensorflow``. It needs Keras 3
(``pip install keras``) and a backend. Each backend gets a process of its own, because Keras chooses one for the whole
process. On each, the model is trained, saved, loaded, and trained on; then NumPy alone takes the same optimizer state
for a step.
"""

import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec

BACKENDS = ("torch", "jax", "tensorflow")


def train() -> None:
    import keras
    import numpy as np

    from multiopt import convert
    from multiopt.keras import Adadelta
    from multiopt.keras.for_keras import for_keras

    keras.utils.set_random_seed(0)
    # Is a point inside the circle?
    points = np.random.default_rng(0).uniform(-1, 1, (2048, 2)).astype("float32")
    inside = (np.hypot(*points.T) < 0.7).astype("float32")[:, None]

    layers = [keras.layers.Dense(24, "tanh"), keras.layers.Dense(1, "sigmoid")]
    model = keras.Sequential([keras.Input((2,)), *layers])
    optimizer = for_keras(learning_rate=1.0, rho=0.9, epsilon=1e-3)
    model.compile(optimizer=optimizer, loss="binary_crossentropy", metrics=["accuracy"])
    model.fit(points, inside, epochs=10, batch_size=64, verbose=0)

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.keras")
        model.save(path)
        model = keras.models.load_model(path)  # the optimizer comes back with its state
    history = model.fit(points, inside, epochs=2, batch_size=64, verbose=0).history

    # The same state, without Keras: any array library can go on.
    state = convert.State.of(model.optimizer)
    weights = [np.array(w) for w in model.get_weights()]
    alone = Adadelta.from_config(convert.keras_config(state))
    alone.build(weights)
    state.into(alone)
    before = [w.copy() for w in weights]
    alone.apply([np.ones_like(w) for w in weights])
    moved = max(float(np.abs(w - old).max()) for w, old in zip(weights, before, strict=True))

    print(f"{keras.backend.backend():10} {history['accuracy'][-1]:.1%} of the points are right", end=", ")
    print(f"after {state.steps} steps; NumPy's step {int(alone.iterations)} moves the weights by up to {moved:.3f}")


def main() -> None:
    if not find_spec("keras"):
        print('Keras is not installed: pip install keras "multiopt[torch]"')
        return
    for backend in sys.argv[1:] or BACKENDS:
        if not find_spec(backend):
            print(f"{backend:10} is not installed")
            continue
        environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        done = subprocess.run([sys.executable, __file__, "train"], env=environment, capture_output=True, text=True)
        print(done.stdout or done.stderr, end="")
        if done.returncode:
            sys.exit(done.returncode)


if __name__ == "__main__":
    train() if sys.argv[1:] == ["train"] else main()
