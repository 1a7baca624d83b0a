"""multiopt.torch.Adadelta where no engine may read the memory: autograd, tracers, subclasses, modes, transforms."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("numba", reason="the host engine needs numba")

from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from multiopt.torch import Adadelta  # noqa: E402

THEIRS = torch.optim.Adadelta
#: The engine's square root and PyTorch's differ in the last place, and so do contracted multiplications.
CLOSE = {"rtol": 1e-5, "atol": 1e-7}


def ones(*shape, **options):
    return torch.nn.Parameter(torch.ones(shape, **options))


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


def test_autograd_follows_the_learning_rate():
    """Which PyTorch's refuses."""
    lr = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def step(lr):
        x = torch.ones(3, dtype=torch.float64, requires_grad=True).clone()
        x.grad = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
        Adadelta([x], lr=lr, differentiable=True).step()
        return x

    assert torch.autograd.gradcheck(step, [lr])


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

    def after(x, g):
        x = x.clone()
        x.grad = g
        opt = Adadelta([x], differentiable=True, eps=1e-2)
        opt.step()
        return x

    x, g = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.0])
    slope = torch.func.grad(lambda g: after(x, g).sum())(g)
    leaf = g.clone().requires_grad_()
    after(x, leaf).sum().backward()
    torch.testing.assert_close(slope, leaf.grad)


def test_gradients_from_torch_func():
    model = torch.nn.Linear(3, 1)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    params = dict(model.named_parameters())
    detached = {k: v.detach() for k, v in params.items()}
    grads = torch.func.grad(lambda p: torch.func.functional_call(model, p, (x,)).square().sum())(detached)
    model(x).square().sum().backward()
    other = {k: torch.nn.Parameter(v.detach().clone()) for k, v in params.items()}
    for name, param in other.items():
        param.grad = grads[name]
    Adadelta(params.values()).step()
    Adadelta(other.values()).step()
    for name in params:
        torch.testing.assert_close(params[name], other[name])


def test_make_fx_traces_the_step():
    from torch.fx.experimental.proxy_tensor import make_fx

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
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


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
    def train(x, g):
        x = x.clone()
        x.grad = g
        Adadelta([x]).step()
        return x

    inputs = torch.linspace(-1, 1, 5), torch.linspace(1, 2, 5)
    traced = torch.jit.trace(train, inputs, check_trace=False)
    torch.testing.assert_close(traced(*(2 * a for a in inputs)), train(*(2 * a for a in inputs)), **CLOSE)


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
    plain = ones(4)
    opt = Adadelta([plain, pair])
    for _ in range(2):
        pair.grad = two_tensor.TwoTensor(torch.tensor([0.5]), torch.tensor([-0.25]))
        plain.grad = torch.ones(4)
        opt.step()
    for start, g, now in ((1.0, 0.5, pair.a), (-2.0, -0.25, pair.b)):
        x = torch.tensor([start])
        x.grad = torch.tensor([g])
        other = THEIRS([x])
        other.step()
        other.step()
        torch.testing.assert_close(now.detach(), x)


def test_a_gradient_that_is_a_subclass():
    class Named(torch.Tensor):
        pass

    a, b = ones(3), ones(3)
    first, second = Adadelta([a]), Adadelta([b])
    for _ in range(2):
        a.grad, b.grad = torch.full((3,), 0.5).as_subclass(Named), torch.full((3,), 0.5)
        first.step()
        second.step()
    a.grad = b.grad.clone()
    first.step()
    second.step()
    torch.testing.assert_close(a.detach(), b.detach(), **CLOSE)
    assert type(a) is torch.nn.Parameter


# --- torch.compile ---


@pytest.mark.parametrize("what", ["step", "training step"])
def test_compiled_steps_have_the_same_numbers(what):
    def make(compiled):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        opt = Adadelta(model.parameters(), lr=torch.tensor(0.5))
        x = torch.linspace(-1, 1, 12).reshape(3, 4)

        def train():
            opt.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            opt.step()

        def step():
            opt.step()

        # The graph is run by PyTorch itself: what is tested is where it breaks.
        if compiled and what == "training step":
            train = torch.compile(train, backend="aot_eager")
        step = torch.compile(step, backend="aot_eager") if compiled else step
        for _ in range(4):
            if what == "training step":
                train()
            else:
                opt.zero_grad()
                model(x).square().mean().backward()
                step()
            opt.param_groups[0]["lr"].mul_(0.9)
        return [p.detach().clone() for p in model.parameters()], opt

    (one, a), (two, b) = make(True), make(False)
    for x, y in zip(one, two, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)
    assert [own["step"] for own in a.state.values()] == [own["step"] for own in b.state.values()] == [4] * 4
