"""`multiopt.torch.Adadelta` beside `torch.optim.Adadelta`: the same is done with both, and compared."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("numba", reason="the host engine needs numba")

from multiopt.torch import Adadelta  # noqa: E402

THEIRS = torch.optim.Adadelta
#: The engine's square root and PyTorch's differ in the last place, and so do contracted multiplications.
CLOSE = {"rtol": 1e-5, "atol": 1e-7}
#: Several steps through a network spread such a difference.
SPREAD = {"rtol": 1e-4, "atol": 1e-5}
SHAPES = [(3, 4), (5,), (), (0,), (2, 3, 4, 5), (257, 129)]


def parameters(dtype=torch.float32, seed=1, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(s, dtype=dtype, generator=generator)) for s in shapes]


def ones(*shape, **options):
    return torch.nn.Parameter(torch.ones(shape, **options))


def set_grads(params, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, dtype=p.dtype, generator=generator)


def train(opt, params, steps, start=0):
    for step in range(start, start + steps):
        set_grads(params, step)
        opt.step()


def assert_same(ours, theirs, **tolerances):
    """By default PyTorch's own tolerances, by which it compares its implementations with each other."""
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), **tolerances)


def assert_equal(ours, theirs):
    assert_same(ours, theirs, rtol=0, atol=0, equal_nan=True)


def assert_same_state(a, b, **tolerances):
    """Two optimizers' state_dicts: one layout, the same numbers."""
    ours, theirs = (opt if isinstance(opt, dict) else opt.state_dict() for opt in (a, b))
    assert list(ours["state"]) == list(theirs["state"])
    for own, its in zip(ours["state"].values(), theirs["state"].values(), strict=True):
        assert list(own) == list(its) == ["step", "square_avg", "acc_delta"]
        for mine, other in zip(own.values(), its.values(), strict=True):
            assert (mine.dtype, mine.shape, mine.stride(), mine.device, type(mine), mine.requires_grad) == (
                (other.dtype, other.shape, other.stride(), other.device, type(other), other.requires_grad)
            )
            torch.testing.assert_close(mine, other, **tolerances)
    assert ours["param_groups"] == theirs["param_groups"]
    assert [list(g) for g in ours["param_groups"]] == [list(g) for g in theirs["param_groups"]]


def compare(make, **tolerances):
    """What ``make(kind)``, the same for either optimizer, returns: the optimizer, and the tensors that it updated."""
    (a, ours), (b, theirs) = make(Adadelta), make(THEIRS)
    assert_same(ours, theirs, **tolerances)
    assert_same_state(a, b, **tolerances)
    return a, ours


def compare_training(make_params, steps=3, **options):
    """Do the same steps with both optimizers."""

    def make(kind):
        params = make_params()
        opt = kind(params, **options)
        train(opt, params, steps)
        return opt, params

    return compare(make)
