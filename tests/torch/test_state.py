"""multiopt.torch.Adadelta's state: checkpoints, copies, step counters, and what may move between steps."""

import copy
import io
import pickle
import weakref

import pytest
from torch_pairs import (
    THEIRS,
    Adadelta,
    assert_equal,
    assert_same,
    assert_same_state,
    compare,
    ones,
    parameters,
    torch,
    train,
)


def by_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# --- checkpoints and copies ---


@pytest.mark.parametrize(("first", "second"), [(Adadelta, THEIRS), (THEIRS, Adadelta), (Adadelta, Adadelta)])
@pytest.mark.parametrize("saved", [dict, by_file], ids=["dict", "file"])
def test_checkpoints_go_both_ways(first, second, saved):
    straight, params = parameters(), parameters()
    reference = THEIRS(straight, lr=0.5, weight_decay=0.01)
    train(reference, straight, 6)
    opt = first(params, lr=0.5, weight_decay=0.01)
    train(opt, params, 3)
    other = second(params, lr=9.0)
    other.load_state_dict(saved(opt.state_dict()))
    assert other.param_groups[0]["lr"] == 0.5
    train(other, params, 3, 3)
    assert_same(params, straight)
    assert_same_state(other, reference)


@pytest.mark.parametrize("new", [False, True], ids=["same optimizer", "new optimizer"])
def test_resuming_after_every_step_gives_the_same_bits(new):
    """Each time everything is sorted anew: two groups, and two dtypes."""

    def make():
        params = [*parameters(), *parameters(torch.float64)]
        return params, Adadelta([{"params": params[:3], "lr": 0.5}, {"params": params[3:], "weight_decay": 0.1}])

    (straight, reference), (params, opt) = make(), make()
    train(reference, straight, 5)
    for step in range(5):
        train(opt, params, 1, step)
        saved = copy.deepcopy(opt.state_dict())
        if new:
            opt = Adadelta([{"params": params[:3]}, {"params": params[3:]}], lr=9.0)
        opt.load_state_dict(saved)
    assert_equal(params, straight)
    assert_same_state(opt, reference, rtol=0, atol=0)


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


# --- step counters ---


def test_counters_are_live_scalars_with_memory_of_their_own():
    params = parameters()
    opt = Adadelta(params)
    train(opt, params, 1)
    saved, step = opt.state_dict(), opt.state[params[0]]["step"]
    train(opt, params, 1)
    assert saved["state"][0]["step"] == step == 2
    counters = [own["step"] for own in opt.state.values()]
    assert len({counter.data_ptr() for counter in counters}) == len(params)
    # A file holds each once, and nothing else along with it.
    assert {(c.shape, c.untyped_storage().nbytes()) for c in counters} == {((), 4)}
    assert by_file(saved)["state"][0]["step"] == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
def test_counters_of_other_checkpoints(dtype, shape):
    """Of another dtype or shape, and one tensor for all parameters, as PyTorch loads and counts them too."""

    def make(kind):
        params = parameters()
        opt = kind(params, foreach=False)
        train(opt, params, 1)
        state, step = opt.state_dict(), torch.full(shape, 2, dtype=dtype)
        for own in state["state"].values():
            own["step"] = step
        opt.load_state_dict(state)
        train(opt, params, 2, 1)
        return opt, params

    opt, params = compare(make)
    # Loading keeps the one tensor as one: each of the six parameters counts on it, in both steps.
    assert opt.state[params[0]]["step"] == 2 + 2 * len(params)


def test_float64_as_default_dtype_makes_float64_counters():
    torch.set_default_dtype(torch.float64)
    try:
        p = ones(2)
        opt = Adadelta([p])
        train(opt, [p], 2)
    finally:
        torch.set_default_dtype(torch.float32)
    assert opt.state[p]["step"].dtype == torch.float64
    assert opt.state[p]["step"] == 2


# --- things that move between steps ---


def replace(function, *tensors):
    for tensor in tensors:
        tensor.data, tensor.grad = function(tensor.data), None


def replace_parameter(params, group):
    params[4] = group["params"][4] = torch.nn.Parameter(params[4].detach() * 2)


def remove_parameter(params, group):
    del params[4], group["params"][4]


def add_parameter(params, group):
    params.append(ones(3))
    group["params"].append(params[-1])


#: What is done behind the optimizer's back, to the fifth parameter or its state; each is legal in PyTorch.
MOVES = {
    "data": lambda params, opt, own: replace(torch.clone, params[4]),
    "channels_last": lambda params, opt, own: replace(
        lambda x: x.contiguous(memory_format=torch.channels_last), params[4]
    ),
    "double": lambda params, opt, own: replace(torch.Tensor.double, *params),
    "half": lambda params, opt, own: replace(torch.Tensor.bfloat16, *params),
    "state value": lambda params, opt, own: own.update(square_avg=own["square_avg"] * 2),
    "state view": lambda params, opt, own: own.update(square_avg=own["square_avg"].view_as(own["square_avg"])),
    "state memory": lambda params, opt, own: replace(lambda x: x + 1, own["acc_delta"]),
    "state in place": lambda params, opt, own: own["acc_delta"].add_(1),
    "state dict": lambda params, opt, own: opt.state.update({params[4]: {k: v.clone() for k, v in own.items()}}),
    "state emptied": lambda params, opt, own: own.clear(),
    "state gone": lambda params, opt, own: opt.state.pop(params[4]),
    "all state gone": lambda params, opt, own: opt.state.clear(),
    "step": lambda params, opt, own: own.update(step=torch.tensor(41.0)),
    "step memory": lambda params, opt, own: replace(lambda x: x + 40, own["step"]),
    "step in place": lambda params, opt, own: own["step"].add_(40),
    "transposed in place": lambda params, opt, own: replace(
        lambda x: x.transpose(0, 3), params[4], own["square_avg"], own["acc_delta"]
    ),
    "half of it": lambda params, opt, own: replace(lambda x: x[:1], params[4], own["square_avg"], own["acc_delta"]),
    "shared memory": lambda params, opt, own: params[4].share_memory_(),
    "another parameter": lambda params, opt, own: replace_parameter(params, opt.param_groups[0]),
    "one less": lambda params, opt, own: remove_parameter(params, opt.param_groups[0]),
    "one more": lambda params, opt, own: add_parameter(params, opt.param_groups[0]),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=list(MOVES))
def test_things_may_move_between_steps(move):
    def make(kind):
        params = parameters()
        opt = kind(params, foreach=False)
        train(opt, params, 2)
        with torch.no_grad():
            move(params, opt, opt.state[params[4]])
        train(opt, params, 2, 2)
        return opt, params

    (a, ours), (b, theirs) = make(Adadelta), make(THEIRS)
    # bfloat16 parameters beside float32 state: PyTorch rounds the step to bfloat16 where it adds it.
    assert_same(ours, theirs)
    for p, q in zip(ours, theirs, strict=True):
        for slot in a.state[p]:
            torch.testing.assert_close(a.state[p][slot], b.state[q][slot])


@pytest.mark.parametrize("name", ["data", "channels_last", "double", "state memory", "step memory", "half of it"])
def test_where_tensors_are_described_one_by_one(name, monkeypatch):
    """As without Numba."""
    monkeypatch.setattr("multiopt.backends.torch._exchange", lambda: None)
    test_things_may_move_between_steps(MOVES[name])


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
    torch.manual_seed(0)
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

    backend, exchange, odd = get("torch"), _exchange(), oddities()
    for a in odd:
        found = exchange.describe([a])
        assert found.contiguous == a.is_contiguous()
        assert found.addresses.tolist() == [a.data_ptr()]
        for b in odd:
            assert (backend.fingerprint([a]) == backend.fingerprint([b])) == ((a.dtype, a.shape) == (b.dtype, b.shape))
            assert (backend.memory_fingerprint([a]) == backend.memory_fingerprint([b])) == (a is b)
    # More than there is room for at first, and what has no address.
    assert backend.fingerprint(odd * 300) == backend.fingerprint(odd) * 300
    assert exchange.describe([torch.ones(2), torch.ones(2).to_sparse()]) is None
    assert exchange.describe([torch.ones(2), None]) is None


def test_a_step_asks_each_list_once(monkeypatch):
    """All that is the optimizer's own, and the gradients."""
    from multiopt.backends.engines.host.exchange import Exchange

    def counted(self, arrays, describe=Exchange.describe):
        asked.append(len(arrays))
        return describe(self, arrays)

    monkeypatch.setattr(Exchange, "describe", counted)
    params, asked = parameters(), []
    opt = Adadelta(params)
    train(opt, params, 1)
    asked.clear()
    train(opt, params, 1, 1)
    assert asked == [3 * len(params), len(params)]


def test_counters_are_raised_all_or_none():
    from multiopt.backends.torch import _exchange

    counters = [torch.tensor(16777215.0), torch.tensor([2.0], dtype=torch.float64), torch.tensor(3)]
    assert not _exchange().increment(counters)
    assert [float(c) for c in counters] == [16777215, 2, 3]
    assert _exchange().increment([*counters[:2], counters[0]])
    # Float32 ends here, as it does where PyTorch adds 1 to it.
    assert [float(c) for c in counters] == [16777216, 3, 3]


def test_a_step_that_was_refused_leaves_no_state_behind():
    p, q = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    opt = Adadelta([{"params": [p]}, {"params": [q]}])
    p.grad = q.grad = torch.ones(3)
    opt.param_groups[1]["lr"] = None
    with pytest.raises(TypeError, match=r"groups\[1\]\.lr"):
        opt.step()
    opt.param_groups[1]["lr"] = 1.0
    p.grad = None
    opt.step()
    assert list(opt.state) == [q]
