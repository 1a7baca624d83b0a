"""Optimizers of your own: RMSprop, SGD with momentum and Adagrad, in about ten lines each.

A rule is a name, a function of arrays, its state and its hyperparameters. It then runs on every array library and
every engine, with groups, schedules, weight decay, clipping and checkpoints, without further code.
Run it with ``python examples/custom_rule.py``; it fits a line with each rule on two array libraries.
"""

import importlib.util

import numpy as np

from multiopt import Hyper, Optimizer, Rule, backends


def rmsprop(xp, x, g, square_avg, *, lr, rho, eps):
    square_avg = rho * square_avg + (1 - rho) * (g * g)
    return x - lr * g / (xp.sqrt(square_avg) + eps), square_avg


RMSPROP = Rule(
    "rmsprop",
    rmsprop,
    slots={"square_avg": 0.0},
    hypers={"lr": Hyper(0.01, low=0), "rho": Hyper(0.99, low=0, high=1), "eps": Hyper(1e-8, low=0, open_low=True)},
)


def momentum(xp, x, g, velocity, *, lr, mu):
    velocity = mu * velocity + g
    return x - lr * velocity, velocity


MOMENTUM = Rule(
    "sgd with momentum",
    momentum,
    slots={"velocity": 0.0},
    hypers={"lr": Hyper(0.01, low=0), "mu": Hyper(0.9, low=0, high=1)},
)


def adagrad(xp, x, g, square_sum, *, lr, eps):
    square_sum = square_sum + g * g
    return x - lr * g / (xp.sqrt(square_sum) + eps), square_sum


ADAGRAD = Rule(
    "adagrad",
    adagrad,
    slots={"square_sum": 0.1},  # 0.1 is its initial value
    hypers={"lr": Hyper(0.5, low=0), "eps": Hyper(1e-10, low=0, open_low=True)},
)


def fit(rule: Rule, library: str, steps: int = 400) -> tuple[float, list[float]]:
    """Fit the line y = 3 x - 2 to noisy points; return the last loss, and the line's slope and offset."""
    xp = backends.get(library).xp
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, 200)
    y = xp.asarray(3 * x - 2 + rng.normal(0, 0.1, 200))
    columns = xp.asarray(np.stack([x, np.ones(200)], axis=1))
    line = xp.zeros(2, dtype=xp.float64)
    optimizer = Optimizer(rule, line)
    for _ in range(steps):
        error = columns @ line - y
        line = optimizer.step(2 * (error @ columns) / 200)
    return float(xp.mean(error * error)), [float(line[0]), float(line[1])]


def main() -> None:
    others = [name for name in ("torch", "array_api_strict") if importlib.util.find_spec(name)]
    if not others:
        print("for a second array library: pip install torch, or array-api-strict")
    print(f"{'rule':<18} {'library':<17} {'loss':>8}  {'slope':>8}  {'offset':>8}")
    for rule in (RMSPROP, MOMENTUM, ADAGRAD):
        for library in ("numpy", *others[:1]):
            loss, (slope, offset) = fit(rule, library)
            print(f"{rule.name:<18} {library:<17} {loss:8.5f}  {slope:8.5f}  {offset:8.5f}")


if __name__ == "__main__":
    main()
