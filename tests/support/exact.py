"""Adadelta and every option in 40 digits: what the optimizer must compute, written down a second time."""

import numpy as np
from mpmath import mp, mpf

SHAPES = [(5,), (2, 3), ()]


def draw(rng, shapes=SHAPES, scale=1.0):
    return [np.asarray(scale * rng.standard_normal(shape)) for shape in shapes]


def of(value, step):
    return mpf(value(step)) if callable(value) else mpf(value)


def exactly(
    params, batches, *, lr=1.0, rho=0.9, eps=1e-6, weight_decay=0.0, decoupled=False, maximize=False, clip_value=None,
    clip_norm=None, clip_global_norm=None, accumulate=1, loss_scale=1.0, ema=None,
):  # fmt: skip
    """Zeiler's algorithm 1 and the documented order of options, in 40 digits, one number at a time."""
    mp.dps = 40
    x = [[mpf(float(a)) for a in p.ravel()] for p in params]
    v, u = ([[mpf(0)] * len(p) for p in x] for _ in range(2))
    mean = [list(p) for p in x]
    for step in range(len(batches) // accumulate):
        parts = batches[step * accumulate : (step + 1) * accumulate]
        g = [[mpf(0)] * len(p) for p in x]
        for batch in parts:
            for i, array in enumerate(batch):
                for k, number in enumerate([] if array is None else array.ravel()):
                    g[i][k] += mpf(float(number)) / mpf(loss_scale) / accumulate
        if maximize:
            g = [[-a for a in row] for row in g]
        if clip_value is not None:
            bound = of(clip_value, step)
            g = [[min(max(a, -bound), bound) for a in row] for row in g]
        if clip_norm is not None:
            g = [shrunk([row], clip_norm)[0] for row in g]
        if clip_global_norm is not None:
            g = shrunk(g, clip_global_norm)
        rate, decay, r, e = of(lr, step), of(weight_decay, step), of(rho, step), of(eps, step)
        for i, row in enumerate(g):
            if all(batch[i] is None for batch in parts):
                continue
            for k, grad in enumerate(row):
                if decoupled:
                    x[i][k] -= rate * decay * x[i][k]
                else:
                    grad += decay * x[i][k]
                v[i][k] = r * v[i][k] + (1 - r) * grad**2
                delta = mp.sqrt(u[i][k] + e) / mp.sqrt(v[i][k] + e) * grad
                u[i][k] = r * u[i][k] + (1 - r) * delta**2
                x[i][k] -= rate * delta
        if ema is not None:
            mean = [
                [mpf(ema) * m + (1 - mpf(ema)) * a for m, a in zip(*rows, strict=True)]
                for rows in zip(mean, x, strict=True)
            ]
    shaped = [[np.array(list(map(float, row))).reshape(p.shape) for row, p in zip(rows, params, strict=True)]
              for rows in (x, v, u, mean)]  # fmt: skip
    return dict(zip(("params", "square_avg", "acc_delta", "ema"), shaped, strict=True))


def shrunk(rows, limit):
    norm = mp.sqrt(sum(a**2 for row in rows for a in row))
    return [[a * mpf(limit) / norm for a in row] for row in rows] if norm > limit else rows
