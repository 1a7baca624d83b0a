"""Processes that are killed in the middle of `save`: the file is whole, old or new, and the next save tidies up.

One process forks those that are killed, so that a kill costs milliseconds; it runs one thread.
"""

import os
import random
import signal
import time
from pathlib import Path

import numpy as np
from libraries import snapshot

from multiopt import Adadelta

SIZE = 200_000  # long enough that most kills fall into the writing


def optimizer(steps):
    opt = Adadelta([np.linspace(-1, 1, SIZE), np.ones(7, np.float32)], engine="eager")
    for _ in range(steps):
        opt.step([np.linspace(0, 1, SIZE), np.ones(7, np.float32)])
    return opt


def killed(act, delay):
    """Fork a child that goes on with `act` for ever, and kill it after a delay."""
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(ready)
            os.write(tell, b"x")
            while True:
                act()
        finally:
            os._exit(1)
    os.close(tell)
    os.read(ready, 1)  # it runs
    os.close(ready)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status), f"the child ended by itself: {status}"


def main(seed, cases, folder):
    rng, folder = random.Random(seed), Path(folder)
    path = folder / "checkpoint"
    states, reader = [optimizer(steps) for steps in (1, 2)], optimizer(0)
    expected = [snapshot(opt) for opt in states]
    states[0].save(path)
    start = time.perf_counter()
    states[0].save(path)
    once, strays, olds = time.perf_counter() - start, 0, [0, 0]

    def act():
        for opt in states:
            opt.save(path)

    for _ in range(cases):
        killed(act, rng.uniform(0, 3) * once)
        strays += len(os.listdir(folder)) - 1
        reader.load(path)
        found = snapshot(reader)
        assert found in expected, "neither the old file nor the new one"
        olds[expected.index(found)] += 1
        if rng.random() < 0.5:
            states[rng.randrange(2)].save(path)
            assert os.listdir(folder) == [path.name], f"strays are left: {os.listdir(folder)}"
    states[0].save(path)
    assert os.listdir(folder) == [path.name], f"strays are left: {os.listdir(folder)}"
    print(f"{cases} kills, {strays} strays, {olds[0]} of the one and {olds[1]} of the other file")
