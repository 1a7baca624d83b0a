"""One optimizer in several threads: every step is whole, none is lost."""

import threading

import pytest

torch = pytest.importorskip("torch")
from multiopt.torch import Adadelta  # noqa: E402


def made():
    params = [torch.nn.Parameter(torch.linspace(-1, 1, n)) for n in (3, 5)]
    for p in params:
        p.grad = torch.ones_like(p)
    return params, Adadelta(params)


def test_four_threads_lose_no_step():  # 4 x 10,000 pass too, in a minute
    (expected, single), (params, opt) = made(), made()
    closures, odd, guard = [], [], threading.Lock()

    def closure():  # runs outside the lock: others may step meanwhile
        with guard:
            closures.append(threading.get_ident())

    def work(i):
        for k in range(1000):
            opt.step(closure if k % 100 == i else None)
            if k % 100 == i:
                odd.extend(
                    s for s in opt.state_dict()["state"].values() if set(s) != {"step", "square_avg", "acc_delta"}
                )

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(600)  # a hang is a failure
    for _ in range(4000):
        single.step()
    assert len(closures) == 40
    assert not odd
    for p, q in zip(params, expected, strict=True):
        assert torch.equal(p, q)
        assert opt.state[p]["step"] == 4000
        assert all(torch.equal(opt.state[p][name], single.state[q][name]) for name in single.state[q])


def test_closures_of_two_threads_may_wait_for_each_other():
    _, opt = made()
    both = threading.Barrier(2)
    workers = [threading.Thread(target=opt.step, args=(lambda: both.wait(60),)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert not both.broken
    assert all(own["step"] == 2 for own in opt.state.values())
