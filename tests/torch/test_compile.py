"""multiopt.torch.Adadelta under torch.compile: one operator in the graph, the engine's bits, and no stale number."""

import copy
import gc
import pickle

import pytest
import torch._dynamo.testing as dynamo
from processes import run_python
from torch_pairs import Adadelta, assert_equal, assert_same_state, ones, torch

# PyTorch's compiler warns of itself.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("DeprecationWarning", "UserWarning")]
X = torch.linspace(-1, 1, 12).reshape(3, 4)


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


class Compiler:
    """`torch.compile`, counting graphs: by PyTorch itself, from the graph as it was traced or made functional."""

    def __init__(self, backend="aot_eager"):
        self.counter = dynamo.CompileCounterWithBackend(backend)

    def __call__(self, function, fullgraph=True):
        return torch.compile(function, backend=self.counter, fullgraph=fullgraph)

    @property
    def graphs(self):
        return self.counter.frame_count


def plainly(function, fullgraph=True):
    return function


def model(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))


def backward(net, opt):
    opt.zero_grad()
    net(X).square().mean().backward()


def assert_same_training(train, wrap):
    """What `train` returns, an optimizer and tensors, has the same bits whether compiled or not."""
    (a, ours), (b, others) = train(wrap), train(plainly)
    assert_equal(ours, others)
    assert_same_state(a, b, rtol=0, atol=0)
    return a


# --- the step alone ---


def test_the_step_is_one_graph():
    """Whose only new version is made when a float has changed for the first time."""
    compiler, graphs = Compiler(), []

    def train(wrap):
        net = model()
        groups = [
            {"params": net[0].parameters(), "lr": 0.5, "weight_decay": 0.1},
            {"params": [*net[2].parameters(), ones(2)], "maximize": True, "rho": 0.7},
        ]
        opt = Adadelta(groups, eps=1e-4)
        step = wrap(lambda: opt.step())
        for _ in range(6):
            backward(net, opt)
            step()
            graphs.append(compiler.graphs)
            opt.param_groups[0]["lr"] *= 0.9
        return opt, list(net.parameters())

    assert_same_training(train, compiler)
    assert graphs[:6] == [1, 2, 2, 2, 2, 2]


def test_a_tensor_for_a_learning_rate_needs_no_new_graph():
    """Where a scheduler has wrapped the step, PyTorch breaks the graph before it, for every optimizer."""
    compiler = Compiler()

    def train(wrap):
        net = model()
        opt = Adadelta(net.parameters(), lr=torch.tensor(0.5))
        scheduler = torch.optim.lr_scheduler.ExponentialLR(opt, 0.5)
        step = wrap(lambda: opt.step(), fullgraph=False)
        for _ in range(4):
            backward(net, opt)
            step()
            scheduler.step()
        return opt, list(net.parameters())

    assert_same_training(train, compiler)
    assert compiler.graphs == 1


def test_whatever_changes_between_steps():
    def change(i, net, opt, extra):
        group = opt.param_groups[0]
        if i == 1:
            net[2].bias.grad = None
        elif i == 2:
            group.update(maximize=True, weight_decay=0.1)
        elif i == 3:
            opt.add_param_group({"params": [extra], "lr": torch.tensor(0.1)})
        elif i == 4:
            other = model(1)
            saved = Adadelta([{"params": other.parameters(), "rho": 0.5}, {"params": [ones(3)]}])
            backward(other, saved)
            saved.step()
            opt.load_state_dict(saved.state_dict())
        elif i == 5:
            opt.state[net[0].bias]["acc_delta"] = torch.full((8,), 0.1)
            net[0].weight.data = net[0].weight.data * 2
        elif i == 6:
            opt.state.clear()
            group["params"] = group["params"][1:]

    def train(wrap):
        net, extra = model(), ones(3)
        opt = Adadelta(net.parameters())
        step = wrap(lambda: opt.step())
        for i in range(8):
            backward(net, opt)
            extra.grad = torch.full((3,), 0.5)
            change(i, net, opt, extra)
            step()
        return opt, [*net.parameters(), extra]

    assert_same_training(train, Compiler())


def test_all_kinds_of_tensors():
    flat = torch.float32, torch.float64, torch.bfloat16, torch.float16

    def train(wrap):
        memory = torch.ones(10)
        params = [*(ones(5, dtype=dtype) for dtype in flat), ones(), ones(0), torch.nn.Parameter(torch.ones(4, 5).t())]
        params += [torch.nn.Parameter(memory[:4]), torch.nn.Parameter(memory[4:])]
        opt = Adadelta(params)
        step = wrap(lambda: opt.step())
        for i in range(2):
            for p in params:
                p.grad = torch.full_like(p, 0.5 + i)
            step()
        return opt, [*params, memory]

    assert_same_training(train, Compiler())


def test_optimizers_are_not_confused():
    """One compiled function for several: two, a copy and a pickle; and one in the place of another that was freed."""
    compiler = Compiler("eager")

    def train(wrap):
        step, found = wrap(lambda opt: opt.step()), []
        for seed in range(2):
            net = model(seed)
            first, second = Adadelta(net[0].parameters(), lr=0.5), Adadelta(net[2].parameters(), lr=2.0)
            for _ in range(2):
                backward(net, first)
                step(first)
                step(second)
            copies = [copy.deepcopy(first), pickle.loads(pickle.dumps(first))]
            for lr, opt in zip((0.1, 0.2), copies, strict=True):
                opt.param_groups[0]["lr"] = lr
                for p in opt.param_groups[0]["params"]:
                    p.grad = torch.full_like(p, 0.25)
                step(opt)
                found += opt.param_groups[0]["params"]
            found += net.parameters()
            del second
            gc.collect()
        return first, found

    assert_same_training(train, compiler)


def test_what_is_refused_changes_nothing():
    net = model()
    opt = Adadelta(net.parameters())
    backward(net, opt)
    step = Compiler()(lambda: opt.step())
    step()
    before = copy.deepcopy([*net.parameters(), *(t for own in opt.state.values() for t in own.values())])
    opt.param_groups[0]["lr"] = float("nan")
    with pytest.raises(ValueError, match="lr: expected a number"):
        step()
    opt.param_groups[0]["lr"] = 1.0
    good, opt.state[net[2].bias]["acc_delta"] = opt.state[net[2].bias]["acc_delta"], torch.ones(3)
    with pytest.raises(RuntimeError, match="acc_delta"):
        step()
    opt.state[net[2].bias]["acc_delta"] = good
    assert_equal([*net.parameters(), *(t for own in opt.state.values() for t in own.values())], before)


# --- in company ---


def test_parameters_and_options_within_the_graph():
    """The operator sees what the graph did before it, and the graph what the operator did."""

    def train(wrap):
        net = model()
        opt = Adadelta(net.parameters())
        group = opt.param_groups[0]

        @torch.no_grad()
        def twice(i):
            for p in net.parameters():
                p.mul_(0.5)
            group["lr"] = 1.0 / (1 + i)
            opt.step()
            between = net(X)
            group["maximize"] = True
            opt.step()
            group["maximize"] = False
            opt.zero_grad()
            return between, net(X)

        twice, found = wrap(twice), []
        for i in range(3):
            backward(net, opt)
            found += twice(i)
            assert all(p.grad is None for p in net.parameters())
        return opt, [*net.parameters(), *found]

    compiler = Compiler()
    assert_same_training(train, compiler)
    assert compiler.graphs == 2


def test_the_state_is_used_outside_of_graphs():
    """The function that does runs as Python, and what it calls is compiled."""

    def train(wrap, fullgraph=False):
        net = model()
        opt = Adadelta(net.parameters())

        def logged():
            for own in opt.state.values():
                own["acc_delta"].mul_(0.5)
            opt.step()
            return sum(own["acc_delta"].sum() for own in opt.state.values())

        logged, found = wrap(logged, fullgraph), []
        for _ in range(3):
            backward(net, opt)
            found.append(logged())
        return opt, [*net.parameters(), *found]

    compiler = Compiler()
    assert_same_training(train, compiler)
    assert compiler.graphs == 1
    torch._dynamo.reset()
    with pytest.raises(Exception, match="the state of an optimizer"):
        train(compiler, fullgraph=True)


def training(net, opt):
    def step():
        opt.zero_grad()
        loss = net(X).square().mean()
        loss.backward()
        opt.step()
        return loss.detach()

    return step


def test_a_training_step():
    """It breaks at `backward` only."""
    compiler = Compiler()

    def train(wrap):
        net = model()
        opt = Adadelta(net.parameters(), lr=torch.tensor(0.5))
        step, losses = wrap(training(net, opt), fullgraph=False), []
        for _ in range(3):
            losses.append(step())
            opt.param_groups[0]["lr"].mul_(0.9)
        return opt, [*net.parameters(), *losses, *(p.grad for p in net.parameters())]

    assert_same_training(train, compiler)
    assert compiler.graphs == 2


WHOLE = """
import sys, torch
from multiopt.torch import Adadelta

def train(wrap):
    w = torch.nn.Parameter(torch.linspace(-1, 1, 5))
    opt = Adadelta([w], lr=0.5)
    def step():
        opt.zero_grad()
        (w * w.sin()).sum().backward()
        opt.step()
    step = wrap(step)
    for _ in range(3):
        step()
    return w.detach(), opt.state[w]["acc_delta"], w.grad

torch._dynamo.config.trace_autograd_ops = True
ours = train(lambda step: torch.compile(step, backend="aot_eager", fullgraph=True))
print(all(map(torch.equal, ours, train(lambda step: step))))
"""


def test_a_whole_training_step_is_one_graph():
    """Where PyTorch is told to trace `backward`; in 2.13 that leaves traces in its compiler, which outlive a reset."""
    assert run_python(WHOLE) == "True"


def test_inductor():
    """It runs the operator on the parameters themselves."""

    def train(wrap):
        p = ones(5)
        opt = Adadelta([p], lr=torch.tensor(0.5))
        step = wrap(lambda: opt.step())
        for i in range(2):
            p.grad = torch.linspace(-1, 1 + i, 5)
            step()
        return opt, [p]

    assert_same_training(train, Compiler("inductor"))


# --- where the graph breaks ---


def test_autograd_and_subclasses_break_the_graph():
    two_tensor = pytest.importorskip("torch.testing._internal.two_tensor").TwoTensor

    def train(wrap):
        pair, plain = torch.nn.Parameter(two_tensor(torch.ones(2), torch.full((2,), 3.0))), torch.ones(2)
        opt, other = Adadelta([pair]), Adadelta([plain], differentiable=True)

        def both():
            opt.step()
            other.step()

        both = wrap(both, fullgraph=False)
        for i in range(2):
            pair.grad, plain.grad = two_tensor(torch.ones(2), torch.full((2,), 0.5 + i)), torch.full((2,), 0.5)
            both()
        return other, [pair.a, pair.b, plain]

    compiler = Compiler()
    assert_same_training(train, compiler)
    assert compiler.graphs == 0


def test_closures_and_hooks():
    def train(wrap):
        net = model()
        opt, seen = Adadelta(net.parameters()), []

        def clip(*_):
            for p in net.parameters():
                if p.grad is not None:
                    p.grad.clamp_(-0.01, 0.01)

        opt.register_step_pre_hook(clip)
        opt.register_step_post_hook(lambda *_: seen.append(len(seen)))

        def closure():
            opt.zero_grad()
            loss = net(X).square().mean()
            loss.backward()
            return loss

        step = wrap(lambda: opt.step(closure), fullgraph=False)
        losses = [step().detach() for _ in range(3)]
        assert seen == [0, 1, 2]
        return opt, [*net.parameters(), *losses]

    assert_same_training(train, Compiler())


def test_grad_scaler():
    def train(wrap):
        net = model()
        opt = Adadelta(net.parameters())
        opt.step = wrap(opt.step, fullgraph=False)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for i in range(3):
            opt.zero_grad()
            scaler.scale(net(X).square().mean()).backward()
            if i == 1:
                net[0].bias.grad[0] = float("inf")
            scaler.step(opt)
            scaler.update()
        return opt, list(net.parameters())

    assert_same_training(train, Compiler())


def test_a_graph_outlives_no_optimizer():
    with pytest.raises(RuntimeError, match="the optimizer whose step this graph holds is gone"):
        torch.ops.multiopt.adadelta_step([], [], [], [], [], -1)
