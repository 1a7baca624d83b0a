"""Dask arrays on a cluster of two worker processes: the bits, what the scheduler keeps, and a worker that is killed."""

import os
import signal
import threading
import time

import numpy as np
import pytest

from multiopt import Adadelta, Hyper, Optimizer, Rule

da = pytest.importorskip("dask.array", reason="dask is not installed")
distributed = pytest.importorskip("distributed", reason="distributed is not installed")
dask = pytest.importorskip("dask")

HISTORY = 5  # enough to be seen
SHAPES = {"w": (9, 4), "b": (4,)}
CHUNKS = {"w": (5, 4), "b": (4,)}
RNG = np.random.default_rng(4)
START = {k: RNG.standard_normal(shape).astype(np.float32) for k, shape in SHAPES.items()}
AIM = {k: RNG.standard_normal(shape).astype(np.float32) for k, shape in SHAPES.items()}


@pytest.fixture(scope="module")
def client():
    # Silent: what a killed worker's end looks like in the log is not the tests' concern.
    # The lines of this program that asked for each task are not looked up either, which costs more than a step does.
    with (
        dask.config.set({"distributed.diagnostics.computations.nframes": 0}),
        distributed.LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None, silence_logs=50) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture(autouse=True)
def _short_history(monkeypatch):
    monkeypatch.setattr("multiopt.backends.dask.HISTORY", HISTORY)


def start():
    return {k: da.from_array(a, chunks=CHUNKS[k]) for k, a in START.items()}


def gradients(params, step):
    """Of the squared distance from an aim, which moves; lazy where the parameters are."""
    return {k: (p - AIM[k]) * np.float32(2 + step % 3) for k, p in params.items()}


def train(opt, steps, then=lambda step: None):
    for step in steps:
        opt.step(gradients(opt.params, step))
        then(step)


def bits(opt):
    arrays = [opt.params, opt.state] + ([opt.ema_params] if opt.ema else [])
    return [np.asarray(a).tobytes() for tree in dask.compute(*arrays) for a in leaves(tree)]


def leaves(tree):
    return [leaf for value in tree.values() for leaf in leaves(value)] if isinstance(tree, dict) else [tree]


def plain(steps, **options):
    opt = Adadelta({k: a.copy() for k, a in START.items()}, engine="eager", **options)
    train(opt, range(steps))
    return opt


def remembered(client):
    """How many tasks the scheduler knows."""
    return client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))


OPTIONS = {"clip_global_norm": 0.5, "ema": 0.9}
CLIPPED = {"clip_global_norm": 0.5}


def test_thirty_steps_have_numpys_bits_and_leave_no_history(client):
    opt, counts = Adadelta(start(), **CLIPPED), []
    train(opt, range(30), lambda step: counts.append(remembered(client)))
    expected = plain(30, **CLIPPED)
    assert bits(opt) == bits(expected)
    assert float(opt.grad_norm) == float(expected.grad_norm)
    # What is let go of is forgotten a little later.
    assert max(counts[10:]) <= max(counts[: 2 * HISTORY]) * 1.5, counts
    assert min(counts[24:]) <= counts[2] * 1.5, counts
    del opt
    deadline = time.monotonic() + 10
    while remembered(client) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert remembered(client) == 0


def test_complex_accumulated_and_chunked_otherwise(client):
    x = (RNG.standard_normal((6, 5)) + 1j * RNG.standard_normal((6, 5))).astype(np.complex64)
    grads = [(RNG.standard_normal((6, 5)) * (1 + 2j)).astype(np.complex64) for _ in range(6)]
    opt, expected = (
        Adadelta(da.from_array(x, chunks=(4, 5)), accumulate=2),
        Adadelta(x.copy(), accumulate=2, engine="eager"),
    )
    for g in grads:
        opt.step(da.from_array(g, chunks=(2, 3)))
        expected.step(g)
    assert bits_of(opt) == bits_of(expected)


def test_a_rule_that_goes_by_value_is_compiled_once_a_worker(client):
    pytest.importorskip("numba", reason="numba is not installed")

    def descend(xp, x, g, *, lr):
        return (x - lr * g,)

    def compiled():
        from multiopt.backends.engines.host.kernels import update_kernel

        return update_kernel.cache_info().misses

    rule = Rule("descent", descend, slots={}, hypers={"lr": Hyper(0.1, low=0.0)})
    opt, before = Optimizer(rule, start()), client.run(compiled)
    expected = Optimizer(rule, {k: a.copy() for k, a in START.items()}, engine="eager")
    for one in (opt, expected):
        train(one, range(4))
    assert bits(opt) == bits(expected)
    made = [count - before[worker] for worker, count in client.run(compiled).items()]
    assert max(made) == 1, made


def bits_of(opt):
    return [np.asarray(a).tobytes() for a in dask.compute(opt.params, *opt.state.values())]


def test_a_checkpoint_is_resumed(client, tmp_path):
    opt = Adadelta(start(), **OPTIONS)
    train(opt, range(5))
    opt.save(tmp_path / "run.safetensors")
    there = Adadelta({k: np.zeros_like(a) for k, a in START.items()}, engine="eager", **OPTIONS)
    for other in (Adadelta(start(), **OPTIONS), there):
        other.load(tmp_path / "run.safetensors")
        train(other, range(5, 9))
        assert bits(other) == bits(plain(9, **OPTIONS))


def fullest(client):
    """The process of the worker that holds the most."""
    held = client.has_what()
    address = max(held, key=lambda worker: len(held[worker]))
    return client.run(os.getpid, workers=[address])[address]


@pytest.mark.parametrize("when", [1, HISTORY + 3])
def test_dask_makes_again_what_a_worker_held_that_is_killed_amid_a_step(client, when):
    opt = Adadelta(start(), **OPTIONS)
    train(opt, range(when))

    def slow(chunk):
        time.sleep(0.3)
        return chunk

    grads = {k: g.map_blocks(slow, dtype=g.dtype) for k, g in gradients(opt.params, when).items()}
    killer = threading.Timer(0.1, os.kill, (fullest(client), signal.SIGKILL))
    killer.start()
    opt.step(grads)
    assert killer.finished.is_set()  # the step was longer
    train(opt, range(when + 1, when + 3))
    assert bits(opt) == bits(plain(when + 3, **OPTIONS))
    client.wait_for_workers(2, timeout=30)


def test_a_step_that_fails_on_a_worker_changes_nothing(client):
    opt = Adadelta(start(), clip_global_norm=None)
    train(opt, range(3))
    before = bits(opt)

    def broken(chunk):
        raise ArithmeticError("no gradient today")

    grads = gradients(opt.params, 3)
    grads["w"] = grads["w"].map_blocks(broken, dtype=np.float32, meta=np.empty((0, 0), np.float32))
    with pytest.raises(ArithmeticError, match="no gradient today"):
        opt.step(grads)
    assert bits(opt) == before
    assert opt.steps == 3
    train(opt, range(3, 6))
    assert bits(opt) == bits(plain(6))


def test_values_that_nobody_can_make_again_are_named_and_the_old_ones_stay(client):
    opt = Adadelta(start())
    train(opt, range(2))
    before = bits(opt)
    # Scattered from here, a chunk has no history: when its worker dies, it is gone.
    workers = list(client.scheduler_info()["workers"])
    whole = client.scatter(np.ones(4, np.float32), workers=workers[:1])
    grads = gradients(opt.params, 2)
    grads["b"] = da.from_delayed(whole, (4,), np.float32)
    os.kill(client.run(os.getpid, workers=workers[:1])[workers[0]], signal.SIGKILL)
    deadline = time.monotonic() + 20
    while whole.status == "finished" and time.monotonic() < deadline:
        time.sleep(0.05)
    with pytest.raises(RuntimeError, match="has lost"):
        opt.step(grads)
    assert bits(opt) == before
    train(opt, range(2, 5))
    assert bits(opt) == bits(plain(5))
