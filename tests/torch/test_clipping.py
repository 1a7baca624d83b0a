"""multiopt.torch's clipping: PyTorch's arguments, exact norms, and three functions that agree bit for bit."""

import inspect
import math

import numpy as np
import pytest
from exact_norms import units_off
from torch_pairs import assert_equal, torch

from multiopt.clipping import clip
from multiopt.torch import clip_grad_norm_, clip_grads_with_norm_, get_total_norm

THEIRS = torch.nn.utils


def gradients(dtypes=(torch.float32, torch.float64), scale=1.0):
    shapes = [(3, 4), (), (0,), (50, 41)]
    params = [torch.nn.Parameter(torch.zeros(s, dtype=d)) for s in shapes for d in dtypes]
    params += [torch.nn.Parameter(torch.zeros(9, dtype=d)) for d in (torch.bfloat16, torch.complex64)]
    generator = torch.Generator().manual_seed(5)
    for p in params:
        p.grad = scale * torch.randn(p.shape, dtype=p.dtype, generator=generator)
    return params


def numbers(params):
    parts = [torch.view_as_real(p.grad) if p.is_complex() else p.grad for p in params]
    return np.concatenate([part.double().numpy().ravel() for part in parts])


def copies(params):
    return [p.grad.clone() for p in params]


@pytest.mark.parametrize("ours", [clip_grad_norm_, get_total_norm, clip_grads_with_norm_])
def test_the_arguments_are_pytorchs(ours):
    theirs = getattr(THEIRS, ours.__name__)
    mine, other = (inspect.signature(f).parameters.values() for f in (ours, theirs))
    assert [(p.name, p.default, p.kind) for p in mine] == [(p.name, p.default, p.kind) for p in other]


@pytest.mark.parametrize("kind", [2, 2.0, math.inf, "inf"])
@pytest.mark.parametrize("foreach", [None, True, False])
def test_three_functions_agree(kind, foreach):
    params, others = gradients(), gradients()
    before = copies(params)
    total = get_total_norm([p.grad for p in params], kind, foreach=foreach)
    assert (total.shape, total.dtype) == ((), torch.float64)
    assert_equal(copies(params), before)
    if kind in (math.inf, "inf"):
        assert total == max(p.grad.abs().max().double() for p in params if p.numel())
    else:
        assert units_off(total, numbers(params)) <= 1
    assert torch.equal(clip_grad_norm_((p for p in params), 0.5, norm_type=kind, foreach=foreach), total)
    assert clip_grads_with_norm_(others, 0.5, total, foreach) is None
    assert_equal(copies(params), copies(others))
    for p, g in zip(params, before, strict=True):
        torch.testing.assert_close(p.grad, (g * (0.5 / total)).to(g.dtype))
    if kind == 2:
        # As the core clips, bit for bit.
        grads = [p.grad.clone() for p in gradients()]
        assert_equal(clip(grads, [str(i) for i in range(len(grads))], global_norm=0.5)[0], copies(params))
    # PyTorch adds 1e-6 to the norm, and its own roundings.
    mine, theirs = ([p for p in gradients() if p.numel()] for _ in range(2))
    clip_grad_norm_(mine, 0.5, kind)
    THEIRS.clip_grad_norm_(theirs, 0.5, float(kind))
    for p, q in zip(mine, theirs, strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_a_norm_is_watched_by_any_threshold():
    """However far the norm is below the threshold, or above it."""
    generator = torch.Generator().manual_seed(2)
    p = torch.nn.Parameter(torch.zeros(300_000))
    p.grad = torch.randn(p.shape, generator=generator) * 4.5
    before, right = p.grad.clone(), math.sqrt(math.fsum((p.grad.double() ** 2).tolist()))
    for threshold in (1e9, 1e300, math.inf):
        assert float(clip_grad_norm_(p, threshold)) == pytest.approx(right, rel=2.3e-16)
        assert torch.equal(p.grad, before)
    small = torch.nn.Parameter(torch.zeros(1_000_000))
    small.grad = torch.full_like(small, 1e-10)
    assert float(clip_grad_norm_(small, 1.0)) == pytest.approx(float(np.float32(1e-10)) * 1e3, rel=2.3e-16)


def test_one_tensor_and_none():
    p = torch.nn.Parameter(torch.zeros(2))
    assert clip_grad_norm_(p, 1.0) == 0
    assert clip_grad_norm_(iter([]), 1.0) == 0
    assert get_total_norm([]) == get_total_norm([], math.inf) == get_total_norm(torch.zeros(0), math.inf) == 0
    with pytest.warns(UserWarning, match="empty generator"):
        clip_grad_norm_((q for q in []), 1.0)
    p.grad = torch.tensor([3.0, 4.0])
    assert get_total_norm(p.grad) == get_total_norm([p.grad[:1], p.grad[1:]]) == 5
    assert get_total_norm([p.grad, p.grad]) == math.sqrt(50)  # what is only read may overlap
    assert clip_grad_norm_(p, 2.5) == 5
    assert p.grad.tolist() == [1.5, 2.0]
    clip_grads_with_norm_(p, 1.0, 2.5)
    assert p.grad.tolist() == [np.float32(0.6), np.float32(0.8)]


@pytest.mark.parametrize("kind", [2.0, math.inf])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_what_is_not_finite(value, kind):
    p = torch.nn.Parameter(torch.zeros(2))
    p.grad = torch.tensor([1.0, value])
    for refused in (lambda: clip_grad_norm_([p], 1.0, kind, True), lambda: get_total_norm(p.grad, kind, True)):
        with pytest.raises(RuntimeError, match="not finite"):
            refused()
    assert p.grad[0] == 1
    assert not clip_grad_norm_([p], 1.0, kind).isfinite()
    assert p.grad[1].isnan()
    assert p.grad[0].isnan() == math.isnan(value)


def test_what_is_refused():
    params = gradients()
    before = copies(params)
    for value in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="max_norm: expected a number above 0"):
            clip_grad_norm_(params, value)
        with pytest.raises(ValueError, match="max_norm: expected a number above 0"):
            clip_grads_with_norm_(params, value, torch.tensor(1.0))
    for kind in (1, 0.5, -math.inf, "fro"):
        with pytest.raises(ValueError, match="norm_type: expected 2 or inf"):
            clip_grad_norm_(params, 1.0, kind)
    params[1].grad = params[1].grad.to_sparse()
    for refused in (lambda: clip_grad_norm_(params, 1.0), lambda: clip_grads_with_norm_(params, 1.0, 5.0)):
        with pytest.raises(TypeError, match=r"parameters\[1\].grad: expected a plain tensor"):
            refused()
    with pytest.raises(TypeError, match=r"tensors\[0\]: expected one of the dtypes"):
        get_total_norm(torch.ones(2, dtype=torch.int32))
    params[1].grad = before[1]
    both = torch.nn.Parameter(torch.zeros(3, 4))
    both.grad = params[0].grad
    with pytest.raises(ValueError, match="expected memory of its own"):
        clip_grad_norm_([*params, both], 1e-3)
    assert_equal(copies(params), before)


def test_gradients_that_are_alike_are_looked_at_once(monkeypatch):
    from multiopt.torch.tensors import BACKEND

    params = [torch.nn.Parameter(torch.zeros(k % 5)) for k in range(40)]
    for p in params:
        p.grad = torch.full_like(p, 3.0)
    if not BACKEND.alike([p.grad for p in params]):
        pytest.skip("this PyTorch describes no tensors, or Numba is missing")
    asked = []
    monkeypatch.setattr(type(BACKEND), "dtype", lambda self, a: asked.append(a) or "float32")
    assert clip_grad_norm_(params, 1.0) == pytest.approx(3.0 * math.sqrt(80), rel=1e-15)
    assert len(asked) == 1
    assert clip_grad_norm_(params, 2.0) == pytest.approx(1.0, rel=1e-7)


def test_memory_of_gradients_that_are_alike():
    whole, params = torch.full((2, 12), 4.0), [torch.nn.Parameter(torch.zeros(6)) for _ in range(2)]

    def clipped(*grads):
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        return clip_grad_norm_(params, 1.0)

    with pytest.raises(ValueError, match=r"parameters\[1\].grad: expected memory of its own"):
        clipped(whole[0, :6], whole[0, 5:11])
    with pytest.raises(ValueError, match=r"parameters\[0\].grad: expected elements with memory of their own"):
        clipped(whole[0, :1].expand(6), whole[1, :6])
    assert (whole == 4.0).all()
    assert clipped(whole[0, ::2], whole[0, 1::2]) == pytest.approx(4 * math.sqrt(12), rel=1e-15)
    assert clipped(torch._neg_view(whole[1, :6]), whole[1, 6:]) == pytest.approx(4 * math.sqrt(12), rel=1e-15)
    assert torch.allclose(whole, torch.tensor(1 / math.sqrt(12)), rtol=1e-6)  # float32's
