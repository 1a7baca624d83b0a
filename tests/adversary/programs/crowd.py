"""Threads: four on one optimizer, whose steps are whole and all counted; eight optimizers at once, as if alone."""

import os
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import torch

from multiopt import Adadelta
from multiopt.torch import Adadelta as DropIn

SIZES = 3, 1000, 150_000  # the last is long enough for several threads of the engine


def made(face, seed):
    """An optimizer, a function that does one step of it, and one that reads its bits."""
    rng = np.random.default_rng(seed)
    xs, gs = ([rng.standard_normal(n).astype(np.float32) for n in SIZES] for _ in range(2))
    if face == "drop-in":
        params = [torch.nn.Parameter(torch.from_numpy(x)) for x in xs]
        for p, g in zip(params, gs, strict=True):
            p.grad = torch.from_numpy(g)
        opt = DropIn(params)

        def state():
            return [opt.state[p][slot].numpy() for p in params for slot in ("square_avg", "acc_delta", "step")]

        return opt, opt.step, lambda: crc([*xs, *state()])
    convert = torch.from_numpy if face == "torch" else np.asarray
    options = {"clip_global_norm": 1.0, "ema": 0.5, "accumulate": 2} if face == "options" else {}
    opt, grads = Adadelta(list(map(convert, xs)), **options), list(map(convert, gs))

    def bits():
        arrays = [np.asarray(a) for own in opt.state for a in own.values()]
        averages = [np.asarray(a) for a in opt.ema_params] if options else []
        return crc([*xs, *arrays, *averages]), opt.steps, opt.micro_steps

    return opt, lambda: opt.step(grads), bits


def crc(arrays):
    return zlib.crc32(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays))


def together(acts):
    """Run functions in threads of their own, at once; an error in one is an error here."""
    errors, barrier = [], threading.Barrier(len(acts))

    def guarded(act):
        try:
            barrier.wait()
            act()
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=guarded, args=(act,)) for act in acts]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(600)
        assert not worker.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]


def repeat(act, count):
    return lambda: [act() for _ in range(count)]


def one_optimizer(face, threads, steps):
    """All threads do the same step, so that their order makes no difference."""
    _, step, bits = made(face, 0)
    _, twin_step, twin_bits = made(face, 0)
    together([repeat(step, steps)] * threads)
    repeat(twin_step, threads * steps)()
    assert bits() == twin_bits(), f"{face}: steps from {threads} threads are not those of one"


def readers(steps, folder):
    """Whoever saves or takes a snapshot while another steps gets the state after a whole number of steps."""
    opt, step, _ = made("numpy", 1)
    twin, twin_step, _ = made("numpy", 1)
    whole = {}
    for k in range(steps + 1):
        whole[crc([a for own in twin.state for a in own.values()])] = k
        twin_step()
    seen, done = [], threading.Event()

    def work():
        repeat(step, steps)()
        done.set()

    def look(take):
        while not done.is_set():
            arrays = take()["arrays"]
            order = [arrays[f"{slot}/params[{i}]"] for i in range(len(SIZES)) for slot in ("square_avg", "acc_delta")]
            seen.append(whole.get(crc(order)))

    def through_a_file():
        path = Path(folder) / "x"
        opt.save(path)
        other, _, _ = made("numpy", 2)
        other.load(path)
        return other.state_dict()

    together([work, lambda: look(opt.state_dict), lambda: look(through_a_file)])
    assert None not in seen, "a snapshot of half a step"
    return len(seen)


def many(count, steps):
    """Optimizers of all faces at once."""
    faces = ["numpy", "torch", "drop-in", "options"] * count
    mine = [made(face, seed) for seed, face in enumerate(faces)]
    together([repeat(step, steps) for _, step, _ in mine])
    for seed, (face, (_, _, bits)) in enumerate(zip(faces, mine, strict=True)):
        _, twin_step, twin_bits = made(face, seed)
        repeat(twin_step, steps)()
        assert bits() == twin_bits(), f"{face}: other bits than alone"


def main(seed, cases, folder):
    sys.setswitchinterval(1e-5)
    os.environ["MULTIOPT_NUM_THREADS"] = "3"
    for face in ("numpy", "torch", "drop-in", "options"):
        one_optimizer(face, 4, cases)
    seen = readers(cases, folder)
    many(2, cases)
    print(f"4 threads x {cases} steps on one optimizer of each face; {seen} snapshots; 8 optimizers x {cases} steps")
