"""The demo's problem: a digit classifier, its gradients written out, trained with Adadelta on any array library.

The network is written once, with the array API only, as the update rule is. All libraries start from the same
numbers and see the same batches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from .. import Adadelta
from .libraries import Place

__all__ = ["PRESETS", "Config", "Run", "batches", "load", "loss_and_gradients", "replay", "train"]

#: Widths of the layers: 64 pixels, two hidden layers, 10 digits; 12,060 parameters.
WIDTHS = (64, 100, 50, 10)
PRESETS = {"paper": Adadelta.paper, "torch": Adadelta.torch, "keras": Adadelta.keras}
Params = dict[str, Any]
#: Pixels ``x`` in [0, 1] and labels ``y``, in rows.
Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Config:
    """What is trained, and how: the same for every library."""

    epochs: int = 20
    batch: int = 50
    seed: int = 0
    dtype: str = "float32"
    activation: str = "tanh"
    preset: str = "torch"
    options: dict[str, float] = field(default_factory=dict)

    def initial(self) -> dict[str, np.ndarray]:
        """Weights and biases: Glorot and Bengio's uniform weights (2010), zero biases."""
        rng, params = np.random.default_rng(self.seed), {}
        for i, (n, m) in enumerate(pairwise(WIDTHS), 1):
            limit = math.sqrt(6 / (n + m))
            params[f"W{i}"] = rng.uniform(-limit, limit, (n, m)).astype(self.dtype)
            params[f"b{i}"] = np.zeros(m, self.dtype)
        return params

    def optimizer(self, params: Params) -> Adadelta:
        """The optimizer that was asked for."""
        return PRESETS[self.preset](params, **self.options)


def load(config: Config) -> tuple[Batch, Batch]:
    """Scikit-learn's 1,797 digits of 8 × 8 pixels, shuffled: four fifths to train with, and the rest to test with."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(config.seed).permutation(len(pixels))
    x, y = (pixels[order] / 16).astype(config.dtype), np.eye(10, dtype=config.dtype)[labels[order]]
    cut = len(x) * 4 // 5
    return {"x": x[:cut], "y": y[:cut]}, {"x": x[cut:], "y": y[cut:]}


def batches(config: Config, data: Batch) -> Iterator[Batch]:
    """One epoch after another, each in its own order."""
    rng = np.random.default_rng(config.seed + 1)
    for _ in range(config.epochs):
        order = rng.permutation(len(data["x"]))
        for start in range(0, len(order), config.batch):
            yield {name: array[order[start : start + config.batch]] for name, array in data.items()}


def layers(xp: Any, params: Params, x: Any, activation: str) -> list[Any]:
    """The input, what each hidden layer makes of it, and the logits."""
    values, count = [x], len(params) // 2
    for i in range(1, count + 1):
        z = values[-1] @ params[f"W{i}"] + params[f"b{i}"]
        if i < count:
            z = xp.tanh(z) if activation == "tanh" else xp.where(z > 0, z, 0 * z)
        values.append(z)
    return values


def loss_and_gradients(xp: Any, params: Params, x: Any, y: Any, activation: str = "tanh") -> tuple[Any, Params]:
    """Mean softmax cross-entropy of a batch, and its gradients by backpropagation, written out.

    The parameters are ``W1, b1, W2, b2, …``; `y` has one row a digit, of zeros and a one for the label.
    """
    *values, logits = layers(xp, params, x, activation)
    logits = logits - xp.max(logits, axis=1, keepdims=True)
    log_p = logits - xp.log(xp.sum(xp.exp(logits), axis=1, keepdims=True))
    loss = -xp.sum(y * log_p) / x.shape[0]
    d, grads = (xp.exp(log_p) - y) / x.shape[0], {}
    for i in range(len(values), 0, -1):
        value = values[i - 1]
        grads[f"W{i}"] = xp.matrix_transpose(value) @ d
        grads[f"b{i}"] = xp.sum(d, axis=0)
        if i > 1:
            slope = 1 - value * value if activation == "tanh" else xp.astype(value > 0, value.dtype)
            d = (d @ xp.matrix_transpose(params[f"W{i}"])) * slope
    return loss, grads


@dataclass
class Run:
    """The results of a training."""

    name: str
    losses: np.ndarray
    accuracy: float
    seconds: float
    gradients: list[dict[str, np.ndarray]]  # of the first steps, if they were kept


def train(
    name: str,
    place: Place,
    config: Config,
    data: tuple[Batch, Batch],
    keep: int = 0,
    tick: Callable[[float], None] = lambda loss: None,
) -> Run:
    """Train on one library; keep the gradients of `keep` steps, and call `tick` with the loss after each step."""
    backend = place.backend
    training, test = data
    params = place.give(config.initial())
    optimizer = config.optimizer(params)
    losses: list[float] = []
    kept: list[dict[str, np.ndarray]] = []
    start = time.perf_counter()
    for batch in batches(config, training):
        loss, grads = loss_and_gradients(backend.xp, params, **place.give(batch), activation=config.activation)
        # A lazy library computes here; otherwise it would compute once for the loss and once for the step.
        loss, *settled = backend.settle([loss, *grads.values()])
        grads = dict(zip(grads, settled, strict=True))
        if len(kept) < keep:
            kept.append({name: backend.to_host(grad) for name, grad in grads.items()})
        params = optimizer.step(grads)
        losses.append(float(loss))
        tick(losses[-1])
    seconds = time.perf_counter() - start
    (logits,) = backend.settle([layers(backend.xp, params, place.give(test)["x"], config.activation)[-1]])
    right = backend.to_host(logits).argmax(axis=1) == test["y"].argmax(axis=1)
    return Run(name, np.array(losses), float(right.mean()), seconds, kept)


def replay(place: Place, config: Config, gradients: list[dict[str, np.ndarray]]) -> np.ndarray:
    """Feed kept gradients to a fresh optimizer; return all its parameters and state, in one row of numbers."""
    optimizer = config.optimizer(place.give(config.initial()))
    for grads in gradients:
        optimizer.step(place.give(grads))
    arrays = [*optimizer.params.values(), *(a for slots in optimizer.state.values() for a in slots.values())]
    return np.concatenate([place.backend.to_host(a).ravel() for a in arrays])
