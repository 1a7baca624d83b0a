"""Checkpoints and snapshots that are damaged by chance, or forged with right checksums: refused, with nothing changed.

What is loaded all the same is what was saved (damage), or can be saved and loaded again (forgery).
"""

import random
import time
from pathlib import Path

import numpy as np
import torch
from forger import forge, forge_snapshot, tried, tried_snapshot
from libraries import snapshot

from multiopt import Adadelta, schedules

LONGEST = 5  # seconds of one load, on a busy machine


def made(kind):
    if kind == "small":
        return Adadelta(np.linspace(0, 1, 3))
    if kind == "torch":
        return Adadelta([torch.ones(2, 3, dtype=torch.bfloat16), torch.zeros(0)], state_dtype="float32", ema=0.5)
    groups = [
        {"params": {"a": np.ones((2, 3)), "b": np.array(1 + 2j, np.complex64)}, "lr": schedules.Cosine(1.0, 10)},
        {"params": np.ones(4, np.float16), "clip_norm": 1.0},
    ]
    return Adadelta(groups, accumulate=3, ema=0.9, loss_scale=2.0)


def trained(kind):
    opt = made(kind)
    convert = torch.ones_like if kind == "torch" else np.ones_like
    tree = opt.params
    grads = (
        convert(tree) if kind == "small"
        else [convert(p) for p in tree] if kind == "torch"
        else [{name: convert(p) for name, p in tree[0].items()}, convert(tree[1])]
    )  # fmt: skip
    for _ in range(4):
        opt.step(grads)
    return opt


def damaged(content, rng, others):
    """The bytes of a good file with damage done to them."""
    content = bytearray(content)
    kind = rng.choice(["bits", "bits", "cut", "more", "moved", "filled", "spliced", "length"])
    at, length = rng.randrange(len(content)), rng.randrange(1, 64)
    if kind == "bits":
        for _ in range(rng.choice([1, 1, 2, 20])):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del content[at:]
    elif kind == "more":
        content[at:at] = rng.randbytes(length)
    elif kind == "moved":
        part = bytes(content[at : at + length])
        del content[at : at + length]
        content[at // 2 : at // 2] = part
    elif kind == "filled":  # a block that never reached the disk
        content[at : at + length] = bytes(len(content[at : at + length]))
    elif kind == "spliced":  # the beginning of one file and the end of another
        content[at:] = rng.choice(others)[at:]
    else:
        content[:8] = rng.choice([0, 1, len(content), 10**8, 2**63, 2**64 - 1]).to_bytes(8, "little")
    return kind, bytes(content)


def main(seed, cases, folder):
    rng, path = random.Random(seed), Path(folder) / "x"
    kinds = "small", "torch", "all"
    good, contents = {kind: snapshot(trained(kind)) for kind in kinds}, {}
    for kind in kinds:
        trained(kind).save(path)
        contents[kind] = path.read_bytes()
    counts = dict.fromkeys(["damaged", "harmless", "forged", "accepted", "forged snapshots", "accepted snapshots"], 0)
    for _ in range(cases):
        kind = rng.choice(kinds)
        how, content = damaged(contents[kind], rng, list(contents.values()))
        path.write_bytes(content)
        opt = made(kind)
        before, start = snapshot(opt), time.process_time()
        try:
            opt.load(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: "), error  # noqa: PT017
            assert snapshot(opt) == before, f"{how}: a refused file changed something"
        else:
            assert snapshot(opt) == good[kind], f"{how}: other values than were saved"
            counts["harmless"] += 1
        counts["damaged"] += 1

        def make(kind=kind):
            return made(kind)

        what, content = forge(contents[kind], rng)
        path.write_bytes(content)
        counts["forged"] += 1
        counts["accepted"] += told(what, tried, make, path)
        what, state = forge_snapshot(trained(kind).state_dict(), rng)
        counts["forged snapshots"] += 1
        counts["accepted snapshots"] += told(what, tried_snapshot, make, state)
        assert time.process_time() - start < 3 * LONGEST, what
    assert counts["harmless"] < cases / 10
    assert 0 < counts["accepted"] < counts["forged"] / 2
    print(", ".join(f"{name}: {count}" for name, count in counts.items()))


def told(what, act, *arguments):
    try:
        return act(*arguments)
    except BaseException as error:
        error.add_note(f"forged: {what}")
        raise
