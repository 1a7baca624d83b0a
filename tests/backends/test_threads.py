"""Threads and forks: many optimizers at once, one pool, children that go on; none hangs, none differs."""

import threading

import numpy as np
import pytest
from libraries import snapshot
from multiopt.backends.engines.host import threads
from processes import run_python

from multiopt import Adadelta

pytestmark = pytest.mark.usefixtures("numba")

SIZE = 1_200_001  # several pieces


def train(seed, steps=6, **options):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(SIZE).astype(np.float32)
    opt = Adadelta([x, x[:1000].copy()], **options)
    for _ in range(steps):
        g = rng.standard_normal(SIZE).astype(np.float32)
        opt.step([g, g[:1000].copy()])
    return snapshot(opt)


@pytest.mark.parametrize("options", [{}, {"clip_global_norm": 1.0, "nonfinite": "raise"}], ids=["plain", "norm"])
@pytest.mark.parametrize("count", [2, 9])
def test_many_optimizers_at_once(count, options, monkeypatch):
    monkeypatch.setenv("MULTIOPT_NUM_THREADS", "3")
    steps = 6 if count == 2 else 2
    expected = [train(seed, steps, **options) for seed in range(count)]
    got, barrier = [None] * count, threading.Barrier(count)

    def work(i):
        barrier.wait()
        got[i] = train(i, steps, **options)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert got == expected


def test_every_piece_is_done_once(monkeypatch):
    for count in ("1", "2", "5", "64"):
        monkeypatch.setenv("MULTIOPT_NUM_THREADS", count)
        for pieces in (0, 1, 2, 7, 500):
            done, lock = [], threading.Lock()

            def kernel(piece, done=done, lock=lock):
                with lock:
                    done.append(piece)

            threads.run(kernel, range(pieces))
            assert sorted(done) == list(range(pieces))


def test_an_error_in_a_thread_comes_through(monkeypatch):
    monkeypatch.setenv("MULTIOPT_NUM_THREADS", "3")

    def kernel(piece):
        if piece == 5:
            raise RuntimeError("piece 5")

    with pytest.raises(RuntimeError, match="piece 5"):
        threads.run(kernel, range(20))
    threads.run(lambda piece: None, range(20))


def test_the_caller_does_it_all_where_no_thread_is_free(monkeypatch):
    # A step inside a step's thread: the pool is busy with the outer ones, and waiting for it would hang for ever.
    monkeypatch.setenv("MULTIOPT_NUM_THREADS", "2")
    done = []

    def outer(piece):
        threads.run(lambda inner: done.append((piece, inner)), range(4))

    threads.run(outer, range(4))
    assert sorted(done) == [(i, j) for i in range(4) for j in range(4)]


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", " ", "²", "1e3"])
def test_bad_numbers_of_threads(value, monkeypatch):
    opt = Adadelta([np.ones(3), np.ones(SIZE)], accumulate=2)
    opt.step([np.ones(3), np.ones(SIZE)])
    before = snapshot(opt)
    monkeypatch.setenv("MULTIOPT_NUM_THREADS", value)
    with pytest.raises(ValueError, match="MULTIOPT_NUM_THREADS: expected a positive integer, got "):
        opt.step([np.ones(3), np.ones(SIZE)])
    assert snapshot(opt) == before


def test_the_number_of_threads(monkeypatch):
    import os

    monkeypatch.setenv("MULTIOPT_NUM_THREADS", "7")
    assert threads.thread_count() == 7
    for unset in ("", None):
        monkeypatch.delenv("MULTIOPT_NUM_THREADS") if unset is None else monkeypatch.setenv("MULTIOPT_NUM_THREADS", "")
        if hasattr(os, "sched_getaffinity"):
            assert threads.thread_count() == len(os.sched_getaffinity(0))


def test_affinity_is_respected():
    pytest.importorskip("os", reason="")
    code = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import threading, numpy as np
from multiopt import Adadelta
opt = Adadelta(np.ones(2_000_000))
opt.step(np.ones(2_000_000))
print(sum("multiopt" in t.name for t in threading.enumerate()))
"""
    assert run_python(code) == "0"


FORK = """
import os, signal, sys, threading
import numpy as np
from multiopt import Adadelta
signal.alarm(60)
def digest(opt):
    return hash(opt.params.tobytes())
opt = Adadelta(np.linspace(-1, 1, 2_000_000))
opt.step(np.ones(2_000_000))
{before}
"""


def test_a_fork_after_a_step():
    code = FORK.format(
        before="""
for generation in range(3):
    twin = os.fork()
    if twin == 0:
        signal.alarm(60)
        opt.step(np.ones(2_000_000))
        # The child has threads of its own, and may fork too.
        inner = os.fork()
        if inner == 0:
            signal.alarm(60)
            opt.step(np.ones(2_000_000))
            os._exit(0 if np.isfinite(opt.params).all() else 1)
        assert os.waitpid(inner, 0)[1] == 0
        os._exit(0 if sum("multiopt" in t.name for t in threading.enumerate()) == 1 else 1)
    assert os.waitpid(twin, 0)[1] == 0
    opt.step(np.ones(2_000_000))
print(opt.steps)
"""
    )
    assert run_python(code, MULTIOPT_NUM_THREADS="2") == "4"


def test_multiprocessing_by_fork_gives_the_same_bits():
    code = FORK.format(
        before="""
import multiprocessing, zlib
def child(queue):
    opt.step(np.ones(2_000_000))
    queue.put(zlib.crc32(opt.params.tobytes()))
context = multiprocessing.get_context("fork")
queue = context.Queue()
children = [context.Process(target=child, args=(queue,)) for _ in range(3)]
for process in children:
    process.start()
found = {queue.get(timeout=50) for _ in children}
for process in children:
    process.join(50)
opt.step(np.ones(2_000_000))
print(found == {zlib.crc32(opt.params.tobytes())}, [p.exitcode for p in children])
"""
    )
    # A fork while threads live is what is tested; newer Pythons warn of it.
    code = "import warnings; warnings.simplefilter('ignore', DeprecationWarning)\n" + code
    assert run_python(code, MULTIOPT_NUM_THREADS="2") == "True [0, 0, 0]"


def test_a_fork_while_another_thread_steps():
    code = FORK.format(
        before="""
stop = threading.Event()
other = Adadelta(np.ones(2_000_000))
def work():
    while not stop.is_set():
        other.step(np.ones(2_000_000))
thread = threading.Thread(target=work)
thread.start()
for _ in range(5):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        opt.step(np.ones(2_000_000))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
thread.join()
print("done")
"""
    )
    assert run_python(code, MULTIOPT_NUM_THREADS="2") == "done"


def test_a_step_while_the_interpreter_ends():
    code = """
import atexit, threading
import numpy as np
from multiopt import Adadelta
opt = Adadelta(np.ones(2_000_000))
opt.step(np.ones(2_000_000))
@atexit.register
def last():
    opt.step(np.ones(2_000_000))
    print(opt.steps)
"""
    assert run_python(code, MULTIOPT_NUM_THREADS="2") == "2"
