"""multiopt.torch.Adadelta where no engine may read the memory: autograd, tracers, subclasses, modes, transforms."""

import pytest
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch_pairs import CLOSE, THEIRS, Adadelta, assert_same, ones, torch

STEP = torch.linspace(-1, 1, 5), torch.linspace(1, 2, 5)


def stepped(x, g, kind=Adadelta, **options):
    """A copy of `x` after a step."""
    x = x.clone()
    x.grad = g
    kind([x], **options).step()
    return x


# --- differentiable ---


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1, "maximize": True}], ids=str)
def test_autograd_follows_the_step(options, dtype):
    """Through the parameter, the gradient and both accumulators, and against PyTorch's values."""

    def step(kind, x, g, v, u):
        x = x.clone()
        x.grad = g
        opt = kind([x], differentiable=True, **options)
        opt.state[x].update(step=torch.tensor(3.0), square_avg=v.clone(), acc_delta=u.clone())
        opt.step()
        return x, opt.state[x]["square_avg"], opt.state[x]["acc_delta"]

    generator = torch.Generator().manual_seed(3)
    inputs = [torch.randn(5, dtype=dtype, generator=generator) for _ in range(2)]
    # Accumulators are positive, in both parts of a complex number.
    positive = [torch.rand(5, dtype=torch.float64, generator=generator).to(dtype) for _ in range(2)]
    inputs += [a * (1 + 0.5j) if dtype.is_complex else a for a in positive]
    inputs = [a.requires_grad_() for a in inputs]
    for mine, other in zip(step(Adadelta, *inputs), step(THEIRS, *inputs), strict=True):
        torch.testing.assert_close(mine, other)
    assert torch.autograd.gradcheck(lambda *a: step(Adadelta, *a), inputs)


def test_sparse_gradients_are_refused_in_later_steps_too():
    x = torch.ones(3)
    opt = Adadelta([x], differentiable=True)
    x.grad = torch.ones(3)
    opt.step()
    x.grad = torch.ones(3).to_sparse()
    with pytest.raises(RuntimeError, match="does not support sparse"):
        opt.step()


def test_autograd_follows_the_learning_rate():
    """Which PyTorch's refuses."""
    lr = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    x = torch.ones(3, dtype=torch.float64, requires_grad=True)
    g = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda lr: stepped(x, g, lr=lr, differentiable=True), [lr])


def test_a_training_step_can_be_differentiated():
    """Two steps of training, differentiated by the initial weights."""

    def trained(w):
        x = w.clone()
        opt = Adadelta([x], differentiable=True, eps=1e-2)
        for _ in range(2):
            (x.grad,) = torch.autograd.grad((x.clone() ** 2).sum(), x, create_graph=True)
            opt.step()
        return x

    w = torch.tensor([1.0, -0.3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(trained, [w])


# --- tracers and modes ---


def test_torch_func_transforms():
    """Under `grad` and `vmap` the tensors are wrappers without memory."""

    def after(g):
        return stepped(torch.tensor([1.0, 2.0]), g, differentiable=True, eps=1e-2).sum()

    g = torch.tensor([0.5, -1.0], requires_grad=True)
    slope = torch.func.grad(after)(g.detach())
    after(g).backward()
    torch.testing.assert_close(slope, g.grad)


def test_gradients_from_torch_func():
    model = torch.nn.Linear(3, 1)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    params = dict(model.named_parameters())
    start = {k: v.detach() for k, v in params.items()}
    grads = torch.func.grad(lambda p: torch.func.functional_call(model, p, (x,)).square().sum())(start)
    after = [stepped(start[name], grads[name]) for name in params]
    model(x).square().sum().backward()
    Adadelta(params.values()).step()
    assert_same(params.values(), after)


def test_make_fx_traces_the_step():
    def train(x, g, v, u, step):
        x.grad = g
        opt = Adadelta([x])
        opt.state[x] = {"step": step, "square_avg": v, "acc_delta": u}
        opt.step()
        return x, v, u, step

    def inputs():
        return [*(torch.linspace(a, 1, 5) for a in (-1.0, 0.5, 0.1, 0.2)), torch.tensor(2.0)]

    graph = make_fx(train)(*inputs())
    # Another input than the traced one: nothing of it was baked in.
    one, two = ([a * 0.5 for a in inputs()] for _ in range(2))
    graph(*one)
    train(*two)
    assert_same(one, two, **CLOSE)


def test_a_dispatch_mode_sees_the_step():
    class Log(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    seen = []
    a, b = ones(3), ones(3)
    a.grad, b.grad = torch.full((3,), 0.5), torch.full((3,), 0.5)
    first, second = Adadelta([a]), Adadelta([b])
    for _ in range(2):
        with Log():
            first.step()
        second.step()
    assert any("sqrt" in name for name in seen)
    torch.testing.assert_close(a, b, **CLOSE)
    count = len(seen)
    first.step()
    second.step()
    assert len(seen) == count
    torch.testing.assert_close(a, b, **CLOSE)


def test_fake_and_meta_tensors_stay_what_they_are():
    with FakeTensorMode():
        fake = torch.nn.Parameter(torch.ones(3))
        fake.grad = torch.ones(3)
        opt = Adadelta([fake])
        opt.step()
        assert isinstance(opt.state[fake]["square_avg"], FakeTensor)
    opt.step()  # outside the mode
    meta = ones(3, device="meta")
    meta.grad = torch.ones(3, device="meta")
    opt = Adadelta([meta])
    opt.step()
    assert opt.state[meta]["square_avg"].device.type == "meta"
    assert opt.state[meta]["step"] == 1


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_jit_trace_sees_the_step():
    traced = torch.jit.trace(stepped, STEP, check_trace=False)
    twice = [2 * a for a in STEP]
    assert_same([traced(*twice)], [stepped(*twice)], **CLOSE)


# --- subclasses ---


class Scaled(torch.Tensor):
    """A tensor that means something else than what its memory holds: ten times as much."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)

    def __init__(self, inner):
        self.inner = inner

    def __repr__(self):
        return f"Scaled({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        plain = torch.utils._pytree.tree_map_only(Scaled, lambda a: a.inner * 10, (args, kwargs or {}))
        out = func(*plain[0], **plain[1])
        if func._schema.is_mutable:
            args[0].inner.copy_(out / 10)
            return args[0]
        return torch.utils._pytree.tree_map_only(torch.Tensor, lambda a: Scaled(a / 10), out)


def test_a_subclass_keeps_its_meaning():
    wrapped, plain = Scaled(torch.tensor([0.1, 0.2])), torch.tensor([1.0, 2.0])
    a, b = Adadelta([wrapped]), Adadelta([plain])
    for _ in range(3):
        wrapped.grad, plain.grad = Scaled(torch.tensor([0.01, -0.02])), torch.tensor([0.1, -0.2])
        a.step()
        b.step()
    torch.testing.assert_close(wrapped.inner * 10, plain, **CLOSE)
    assert a.state[wrapped]["step"] == 3


def test_a_subclass_beside_plain_tensors():
    two_tensor = pytest.importorskip("torch.testing._internal.two_tensor")
    pair = torch.nn.Parameter(two_tensor.TwoTensor(torch.tensor([1.0]), torch.tensor([-2.0])))
    plain, others = ones(4), [ones(1), torch.nn.Parameter(torch.tensor([-2.0]))]
    opt, other = Adadelta([plain, pair]), THEIRS(others)
    for _ in range(2):
        grads = torch.tensor([0.5]), torch.tensor([-0.25])
        pair.grad, plain.grad = two_tensor.TwoTensor(*grads), torch.ones(4)
        others[0].grad, others[1].grad = grads
        opt.step()
        other.step()
    assert_same([pair.a, pair.b], others)


def test_a_gradient_that_is_a_subclass():
    class Named(torch.Tensor):
        pass

    a, b = ones(3), ones(3)
    first, second = Adadelta([a]), Adadelta([b])
    for kind in (Named, Named, torch.Tensor):
        a.grad, b.grad = torch.full((3,), 0.5).as_subclass(kind), torch.full((3,), 0.5)
        first.step()
        second.step()
    assert_same([a], [b], **CLOSE)
    assert type(a) is torch.nn.Parameter
