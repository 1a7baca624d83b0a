"""Tensors that are swapped, freed or reinterpreted between steps: what is refused, and what goes on right."""

import numpy as np
import pytest
import torch
from libraries import refused

import multiopt
from multiopt.torch import Adadelta

START = torch.linspace(1, 2, 6)


def core(engine="auto", **options):
    groups = [{"params": [START.clone()]}, {"params": [START.clone()], "rho": 0.5}]
    return multiopt.Adadelta(groups, engine=engine, **options)


def free(tensor):
    tensor.untyped_storage().resize_(0)


# --- the core on tensors ---

SWAPS = {
    "half": (lambda t: setattr(t, "data", t.data.half()), "float32.*, as when the optimizer was made, got .*float16"),
    "double": (lambda t: setattr(t, "data", t.data.double()), "float32.*, as when .*, got .*float64"),
    "complex": (lambda t: setattr(t, "data", t.data + 1j), "float32.*, as when .*, got .*complex64"),
    "resized": (lambda t: t.resize_(4), r"\[6\].*, as when .*, got .*\[4\]"),
    "another shape": (lambda t: setattr(t, "data", t.data.reshape(2, 3)), r"\[6\].*, as when .*, got .*\[2, 3\]"),
    "expanded": (lambda t: setattr(t, "data", torch.ones(1).expand(6)), "expected elements with memory of their own"),
    "freed": (free, "expected memory, got an array whose memory was freed"),
    "cut short": (lambda t: t.untyped_storage().resize_(8), "expected memory, got an array whose memory was freed"),
}
PLACES = {
    "parameter": lambda opt: opt.params[1][0],
    "state": lambda opt: opt.state[1][0]["square_avg"],
    "average": lambda opt: opt.ema_params[1][0],
    "sum": lambda opt: opt.accumulators[1].binding.params[0],
}


@pytest.mark.parametrize("described", [True, False], ids=["described together", "one by one"])
@pytest.mark.parametrize("engine", ["host", "eager"])
@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize("place", PLACES)
def test_the_core_refuses_what_is_not_as_it_was(engine, place, swap, described, monkeypatch):
    if not described:
        monkeypatch.setattr("multiopt.backends.torch._exchange", lambda: None)
    opt, (act, message) = core(engine, ema=0.9, accumulate=2), SWAPS[swap]
    for _ in range(3):
        opt.step([[START], [START]])
    act(PLACES[place](opt))
    before = [x.clone() for x in (opt.params[0][0], opt.ema_params[0][0], *opt.state[0][0].values())]
    with pytest.raises(ValueError, match=r"groups\[1\]\.params\[0\]: " + ".*" + message):
        opt.step([[START], [START]])
    assert all(map(torch.equal, before, [opt.params[0][0], opt.ema_params[0][0], *opt.state[0][0].values()]))
    assert (opt.steps, opt.micro_steps) == (1, 1)


#: Tensors of six elements, by how they lie in a storage.
LIES = {
    "contiguous": lambda: START.clone(),
    "with an offset": lambda: torch.zeros(9000)[8000:8006],
    "strided": lambda: torch.zeros(20)[1:13:2],
    "strided, far": lambda: torch.zeros(4000)[3000:3012:2],
}


@pytest.mark.parametrize("lies", LIES)
@pytest.mark.parametrize("engine", ["host", "eager"])
@pytest.mark.parametrize("options", [{}, {"nonfinite": "raise"}, {"clip_global_norm": 1.0}], ids=str)
def test_freed_storage_is_refused_in_every_bucket(engine, lies, options):
    first, second = torch.ones(3, dtype=torch.float64), LIES[lies]()
    opt = multiopt.Adadelta([first, second], engine=engine, **options)
    g = LIES[lies]()
    opt.step([torch.ones_like(first), g])
    free(g)
    before = first.clone()
    with pytest.raises(ValueError, match=r"gradient of params\[1\]: expected memory, got .* whose memory was freed"):
        opt.step([torch.ones_like(first), g])
    assert torch.equal(first, before)
    free(second)
    with pytest.raises(ValueError, match=r"^params\[1\]: expected memory, got an array whose memory was freed"):
        opt.step([torch.ones_like(first), START])
    assert torch.equal(first, before)
    assert opt.steps == 1


# --- the drop-in ---


def dropin(*params):
    for p in params:
        p.grad = torch.ones_like(p)
    return Adadelta([{"params": [p]} for p in params])


@pytest.mark.parametrize("lies", LIES)
def test_the_drop_in_refuses_freed_storage_before_it_writes(lies):
    first, second = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(LIES[lies]())
    opt = dropin(first, second)
    opt.step()
    for tensor in (second.grad, opt.state[second]["acc_delta"], second):
        kept, size, before = tensor.detach().clone(), tensor.untyped_storage().nbytes(), first.detach().clone()
        free(tensor)
        with pytest.raises(RuntimeError, match=r"groups\[1\]\.params\[0\]: expected memory, got .* was freed"):
            opt.step()
        assert torch.equal(first, before)
        assert opt.state[first]["step"] == opt.state[second]["step"]
        tensor.untyped_storage().resize_(size)
        with torch.no_grad():
            tensor.copy_(kept)
        opt.step()  # with its memory back


def test_a_complex_parameter_wants_complex_state():
    """As `torch.optim.Adadelta`'s own state of a real model, loaded over a complex one."""
    real = torch.nn.Parameter(torch.ones(5000))
    theirs = torch.optim.Adadelta([real])
    real.grad = torch.ones_like(real)
    theirs.step()
    p = torch.nn.Parameter(torch.ones(5000, dtype=torch.complex64))
    p.grad = torch.ones_like(p)
    opt = Adadelta([p])
    opt.load_state_dict(theirs.state_dict())
    message = r"square_avg of params\[0\]: expected complex state for a complex parameter and no other"
    with pytest.raises(RuntimeError, match=message):
        opt.step()
    opt = Adadelta([p])
    opt.step()
    opt.state[p]["acc_delta"] = torch.zeros(5000)
    before = p.detach().clone()
    with pytest.raises(RuntimeError, match=r"params\[0\]: expected a state 'acc_delta' like torch.complex64"):
        opt.step()
    assert torch.equal(p, before)


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64, torch.bool])
def test_gradients_that_grad_dtype_allows(dtype):
    if not hasattr(torch.Tensor, "grad_dtype"):
        pytest.skip("this PyTorch has no grad_dtype")
    first, p = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(4))
    opt = dropin(first)
    opt.add_param_group({"params": [p]})
    p.grad_dtype = None
    p.grad = torch.ones(4).to(dtype)
    with pytest.raises(RuntimeError, match=r"gradient of groups\[1\]\.params\[0\]: expected a floating-point dtype"):
        opt.step()
    assert first.eq(1).all()


def test_a_narrower_gradient_in_the_parameters_own_memory():
    if not hasattr(torch.Tensor, "grad_dtype"):
        pytest.skip("this PyTorch has no grad_dtype")

    def run(copied):
        p = torch.nn.Parameter(START.clone())
        p.grad_dtype = None
        opt = Adadelta([p])
        for _ in range(3):
            g = p.detach().view(torch.bfloat16)[:6]
            p.grad = g.clone() if copied else g
            opt.step()
        return p

    assert torch.equal(run(True), run(False))


@pytest.mark.parametrize("kind", [Adadelta, "core"])
def test_zero_tensors_are_zeros(kind):
    """What PyTorch makes where a gradient is zero for sure; it has no memory."""
    zero = torch._efficientzerotensor((6,))
    p, q = torch.nn.Parameter(START.clone()), torch.nn.Parameter(START.clone())
    for tensor, g in ((p, zero), (q, torch.zeros(6))):
        if kind == "core":
            opt = multiopt.Adadelta([tensor.detach()])
            for own in (START, g, g):
                opt.step([own])
        else:
            opt = kind([tensor])
            for own in (START, g, g):
                tensor.grad = own
                opt.step()
    assert torch.equal(p, q)
    assert not torch.equal(p, START)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused():
    first = torch.nn.Parameter(torch.ones(3))
    for layout in (torch.strided, torch.jagged):
        nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=layout)
        with pytest.raises(TypeError, match="params: "):
            multiopt.Adadelta(nested)
        opt = multiopt.Adadelta(torch.ones(5))
        with refused(opt, TypeError, "grads: "):
            opt.step(nested)
    p = torch.nn.Parameter(nested)
    opt = dropin(first)
    opt.add_param_group({"params": [p]})
    p.grad = nested
    with pytest.raises(RuntimeError, match=r"groups\[1\]\.params\[0\]: .*nested"):
        opt.step()
    assert first.eq(1).all()


@pytest.mark.parametrize(
    "alias",
    [
        lambda p, q, opt: torch.from_numpy(q.detach().numpy()),
        lambda p, q, opt: torch.from_numpy(np.frombuffer(q.detach().numpy(), np.float32)),
        lambda p, q, opt: opt.state[q]["square_avg"],
        lambda p, q, opt: opt.state[p]["acc_delta"],
        lambda p, q, opt: p.data.as_strided((5,), (0,), 1),
    ],
    ids=["from_numpy", "frombuffer", "state of another", "its own state", "its own, one element"],
)
@pytest.mark.parametrize("groups", [1, 2])
def test_aliases_give_what_copies_give(alias, groups):
    def run(copied):
        q, p = (torch.nn.Parameter(START[:5].clone()) for _ in range(2))
        opt = Adadelta([q, p] if groups == 1 else [{"params": [q]}, {"params": [p]}])
        for k in range(4):
            q.grad = START[:5]
            g = alias(p, q, opt) if k else START[:5]
            p.grad = g.clone() if copied else g
            opt.step()
        return torch.stack([p, q, opt.state[p]["square_avg"], opt.state[q]["acc_delta"]])

    assert torch.equal(run(True), run(False))
