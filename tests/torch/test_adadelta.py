"""multiopt.torch.Adadelta against torch.optim.Adadelta: the numbers, the groups, the interface, the errors."""

import copy
import inspect
import warnings

import pytest
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch_pairs import (
    THEIRS,
    Adadelta,
    assert_equal,
    assert_same_state,
    compare,
    compare_training,
    ones,
    parameters,
    set_grads,
    torch,
    train,
)

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


# --- numbers ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_numbers(options, dtype):
    compare_training(lambda: parameters(dtype), 12, **options)


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
    def make(kind):
        # The view itself is our parameter.
        x = start if kind is Adadelta else torch.empty_strided(start.shape, start.stride()).copy_(values)
        opt = kind([x])
        for step in range(3):
            g = torch.randn(x.shape, generator=torch.Generator().manual_seed(step))
            x.grad = g if contiguous_grads else torch.empty_strided(x.shape, x.stride()).copy_(g)
            opt.step()
        return opt, [x]

    values = start.clone()
    compare(make)


@pytest.mark.parametrize("lazy", [lambda z: z.conj().imag, torch.conj, lambda z: z.real[:1].expand(7)])
def test_lazy_views_as_gradients(lazy):
    """Views that stand for the negative or the conjugate of their memory, or repeat it."""
    g = lazy(torch.randn(7, dtype=torch.complex64, generator=torch.Generator().manual_seed(1)))

    def make(kind):
        p = ones(7, dtype=g.dtype)
        p.grad = g if kind is Adadelta else g.resolve_neg().resolve_conj().clone()
        opt = kind([p])
        for _ in range(2):
            opt.step()
        return opt, [p]

    compare(make)


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="this PyTorch has no grad_dtype")
def test_gradient_of_another_dtype():
    def make(kind):
        p = ones(9, dtype=torch.bfloat16)
        opt = kind([p])
        for dtype in (torch.float32, torch.bfloat16):
            p.grad = None
            p.grad_dtype = dtype
            p.grad = torch.linspace(-2, 2, 9, dtype=dtype)
            opt.step()
        return opt, [p]

    compare(make)


def test_none_gradients_leave_everything():
    def make(kind):
        params = parameters()
        opt = kind(params)
        for step in range(6):
            set_grads(params, step)
            for i, p in enumerate(params):
                if (step + i) % 3 == 0 or (i == 4 and step < 4):
                    p.grad = None
            opt.step()
        before = [p.detach().clone() for p in params]
        opt.zero_grad()
        opt.step()
        assert_equal(params, before)
        return opt, params

    compare(make)


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

    compare(make)


def test_named_parameters():
    model = torch.nn.Linear(3, 2)
    ours, theirs = Adadelta(model.named_parameters()), THEIRS(model.named_parameters())
    assert ours.param_groups[0]["param_names"] == ["weight", "bias"]
    assert ours.state_dict() == theirs.state_dict()
    train(ours, list(model.parameters()), 1)
    assert ours.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]


def mixed_dtypes():
    dtypes = [torch.float32, torch.float64, torch.bfloat16, torch.complex64]
    return [torch.nn.Parameter(torch.linspace(-1, 1, 5, dtype=d)) for d in dtypes]


def in_the_same_memory():
    """Updated one after another."""
    base = torch.linspace(-1, 1, 12)
    return [base[:8], base[4:], base.view(3, 4)]


@pytest.mark.parametrize("make_params", [mixed_dtypes, in_the_same_memory])
def test_parameters_of_one_group(make_params):
    compare_training(make_params)


def test_one_parameter_twice():
    def make(kind):
        p = ones(3)
        with pytest.warns(UserWarning, match="duplicate parameters"):
            opt = kind([p, p])
        train(opt, [p], 3)
        assert opt.state[p]["step"] == 6
        return opt, [p]

    compare(make)


# --- the interface ---


def test_repr():
    options = {"lr": 0.3, "maximize": True}
    model = torch.nn.Linear(2, 2)
    assert repr(Adadelta(model.parameters(), **options)) == repr(THEIRS(model.parameters(), **options))


def test_signature():
    ours, theirs = (inspect.signature(kind.__init__).parameters for kind in (Adadelta, THEIRS))
    first, own = list(ours.values())[: len(theirs)], list(ours.values())[len(theirs) :]
    assert [(p.name, p.default, p.kind) for p in first] == [(p.name, p.default, p.kind) for p in theirs.values()]
    # More, by their names only.
    defaults = {"fused": None, "state_dtype": None, "state_rounding": "nearest", "seed": 0}
    assert {p.name: p.default for p in own} == defaults
    assert {p.kind for p in own} == {inspect.Parameter.KEYWORD_ONLY}
    assert issubclass(Adadelta, torch.optim.Optimizer)


def test_closure_runs_with_gradients_and_its_loss_is_returned():
    p = ones(3)
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

    def note(what):
        def hook(*args, **kwargs):
            seen.append(what)

        return hook

    handles = [
        register_optimizer_step_pre_hook(note("global pre")),
        register_optimizer_step_post_hook(note("global post")),
        opt.register_step_pre_hook(note("pre")),
        opt.register_step_post_hook(note("post")),
    ]
    for what in ("state_dict_pre", "state_dict_post", "load_state_dict_pre", "load_state_dict_post"):
        register = getattr(opt, f"register_{what}_hook")
        handles += [register(note(what)), register(note(f"{what}, first"), prepend=True)]
    set_grads(params, 0)
    opt.step(note("closure"))
    opt.load_state_dict(opt.state_dict())
    assert seen == [
        *("global pre", "pre", "closure", "post", "global post"),
        *("state_dict_pre, first", "state_dict_pre", "state_dict_post, first", "state_dict_post"),
        *("load_state_dict_pre, first", "load_state_dict_pre", "load_state_dict_post, first", "load_state_dict_post"),
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
    p = ones(3)
    opt = Adadelta([p])
    loss = (p * p).sum()
    p.grad = torch.ones(3)
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_tensors_made_in_inference_mode():
    def stepped_ones():
        p = torch.ones(3)
        p.grad = torch.ones(3)
        Adadelta([p]).step()
        return p

    with torch.inference_mode():
        p = stepped_ones()
    assert_equal([p], [stepped_ones()])


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


def stepped(kind, params, grads, **options):
    for tensor, g in zip(params, grads, strict=True):
        tensor.grad = g
    kind(params, **options).step()


def load(kind, others):
    kind([ones(2)]).load_state_dict(kind(others).state_dict())


MISTAKES = {
    "lr": lambda kind: kind([ones(2)], lr=-1),
    "nan lr": lambda kind: kind([ones(2)], lr=float("nan")),
    "tensor lr": lambda kind: kind([ones(2)], lr=torch.tensor(-0.5)),
    "long lr": lambda kind: kind([ones(2)], lr=torch.ones(2)),
    "rho": lambda kind: kind([ones(2)], rho=1.1),
    "negative rho": lambda kind: kind([ones(2)], rho=-0.1),
    "eps": lambda kind: kind([ones(2)], eps=-1e-9),
    "weight_decay": lambda kind: kind([ones(2)], weight_decay=-0.1),
    "empty": lambda kind: kind([]),
    "one tensor": lambda kind: kind(ones(2)),
    "not a tensor": lambda kind: kind([1.0]),
    "a set": lambda kind: kind([{"params": {ones(2)}}]),
    "not a leaf": lambda kind: kind([ones(2) * 2]),
    "names": lambda kind: kind([("a", ones(2)), ones(2)]),
    "two groups": lambda kind: (lambda q: kind([{"params": [q]}, {"params": [q]}]))(ones(2)),
    "positional option": lambda kind: kind([ones(2)], 1.0, 0.9, 1e-6, 0, None, True),
    "sparse": lambda kind: stepped(kind, [ones(2)], [torch.ones(2).to_sparse()]),
    "capturable": lambda kind: stepped(kind, [ones(2)], [torch.ones(2)], capturable=True),
    "foreach differentiable": lambda kind: stepped(kind, [ones(2)], [torch.ones(2)], foreach=True, differentiable=True),
    "groups differ": lambda kind: load(kind, [{"params": ones(2)}, {"params": ones(2)}]),
    "sizes differ": lambda kind: load(kind, [ones(2), ones(2)]),
    "leaf, differentiable": lambda kind: stepped(kind, [ones(2)], [torch.ones(2)], differentiable=True),
}


@pytest.mark.parametrize("make", MISTAKES.values(), ids=list(MISTAKES))
def test_same_error_for_the_same_mistake(make):
    ours, theirs = both(make)
    assert ours[0] is theirs[0]
    # Where Python itself words the message it names the class; the classes have one name.
    assert ours[1] == theirs[1]


def spoiled(kind, **state):
    q = ones(3)
    opt = kind([q])
    train(opt, [q], 1)
    opt.state[q].update(state)
    opt.step()


KINDS = {
    "integers": lambda kind: stepped(kind, [torch.ones(2, dtype=torch.int64)], [torch.ones(2, dtype=torch.int64)]),
    "state of another shape": lambda kind: spoiled(kind, acc_delta=torch.ones(2)),
    "expanded parameter": lambda kind: stepped(kind, [torch.ones(1).expand(3)], [torch.ones(3)]),
    "untyped step": lambda kind: spoiled(kind, step=1),
}


@pytest.mark.parametrize("make", KINDS.values(), ids=list(KINDS))
def test_an_error_where_pytorch_has_one(make):
    """The kind is the same; ours name the parameter, PyTorch's the operation that failed."""
    ours, theirs = both(make)
    assert ours[0] is theirs[0]


def test_a_step_that_raises_changes_nothing():
    params = parameters()
    opt = Adadelta([{"params": params[:3]}, {"params": params[3:]}])
    train(opt, params, 2)
    fresh = ones(2)
    opt.add_param_group({"params": [fresh]})
    before, state = [q.detach().clone() for q in params], copy.deepcopy(opt.state_dict())
    set_grads([*params, fresh], 2)
    params[5].grad = torch.ones(257, 129).to_sparse()
    with pytest.raises(RuntimeError, match="does not support sparse"):
        opt.step()
    assert_equal(params, before)
    assert fresh not in opt.state
    assert_same_state(opt, state, rtol=0, atol=0)


def test_errors_name_the_parameter():
    params = parameters()
    opt = Adadelta([("first", params[0]), ("second", params[5])])
    train(opt, [params[0], params[5]], 1)
    opt.state[params[5]]["acc_delta"] = torch.ones(2)
    with pytest.raises(
        RuntimeError, match=r"acc_delta of params\[1\] \(second\): expected shape \(257, 129\), .* got \(2,\)"
    ):
        opt.step()
