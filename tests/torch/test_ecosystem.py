"""multiopt.torch.Adadelta in the company it keeps: schedulers, GradScaler, clipping, averages, shared memory."""

import inspect

import numpy as np
import pytest
from processes import run_python
from torch.optim import lr_scheduler, swa_utils
from torch_pairs import SPREAD, THEIRS, Adadelta, assert_same, ones, torch

import multiopt


def trained(kind, steps, each=lambda opt, model: None, **options):
    """A small model after some steps, and what `each` returned before every one of them."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(6, 16), torch.nn.BatchNorm1d(16), torch.nn.Tanh(), torch.nn.Linear(16, 1)
    )
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
    opt, seen = kind(model.parameters(), **options), []
    for _ in range(steps):
        opt.zero_grad()
        torch.nn.functional.mse_loss(model(x), x.sin().sum(1, keepdim=True)).backward()
        seen.append(each(opt, model))
        opt.step()
    return list(model.parameters()), seen


# --- schedulers ---

SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, gamma=0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5], gamma=0.3),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=4),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1, 2), lr_scheduler.ExponentialLR(o, 0.9)], milestones=[2]
    ),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 5, power=2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5, eta_min=0.01),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, 2), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, factor=0.5),
    # Adadelta has no momentum that these could cycle.
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.1, 1.0, step_size_up=2, cycle_momentum=False),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 1.0, total_steps=9, cycle_momentum=False),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "SWALR": lambda o: swa_utils.SWALR(o, swa_lr=0.05, anneal_epochs=3),
}


def test_every_scheduler_is_tried():
    kinds = {
        name
        for name, kind in inspect.getmembers(lr_scheduler, inspect.isclass)
        if issubclass(kind, lr_scheduler.LRScheduler) and kind.__module__ == lr_scheduler.__name__
    }
    assert kinds - {"LRScheduler", "_LRScheduler"} <= SCHEDULERS.keys()


@pytest.mark.parametrize("tensor_lr", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_scheduler(name, tensor_lr):
    """Warnings are errors in these tests: a scheduler warns of an optimizer that it finds strange."""

    def train(kind):
        schedulers = {}

        def rate(opt, model):
            if not schedulers:
                schedulers[opt] = SCHEDULERS[name](opt)
            else:
                schedulers[opt].step(*([1.0] if name == "ReduceLROnPlateau" else []))
            return float(opt.param_groups[0]["lr"])

        return trained(kind, 9, rate, lr=torch.tensor(0.5) if tensor_lr else 0.5)

    (ours, rates), (theirs, others) = train(Adadelta), train(THEIRS)
    assert rates == others
    assert_same(ours, theirs, **SPREAD)


# --- clipping ---


def test_clipping_by_pytorch():
    def clip(opt, model):
        torch.nn.utils.clip_grad_value_(model.parameters(), 0.05)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)

    assert_same(trained(Adadelta, 4, clip)[0], trained(THEIRS, 4, clip)[0], **SPREAD)


# --- averages ---


@pytest.mark.parametrize("kind_of_average", ["ema", "swa"])
def test_averaged_models(kind_of_average):
    def train(kind):
        averages = {}

        def update(opt, model):
            if not averages:
                averages[opt] = swa_utils.AveragedModel(model, multi_avg_fn=function)
            averages[opt].update_parameters(model)

        trained(kind, 5, update)
        (average,) = averages.values()
        swa_utils.update_bn([torch.linspace(-1, 1, 192).reshape(32, 6)], average)
        return average.state_dict().values()

    ema = kind_of_average == "ema"
    function = swa_utils.get_ema_multi_avg_fn(0.9) if ema else swa_utils.get_swa_multi_avg_fn()
    assert_same(train(Adadelta), train(THEIRS), **SPREAD)


# --- memory that others see ---

HOGWILD = """
import torch, torch.multiprocessing as mp
from multiopt.torch import Adadelta

def work(model, lock):
    torch.set_num_threads(1)
    opt = Adadelta(model.parameters())
    for _ in range(20):
        with lock:
            opt.zero_grad()
            (model.weight ** 2).sum().backward()
            opt.step()

if __name__ == "__main__":
    model = torch.nn.Linear(8, 8, bias=False)
    torch.nn.init.ones_(model.weight)
    model.share_memory()
    opt = Adadelta(model.parameters())  # this process has stepped before it forks
    model.weight.grad = torch.ones(8, 8)
    opt.step()
    processes = [mp.get_context("fork").Process(target=work, args=(model, mp.get_context("fork").Lock()))]
    processes += [mp.get_context("fork").Process(target=work, args=(model, mp.get_context("fork").Lock()))]
    for p in processes: p.start()
    for p in processes: p.join(60)
    assert [p.exitcode for p in processes] == [0, 0]
    print(model.weight.detach().max().item())
"""


def test_parameters_shared_between_processes():
    """Both processes' work arrives: one alone would come to where 21 steps lead."""
    w = ones(1)
    opt = Adadelta([w])
    w.grad = torch.ones(1)
    opt.step()
    opt = Adadelta([w])
    for _ in range(20):
        w.grad = 2 * w.detach()
        opt.step()
    assert float(run_python(HOGWILD)) < w.detach().max().item()


# --- what it is built on ---


def test_same_bits_as_the_core():
    rng = np.random.default_rng(0)
    start, grads = rng.standard_normal(1000).astype("f"), rng.standard_normal((5, 1000)).astype("f")
    array, tensor = start.copy(), torch.nn.Parameter(torch.from_numpy(start.copy()))
    core = multiopt.Adadelta.torch(array, lr=0.7, weight_decay=0.01)
    opt = Adadelta([tensor], lr=0.7, weight_decay=0.01)
    for g in grads:
        core.step(g)
        tensor.grad = torch.from_numpy(g)
        opt.step()
    np.testing.assert_array_equal(array, tensor.detach().numpy())


def test_import_is_light():
    """Neither PyTorch's compiler nor its distributed tensors are imported before they are needed."""
    code = """
import sys, multiopt
assert "torch" not in sys.modules
import torch
before = set(sys.modules)
import multiopt.torch
heavy = ("torch.distributed.tensor", "torch._dynamo", "numba")
print(sorted(name for name in set(sys.modules) - before if name.startswith(heavy)))
"""
    assert run_python(code) == "[]"
