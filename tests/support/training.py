"""A small model with every option, trained on gradients of a seed, on any library."""

import numpy as np
from libraries import snapshot

from multiopt import Adadelta, schedules

SHAPES = {"w": (5, 3), "b": (3,), "scale": (), "none": (0, 2)}
OPTIONS = {
    "lr": schedules.WarmUp(schedules.Cosine(0.7, 30), 4),
    "rho": 0.93,
    "weight_decay": schedules.Exponential(0.1, 5, 0.5),
    "clip_norm": 3.0,
    "clip_global_norm": 2.5,
    "accumulate": 3,
    "loss_scale": 16.0,
    "ema": 0.8,
}


def draw(seed, dtype=np.float32, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.standard_normal(shape)).astype(dtype) for name, shape in shapes.items()}


def make(lib, dtype=np.float32, seed=0, **options):
    params = {name: lib.param(array) for name, array in draw(seed, dtype).items()}
    return Adadelta(params, engine=lib.engine, **{**OPTIONS, **options})


def train(lib, opt, seeds, dtype=np.float32):
    for seed in seeds:
        opt.step({name: lib.grad(array) for name, array in draw(seed, dtype).items()})


def same(one, other):
    assert snapshot(one) == snapshot(other)
    assert one.loss_scale == other.loss_scale
    assert one.clip_global_norm == other.clip_global_norm
