"""Train a small network with Adadelta on NumPy arrays: a complete program.

It learns to tell two interleaved half circles apart. Run it with ``python examples/numpy_training.py``.
"""

import numpy as np

import multiopt


def two_moons(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Noisy points of two half circles, and the label of each point: 0 or 1."""
    label = rng.integers(0, 2, n)
    angle = rng.uniform(0, np.pi, n) + np.pi * label
    points = np.stack([np.cos(angle) + label, np.sin(angle) + 0.5 * label], axis=1)
    return (points + rng.normal(0, 0.1, points.shape)).astype("float32"), label.astype("float32")


def forward(params: dict[str, np.ndarray], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The hidden layer, and the probability of the second half circle."""
    hidden = np.tanh(x @ params["W1"] + params["b1"])
    return hidden, 1 / (1 + np.exp(-(hidden @ params["W2"] + params["b2"])))


def gradients(params: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """Gradients of the mean cross-entropy."""
    hidden, p = forward(params, x)
    d_out = (p - y) / np.float32(len(x))
    d_hidden = np.outer(d_out, params["W2"]) * (1 - hidden**2)
    return {"W1": x.T @ d_hidden, "b1": d_hidden.sum(0), "W2": hidden.T @ d_out, "b2": d_out.sum(keepdims=True)}


def main() -> None:
    rng = np.random.default_rng(0)
    x, y = two_moons(2000, rng)
    params = {
        "W1": rng.normal(0, 1, (2, 32)).astype("float32"),
        "b1": np.zeros(32, "float32"),
        "W2": rng.normal(0, 0.2, 32).astype("float32"),
        "b2": np.zeros(1, "float32"),
    }
    # A learning rate that decays along a cosine to a tenth; the other values are the paper's.
    optimizer = multiopt.Adadelta.paper(params, lr=multiopt.schedules.Cosine(1.0, decay_steps=1000, alpha=0.1))
    for step in range(1000):
        rows = rng.integers(0, 1500, 64)  # the last 500 points are kept to test with
        optimizer.step(gradients(params, x[rows], y[rows]))  # NumPy arrays are updated in place
        if step % 200 == 199:
            right = (forward(params, x[1500:])[1] > 0.5) == y[1500:]
            print(f"step {step + 1:4}: {right.mean():.1%} of the test points right")


if __name__ == "__main__":
    main()
