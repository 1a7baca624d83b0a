"""Groups in PyTorch's face: those updated alike are one call of an engine, and each gets what it would get alone."""

import pytest
import torch

from multiopt.torch import Adadelta
from multiopt.torch import group as groups

#: Two kinds of update, with other numbers in each group.
GROUPS = [
    {"lr": 0.5, "eps": 1e-3},
    {"lr": torch.tensor(0.25), "rho": 0.5},
    {"weight_decay": 0.1},
    {"weight_decay": 0.5, "lr": 2.0},
    {"rho": 0.95},
]


def parameters(seed):
    torch.manual_seed(seed)
    return [
        torch.nn.Parameter(torch.randn(shape, dtype=d))
        for shape in ((3, 2), (5,))
        for d in (torch.float32, torch.float64)
    ]


def bits(opt):
    own = [p for group in opt.param_groups for p in group["params"]]
    return [t.detach().numpy().tobytes() for p in own for t in (p, *opt.state.get(p, {}).values())]


def changed(k, opt, i):
    """What happens to the i-th group before step k."""
    group = opt.param_groups[i if len(opt.param_groups) > 1 else 0]
    if (k, i) == (2, 0):
        group["weight_decay"] = 0.25
    if (k, i) == (3, 1):
        group["params"][0].data = group["params"][0].data + 1
        group["lr"].mul_(2)
    if (k, i) == (4, 2):
        group["maximize"] = True


def test_groups_do_what_each_does_alone():
    together = Adadelta([{"params": parameters(i), **options} for i, options in enumerate(GROUPS[:-1])])
    alone = [Adadelta(parameters(i), **options) for i, options in enumerate(GROUPS)]
    for k in range(6):
        if k == 1:
            together.add_param_group({"params": parameters(4), **GROUPS[4]})
        if k == 5:
            together.load_state_dict(together.state_dict())
        for i, opt in enumerate(alone[: len(together.param_groups)]):
            changed(k, together, i)
            changed(k, opt, i)
            torch.manual_seed(10 * k + i)
            for j, (p, q) in enumerate(
                zip(together.param_groups[i]["params"], opt.param_groups[0]["params"], strict=True)
            ):
                p.grad = q.grad = torch.randn_like(p) if (i + k) % 4 != j else None
            opt.step()
        together.step()
    assert bits(together) == [array for opt in alone for array in bits(opt)]


@pytest.fixture
def counted(monkeypatch):
    """The calls of the host engine, and the bindings that are made."""
    pytest.importorskip("numba", reason="the host engine needs numba")
    engine, called, kept = groups.TensorBinding(*made_of(parameters(0)[0])).bucket.engine, [], groups.TensorBinding
    update = type(engine).update
    monkeypatch.setattr(type(engine), "update", lambda self, *args: called.append("update") or update(self, *args))
    monkeypatch.setattr(groups, "TensorBinding", lambda *args: called.append("binding") or kept(*args))
    return called


def made_of(p):
    return (
        ["p"],
        [p],
        [{slot: torch.zeros_like(p).detach() for slot in ("square_avg", "acc_delta")}],
        [0],
        p.dtype,
        False,
    )


def test_groups_updated_alike_are_one_call(counted):
    opt = Adadelta([{"params": parameters(i), "lr": 0.1 + i, "weight_decay": i % 2} for i in range(6)])
    for group in opt.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    opt.step()
    # Two dtypes, with weight decay and without.
    assert sorted(counted) == ["binding"] * 4 + ["update"] * 4
    # Only what has moved is bound anew.
    p = opt.param_groups[0]["params"][0]
    p.data = p.data.clone()
    counted.clear()
    opt.step()
    assert sorted(counted) == ["binding"] + ["update"] * 4


def test_groups_in_one_memory_are_updated_one_after_another():
    def run(make):
        memory = torch.arange(1.0, 13.0)
        params = [memory[:6], memory[2:8].double(), memory[4:10], torch.view_as_complex(memory.view(6, 2))]
        steps = make([[p] for p in params])
        for k in range(3):
            for p in params:
                p.grad = torch.full_like(p, k - 0.5)
            for step in steps:
                step()
        return memory

    together = run(lambda lists: [Adadelta([{"params": own, "lr": 0.5 + i} for i, own in enumerate(lists)]).step])
    apart = run(lambda lists: [Adadelta(own, lr=0.5 + i).step for i, own in enumerate(lists)])
    assert torch.equal(together, apart)
