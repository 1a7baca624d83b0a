"""Train a network with Adadelta on the GPU, with CuPy, and time it against the CPU: a complete program.

It learns to tell two interleaved spirals apart. The code of the network is the same for both libraries; the optimizer
finds out by itself where the arrays are. Run it with ``python examples/cupy_training.py``; without CuPy
(``pip install "multiopt[cupy]"``) or a CUDA device it says so and trains on the CPU alone.
"""

import time
from itertools import pairwise
from typing import Any

import numpy as np

import multiopt

SIZES = [2, 128, 128, 1]


def spirals(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Noisy points of two spirals, and the label of each point: 0 or 1."""
    label = rng.integers(0, 2, (n, 1))
    angle = rng.uniform(0.5, 2 * np.pi, (n, 1))
    points = np.concatenate([np.cos(angle + np.pi * label), np.sin(angle + np.pi * label)], axis=1) * angle / 4
    return (points + rng.normal(0, 0.02, points.shape)).astype("float32"), label.astype("float32")


def layers(xp: Any, params: list[Any], x: Any) -> list[Any]:
    """The output of each layer, from the input to the probability of the second spiral."""
    outputs = [x]
    for weights, bias in zip(params[::2], params[1::2], strict=True):
        outputs.append(xp.tanh(outputs[-1] @ weights + bias))
    outputs[-1] = (outputs[-1] + 1) / 2
    return outputs


def gradients(xp: Any, params: list[Any], x: Any, y: Any) -> list[Any]:
    """Gradients of the mean squared error."""
    outputs = layers(xp, params, x)
    back = (outputs[-1] - y) / len(x) * 4 * outputs[-1] * (1 - outputs[-1])
    grads: list[Any] = []
    for i in range(len(params) // 2 - 1, -1, -1):
        grads = [outputs[i].T @ back, back.sum(0), *grads]
        if i:
            back = back @ params[2 * i].T * (1 - outputs[i] ** 2)
    return grads


def train(xp: Any, steps: int = 600, batch: int = 256) -> None:
    """Train on the library's default device, and print the accuracy and the time of a step."""
    rng = np.random.default_rng(0)
    x, y = map(xp.asarray, spirals(6000, rng))
    params = []
    for fan_in, fan_out in pairwise(SIZES):
        params.append(xp.asarray(rng.normal(0, 1.5 / np.sqrt(fan_in), (fan_in, fan_out)).astype("float32")))
        params.append(xp.zeros(fan_out, "float32"))
    optimizer = multiopt.Adadelta.paper(params, lr=multiopt.schedules.Cosine(1.0, decay_steps=steps, alpha=0.1))
    began = time.perf_counter()
    for step in range(steps):
        first = step * batch % 4864  # 19 batches an epoch; the last points are kept to test with
        optimizer.step(gradients(xp, params, x[first : first + batch], y[first : first + batch]))
    right = float(((layers(xp, params, x[5000:])[-1] > 0.5) == (y[5000:] > 0.5)).mean())  # waits for the device
    took = (time.perf_counter() - began) / steps
    print(f"{xp.__name__}: {right:.1%} of the test points right after {steps} steps of {took * 1e6:.0f} µs")


def time_steps(xp: Any, size: int = 20_000_000, steps: int = 5) -> None:
    """Time the optimizer alone, on one large array."""
    params, grads = [xp.ones(size, "float32")], [xp.full(size, 0.01, "float32")]
    optimizer = multiopt.Adadelta(params)
    optimizer.step(grads)  # it is compiled in the first step
    float(params[0][0])
    began = time.perf_counter()
    for _ in range(steps):
        optimizer.step(grads)
    float(params[0][0])
    took = (time.perf_counter() - began) / steps
    moved = 7 * 4 * size  # four arrays are read, three are written
    print(f"{xp.__name__}: {size:,} parameters in {took * 1e3:.2f} ms a step, {moved / took / 1e9:.0f} GB/s")


def main() -> None:
    libraries: list[Any] = [np]
    try:
        import cupy

        cupy.cuda.runtime.getDeviceCount()
        libraries.append(cupy)
    except ImportError:
        print('CuPy is not installed: pip install "multiopt[cupy]". On the CPU alone:')
    except cupy.cuda.runtime.CUDARuntimeError as error:
        print(f"CuPy finds no CUDA device ({error}). On the CPU alone:")
    for xp in libraries:
        train(xp)
        time_steps(xp)


if __name__ == "__main__":
    main()
