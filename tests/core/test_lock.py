"""One optimizer in several threads: each step is whole, none lost; copies and forked children have their own locks."""

import copy
import pickle
import threading

import numpy as np
import pytest
from processes import run_python

from multiopt import Adadelta, Hyper, Optimizer, Rule
from multiopt.lock import Lock


def together(count, work):
    """Call ``work(i)`` in that many threads at once; what it returned."""
    barrier, found = threading.Barrier(count), [None] * count

    def run(i):
        barrier.wait()
        found[i] = work(i)

    workers = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(600)  # a hang is a failure
    return found


def _tally(xp, x, g, count, *, lr):
    return x + lr * g, count + 1


#: The parameter and the state count the steps exactly, if each is whole.
TALLY = Rule("tally", _tally, slots={"count": 0.0}, hypers={"lr": Hyper(1.0, low=0.0)})


def test_four_threads_lose_no_step(numba):  # 4 x 10,000 pass too, in 11 s
    params, snapshots = [np.zeros(3), np.zeros(5, np.float32)], []
    grads = [np.ones_like(p) for p in params]
    opt = Optimizer(TALLY, params)

    def work(i):
        for k in range(3000):
            opt.step(grads)
            if k % 100 == i:
                state = opt.state_dict()
                snapshots.append((state["about"]["steps"], *(set(a.tolist()) for a in state["arrays"].values())))
                opt.lr = 1.0

    together(4, work)
    assert opt.steps == 12_000
    for array in (*params, *(s["count"] for s in opt.state)):
        assert (array == 12_000).all()
    assert len(snapshots) == 120
    assert all(counts == {steps} for steps, *arrays in snapshots for counts in arrays)


def test_accumulation_in_two_threads(engine):
    x = np.zeros(3)
    opt = Optimizer(TALLY, x, accumulate=2, engine=engine)
    together(2, lambda i: [opt.step(np.ones(3)) for _ in range(500)])
    assert (opt.steps, opt.micro_steps, x.tolist()) == (500, 0, [500.0] * 3)


def test_two_optimizers_compile_at_once(numba):
    def work(i):
        def function(xp, x, g, count, *, lr):
            return x + lr * g, count + 1

        rule = Rule("fresh", function, slots={"count": 0.0}, hypers={"lr": Hyper(1.0, low=0.0)})
        opt = Optimizer(rule, np.zeros(3), clip_global_norm=10.0, nonfinite="raise")
        for _ in range(100):
            opt.step(np.ones(3))
        return opt.params.tolist(), opt.state["count"].tolist()

    assert together(4, work) == [([100.0] * 3, [100.0] * 3)] * 4


def test_a_schedule_may_use_the_optimizer():
    opt = Adadelta(np.ones(3), lr=lambda step: 1.0 if step else float(len(opt.state_dict()["arrays"])))
    opt.step(np.ones(3))
    assert opt.steps == 1


def test_a_lock_is_not_shared_with_copies():
    lock = Lock()
    with lock:
        for twin in (copy.copy(lock), copy.deepcopy(lock), pickle.loads(pickle.dumps(lock))):
            assert type(twin) is Lock
            assert together(1, lambda _, twin=twin: twin.acquire(blocking=False)) == [True]
        assert together(1, lambda _: lock.acquire(blocking=False)) == [False]
    opt = Adadelta(np.ones(3))
    with opt._step_lock:  # as if it were stepping
        twin = pickle.loads(pickle.dumps(copy.deepcopy(opt)))
        together(1, lambda _: twin.step(np.ones(3)))
    assert twin.steps == 1


FORK = """
import warnings; warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forks while threads live
import os, signal, threading
import numpy as np
from multiopt import Adadelta
signal.alarm(300)  # a hang is a failure

def rate(step):  # within a step, whose lock is held
    if threading.current_thread() is thread:
        inside.set()
        done.wait()
    elif step == 2:
        fork(own)
    return 1.0

def fork(opt):
    child = os.fork()
    if child == 0:
        signal.alarm(300)
        if opt is not own:
            opt.step(np.ones(3))
        opt.state_dict()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0

inside, done = threading.Event(), threading.Event()
opt, own = (Adadelta(np.ones(3), lr=rate) for _ in range(2))
thread = threading.Thread(target=lambda: opt.step(np.ones(3)))
thread.start()
inside.wait()
fork(opt)  # the other thread holds the lock
for _ in range(4):
    own.step(np.ones(3))  # forks while this thread holds the lock
done.set()
thread.join()
opt.step(np.ones(3))
print(opt.steps, own.steps)
"""


def test_a_child_forked_within_a_step_does_not_hang():
    assert run_python(FORK) == "2 4"


def test_a_step_that_fails_holds_nothing():
    opt = Adadelta(np.ones(3), lr=lambda step: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        opt.step(np.ones(3))
    opt.lr = 1.0
    together(1, lambda _: opt.step(np.ones(3)))
    assert opt.steps == 1
