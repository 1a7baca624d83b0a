"""multiopt.torch.Adadelta under `GradScaler`: as `torch.optim.Adadelta`; with `fused=True`, as PyTorch's fused ones."""

import copy
import pickle

import pytest
from torch_pairs import SPREAD, THEIRS, Adadelta, assert_equal, assert_same, assert_same_state, ones, torch

import multiopt
from multiopt.torch import adadelta as face
from multiopt.torch.scaling import Scaling

#: A power of two: scaling and unscaling change no bit.
SCALE = 128.0


def scaler_of(**options):
    return torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=2, **options)


def tiny(kind, **options):
    params = [torch.nn.Parameter(torch.linspace(-1, 1, n)) for n in (5, 3)]
    return params, kind(params, **options)


def scaled_step(params, opt, scaler, overflow=False):
    opt.zero_grad()
    scaler.scale(sum((p**2).sum() for p in params)).backward()
    if overflow:
        params[1].grad[1] = float("inf")
    scaler.step(opt)
    scaler.update()


# --- what a program sees ---


class Delegating:
    """A wrapper as programs write them: what it lacks is the optimizer's."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def __getattr__(self, name):
        return getattr(self.optimizer, name)


def clipping(opt, seen):
    def clip(optimizer, args, kwargs):
        seen.append(torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 0.5))

    opt.register_step_pre_hook(clip)
    return opt


def patched(opt, seen):
    """As accelerate does it: a step whose method was not called was skipped, and its scheduler waits."""
    step = opt.step
    opt.step = lambda *args, **kwargs: (seen.append("called"), step(*args, **kwargs))[1]
    return opt


def hooked(opt, seen):
    opt.register_step_pre_hook(lambda *args: seen.append("before"))
    opt.register_step_post_hook(lambda *args: seen.append("after"))
    return opt


WAYS = {"plain": lambda opt, seen: opt, "delegating": lambda opt, seen: Delegating(opt)}
WAYS |= {"clipping in a hook": clipping, "patched": patched, "hooks": hooked}


@pytest.mark.parametrize("unscaled", [False, True], ids=["scaled", "unscale_"])
@pytest.mark.parametrize("way", WAYS)
def test_a_program_sees_what_pytorchs_optimizer_shows(way, unscaled):
    def train(kind):
        params, opt = tiny(kind, maximize=True, weight_decay=0.1)
        seen, scaler = [], scaler_of()
        wrapped = WAYS[way](opt, seen)
        for step in range(6):
            opt.zero_grad()
            scaler.scale(sum((p**2).sum() for p in params)).backward()
            if step in (0, 3):
                params[1].grad[1] = float("inf")
            if unscaled:
                scaler.unscale_(wrapped)
            scaler.step(wrapped)
            scaler.update()
            seen += [torch.tensor(scaler.get_scale()), *(p.grad.clone() for p in params)]
        return opt, params, seen

    (ours, params, seen), (theirs, others, its) = train(Adadelta), train(THEIRS)
    assert [s for s in seen if isinstance(s, str)] == [s for s in its if isinstance(s, str)]
    assert_same(*([s for s in found if not isinstance(s, str)] for found in (seen, its)))
    assert_same(params, others)
    assert_same_state(ours, theirs)
    assert [own["step"] for own in ours.state.values()] == [4, 4]


# --- a scaled run is the plain run: what PyTorch's own tests ask of each optimizer ---


def loss_of(model, x, scaler):
    return scaler.scale(torch.nn.functional.mse_loss(model(x), x.sin()))


def plainly(models, x, scaler):
    loss_of(models[0], x, scaler).backward()


def clipped(models, x, scaler):
    plainly(models, x, scaler)
    torch.nn.utils.clip_grad_norm_(models[0].parameters(), 0.05 * scaler.get_scale())


def with_a_penalty(models, x, scaler):
    loss = loss_of(models[0], x, scaler)
    grads = torch.autograd.grad(loss, models[0].parameters(), create_graph=True)
    norm = sum((g / scaler.get_scale()).pow(2).sum() for g in grads).sqrt()
    (loss + scaler.scale(norm)).backward()


def accumulating(models, x, scaler):
    for part in x.chunk(2):
        (loss_of(models[0], part, scaler) / 2).backward()


def two_optimizers(models, x, scaler):
    (loss_of(models[0], x, scaler) + loss_of(models[1], x, scaler)).backward()


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("unscaled", [False, True], ids=["scaled", "unscale_"])
@pytest.mark.parametrize("work", [plainly, clipped, with_a_penalty, accumulating, two_optimizers])
def test_a_scaled_run_is_the_plain_run(work, unscaled, fused):
    """Parameters, state, and the last gradients; the first optimizer's second step overflows, or is left out."""

    def train(enabled):
        torch.manual_seed(0)
        models = [torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 8)) for _ in range(2)]
        opts, scaler = [Adadelta(m.parameters(), fused=fused) for m in models], scaler_of(enabled=enabled)
        used = opts if work is two_optimizers else opts[:1]
        for step in range(4):
            for opt in used:
                opt.zero_grad()
            work(models, torch.randn(8, 8), scaler)
            if step == 2 and enabled:
                models[0][2].weight.grad.fill_(float("inf"))
            for opt in used[1 if step == 2 and not enabled else 0 :]:
                if unscaled:
                    scaler.unscale_(opt)
                scaler.step(opt)
            scaler.update()
        assert scaler.get_scale() == (SCALE if enabled else 1.0)
        return opts, [p for opt in used for p in opt.param_groups[0]["params"]]

    (opts, params), (plain, others) = train(True), train(False)
    assert_same(params, others, **SPREAD)
    assert_same([p.grad for p in params], [p.grad for p in others], **SPREAD)
    for a, b in zip(opts, plain, strict=True):
        assert_same_state(a, b, **SPREAD)


# --- fused=True ---


@pytest.mark.parametrize("options", [{"foreach": True}, {"differentiable": True}], ids=str)
def test_what_fused_does_not_go_with(options):
    messages = []
    for kind in (Adadelta, torch.optim.Adam):
        with pytest.raises(RuntimeError) as error:
            kind([ones(3)], fused=True, **options)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_fused_steps_are_pytorchs_fused_steps():
    """What hooks see, which gradients are left unscaled, and what is counted, as of `torch.optim.Adam(fused=True)`."""

    def train(kind):
        params, opt = tiny(kind, fused=True, maximize=True)
        seen, scaler = [], scaler_of()
        opt.register_step_pre_hook(lambda *args: seen.append(params[0].grad.abs().max() > 2.5))
        for step in range(4):
            scaled_step(params, opt, scaler, overflow=step == 1)
            seen += [params[0].grad.abs().max() > 2.5, opt.state[params[0]]["step"].clone()]
        assert not hasattr(opt, "grad_scale")
        return torch.stack([s.float() for s in seen])

    assert torch.equal(train(Adadelta), train(torch.optim.Adam))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_fused_has_the_bits_of_unscaling_before(dtype):
    def train(fused):
        params = [torch.nn.Parameter(torch.linspace(-1, 1, n).to(dtype).reshape(2, -1)) for n in (6, 40)]
        opt = Adadelta([{"params": params[:1]}, {"params": params[1:], "maximize": True}], fused=fused)
        for k in range(3):
            for p in params:
                p.grad = (torch.full_like(p, 0.75 + k).t().contiguous().t()) * (SCALE if fused else 1)
            if fused:
                opt.grad_scale, opt.found_inf = torch.tensor(SCALE), torch.tensor(0.0)
            opt.step()
        return [*params, *(p.grad for p in params), *(own["acc_delta"] for own in opt.state.values())]

    assert_equal(train(True), train(None))


def test_a_fused_step_without_gradients_does_nothing():
    _, opt = tiny(Adadelta, fused=True)
    scaler = scaler_of()
    scaler.scale(torch.ones(()))
    scaler.step(opt)
    assert not opt.state


def test_the_choice_of_fused_is_the_programs():
    """It is kept by copies and pickles, and no part of checkpoints: those of any other load, and fit any other."""
    params, opt = tiny(Adadelta, fused=True)
    plain = tiny(THEIRS)[1]
    assert [list(group) for group in opt.param_groups] == [list(group) for group in plain.param_groups]
    copies = copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))
    opt.load_state_dict(plain.state_dict())
    old = torch.optim.Adam(params, fused=True).state_dict()["param_groups"][0]
    other = tiny(Adadelta)[1]
    other.load_state_dict({"state": {}, "param_groups": [old | other.state_dict()["param_groups"][0]]})
    for made, fused in [
        *((o, True) for o in (opt, *copies)),
        (other, False),
        (pickle.loads(pickle.dumps(other)), False),
    ]:
        own = made.param_groups[0]["params"]
        calls = hooked(made, seen := [])
        scaled_step(own, made, scaler_of(), overflow=True)
        assert calls.state == {} or all(own["step"] == 0 for own in calls.state.values())
        assert seen == (["before", "after"] if fused else [])


def replaced(make):
    return lambda params, opt: setattr(params[1], "grad", make(params, opt))


def one_gradient(params, opt):
    params[1].grad = params[0].grad = torch.ones(2, 5)


def columns(params, opt):
    """Two gradients that lie between each other's elements, which is good."""
    both = torch.full((2, 10), 8.0)
    params[0].grad, params[1].grad = both[:, ::2], both[:, 1::2]


def inference():
    with torch.inference_mode():
        return torch.ones(2, 5)


BAD = {
    "expanded": (replaced(lambda params, opt: torch.ones(1).expand(2, 5)), "elements with memory of their own"),
    "shared": (one_gradient, "overlaps gradient of"),
    "of its parameter": (replaced(lambda params, opt: params[1].detach()), "apart from parameters and state"),
    "of a state": (replaced(lambda params, opt: opt.state[params[0]]["acc_delta"]), "apart from parameters and state"),
    "inference": (replaced(lambda params, opt: inference()), "can be written to"),
    "zero tensor": (replaced(lambda params, opt: torch._efficientzerotensor((2, 5))), "can be written to"),
}


@pytest.mark.parametrize("kind", [*BAD, "columns"])
def test_gradients_that_cannot_be_unscaled_in_place_are_refused_before_anything_is_written(kind):
    params = [torch.nn.Parameter(torch.linspace(-1, 1, 10).reshape(2, 5)) for _ in range(2)]
    opt = Adadelta(params, fused=True)

    def step():
        opt.grad_scale, opt.found_inf = torch.tensor(8.0), torch.tensor(0.0)
        opt.step()

    for p in params:
        p.grad = torch.full_like(p, 8.0)
    step()
    before = [t.clone() for p in params for t in (p, *opt.state[p].values())]
    if kind == "columns":
        columns(params, opt)
        step()
        assert_equal([p.grad for p in params], [torch.ones(2, 5)] * 2)
        return
    spoil, message = BAD[kind]
    spoil(params, opt)
    with pytest.raises(RuntimeError, match=rf"^gradient of params\[[01]\]: .*{message}"):
        step()
    assert_equal([t for p in params for t in (p, *opt.state[p].values())], before)


@pytest.mark.parametrize("found", [0.0, 1.0, 2.0])
def test_a_number_on_a_device_can_stop_the_step(found, monkeypatch):
    """On CUDA the host does not look at `found_inf`: the pass does. Here it is told that it may not look."""
    monkeypatch.setattr(face.Scaling, "of", lambda opt: Scaling(torch.tensor(4.0), torch.tensor(found), False))
    params = [torch.nn.Parameter(torch.linspace(-1, 1, 7)), ones(2, dtype=torch.bfloat16)]
    plain = [torch.nn.Parameter(p.detach().clone()) for p in params]
    for p, q in zip(params, plain, strict=True):
        p.grad, q.grad = torch.full_like(p, 2.0), torch.full_like(p, 0.5)
        if found:
            p.grad[0] = float("nan")
    given = [p.grad.clone() for p in params]
    opt = Adadelta(params, maximize=True)
    opt.step()
    monkeypatch.undo()
    other = Adadelta(plain, maximize=True)
    if not found:
        other.step()
    assert_equal(params, plain)
    assert_equal([p.grad for p in params], given if found else [q.grad for q in plain])
    for p in params:
        assert opt.state[p]["step"] == (0 if found else 1)
        assert (opt.state[p]["square_avg"].isfinite()).all()


@pytest.mark.parametrize("engine", ["host", "eager"])
def test_a_guarded_pass_keeps_everything(engine):
    """A rule of anybody's, on every engine: NaN included."""
    from multiopt.binding import Binding
    from multiopt.plan import run
    from multiopt.update import FusedUpdate

    for skip in (0.0, 1.0):
        x = torch.linspace(-1, 1, 5)
        g = torch.tensor([1.0, float("nan"), 0.0, float("inf"), -2.0])
        binding = Binding(multiopt.ADADELTA, [x], ["x"], engine=engine)
        before = [binding.column(k)[0].clone() for k in range(3)]
        numbers = {"lr": 1.0, "rho": 0.9, "eps": 1e-6, "skip": torch.tensor(skip)}
        run([binding.plan(FusedUpdate(multiopt.ADADELTA, guarded=True), [g], numbers)])
        for k, old in enumerate(before):
            assert torch.equal(old, binding.column(k)[0]) == bool(skip)


@pytest.mark.parametrize("kind", ["repeats", "zeros", "another's", "a parameter's"])
def test_so_are_those_of_tensors_that_no_engine_reads(kind):
    p, q = params = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    opt = Adadelta(params, fused=True)
    for x in params:
        x.grad = torch.ones(3)
    opt.step()
    opt.state[p]["square_avg"] = opt.state[p]["square_avg"].double()
    opt.step()  # by PyTorch's operations
    before = [t.clone() for x in params for t in (x, *opt.state[x].values())]
    p.grad = {
        "repeats": torch.ones(1).expand(3), "zeros": torch._efficientzerotensor(3), "another's": q.grad,
        "a parameter's": q.detach(),
    }[kind]  # fmt: skip
    opt.grad_scale, opt.found_inf = torch.tensor(8.0), torch.tensor(0.0)
    with pytest.raises(RuntimeError, match=r"^gradient of params\[[01]\]: expected|^gradient of .* overlaps"):
        opt.step()
    assert_equal([t for x in params for t in (x, *opt.state[x].values())], before)
    p.grad = torch.full((3,), 8.0)
    opt.step()
    assert_equal([p.grad], [torch.ones(3)])
