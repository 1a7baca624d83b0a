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

from .backends.protocol import Array, Backend
from .info import Place
from .optimizer import Adadelta

__all__ = ["PRESETS", "Config", "Digits", "Run", "loss_and_gradients", "replay", "train"]

#: Width of the hidden layers: 12,060 parameters, between 64 pixels and 10 digits.
HIDDEN = (100, 50)
PRESETS = {"paper": Adadelta.paper, "torch": Adadelta.torch, "keras": Adadelta.keras}
Params = dict[str, Array]


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
        sizes = (64, *HIDDEN, 10)
        for i, (n, m) in enumerate(pairwise(sizes), 1):
            limit = math.sqrt(6 / (n + m))
            params[f"W{i}"] = rng.uniform(-limit, limit, (n, m)).astype(self.dtype)
            params[f"b{i}"] = np.zeros(m, self.dtype)
        return params

    def optimizer(self, params: Params) -> Adadelta:
        """The optimizer that was asked for."""
        return PRESETS[self.preset](params, **self.options)


@dataclass(frozen=True)
class Digits:
    """Scikit-learn's 1,797 digits of 8 × 8 pixels, four fifths of them to train with."""

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray

    @classmethod
    def load(cls, config: Config) -> Digits:
        """Shuffle the digits and scale the pixels to [0, 1]; labels become rows of zeros with a one."""
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        order = np.random.default_rng(config.seed).permutation(len(pixels))
        x, y = (pixels[order] / 16).astype(config.dtype), np.eye(10, dtype=config.dtype)[labels[order]]
        cut = len(x) * 4 // 5
        return cls(x[:cut], y[:cut], x[cut:], y[cut:])

    def batches(self, config: Config) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """One epoch after another, each in its own order."""
        rng = np.random.default_rng(config.seed + 1)
        for _ in range(config.epochs):
            order = rng.permutation(len(self.train_x))
            for start in range(0, len(order), config.batch):
                rows = order[start : start + config.batch]
                yield self.train_x[rows], self.train_y[rows]

    def steps(self, config: Config) -> int:
        """How many batches there are in all."""
        return config.epochs * math.ceil(len(self.train_x) / config.batch)


def layers(xp: Any, params: Params, x: Array, activation: str) -> list[Array]:
    """The input, what each hidden layer makes of it, and the logits."""
    values, count = [x], len(params) // 2
    for i in range(1, count + 1):
        z = values[-1] @ params[f"W{i}"] + params[f"b{i}"]
        if i < count:
            z = xp.tanh(z) if activation == "tanh" else xp.where(z > 0, z, 0 * z)
        values.append(z)
    return values


def loss_and_gradients(xp: Any, params: Params, x: Array, y: Array, activation: str = "tanh") -> tuple[Array, Params]:
    """Softmax cross-entropy of a batch, and its gradients by backpropagation, written out.

    Parameters
    ----------
    xp : namespace
        Of the array API.
    params : dict of arrays
        ``W1, b1, W2, b2, …``
    x, y : arrays of shape (batch, 64) and (batch, 10)
        Pixels, and a one for each label.
    activation : {"tanh", "relu"}

    Returns
    -------
    loss : 0-d array
        The mean over the batch.
    gradients : dict of arrays
        Like `params`.
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
    """What a training gave; `gradients` holds those of the first steps, where they were kept."""

    name: str
    losses: np.ndarray
    accuracy: float
    seconds: float
    gradients: list[dict[str, np.ndarray]]


def train(
    name: str,
    backend: Backend,
    place: Place,
    config: Config,
    digits: Digits,
    *,
    keep: int = 0,
    tick: Callable[[float], None] = lambda loss: None,
) -> Run:
    """Train on one library.

    Parameters
    ----------
    name : str
        What to call the run.
    backend : Backend
    place : Place
        The device.
    config : Config
    digits : Digits
    keep : int
        How many steps' gradients to keep.
    tick : callable
        Called with the loss after each step.
    """
    xp = backend.xp
    params = _give(backend, place, config.initial())
    optimizer = config.optimizer(params)
    losses: list[float] = []
    kept: list[dict[str, np.ndarray]] = []
    start = time.perf_counter()
    for x, y in digits.batches(config):
        batch = _give(backend, place, {"x": x, "y": y})
        loss, grads = loss_and_gradients(xp, params, **batch, activation=config.activation)
        # A lazy library computes here; otherwise it would compute once for the loss and once for the step.
        loss, *settled = backend.settle([loss, *grads.values()])
        grads = dict(zip(grads, settled, strict=True))
        if len(kept) < keep:
            kept.append(_take(backend, grads))
        params = optimizer.step(grads)
        losses.append(float(loss))
        tick(losses[-1])
    seconds = time.perf_counter() - start
    test = _give(backend, place, {"x": digits.test_x})["x"]
    (logits,) = backend.settle([layers(xp, params, test, config.activation)[-1]])
    right = backend.to_host(logits).argmax(axis=1) == digits.test_y.argmax(axis=1)
    return Run(name, np.array(losses), float(right.mean()), seconds, kept)


def replay(backend: Backend, place: Place, config: Config, gradients: list[dict[str, np.ndarray]]) -> np.ndarray:
    """Feed kept gradients to a fresh optimizer; return all its parameters and state, in one row of numbers."""
    optimizer = config.optimizer(_give(backend, place, config.initial()))
    for grads in gradients:
        optimizer.step(_give(backend, place, grads))
    arrays = [*optimizer.params.values(), *(a for slots in optimizer.state.values() for a in slots.values())]
    return np.concatenate([backend.to_host(a).ravel() for a in arrays])


def _give(backend: Backend, place: Place, arrays: dict[str, np.ndarray]) -> Params:
    # A copy, so that no library writes into an array that another one starts from.
    return {name: backend.xp.asarray(a.copy(), device=place.device) for name, a in arrays.items()}


def _take(backend: Backend, arrays: Params) -> dict[str, np.ndarray]:
    return {name: backend.to_host(a) for name, a in arrays.items()}
