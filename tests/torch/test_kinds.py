"""multiopt.torch.Adadelta on dtypes that few programs use and PyTorch allows; and what autograd hears of the step."""

import warnings

import pytest
from torch_pairs import THEIRS, Adadelta, compare, ones, parameters, torch, train


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("options", [{}, {"maximize": True, "weight_decay": 0.1}, {"foreach": True}], ids=str)
def test_complex32(options):
    """Beside parameters of other dtypes; PyTorch rounds each operation to half precision, we the step."""

    def make(kind):
        params = parameters(torch.complex64, shapes=[(3, 4), (5,)])
        params[0] = torch.nn.Parameter(params[0].detach().to(torch.complex32))
        opt = kind(params, **options)
        for step in range(3):
            for p, g in zip(params, parameters(torch.complex64, seed=9 + step, shapes=[(3, 4), (5,)]), strict=True):
                p.grad = g.detach().to(p.dtype)
            opt.step()
        return opt, params

    # Four roundings to 11 bits a step in PyTorch's.
    compare(make, rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize("p_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, {"maximize": True, "weight_decay": 0.1}], ids=str)
@pytest.mark.parametrize(
    "dtypes",
    [("float32", "float64"), ("float64", "bfloat16"), ("bfloat16", "float16"), ("float16", "float32")],
    ids=str,
)
def test_slots_of_different_dtypes(dtypes, options, p_dtype):
    def make(kind):
        params = parameters(p_dtype, shapes=[(3, 4), ()])
        opt = kind(params, **options)
        train(opt, params, 2)
        for own in opt.state.values():
            own |= {s: own[s].to(getattr(torch, d)) for s, d in zip(("square_avg", "acc_delta"), dtypes, strict=True)}
        train(opt, params, 2, start=2)
        return opt, params

    # PyTorch rounds after each operation, here to the narrowest of the dtypes, and the root magnifies it.
    compare(make, rtol=3e-2, atol=1e-5)


@pytest.mark.parametrize("dtype", ["int64", "complex64", "bool"])
def test_slots_of_dtypes_that_pytorch_refuses(dtype):
    def make(kind):
        p = ones(3)
        opt = kind([p])
        train(opt, [p], 1)
        opt.state[p]["acc_delta"] = opt.state[p]["acc_delta"].to(getattr(torch, dtype))
        return p, opt

    for kind in (THEIRS, Adadelta):
        p, opt = make(kind)
        before, square_avg = p.detach().clone(), opt.state[p]["square_avg"].clone()
        with pytest.raises(RuntimeError, match="cast to" if kind is THEIRS else "acc_delta"):
            train(opt, [p], 1, start=1)
    assert torch.equal(p, before)
    assert torch.equal(opt.state[p]["square_avg"], square_avg)


@pytest.mark.parametrize("step", ["int64", "int32", "complex64", "complex32", "float16"])
def test_counters_of_other_dtypes(step):
    def make(kind):
        params = [ones(3), ones(2)]
        opt = kind(params)
        train(opt, params, 1)
        opt.state[params[0]]["step"] = opt.state[params[0]]["step"].to(getattr(torch, step))
        train(opt, params, 2, start=1)
        return opt, params

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "ComplexHalf")
        compare(make)


def test_versions_rise():
    """Of all that a step writes to, and of nothing else; so that autograd knows."""
    for kind in (THEIRS, Adadelta):
        params = parameters()
        opt = kind(params)
        train(opt, params, 1)
        tensors = [[p, *opt.state[p].values()] for p in params]
        before = [[t._version for t in row] for row in tensors]
        params[1].grad = None
        loss = opt.state[params[0]]["acc_delta"].mul(params[0]).sum()
        opt.step()
        for i, (row, old) in enumerate(zip(tensors, before, strict=True)):
            assert [t._version > version for t, version in zip(row, old, strict=True)] == [i != 1] * 4
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
