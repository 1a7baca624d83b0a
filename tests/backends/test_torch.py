"""PyTorch's tensors of every kind: layouts, autograd, data that is swapped, and tensors that are not memory."""

import numpy as np
import pytest
from libraries import refused

from multiopt import Adadelta

pytestmark = pytest.mark.usefixtures("torch")
X, G = np.random.default_rng(0).standard_normal((2, 6, 8)).astype(np.float32)
LAYOUTS = {
    "contiguous": lambda torch, t: t.clone(),
    "channels last": lambda torch, t: t.clone(memory_format=torch.channels_last),
    "transposed": lambda torch, t: (
        t.transpose(1, 3).clone(memory_format=torch.contiguous_format).transpose(1, 3)
    ),
    "strided": lambda torch, t: t.repeat_interleave(2, 3)[..., ::2],
    "offset": lambda torch, t: torch.cat([t, t])[1:3],
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, torch, engine):
    start, grad = (a.reshape(2, 4, 3, 2) for a in (X, G))
    want = start.copy()
    opt = Adadelta(want, engine="eager")
    for _ in range(3):
        opt.step(grad.copy())
    for grad_layout in LAYOUTS:
        p, g = (LAYOUTS[name](torch, torch.zeros(2, 4, 3, 2)) for name in (layout, grad_layout))
        p.copy_(torch.from_numpy(start))
        g.copy_(torch.from_numpy(grad))
        opt, strides = Adadelta(p.requires_grad_(), engine=engine), p.stride()
        for _ in range(3):
            assert opt.step(g) is p
        assert p.stride() == strides
        got = p.detach().contiguous().numpy()
        if engine == "host":
            assert got.tobytes() == want.tobytes()
        else:
            # PyTorch's own vectorised square root is off by one unit in some elements.
            np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("make", ["torch.ones(3)", "torch.ones(4, 6)[:, ::2]"])
def test_autograd_is_told(torch, engine, make):
    p = eval(make).requires_grad_()
    saved = (p * p).sum()  # autograd has kept p
    Adadelta(p, engine=engine).step(torch.ones_like(p).detach())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.backward()
    assert p.grad is None
    assert p.requires_grad
    assert (p < 1).all()
    (p * p).sum().backward()


def test_state_and_averages_do_not_require_grad(torch):
    opt = Adadelta(torch.ones(3, requires_grad=True), ema=0.5)
    opt.step(torch.ones(3, requires_grad=True) * 2)
    assert not any(t.requires_grad for t in (*opt.state.values(), opt.ema_params))


def test_inference_mode(torch, engine):
    with torch.inference_mode():
        p = torch.from_numpy(X.copy())
        opt = Adadelta(p.clone(), engine=engine)
        opt.step(torch.from_numpy(G.copy()))
        assert opt.steps == 1
        assert not torch.equal(opt.params, p)


VIEWS = {"conj": lambda t: t.conj(), "neg": lambda t: t.conj().imag}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("resolved", [False, True])
def test_conjugate_and_negative_bits(torch, engine, view, resolved):
    rng = np.random.default_rng(1)
    x, g = (torch.from_numpy(rng.standard_normal(9) + 1j * rng.standard_normal(9)) for _ in range(2))
    p, gradient = view(x), view(g)
    assert p.is_conj() or p.is_neg()
    want, plain = (a.resolve_conj().resolve_neg().numpy().copy() for a in (p, gradient))
    Adadelta(want, engine="eager", eps=0.1).step(plain)
    p = p.clone().resolve_conj().resolve_neg() if resolved else p
    Adadelta(p, engine=engine, eps=0.1).step(gradient)
    # Eager torch: its square root, as above.
    np.testing.assert_allclose(p.resolve_conj().resolve_neg().numpy(), want, rtol=1e-14)


@pytest.mark.parametrize("when", ["before the first step", "later"])
def test_data_may_be_swapped(torch, when, engine):
    p = torch.nn.Parameter(torch.from_numpy(X.copy()))
    opt = Adadelta(p, engine=engine)
    if when == "later":
        opt.step(torch.zeros(6, 8))
    old = p.data
    p.data = torch.from_numpy(X.copy())
    opt.step(torch.from_numpy(G.copy()))
    assert torch.equal(old, torch.from_numpy(X))
    assert not torch.equal(p.data, old)


@pytest.mark.parametrize("swap", ["p.data[:3]", "p.data.double()", "p.data.half()", "p.data.repeat(2, 1)", "p.data.T"])
def test_data_of_another_kind_is_refused(torch, swap, engine):
    p = torch.nn.Parameter(torch.from_numpy(X.copy()))
    opt = Adadelta([p], engine=engine)
    opt.step([torch.ones(6, 8)])
    before = opt.state[0]["square_avg"].clone()
    p.data = eval(swap)  # as module.half() does
    kept = p.data.clone()
    for g in (torch.ones(6, 8), torch.ones_like(p.data)):
        with pytest.raises((TypeError, ValueError), match=r"(params|grads)\[0\]: expected"):
            opt.step([g])
    assert torch.equal(p.data, kept)
    assert torch.equal(opt.state[0]["square_avg"], before)
    assert opt.steps == 1


def test_overlap(torch):
    x = torch.zeros(100)
    for other in (x[49:], x.view(torch.bfloat16)[1::2], torch.from_numpy(x.numpy())):
        with pytest.raises(ValueError, match=r"params\[1\]: expected memory of its own"):
            Adadelta([x[:50], other])
    with pytest.raises(ValueError, match="got a view that repeats some"):
        Adadelta(torch.zeros(1).expand(5))
    Adadelta([x[::2], x[1::2]])


def strange(torch):
    class Wrapper(torch.Tensor):
        @staticmethod
        def __new__(cls, inner):
            return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

        @classmethod
        def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
            raise AssertionError("nothing may be asked of it")

        __repr__ = object.__repr__

    return {
        "meta": (torch.zeros(3, device="meta"), ".*got one on the meta device"),
        "sparse": (torch.zeros(3).to_sparse(), ".*expected a strided tensor"),
        "wrapper": (
            Wrapper(torch.ones(3)),
            "expected a tensor with memory of its own, got a Wrapper, which stands for others",
        ),
    }


@pytest.mark.parametrize("kind", ["meta", "sparse", "wrapper"])
def test_tensors_that_are_not_memory_are_refused(torch, kind):
    x, message = strange(torch)[kind]
    with pytest.raises(TypeError, match=rf"params\[0\]: {message}"):
        Adadelta([x])
    opt = Adadelta([torch.ones(3)])
    with refused(opt, TypeError, rf"grads\[0\]: {message}"):
        opt.step([x])


def test_storage_that_was_freed_is_refused(torch, numba):
    # As some libraries for sharded training do between uses. An address of 0 must not pass for "no gradient".
    g = torch.ones(3)
    opt = Adadelta([torch.ones(3)])
    g.untyped_storage().resize_(0)
    with refused(opt, ValueError, r"params\[0\]: expected memory, got .* whose memory was freed"):
        opt.step([g])
    opt = Adadelta([torch.ones(3)])
    opt.params[0].untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=r"params\[0\]: expected memory"):
        opt.step([torch.ones(3)])


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16", "complex64"])
def test_the_eager_engine_has_numpys_bits(torch, numba, dtype):
    # PyTorch's own square root on the CPU is not correctly rounded.
    kind, rng = getattr(torch, dtype), np.random.default_rng(7)
    draw = lambda: torch.from_numpy(rng.standard_normal((40_000, 2))).to(kind if not kind.is_complex else torch.float32)  # noqa: E731
    make = (lambda: torch.view_as_complex(draw())) if kind.is_complex else draw
    start, grads = make(), [make() for _ in range(100)]
    grads[50][:4] = (
        torch.tensor([float("nan"), float("inf"), -float("inf"), -float("nan")])
        .to(kind)
        .reshape(-1, *[1] * (start.ndim - 1))
    )
    found = []
    for engine in ("host", "eager", "eager, strided"):
        x = start.clone()
        x = torch.stack([x, x], -1)[..., 0] if "strided" in engine else x
        opt = Adadelta([x.requires_grad_()], engine=engine[:5].rstrip(","), weight_decay=0.01, ema=0.9)
        assert f"engine={engine[:4]}" in repr(opt)
        for g in grads:
            opt.step([g.conj() if kind.is_complex else g])
        state = [x, opt.ema_params[0], *opt.state[0].values()]
        found.append([a.detach().contiguous().view(torch.uint8).numpy().tobytes() for a in state])
    assert found[1] == found[0]
    assert found[2] == found[0]
    if dtype != "bfloat16":
        x = start.numpy().copy()
        opt = Adadelta([x], weight_decay=0.01, ema=0.9)
        for g in grads:
            opt.step([g.conj().resolve_conj().numpy() if kind.is_complex else g.numpy()])
        assert [a.tobytes() for a in (x, opt.ema_params[0], *opt.state[0].values())] == found[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_eager_engine_serves_every_shape_and_leaves_storage_resizable(torch, dtype):
    params = [torch.ones(shape, dtype=getattr(torch, dtype), requires_grad=True) for shape in [(), (0,), (2, 0), (3,)]]
    opt = Adadelta(params, engine="eager")
    opt.step([torch.ones_like(p).detach() for p in params])
    assert [float(p.detach().sum()) != p.numel() for p in params] == [True, False, False, True]
    params[3].data.untyped_storage().resize_(0)  # which `tensor.numpy()` would have forbidden
