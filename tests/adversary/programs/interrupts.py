"""Steps that a signal handler interrupts by raising: when `step` has raised, nothing goes on being written.

Each element, with its state, is either the old or the new one; then the state is put back, the step done again, and
in the end all bits are those of a run that nobody interrupted.
"""

import os
import random
import signal
import sys
import time
import warnings

import numpy as np
import torch

from multiopt import Adadelta
from multiopt.torch import Adadelta as DropIn

SIZE = 1_700_000  # several pieces
SLOTS = "square_avg", "acc_delta"


class Interrupted(Exception):
    pass


class Face:
    """One optimizer, its arrays as NumPy views, and a step with the k-th gradient."""

    def __init__(self, face):
        self.x = np.linspace(-1, 1, SIZE, dtype=np.float32)
        self.g = np.linspace(1, 2, SIZE, dtype=np.float32)
        self.face = face
        if face == "drop-in":
            self.p = torch.nn.Parameter(torch.from_numpy(self.x))
            self.opt = DropIn([self.p])
        else:
            options = {"clip_global_norm": 1.0, "ema": 0.9} if face == "options" else {}
            tensor = torch.from_numpy if face == "torch" else lambda a: a
            self.given = tensor(self.g)
            self.opt = Adadelta([tensor(self.x)], **options)

    def step(self):
        if self.face == "drop-in":
            self.p.grad = torch.from_numpy(self.g)
            self.opt.step()
        else:
            self.opt.step([self.given])

    def arrays(self):
        if self.face == "drop-in":
            own = self.opt.state.get(self.p)
            return [self.x, *(own[slot].numpy() for slot in SLOTS)] if own else None
        return [self.x, *(np.asarray(self.opt.state[0][slot]) for slot in SLOTS)]

    def count(self):
        return float(self.opt.state[self.p]["step"]) if self.face == "drop-in" else self.opt.steps

    def put_back(self, arrays, averages, count):
        for own, old in zip(self.arrays(), arrays, strict=True):
            own[...] = old
        if averages is not None:
            self.opt.ema_params[0][...] = averages
        if self.face == "drop-in":
            self.opt.state[self.p]["step"].fill_(count)
        else:
            self.opt.steps = count

    def averages(self):
        return self.opt.ema_params[0].copy() if self.face == "options" else None


def raising(signum, frame):
    raise Interrupted


def one_face(face, rng, cases):
    mine, twin, caught = Face(face), Face(face), 0
    for each in (mine, twin):
        each.step()
    start = time.perf_counter()
    twin_time = [twin.step(), time.perf_counter() - start][1]
    mine.step()
    steps = 0
    while steps < cases:
        steps += 1
        old, averages, count = [a.copy() for a in mine.arrays()], mine.averages(), mine.count()
        twin.step()
        new = twin.arrays()
        done = False
        try:
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 1.3 * twin_time))
            mine.step()
            done = True
            signal.setitimer(signal.ITIMER_REAL, 0)
        except Interrupted:
            signal.setitimer(signal.ITIMER_REAL, 0)
            caught += 1
            seen = [a.copy() for a in mine.arrays()]
            time.sleep(rng.choice([0, 0.002, 0.01]))
            for one, later in zip(seen, mine.arrays(), strict=True):
                assert one.tobytes() == later.tobytes(), "a thread went on writing after the step had raised"
            whole = sum((a != b).astype(np.int8) for a, b in zip(seen, old, strict=True))
            fresh = sum((a != b).astype(np.int8) for a, b in zip(seen, new, strict=True))
            assert not ((whole != 0) & (fresh != 0)).any(), "an element is neither the old nor the new one"
            assert mine.count() in (count, count + 1)
            if mine.count() == count + 1:
                assert not fresh.any(), "a step was counted that was not done"
            if not done:
                mine.put_back(old, averages, count)
                mine.step()
        for a, b in zip(mine.arrays(), new, strict=True):
            assert a.tobytes() == b.tobytes(), "other bits than without interrupts"
        if averages is not None:
            assert mine.averages().tobytes() == twin.averages().tobytes(), "other averages than without interrupts"
        assert mine.count() == twin.count()
    return caught


def main(seed, cases, folder):
    warnings.simplefilter("error")
    sys.setswitchinterval(1e-4)
    os.environ["MULTIOPT_NUM_THREADS"] = "3"
    rng = random.Random(seed)
    signal.signal(signal.SIGALRM, raising)
    faces = "numpy", "options", "torch", "drop-in"
    caught = {face: one_face(face, rng, -(-cases // len(faces))) for face in faces}
    assert sum(caught.values()) > cases / 10, f"nothing was tried: {caught}"
    print(f"{sum(caught.values())} interrupts in {-(-cases // 4) * 4} steps: {caught}")
