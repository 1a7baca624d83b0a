"""Threads and forks: many optimizers at once, one pool, children that go on; none hangs, none differs."""

import importlib.util
import os
import signal
import threading
import time

import numpy as np
import pytest
from libraries import refused, snapshot
from multiopt.backends.engines.host import threads
from processes import run_python

from multiopt import Adadelta

pytestmark = pytest.mark.usefixtures("numba")

SIZE = 1_200_001  # several pieces


def train(seed, steps=2, **options):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(SIZE).astype(np.float32)
    opt = Adadelta([x, x[:1000].copy()], **options)
    for _ in range(steps):
        g = rng.standard_normal(SIZE).astype(np.float32)
        opt.step([g, g[:1000].copy()])
    return snapshot(opt)


@pytest.mark.parametrize(
    ("count", "options"), [(9, {}), (2, {"clip_global_norm": 1.0, "nonfinite": "raise"})], ids=["many", "norm"]
)
def test_many_optimizers_at_once(count, options, monkeypatch):
    monkeypatch.setenv("MULTIOPT_NUM_THREADS", "3")
    expected = [train(seed, **options) for seed in range(count)]
    got, barrier = [None] * count, threading.Barrier(count)

    def work(i):
        barrier.wait()
        got[i] = train(i, **options)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(900)  # a hang is a failure
    assert got == expected


def test_every_piece_is_done_once(monkeypatch):
    for count in ("1", "2", "5", "64"):
        monkeypatch.setenv("MULTIOPT_NUM_THREADS", count)
        for pieces in (0, 1, 2, 7, 500):
            done = []
            threads.run(done.append, range(pieces))
            assert sorted(done) == list(range(pieces))


@pytest.mark.parametrize("where", ["caller", "helper"])
def test_an_error_comes_through_and_no_piece_is_begun_after_it(where, monkeypatch):
    monkeypatch.setenv("MULTIOPT_NUM_THREADS", "3")
    here, both, done = threading.current_thread(), threading.Barrier(3), []

    def kernel(piece):
        if piece < 3:
            both.wait(60)  # each thread has one
            if (threading.current_thread() is here) == (where == "caller") and not failed:
                failed.append(piece)
                raise RuntimeError("in a piece")
            while not failed:
                time.sleep(0.001)
        # Longer, all in all, than the one that has failed may have to wait for a processor.
        time.sleep(0.02)
        done.append(piece)

    failed = []
    with pytest.raises(RuntimeError, match="in a piece"):
        threads.run(kernel, range(1000))
    ended = list(done)
    assert set(range(3)) - set(failed) <= set(ended)  # those that had begun were waited for
    assert len(ended) < 100
    time.sleep(0.05)
    assert done == ended
    done.clear()
    threads.run(done.append, range(20))
    assert sorted(done) == list(range(20))


INTERRUPTS = """
import random, signal, time, zlib
import numpy as np
from multiopt import Adadelta
from multiopt.backends.engines.host import engine
engine.PIECE, engine.SERIAL = 1 << 13, 0

class Interrupt(BaseException):
    pass

def interrupt(*_):
    if armed:
        raise Interrupt

def bits():
    return [zlib.crc32(array) for array in arrays]

signal.signal(signal.SIGALRM, interrupt)
rng, choice, armed = np.random.default_rng(0), random.Random(0), False
params, grads = list(rng.random((2, 200_000))), list(rng.random((2, 200_000)))
opt = Adadelta(params)
opt.step(grads)
arrays = [*params, *(s[slot] for s in opt.state for slot in s)]
start = time.perf_counter()
opt.step(grads)
took, interrupted, moved = time.perf_counter() - start, 0, 0
while interrupted < 300:
    try:
        armed = True
        # The first comes anywhere in a step; the next ones soon, while helpers are waited for.
        signal.setitimer(signal.ITIMER_REAL, choice.uniform(1e-6, took), choice.choice([2e-5, 1e-4, 1e-3]))
        opt.step(grads)
        armed = False
    except Interrupt:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        before = bits()
        time.sleep(0.002)
        interrupted, moved = interrupted + 1, moved + (bits() != before)
    signal.setitimer(signal.ITIMER_REAL, 0)
before, counted = bits(), opt.steps
opt.step([2 * g for g in grads])  # after very many steps with the same ones, the state may stand still
print(moved, opt.steps - counted, all(map(int.__ne__, before, bits())), np.isfinite(arrays).all())
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there is no timer that interrupts")
def test_an_interrupted_step_leaves_no_thread_writing():
    assert run_python(INTERRUPTS, MULTIOPT_NUM_THREADS="3") == "0 1 True True"


def test_the_caller_does_it_all_where_no_thread_is_free(monkeypatch):
    # A step inside a step's thread: the pool is busy with the outer ones, and waiting for it would hang for ever.
    monkeypatch.setenv("MULTIOPT_NUM_THREADS", "2")
    done = []

    def outer(piece):
        threads.run(lambda inner: done.append((piece, inner)), range(4))

    threads.run(outer, range(4))
    assert sorted(done) == [(i, j) for i in range(4) for j in range(4)]


def test_bad_numbers_of_threads(monkeypatch):
    opt = Adadelta([np.ones(3), np.ones(SIZE)], accumulate=2)
    opt.step([np.ones(3), np.ones(SIZE)])
    for value in ("0", "-1", "two", "1.5", " ", "²", "1e3"):
        monkeypatch.setenv("MULTIOPT_NUM_THREADS", value)
        with refused(opt, ValueError, "MULTIOPT_NUM_THREADS: expected a positive integer, got "):
            opt.step([np.ones(3), np.ones(SIZE)])


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="there are no affinities to set")
@pytest.mark.parametrize(
    ("ours", "openmp", "library", "expected"),
    [
        ("7", "2", 1, 7),
        ("", "", None, 4),
        (None, None, None, 4),
        (None, "2", None, 2),
        (None, "2", 3, 3),  # the library was told later, or it would be 2
        (None, " 3,2", None, 3),
        (None, "9", None, 4),
        (None, None, 9, 4),
        *((None, text, None, 4) for text in ("0", "-1", "many", ",2", "²", "1e3", " ")),
    ],
)
def test_the_number_of_threads(ours, openmp, library, expected, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(4))
    for name, text in (("MULTIOPT_NUM_THREADS", ours), ("OMP_NUM_THREADS", openmp)):
        if text is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, text)
    assert threads.thread_count(library) == expected


HELPERS = """
import os, threading
import numpy as np
from multiopt import Adadelta
if TENSORS:
    import torch
os.sched_getaffinity = lambda pid: range(3)

def helpers(make):
    opt = Adadelta(make(2_000_000))
    opt.step(make(2_000_000))
    return sum("multiopt" in t.name for t in threading.enumerate())

found = [helpers(np.ones)]
if TENSORS:
    found.append(helpers(torch.ones))
    torch.set_num_threads(2)
    found.append(helpers(torch.ones))
    os.environ["MULTIOPT_NUM_THREADS"] = "3"
    found.append(helpers(torch.ones))
print(*found)
"""


def test_no_more_threads_than_openmp_and_the_library_are_told():
    tensors = importlib.util.find_spec("torch") is not None
    # As a launcher of many ranks sets it.
    found = run_python(f"TENSORS = {tensors}\n{HELPERS}", OMP_NUM_THREADS="1", MULTIOPT_NUM_THREADS="")
    assert found == ("0 0 1 2" if tensors else "0")


FORKS = """
import warnings; warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forks while threads live
import multiprocessing, os, signal, threading, zlib
import numpy as np
from multiopt import Adadelta
signal.alarm(800)  # a hang is a failure
g = np.ones(2_000_000)
opt, other = Adadelta(np.linspace(-1, 1, 2_000_000)), Adadelta(np.ones(2_000_000))
opt.step(g)

def forked(act):
    child = os.fork()
    if child == 0:
        signal.alarm(800)
        os._exit(act())
    assert os.waitpid(child, 0)[1] == 0

def leaf():
    opt.step(g)
    return 0 if np.isfinite(opt.params).all() else 1

def node():  # the child has threads of its own, and may fork too
    opt.step(g)
    forked(leaf)
    return 0 if sum("multiopt" in t.name for t in threading.enumerate()) == 1 else 1

for generation in range(3):
    forked(node)
    opt.step(g)
print("after a step", opt.steps)

def child(queue):
    opt.step(g)
    queue.put(zlib.crc32(opt.params.tobytes()))

context = multiprocessing.get_context("fork")
queue = context.Queue()
children = [context.Process(target=child, args=(queue,)) for _ in range(3)]
for process in children:
    process.start()
found = {queue.get() for _ in children}
for process in children:
    process.join()
opt.step(g)
print("by multiprocessing", found == {zlib.crc32(opt.params.tobytes())}, [p.exitcode for p in children])

stop = threading.Event()
def work():
    while not stop.is_set():
        other.step(g)
thread = threading.Thread(target=work)
thread.start()
for _ in range(5):
    forked(leaf)
stop.set()
thread.join()
print("while another thread steps")
"""


def test_forks():
    assert run_python(FORKS, MULTIOPT_NUM_THREADS="2").splitlines() == [
        "after a step 4",
        "by multiprocessing True [0, 0, 0]",
        "while another thread steps",
    ]


def test_affinity_is_respected_and_a_step_may_come_while_the_interpreter_ends():
    code = """
import atexit, os, threading
import numpy as np
from multiopt import Adadelta
cores = os.sched_getaffinity(0)
os.sched_setaffinity(0, {min(cores)})
opt = Adadelta(np.ones(2_000_000))
opt.step(np.ones(2_000_000))
print(sum("multiopt" in t.name for t in threading.enumerate()))
os.sched_setaffinity(0, cores)
os.environ["MULTIOPT_NUM_THREADS"] = "2"
opt.step(np.ones(2_000_000))
print(sum("multiopt" in t.name for t in threading.enumerate()))
@atexit.register
def last():
    opt.step(np.ones(2_000_000))
    print(opt.steps)
"""
    assert run_python(code, MULTIOPT_NUM_THREADS="").split() == ["0", "1", "3"]
