"""PyTorch's own description of Adadelta, `optim_db`, run against ours: its inputs, its error inputs, its options."""

import warnings

import pytest
from torch_pairs import THEIRS, Adadelta, compare, torch

pytest.importorskip("expecttest", reason="PyTorch's test helpers need expecttest")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db

(INFO,) = (info for info in optim_db if info.optim_cls is THEIRS)
INPUTS = INFO.optim_inputs_func("cpu")
ERRORS = INFO.optim_error_inputs_func("cpu", torch.float32)


def names(inputs):
    return [entry.desc for entry in inputs]


@pytest.mark.parametrize("entry", ERRORS, ids=names(e.optimizer_error_input for e in ERRORS))
def test_error_inputs(entry):
    given = entry.optimizer_error_input
    params = [torch.nn.Parameter(torch.randn(2, 3))] if given.params is None else given.params
    # Every one of Adadelta's is refused by the constructor, or by a warning of it.
    assert entry.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR
    catch = pytest.warns if issubclass(entry.error_type, Warning) else pytest.raises
    with catch(entry.error_type, match=entry.error_regex):
        Adadelta(params, **given.kwargs)


#: Every option that PyTorch declares: its implementations, and capturable.
IMPLEMENTATIONS = [{}, *({name: True} for name in INFO.supported_impls)]
if "foreach" in INFO.supported_impls:
    IMPLEMENTATIONS.append({"foreach": False})


def trained(kind, dtype, options, steps=7):
    """PyTorch's comparison of its implementations: a small network, and one step of which a gradient is missing."""
    generator = torch.Generator().manual_seed(2024)
    weight, bias = (torch.randn(s, dtype=dtype, generator=generator) for s in ((2, 3), (2,)))
    if not options.get("differentiable"):
        weight, bias = weight.requires_grad_(), bias.requires_grad_()
    data = torch.linspace(-1, 1, 3, dtype=torch.float64).to(dtype)
    opt = kind([weight, bias], **options)
    for step in range(steps):
        opt.zero_grad()
        inner = [a.detach().requires_grad_() for a in (weight, bias)]
        loss = (inner[0].mv(data) + inner[1]).abs().pow(2).sum()
        weight.grad, bias.grad = torch.autograd.grad(loss, inner)
        if step == 3:
            bias.grad = None
        opt.step()
    return opt, [weight, bias]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)
@pytest.mark.parametrize("entry", INPUTS, ids=names(INPUTS))
def test_inputs(entry, dtype, implementation):
    compare(lambda kind: trained(kind, dtype, {**entry.kwargs, **implementation}))


def test_declared_abilities():
    """What PyTorch says that Adadelta can do, and the tests of this folder assume."""
    assert INFO.supports_param_groups
    assert INFO.supports_complex
    assert INFO.has_capturable_arg
    assert not INFO.supports_sparse
    assert not INFO.step_requires_closure
