"""multiopt.torch.Adadelta against torch.optim.Adadelta: the numbers, the state, the interface, the errors."""

import copy
import io
import pickle
import warnings
import weakref

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("numba", reason="the host engine needs numba")

from multiopt.torch import Adadelta  # noqa: E402

THEIRS = torch.optim.Adadelta
OPTIONS = {
    "defaults": {},
    "coupled": {"weight_decay": 0.1},
    "maximize": {"maximize": True, "weight_decay": 0.1},
    "lr, rho, eps": {"lr": 0.3, "rho": 0.5, "eps": 1e-3},
    "tensor lr": {"lr": torch.tensor(0.3)},
    "1-element lr": {"lr": torch.tensor([0.3], dtype=torch.float64)},
    "foreach": {"foreach": True},
    "for-loop": {"foreach": False},
}


def shapes():
    return [(3, 4), (5,), (), (0,), (2, 3, 4, 5), (257, 129)]


def parameters(dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(s, dtype=dtype, generator=generator)) for s in shapes()]


def set_grads(params, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = (scale * torch.randn(p.shape, dtype=p.dtype, generator=generator)).to(p.dtype)


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


def assert_same_state(ours, theirs, **tolerances):
    """Two state_dicts: one layout, the same numbers."""
    a, b = ours["state"], theirs["state"]
    assert list(a) == list(b)
    for key in a:
        assert list(a[key]) == list(b[key]) == ["step", "square_avg", "acc_delta"]
        for slot in a[key]:
            mine, other = a[key][slot], b[key][slot]
            assert (mine.dtype, mine.shape, mine.stride(), mine.device, type(mine), mine.requires_grad) == (
                (other.dtype, other.shape, other.stride(), other.device, type(other), other.requires_grad)
            )
            torch.testing.assert_close(mine, other, **tolerances)
    assert ours["param_groups"] == theirs["param_groups"]
    assert [list(g) for g in ours["param_groups"]] == [list(g) for g in theirs["param_groups"]]


# --- numbers ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_numbers(options, dtype):
    ours, theirs = parameters(dtype), parameters(dtype)
    a, b = Adadelta(ours, **options), THEIRS(theirs, **options)
    for step in range(12):
        set_grads(ours, step)
        set_grads(theirs, step)
        a.step()
        b.step()
    assert_same(ours, theirs)
    assert_same_state(a.state_dict(), b.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_nearer_to_the_truth_than_pytorch(dtype):
    params = [torch.nn.Parameter(torch.randn(4099, generator=torch.Generator().manual_seed(0)).to(dtype))]
    ours, theirs = copy.deepcopy(params), copy.deepcopy(params)
    exact = [torch.nn.Parameter(p.double()) for p in params]
    # eps is a normal number in float16, so that PyTorch's own arithmetic has a chance.
    optimizers = [Adadelta(ours, eps=1e-3), THEIRS(theirs, eps=1e-3), THEIRS(exact, eps=1e-3)]
    for step in range(4):
        set_grads(ours, step)
        theirs[0].grad, exact[0].grad = ours[0].grad.clone(), ours[0].grad.double()
        for opt in optimizers:
            opt.step()
    error = [(p.double() - exact[0]).abs().max() for p in (ours[0], theirs[0])]
    assert error[0] <= error[1]
    # Each of four steps rounds once, to half a unit in the last place.
    assert error[0] <= 4 * 0.5 * torch.finfo(dtype).eps * exact[0].abs().max()


def arrangements():
    base = torch.arange(240.0).reshape(2, 3, 4, 10) / 100 - 1
    yield "channels_last", base.clone().to(memory_format=torch.channels_last)
    yield "permuted", base.clone().permute(3, 1, 0, 2)
    yield "gaps", torch.stack([base, base], -1)[..., 0]
    yield "row of a matrix", base.clone().view(2, 120)[1]
    yield "column of a matrix", base.clone().view(60, 4)[:, 2]
    yield "size-1 axes", base.clone().view(1, 240, 1)[:, ::2]
    yield "negated view", (-base.clone()).to(torch.complex64).conj().imag.clone()


@pytest.mark.parametrize(("name", "start"), list(arrangements()), ids=[n for n, _ in arrangements()])
@pytest.mark.parametrize("contiguous_grads", [False, True])
def test_any_arrangement_of_memory(name, start, contiguous_grads):
    ours = start  # the view itself is the parameter
    theirs = torch.empty_strided(start.shape, start.stride()).copy_(start)
    a, b = Adadelta([ours]), THEIRS([theirs])
    for step in range(3):
        set_grads([theirs], step)
        g = theirs.grad
        if not contiguous_grads:
            theirs.grad = torch.empty_strided(start.shape, start.stride()).copy_(g)
        ours.grad = theirs.grad.clone(memory_format=torch.preserve_format)
        a.step()
        b.step()
    assert_same([ours], [theirs])
    assert a.state[ours]["square_avg"].stride() == b.state[theirs]["square_avg"].stride()


def test_lazy_views_as_gradients():
    """Views that stand for the negative or the conjugate of their memory."""
    z = torch.randn(7, dtype=torch.complex64)
    for grad in (z.conj().imag, z.conj(), torch.randn(1).expand(7)):
        ours, theirs = (torch.nn.Parameter(torch.ones(7, dtype=grad.dtype)) for _ in range(2))
        a, b = Adadelta([ours]), THEIRS([theirs])
        for p, g in ((ours, grad), (theirs, grad.resolve_neg().resolve_conj().clone())):
            p.grad = g
        for _ in range(2):
            a.step()
            b.step()
        assert_same([ours], [theirs])


def test_gradient_of_another_dtype():
    if not hasattr(torch.Tensor, "grad_dtype"):
        pytest.skip("this PyTorch has no grad_dtype")
    params = [torch.nn.Parameter(torch.ones(9, dtype=torch.bfloat16)) for _ in range(2)]
    a, b = Adadelta(params[:1]), THEIRS(params[1:])
    for dtype in (torch.float32, torch.bfloat16):
        for p in params:
            p.grad = None
            p.grad_dtype = dtype
            p.grad = torch.linspace(-2, 2, 9, dtype=dtype)
        a.step()
        b.step()
    assert_same(params[:1], params[1:])


def test_none_gradients_leave_everything():
    ours, theirs = parameters(), parameters()
    a, b = Adadelta(ours), THEIRS(theirs)
    for step in range(6):
        for params in (ours, theirs):
            set_grads(params, step)
            for i, p in enumerate(params):
                if (step + i) % 3 == 0 or (i == 4 and step < 4):
                    p.grad = None
        a.step()
        b.step()
    assert_same(ours, theirs)
    assert_same_state(a.state_dict(), b.state_dict())
    for opt, params in ((a, ours), (b, theirs)):
        before = [p.detach().clone() for p in params]
        opt.zero_grad()
        opt.step()
        assert_equal(params, before)


def test_steps_are_the_same_bits_however_often_things_are_sorted_anew():
    one, two = parameters(), parameters()
    a, b = Adadelta(one), Adadelta(two)
    for step in range(5):
        set_grads(one, step)
        set_grads(two, step)
        a.step()
        b.step()
        b.load_state_dict(copy.deepcopy(b.state_dict()))
    assert_equal(one, two)


# --- groups ---


def test_groups_options_and_changes_in_between():
    def make(kind):
        params = parameters()
        opt = kind(
            [{"params": params[:2], "lr": 0.5}, {"params": params[2:4], "weight_decay": 0.1, "rho": 0.95}], lr=0.1
        )
        train(opt, params[:4], 2)
        opt.add_param_group({"params": params[4:], "maximize": True})
        train(opt, params, 2, 2)
        opt.param_groups[0]["lr"] = torch.tensor(0.25)
        opt.param_groups[1]["weight_decay"] = 0
        opt.param_groups[2]["maximize"] = False
        train(opt, params, 2, 4)
        return opt, params

    (a, ours), (b, theirs) = make(Adadelta), make(THEIRS)
    assert_same(ours, theirs)
    assert_same_state(a.state_dict(), b.state_dict())


def test_named_parameters():
    model = torch.nn.Linear(3, 2)
    ours, theirs = Adadelta(model.named_parameters()), THEIRS(model.named_parameters())
    assert ours.param_groups[0]["param_names"] == ["weight", "bias"]
    assert ours.state_dict() == theirs.state_dict()
    train(ours, list(model.parameters()), 1)
    assert ours.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]


def test_mixed_dtypes_in_one_group():
    dtypes = [torch.float32, torch.float64, torch.bfloat16, torch.complex64]

    def make():
        return [torch.nn.Parameter(torch.linspace(-1, 1, 5, dtype=d)) for d in dtypes]

    ours, theirs = make(), make()
    a, b = Adadelta(ours), THEIRS(theirs)
    train(a, ours, 3)
    train(b, theirs, 3)
    assert_same(ours, theirs)


def test_parameters_in_the_same_memory_are_updated_one_after_another():
    def make(kind):
        base = torch.linspace(-1, 1, 12)
        params = [base[:8], base[4:], base.view(3, 4)]
        return base, params, kind(params)

    (x, ours, a), (y, theirs, b) = make(Adadelta), make(THEIRS)
    train(a, ours, 3)
    train(b, theirs, 3)
    assert_same([x], [y])


def test_one_parameter_twice():
    def make(kind):
        p = torch.nn.Parameter(torch.ones(3))
        with pytest.warns(UserWarning, match="duplicate parameters"):
            return p, kind([p, p])

    (x, a), (y, b) = make(Adadelta), make(THEIRS)
    train(a, [x], 3)
    train(b, [y], 3)
    assert_same([x], [y])
    assert a.state[x]["step"] == b.state[y]["step"] == 6


# --- state, checkpoints, copies ---


@pytest.mark.parametrize(("first", "second"), [(Adadelta, THEIRS), (THEIRS, Adadelta), (Adadelta, Adadelta)])
@pytest.mark.parametrize("how", ["dict", "file"])
def test_checkpoints_go_both_ways(first, second, how):
    straight, params = parameters(), parameters()
    reference = THEIRS(straight, lr=0.5, weight_decay=0.01)
    train(reference, straight, 6)
    opt = first(params, lr=0.5, weight_decay=0.01)
    train(opt, params, 3)
    saved = opt.state_dict()
    if how == "file":
        file = io.BytesIO()
        torch.save(saved, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
    other = second(params, lr=9.0)
    other.load_state_dict(saved)
    assert other.param_groups[0]["lr"] == 0.5
    train(other, params, 3, 3)
    assert_same(params, straight)
    assert_same_state(other.state_dict(), reference.state_dict())


def test_resuming_gives_the_same_bits():
    straight, params = parameters(), parameters()
    train(Adadelta(straight), straight, 6)
    first = Adadelta(params)
    train(first, params, 3)
    second = Adadelta(params)
    second.load_state_dict(first.state_dict())
    train(second, params, 3, 3)
    assert_equal(params, straight)


def test_state_dict_is_live_as_in_pytorch():
    params = parameters()
    opt = Adadelta(params)
    train(opt, params, 1)
    saved, step = opt.state_dict(), opt.state[params[0]]["step"]
    train(opt, params, 1)
    assert saved["state"][0]["step"] == 2
    assert step == 2
    assert len({own["step"].data_ptr() for own in opt.state.values()}) == len(params)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))], ids=["copy", "pickle"])
@pytest.mark.parametrize("used", [False, True])
def test_copies_are_independent_and_go_on(copied, used):
    params = parameters()
    opt = Adadelta(params, lr=0.5)
    if used:
        train(opt, params, 2)
    other = copied(opt)
    its = other.param_groups[0]["params"]
    assert other.__dict__.keys() >= THEIRS(params).__dict__.keys() - {"_warned_capturable_if_run_uncaptured"}
    train(opt, params, 2, 2)
    train(other, its, 2, 2)
    assert_equal(params, its)
    train(other, its, 1, 4)
    assert not torch.equal(params[0], its[0])


def test_state_of_old_versions():
    """Steps that are Python numbers, and groups without the newer options."""
    params = parameters()
    opt = Adadelta(params)
    train(opt, params, 2)
    old = copy.deepcopy(opt.state_dict())
    for own in old["state"].values():
        own["step"] = 2
    for name in ("foreach", "maximize", "differentiable", "capturable"):
        del old["param_groups"][0][name]
    other = Adadelta(params, maximize=True)
    other.load_state_dict(old)
    assert other.param_groups[0]["maximize"] is False
    train(other, params, 1)
    assert other.state[params[0]]["step"] == 3
    assert other.state[params[0]]["step"].dtype == torch.float32


def test_float64_as_default_dtype_makes_float64_counters():
    torch.set_default_dtype(torch.float64)
    try:
        p = torch.nn.Parameter(torch.ones(2))
        opt = Adadelta([p])
        train(opt, [p], 1)
        assert opt.state[p]["step"].dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_repr():
    options = {"lr": 0.3, "maximize": True}
    model = torch.nn.Linear(2, 2)
    assert repr(Adadelta(model.parameters(), **options)) == repr(THEIRS(model.parameters(), **options))


# --- things that move between steps ---


def moved(name, params, opt):
    """Change something behind the optimizer's back; each is legal in PyTorch."""
    with torch.no_grad():
        p = params[4]
        if name == "data":
            p.data = p.data.clone()
        elif name == "channels_last":
            p.data = p.data.contiguous(memory_format=torch.channels_last)
        elif name == "double":
            for q in params:
                q.data, q.grad = q.data.double(), None
        elif name == "half":
            for q in params:
                q.data, q.grad = q.data.bfloat16(), None
        elif name == "state value":
            opt.state[p]["square_avg"] = opt.state[p]["square_avg"] * 2
        elif name == "state memory":
            opt.state[p]["acc_delta"].data = opt.state[p]["acc_delta"].data + 1
        elif name == "state in place":
            opt.state[p]["acc_delta"].add_(1)
        elif name == "state dict":
            opt.state[p] = {k: v.clone() for k, v in opt.state[p].items()}
        elif name == "state emptied":
            opt.state[p].clear()
        elif name == "state gone":
            del opt.state[p]
        elif name == "all state gone":
            opt.state.clear()
        elif name == "step":
            opt.state[p]["step"] = torch.tensor(41.0)
        elif name == "transposed in place":
            for tensor in (p, opt.state[p]["square_avg"], opt.state[p]["acc_delta"]):
                tensor.data = tensor.data.transpose(0, 3)
            p.grad = None
        elif name == "shared memory":
            p.share_memory_()
        elif name == "half of it":
            for tensor in (p, opt.state[p]["square_avg"], opt.state[p]["acc_delta"]):
                tensor.data = tensor.data[:1]
            p.grad = None
        elif name == "another parameter":
            params[4] = opt.param_groups[0]["params"][4] = torch.nn.Parameter(p.detach() * 2)
        elif name == "one less":
            del params[4], opt.param_groups[0]["params"][4]
        elif name == "one more":
            params.append(torch.nn.Parameter(torch.ones(3)))
            opt.param_groups[0]["params"].append(params[-1])
        else:
            raise ValueError(name)


MOVES = [
    "data",
    "channels_last",
    "double",
    "half",
    "state value",
    "state memory",
    "state in place",
    "state dict",
    "state emptied",
    "state gone",
    "all state gone",
    "step",
    "transposed in place",
    "shared memory",
    "half of it",
    "another parameter",
    "one less",
    "one more",
]


@pytest.mark.parametrize("name", MOVES)
def test_things_may_move_between_steps(name):
    def make(kind):
        params = parameters()
        opt = kind(params, foreach=False)
        train(opt, params, 2)
        moved(name, params, opt)
        for p in params:
            if p.grad is not None and p.grad.dtype != p.dtype:
                p.grad = None
        train(opt, params, 2, 2)
        return opt, params

    (a, ours), (b, theirs) = make(Adadelta), make(THEIRS)
    # bfloat16 parameters beside float32 state: PyTorch rounds the step to bfloat16 where it adds it.
    assert_same(ours, theirs)
    for p, q in zip(ours, theirs, strict=True):
        for slot in a.state[p]:
            torch.testing.assert_close(a.state[p][slot], b.state[q][slot])


def test_swapped_tensors():
    params = parameters()
    opt = Adadelta(params)
    train(opt, params, 1)
    other = torch.nn.Parameter(torch.full((3, 4), 7.0))
    params[0].grad = None
    torch.utils.swap_tensors(params[0], other)
    train(opt, params, 1)
    assert params[0][0, 0] != 7.0
    assert opt.state[params[0]]["step"] == 2


def test_gradients_are_freed():
    """The optimizer holds none when its step is over."""
    params = parameters()
    opt = Adadelta(params)
    train(opt, params, 2)
    grads = [weakref.ref(p.grad.untyped_storage()) for p in params]
    assert all(ref() is not None for ref in grads)
    opt.zero_grad()
    assert all(ref() is None for ref in grads)


def test_an_optimizer_in_each_parameters_hook():
    """The step runs within the backward pass, as soon as a gradient is there."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    other, x = copy.deepcopy(model), torch.linspace(-1, 1, 6).reshape(2, 3)
    each = {p: Adadelta([p]) for p in model.parameters()}

    def hook(p):
        each[p].step()
        each[p].zero_grad()

    for p in each:
        p.register_post_accumulate_grad_hook(hook)
    opt = Adadelta(other.parameters())
    for _ in range(3):
        model(x).sum().backward()
        opt.zero_grad()
        other(x).sum().backward()
        opt.step()
    assert_equal(model.parameters(), other.parameters())


# --- what many tensors are asked at once ---


def oddities():
    base = torch.arange(24.0).reshape(2, 3, 4)
    return [
        *(base, base.permute(2, 0, 1), base[:, 1], base[..., 0], torch.ones(())),
        torch.ones(0, 3).T,
        torch.ones(3, 1).T,
        torch.ones(5, dtype=torch.bfloat16),
        torch.nn.Parameter(torch.ones(5, dtype=torch.float16)),
        torch.ones(2, dtype=torch.complex64),
        torch.ones(4)[1:],
    ]


def test_one_call_answers_what_single_ones_do():
    from multiopt.backends import get
    from multiopt.backends.torch import _exchange

    if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        pytest.skip("this PyTorch has no C exchange API")
    backend, exchange, odd = get("torch"), _exchange(), oddities()
    for a in odd:
        found = exchange.describe([a])
        assert found.contiguous == a.is_contiguous()
        assert found.addresses.tolist() == [a.data_ptr()]
        for b in odd:
            same = (a.dtype, a.shape) == (b.dtype, b.shape)
            assert (backend.fingerprint([a]) == backend.fingerprint([b])) == same
            same = same and (a.data_ptr(), a.stride()) == (b.data_ptr(), b.stride())
            assert (backend.memory_fingerprint([a]) == backend.memory_fingerprint([b])) == same
    # More than there is room for at first, and what has no address.
    assert backend.fingerprint(odd * 300) == backend.fingerprint(odd) * 300
    assert exchange.describe([torch.ones(2), torch.ones(2).to_sparse()]) is None


@pytest.mark.parametrize("name", ["data", "channels_last", "double", "state memory", "half of it"])
def test_where_that_call_is_missing(name, monkeypatch):
    """Older versions of PyTorch answer one by one."""
    monkeypatch.setattr("multiopt.backends.torch._exchange", lambda: None)
    test_things_may_move_between_steps(name)


# --- the interface ---


def test_signature():
    import inspect

    ours, theirs = (inspect.signature(kind.__init__).parameters for kind in (Adadelta, THEIRS))
    assert [(p.name, p.default, p.kind) for p in ours.values()] == [
        (p.name, p.default, p.kind) for p in theirs.values()
    ]
    assert issubclass(Adadelta, torch.optim.Optimizer)


def test_closure_runs_with_gradients_and_its_loss_is_returned():
    p = torch.nn.Parameter(torch.ones(3))
    opt = Adadelta([p])

    def closure():
        opt.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert opt.step(closure) == 3.0
    assert p[0] < 1
    assert opt.step() is None


@pytest.mark.parametrize("foreach", [None, True, False])
def test_zero_grad(foreach):
    params = parameters()
    opt = Adadelta(params, foreach=foreach)
    set_grads(params, 0)
    opt.zero_grad(set_to_none=False)
    assert all((p.grad == 0).all() for p in params)
    opt.zero_grad()
    assert all(p.grad is None for p in params)


def test_hooks_and_their_order():
    params = parameters()
    opt = Adadelta(params)
    seen = []

    def note(what, result=None):
        def hook(*args, **kwargs):
            seen.append(what)
            return result

        return hook

    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    handles = [
        register_optimizer_step_pre_hook(note("global pre")),
        register_optimizer_step_post_hook(note("global post")),
        opt.register_step_pre_hook(note("pre")),
        opt.register_step_post_hook(note("post")),
        opt.register_state_dict_pre_hook(note("save pre")),
        opt.register_state_dict_pre_hook(note("save pre, first"), prepend=True),
        opt.register_state_dict_post_hook(note("save post")),
        opt.register_state_dict_post_hook(note("save post, first"), prepend=True),
        opt.register_load_state_dict_pre_hook(note("load pre")),
        opt.register_load_state_dict_pre_hook(note("load pre, first"), prepend=True),
        opt.register_load_state_dict_post_hook(note("load post")),
        opt.register_load_state_dict_post_hook(note("load post, first"), prepend=True),
    ]
    set_grads(params, 0)
    opt.step(note("closure"))
    opt.load_state_dict(opt.state_dict())
    assert seen == [
        *("global pre", "pre", "closure", "post", "global post"),
        *("save pre, first", "save pre", "save post, first", "save post"),
        *("load pre, first", "load pre", "load post, first", "load post"),
    ]
    for handle in handles:
        handle.remove()
    opt.step()
    assert len(seen) == 13


def test_hooks_change_what_they_are_given():
    params = parameters()
    opt = Adadelta(params)
    opt.register_step_pre_hook(lambda opt, args, kwargs: ((opt, lambda: "loss"), {}))
    assert opt.step(None) == "loss"
    opt.register_state_dict_post_hook(lambda opt, state: {**state, "extra": 1})
    assert opt.state_dict()["extra"] == 1
    opt.register_load_state_dict_pre_hook(lambda opt, state: {k: v for k, v in state.items() if k != "extra"})
    opt.load_state_dict(opt.state_dict())


def test_autograd_notices_that_parameters_were_written_to():
    p = torch.nn.Parameter(torch.ones(3))
    opt = Adadelta([p])
    loss = (p * p).sum()
    p.grad = torch.ones(3)
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_tensors_made_in_inference_mode():
    with torch.inference_mode():
        p = torch.ones(3)
        p.grad = torch.ones(3)
        Adadelta([p]).step()
    q = torch.ones(3)
    q.grad = torch.ones(3)
    Adadelta([q]).step()
    assert_equal([p], [q])


# --- errors ---


def both(make):
    """The error of each optimizer, for the same mistake."""
    caught = []
    for kind in (Adadelta, THEIRS):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(Exception) as info:  # noqa: PT011
                make(kind)
        caught.append((type(info.value), str(info.value)))
    return caught


def p(*shape, **options):
    return torch.nn.Parameter(torch.ones(shape, **options))


def stepped(kind, params, grads, **options):
    for tensor, g in zip(params, grads, strict=True):
        tensor.grad = g
    kind(params, **options).step()


MISTAKES = {
    "lr": lambda kind: kind([p(2)], lr=-1),
    "nan lr": lambda kind: kind([p(2)], lr=float("nan")),
    "tensor lr": lambda kind: kind([p(2)], lr=torch.tensor(-0.5)),
    "long lr": lambda kind: kind([p(2)], lr=torch.ones(2)),
    "rho": lambda kind: kind([p(2)], rho=1.1),
    "negative rho": lambda kind: kind([p(2)], rho=-0.1),
    "eps": lambda kind: kind([p(2)], eps=-1e-9),
    "weight_decay": lambda kind: kind([p(2)], weight_decay=-0.1),
    "empty": lambda kind: kind([]),
    "one tensor": lambda kind: kind(p(2)),
    "not a tensor": lambda kind: kind([1.0]),
    "a set": lambda kind: kind([{"params": {p(2)}}]),
    "not a leaf": lambda kind: kind([p(2) * 2]),
    "names": lambda kind: kind([("a", p(2)), p(2)]),
    "two groups": lambda kind: (lambda q: kind([{"params": [q]}, {"params": [q]}]))(p(2)),
    "positional option": lambda kind: kind([p(2)], 1.0, 0.9, 1e-6, 0, None, True),
    "sparse": lambda kind: stepped(kind, [p(2)], [torch.ones(2).to_sparse()]),
    "capturable": lambda kind: stepped(kind, [p(2)], [torch.ones(2)], capturable=True),
    "foreach differentiable": lambda kind: stepped(kind, [p(2)], [torch.ones(2)], foreach=True, differentiable=True),
    "groups differ": lambda kind: kind([p(2)]).load_state_dict(kind([{"params": p(2)}, {"params": p(2)}]).state_dict()),
    "sizes differ": lambda kind: kind([p(2)]).load_state_dict(kind([p(2), p(2)]).state_dict()),
    "leaf, differentiable": lambda kind: stepped(kind, [p(2)], [torch.ones(2)], differentiable=True),
}


@pytest.mark.parametrize("make", MISTAKES.values(), ids=list(MISTAKES))
def test_same_error_for_the_same_mistake(make):
    ours, theirs = both(make)
    assert ours[0] is theirs[0]
    # Where Python itself words the message it names the class; the classes have one name.
    assert ours[1] == theirs[1]


KINDS = {
    "integers": lambda kind: stepped(kind, [torch.ones(2, dtype=torch.int64)], [torch.ones(2, dtype=torch.int64)]),
    "state of another shape": lambda kind: misshapen(kind),
    "expanded parameter": lambda kind: stepped(kind, [torch.ones(1).expand(3)], [torch.ones(3)]),
    "untyped step": lambda kind: untyped(kind),
}


def misshapen(kind):
    q = p(3)
    q.grad = torch.ones(3)
    opt = kind([q])
    opt.step()
    opt.state[q]["acc_delta"] = torch.ones(2)
    opt.step()


def untyped(kind):
    q = p(3)
    q.grad = torch.ones(3)
    opt = kind([q])
    opt.step()
    opt.state[q]["step"] = 1
    opt.step()


@pytest.mark.parametrize("make", KINDS.values(), ids=list(KINDS))
def test_an_error_where_pytorch_has_one(make):
    """The kind is the same; ours name the parameter, PyTorch's the operation that failed."""
    ours, theirs = both(make)
    assert ours[0] is theirs[0]


def test_a_step_that_raises_changes_nothing():
    params = parameters()
    opt = Adadelta([{"params": params[:3]}, {"params": params[3:]}])
    train(opt, params, 2)
    fresh = torch.nn.Parameter(torch.ones(2))
    opt.add_param_group({"params": [fresh]})
    before, state = [q.detach().clone() for q in params], copy.deepcopy(opt.state_dict())
    set_grads([*params, fresh], 2)
    params[5].grad = torch.ones(257, 129).to_sparse()
    with pytest.raises(RuntimeError, match="does not support sparse"):
        opt.step()
    assert_equal(params, before)
    assert fresh not in opt.state
    assert_same_state(opt.state_dict(), state, rtol=0, atol=0)


def test_errors_name_the_parameter():
    params = parameters()
    opt = Adadelta([("first", params[0]), ("second", params[5])])
    train(opt, [params[0], params[5]], 1)
    opt.state[params[5]]["acc_delta"] = torch.ones(2)
    with pytest.raises(
        RuntimeError, match=r"params\[1\] \(second\): expected a state 'acc_delta' of shape \(257, 129\)"
    ):
        opt.step()
