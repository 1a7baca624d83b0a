"""Forks in the middle of training, while threads step: child and parent go on, with the same bits."""

import multiprocessing
import os
import pickle
import signal
import threading
import time
import warnings

import numpy as np
from libraries import snapshot

from multiopt import Adadelta

SIZE = 1_100_000  # several pieces


def grad(k):
    return np.linspace(-1, 1 + k % 7, SIZE, dtype=np.float32)


def made():
    return Adadelta([np.linspace(1, 2, SIZE, dtype=np.float32), np.ones(3)], clip_global_norm=1.0, ema=0.9)


def train(opt, steps):
    for k in range(opt.steps, opt.steps + steps):
        opt.step([grad(k), np.ones(3)])
    return snapshot(opt)


def forked(act):
    """Run `act` in a fork; it must come back, and be true."""
    child = os.fork()
    if child == 0:
        signal.alarm(120)  # a hang is a failure
        code = 1
        try:
            code = 0 if act() else 2
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    assert status == 0, {2: "other bits in the child"}.get(status >> 8, f"the child ended with status {status}")


def generations(opt, expected, deep):
    """The child trains on and forks again, with threads of its own alive."""
    if train(opt, 1) != expected[opt.steps]:
        return False
    if deep:
        forked(lambda: generations(opt, expected, deep - 1))
    return True


def in_child(opt):
    """In a process of `multiprocessing`."""
    os.environ["MULTIOPT_NUM_THREADS"] = "2"
    return train(opt, 2)


def main(seed, cases, folder):
    warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forks while threads live
    os.environ["MULTIOPT_NUM_THREADS"] = "2"
    steps = cases + 6
    twin, expected = made(), {}
    expected[0] = snapshot(twin)
    for k in range(1, steps + 1):
        expected[k] = train(twin, 1)

    opt = made()
    for k in range(cases):
        forked(lambda: generations(opt, expected, 2))
        assert train(opt, 1) == expected[k + 1], "other bits in the parent"

    # While another thread steps another optimizer, and the same one: the child's copy of that may be half a step, but
    # its locks are free, and it takes what it is given.
    other, busy, stop = made(), Adadelta([np.ones(SIZE, np.float32), np.ones(3)]), threading.Event()
    start = busy.state_dict()

    def work():
        k = 0
        while not stop.is_set():
            busy.step([grad(k), np.ones(3)])
            k += 1

    def takes_over():
        for p in busy.params:
            p[...] = 1
        busy.load_state_dict(start)
        busy.step([grad(0), np.ones(3)])
        twin = Adadelta([np.ones(SIZE, np.float32), np.ones(3)])
        twin.step([grad(0), np.ones(3)])
        return snapshot(busy) == snapshot(twin)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for k in range(cases):
            time.sleep(0.001 * (k % 5))
            forked(lambda: generations(other, expected, 1))
            forked(takes_over)
            assert train(other, 1) == expected[k + 1], "other bits in the parent"
    finally:
        stop.set()
        thread.join()

    done = opt.steps
    for method in multiprocessing.get_all_start_methods():
        with multiprocessing.get_context(method).Pool(1) as pool:
            assert pool.apply(in_child, (opt,)) == expected[done + 2], f"other bits after {method}"
    assert train(pickle.loads(pickle.dumps(opt)), 2) == expected[done + 2], "other bits after pickle"
    print(f"{cases * 3} generations, {cases * 3} forks while a thread steps, and each start method")
