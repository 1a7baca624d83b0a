"""What `multiopt.torch.Adadelta` refuses has changed nothing, and what it takes counts as PyTorch counts."""

import contextlib
import math

import numpy as np
import pytest
from torch_pairs import THEIRS, Adadelta, torch


def trained(kind, steps=2, **options):
    """Three groups: of float32, of float64, and of what no engine reads; gradients are set for another step."""
    plain = [torch.nn.Parameter(torch.linspace(-1, 1, n, dtype=d)) for n, d in [(3, torch.float32), (4, torch.float64)]]
    params = [*plain, torch.ones(2).as_subclass(Follower).requires_grad_()]
    opt = kind([{"params": [p]} for p in params], **options)
    for _ in range(steps + 1):
        for p in params:
            p.grad = torch.linspace(1, 2, p.numel(), dtype=p.dtype).as_subclass(type(p.data))
        if steps:
            opt.step()
        steps -= 1
    return opt, params


class Follower(torch.Tensor):
    """A subclass: its operations are PyTorch's, one by one."""


def snapshot(opt):
    """All that a failed step must leave as it was: bits, identities, options."""

    def bits(value):
        strided = isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_quantized
        return (id(value), value.dtype, value.detach().tolist()) if strided else repr(value)

    params = [[bits(p) for p in group["params"]] for group in opt.param_groups]
    state = [{name: bits(value) for name, value in own.items()} for own in opt.state.values()]
    options = [{name: repr(value) for name, value in group.items() if name != "params"} for group in opt.param_groups]
    return params, state, options


@contextlib.contextmanager
def refused(opt, kind, message=None):
    before = snapshot(opt)
    with pytest.raises(kind, match=message):
        yield
    assert snapshot(opt) == before


def inference(value):
    with torch.inference_mode():
        return torch.tensor(value)


#: Step counters that cannot be raised by 1, most of which PyTorch notices when half the step is done.
BAD_COUNTERS = {
    "bool": lambda: torch.tensor(True),
    "uint16": lambda: torch.tensor(2, dtype=torch.uint16),
    "float8": lambda: torch.tensor(2.0).to(torch.float8_e4m3fn),
    "expanded": lambda: torch.tensor(2.0).expand(3),
    "sparse": lambda: torch.tensor([2.0]).to_sparse(),
    "negative view": lambda: torch.tensor(2.0 + 2.0j).conj().imag,
    "inference": lambda: inference(2.0),
    "number": lambda: 2,
    "none": lambda: None,
}


@pytest.mark.parametrize("make", BAD_COUNTERS.values(), ids=BAD_COUNTERS)
@pytest.mark.parametrize("i", range(3))
def test_counters_that_cannot_be_raised(make, i):
    opt, params = trained(Adadelta)
    held, opt.state[params[i]]["step"] = opt.state[params[i]]["step"], make()
    with refused(
        opt, RuntimeError, rf"groups\[{i}\].params\[0\]: expected a state 'step'|must contain a list of singleton"
    ):
        opt.step()
    opt.state[params[i]]["step"] = held
    opt.step()
    assert [float(own["step"]) for own in opt.state.values()] == [3.0] * 3


GOOD_COUNTERS = {
    **{
        str(d): lambda d=d: torch.tensor(2, dtype=d)
        for d in (torch.int64, torch.uint8, torch.bfloat16, torch.complex64)
    },
    "full": lambda: torch.tensor(255, dtype=torch.uint8),
    "1-element": lambda: torch.tensor([2.0]),
    "several": lambda: torch.tensor([2.0, 5.0]),
    "strided": lambda: torch.ones(4, 4)[::2, ::2],
    "gradient": lambda: torch.tensor(2.0, requires_grad=True),
    "parameter": lambda: torch.nn.Parameter(torch.tensor(2.0)),
}


@pytest.mark.parametrize("make", GOOD_COUNTERS.values(), ids=GOOD_COUNTERS)
def test_counters_count_as_in_pytorch(make):
    counters = []
    for kind in (Adadelta, THEIRS):
        opt, params = trained(kind)
        shared = make()
        # One for two parameters, as after a shallow copy: it is raised twice a step.
        for p in params[:2]:
            opt.state[p]["step"] = shared
        opt.step()
        opt.step()
        counters.append(shared.detach())
    assert torch.equal(*counters)


#: What no group can do with, by the kind of error.
BAD_NUMBERS = {
    TypeError: [None, "0.5", [0.5], 1j, np.ones(2), lambda step: 0.5, torch.tensor(0.5j)],
    ValueError: [math.nan, torch.tensor([0.5, 0.5]), 10**400],
}


@pytest.mark.parametrize("name", ["lr", "rho", "eps", "weight_decay"])
@pytest.mark.parametrize("i", range(3))
def test_options_that_are_no_numbers(name, i):
    opt, _ = trained(Adadelta)
    good = opt.param_groups[i][name]
    for kind, values in BAD_NUMBERS.items():
        for value in values:
            opt.param_groups[i][name] = value
            with refused(opt, kind, rf"^groups\[{i}\].{name}: expected a number, got"):
                opt.step()
    if i < 2:  # operations take a tensor as it is, so that whatever follows them can follow it
        opt.param_groups[i][name] = torch.tensor(math.nan)
        with refused(opt, ValueError, rf"^groups\[{i}\].{name}: expected a number, got nan"):
            opt.step()
    opt.param_groups[i][name] = good
    for value in (np.float32(0.5), 1, torch.tensor([0.5]), torch.tensor(0.5)):
        opt.param_groups[i][name] = value
        opt.step()


def boom(*arguments):
    raise ZeroDivisionError


#: Other ways to end a step: what is done to the optimizer or its parameters, and the error.
OTHERS = {
    "closure": (lambda opt, params: None, ZeroDivisionError),
    "pre-hook": (lambda opt, params: opt.register_step_pre_hook(boom), ZeroDivisionError),
    "schedule": (lambda opt, params: opt.param_groups[2].update(maximize=torch.ones(2)), RuntimeError),
    "missing option": (lambda opt, params: opt.param_groups[2].pop("rho"), KeyError),
    "missing state": (lambda opt, params: opt.state[params[2]].pop("acc_delta"), KeyError),
    "state's shape": (lambda opt, params: opt.state[params[2]].update(acc_delta=torch.ones(3)), RuntimeError),
    "state's kind": (lambda opt, params: opt.state[params[2]].update(acc_delta=torch.ones(2) * 1j), RuntimeError),
    "state is none": (lambda opt, params: opt.state[params[2]].update(acc_delta=2.0), RuntimeError),
    "inference state": (lambda opt, params: opt.state[params[1]].update(acc_delta=inference([1.0] * 4)), RuntimeError),
    "inference parameter": (lambda opt, params: replace_last(opt, inference([1.0, 2.0])), RuntimeError),
    "no tensor": (lambda opt, params: opt.param_groups[2]["params"].append("w"), AttributeError),
    "sparse": (lambda opt, params: setattr(params[2], "grad", torch.ones(2).to_sparse()), RuntimeError),
}


def replace_last(opt, tensor):
    opt.param_groups[2]["params"][0] = tensor
    with torch.inference_mode():
        tensor.grad = torch.ones(2)


@pytest.mark.parametrize("act", OTHERS)
def test_other_ways_to_end_a_step(act):
    opt, params = trained(Adadelta)
    change, kind = OTHERS[act]
    change(opt, params)
    with refused(opt, kind):
        opt.step(boom if act == "closure" else None)


def test_a_list_of_parameters_changed_by_hand():
    results = []
    for kind in (Adadelta, THEIRS):
        opt, params = trained(kind)
        new = torch.nn.Parameter(torch.ones(3))
        new.grad = torch.ones(3)
        opt.param_groups[0]["params"].append(new)
        opt.step()
        del opt.param_groups[0]["params"][0]
        opt.param_groups[1]["params"] = tuple(opt.param_groups[1]["params"])
        opt.step()
        results.append([*(p.detach() for p in (*params, new)), *(own["step"] for own in opt.state.values())])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_inference_tensors_work_in_inference_mode():
    with torch.inference_mode():
        p = torch.ones(3)
        p.grad = torch.ones(3)
        opt = Adadelta([p])
        opt.step()
    before = p.tolist()
    with pytest.raises(RuntimeError, match=r"params\[0\]: expected a tensor for use outside inference mode"):
        opt.step()
    assert p.tolist() == before
    with torch.inference_mode():
        opt.step()
    assert p.tolist() != before
