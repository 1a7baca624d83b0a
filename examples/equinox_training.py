"""Train an Equinox model with Adadelta in two ways: as with optax, and with the whole step in one pass.

It learns to tell two interleaved half circles apart. `multiopt.optax.adadelta` stands where `optax.adadelta` would; its
``step`` is what optax has not: new parameters and state from one pass over memory, without updates in between. Both
give the same bits. Run it with ``python examples/equinox_training.py``; it needs Equinox (``pip install equinox
"multiopt[jax]" optax``).
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax

from multiopt.optax import adadelta

STEPS = 300
OPTIMIZER = adadelta(1.0, rho=0.9, eps=1e-4)


def two_moons(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Noisy points of two half circles, and the label of each point: 0 or 1."""
    label = rng.integers(0, 2, n)
    angle = rng.uniform(0, np.pi, n) + np.pi * label
    points = np.stack([np.cos(angle) + label, np.sin(angle) + 0.5 * label], axis=1)
    return (points + rng.normal(0, 0.1, points.shape)).astype("float32"), label.astype("float32")


def loss(model: eqx.Module, points: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.sigmoid_binary_cross_entropy(jax.vmap(model)(points), labels).mean()


@eqx.filter_jit(donate="all")  # donated: parameters and state are updated where they lie
def as_with_optax(model: eqx.Module, state: Any, points: jax.Array, labels: jax.Array) -> tuple[eqx.Module, Any]:
    grads = eqx.filter_grad(loss)(model, points, labels)
    updates, state = OPTIMIZER.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
    return eqx.apply_updates(model, updates), state


@eqx.filter_jit(donate="all")
def in_one_pass(model: eqx.Module, state: Any, points: jax.Array, labels: jax.Array) -> tuple[eqx.Module, Any]:
    grads = eqx.filter_grad(loss)(model, points, labels)
    params, rest = eqx.partition(model, eqx.is_inexact_array)
    params, state = OPTIMIZER.step(params, grads, state)
    return eqx.combine(params, rest), state


def train(step: Callable[..., tuple[eqx.Module, Any]], points: np.ndarray, labels: np.ndarray) -> eqx.Module:
    rng = np.random.default_rng(1)
    model: eqx.Module = eqx.nn.MLP(2, "scalar", 32, 1, activation=jax.nn.tanh, key=jax.random.key(0))
    state = OPTIMIZER.init(eqx.filter(model, eqx.is_inexact_array))
    for _ in range(STEPS):
        rows = rng.integers(0, len(points), 64)
        model, state = step(model, state, points[rows], labels[rows])
    return model


def main() -> None:
    points, labels = two_moons(2000, np.random.default_rng(0))
    training = points[:1500], labels[:1500]  # the others are kept to test with
    models = [train(step, *training) for step in (as_with_optax, in_one_pass)]
    for how, model in zip(("as with optax", "in one pass"), models, strict=True):
        right = (jax.vmap(model)(points[1500:]) > 0) == labels[1500:]
        print(f"{how}: {right.mean():.1%} of the test points right")
    arrays = [jax.tree.leaves(eqx.filter(model, eqx.is_array)) for model in models]
    same = [np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(*arrays, strict=True)]
    print(f"{sum(same)} of {len(same)} arrays have the same bits")


if __name__ == "__main__":
    main()
