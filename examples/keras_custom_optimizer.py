"""An optimizer of your own, as TensorFlow 2.4 documents it: override four methods, and any array library will do.

The algorithm is gradient descent with momentum. It learns a table of word scores, of which each step sees a few
rows (a sparse gradient), and a bias (a dense one). Needs NumPy only; run it with ``torch`` to use PyTorch's arrays.
"""

import sys

import numpy as np

from multiopt.keras import IndexedSlices, Variable, schedules, take
from multiopt.keras.legacy import Optimizer


class Momentum(Optimizer):
    """``m = momentum * m + g``, then ``x = x - learning_rate * m``."""

    def __init__(self, learning_rate=0.01, momentum=0.9, name="Momentum", **kwargs):
        super().__init__(name, **kwargs)
        self._set_hyper("learning_rate", learning_rate)
        self._set_hyper("momentum", momentum)

    def _create_slots(self, var_list):
        for var in var_list:
            self.add_slot(var, "m")

    def _resource_apply_dense(self, grad, var, apply_state=None):
        momentum = self._get_hyper("momentum", var.dtype)
        m = self.get_slot(var, "m")
        m.assign(m.value * momentum + grad)
        var.assign_sub(m.value * self._decayed_lr(var.dtype))

    def _resource_apply_sparse(self, grad, var, indices, apply_state=None):
        # Each row comes once here. Rows that do not come keep their momentum.
        momentum = self._get_hyper("momentum", var.dtype)
        m = self.get_slot(var, "m")
        rows = take(m.value, indices) * momentum + grad
        self._resource_scatter_update(m, indices, rows)
        self._resource_scatter_add(var, indices, -self._decayed_lr(var.dtype) * rows)

    def get_config(self):
        """The arguments of the constructor."""
        config = super().get_config()
        for hyper in ("learning_rate", "momentum"):
            config[hyper] = self._serialize_hyperparameter(hyper)
        return config


def main(library="numpy"):
    if library == "torch":
        import torch

        array = torch.tensor
    else:
        array = np.asarray
    rng = np.random.default_rng(0)
    true = rng.standard_normal((50, 1)).astype(np.float32)

    scores = Variable(array(np.zeros((50, 1), np.float32)), trainable=False, name="scores")
    bias = Variable(array(np.zeros(1, np.float32)), trainable=False, name="bias")
    opt = Momentum(schedules.ExponentialDecay(0.2, decay_steps=50, decay_rate=0.8), momentum=0.5, clipnorm=5.0)
    print(opt.get_config())

    for step in range(101):
        words = rng.integers(0, 50, 16)  # some words come twice in a batch
        predicted = scores.numpy()[words] + bias.numpy()
        error = predicted - (true[words] + 0.5)
        if step % 25 == 0:
            print(f"step {step:4}: loss {float((error**2).mean()):.6f}")
        gradient = IndexedSlices(array(error), words, scores.shape)
        opt.apply_gradients([(gradient, scores), (array(error.mean(axis=0)), bias)])

    twin = Momentum.from_config(opt.get_config())
    print(type(twin).__name__, "again, from its configuration:", twin.get_config() == opt.get_config())


if __name__ == "__main__":
    main(*sys.argv[1:])
