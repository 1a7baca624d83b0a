"""Train a Flax NNX model with Adadelta, save it with Orbax in the middle, and go on from the file: the same bits.

It learns to tell two interleaved half circles apart. `multiopt.optax.adadelta` stands where `optax.adadelta` would:
the optimizer and its state are NNX's own. The model and the state are saved after half of the steps; the rest is
trained twice, by the model that was never interrupted and by one that is restored from the checkpoint. Run it with
``python examples/flax_nnx.py``; it needs Flax, which brings Orbax (``pip install flax "multiopt[jax]" optax``).
"""

import tempfile
from pathlib import Path

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx

from multiopt.optax import adadelta

STEPS = 300


class Network(nnx.Module):
    """One hidden layer; what comes out says which half circle a point is of."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden, self.out = nnx.Linear(2, 32, rngs=rngs), nnx.Linear(32, 1, rngs=rngs)

    def __call__(self, points: jax.Array) -> jax.Array:
        """The logarithm of the odds for each point."""
        return self.out(nnx.tanh(self.hidden(points)))[:, 0]


def two_moons(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Noisy points of two half circles, and the label of each point: 0 or 1."""
    label = rng.integers(0, 2, n)
    angle = rng.uniform(0, np.pi, n) + np.pi * label
    points = np.stack([np.cos(angle) + label, np.sin(angle) + 0.5 * label], axis=1)
    return (points + rng.normal(0, 0.1, points.shape)).astype("float32"), label.astype("float32")


def loss(model: Network, points: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.sigmoid_binary_cross_entropy(model(points), labels).mean()


@nnx.jit(donate_argnums=(0, 1))  # donated: parameters and state are updated where they lie
def train_step(model: Network, optimizer: nnx.Optimizer, points: jax.Array, labels: jax.Array) -> None:
    optimizer.update(model, nnx.grad(loss)(model, points, labels))


def train(model: Network, optimizer: nnx.Optimizer, points: np.ndarray, labels: np.ndarray, steps: range) -> None:
    for step in steps:
        rows = np.random.default_rng(step).integers(0, len(points), 64)  # each step draws its own, after a restart too
        train_step(model, optimizer, points[rows], labels[rows])


def start(seed: int) -> tuple[Network, nnx.Optimizer]:
    """A new model and its optimizer, with state of zeros."""
    model = Network(nnx.Rngs(seed))
    return model, nnx.Optimizer(model, adadelta(1.0, rho=0.9, eps=1e-4), wrt=nnx.Param)


def main() -> None:
    points, labels = two_moons(2000, np.random.default_rng(0))
    training = points[:1500], labels[:1500]  # the others are kept to test with

    model, optimizer = start(0)
    train(model, optimizer, *training, range(STEPS // 2))
    with tempfile.TemporaryDirectory() as folder, ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(Path(folder, "half"), nnx.state((model, optimizer)))
        checkpointer.wait_until_finished()
        again = start(1)  # its numbers are other ones, until they are restored
        nnx.update(again, checkpointer.restore(Path(folder, "half"), nnx.state(again)))

    for pair in ((model, optimizer), again):
        train(*pair, *training, range(STEPS // 2, STEPS))
    right = (model(points[1500:]) > 0) == labels[1500:]
    print(f"step {STEPS}: {right.mean():.1%} of the test points right")

    ends = [jax.tree.leaves(nnx.state(pair)) for pair in ((model, optimizer), again)]
    same = [np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(*ends, strict=True)]
    print(f"restored at step {STEPS // 2}: {sum(same)} of {len(same)} arrays of model and state have the same bits")


if __name__ == "__main__":
    main()
