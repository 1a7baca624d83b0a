"""The ranks of the distributed tests, run by tests/torch/test_distributed.py: forks of one process.

Each check is a function of the mesh; it raises where something is wrong. Gradients are made from a seed, so that
every rank, and one process alone, know them whole.
"""

import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from processes import forked
from torch.distributed.algorithms.ddp_comm_hooks.ddp_zero_hook import hook_with_zero_step
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh

from multiopt.torch import Adadelta, FunctionalAdadelta, clip_grad_norm_, get_total_norm

# One dimension is smaller than four ranks, so that some shards are empty; none is a multiple of four.
SHAPES = [(7, 5), (3,), (2, 9), (13, 6, 2)]
OPTIONS = {"lr": 0.7, "rho": 0.8, "weight_decay": 0.02}


def tensors(seed, scale=1):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(shape, generator=generator) for shape in SHAPES]


def start():
    return [torch.nn.Parameter(x) for x in tensors(11)]


def gradients(step):
    return tensors(100 + step, 3)


def train(params, steps, clip=None, skip=(), layout=None, first=0, opt=None):
    """Steps with known gradients, except those that `skip` names by step and parameter; with the norms, if clipped."""
    opt, norms = opt or Adadelta(params, **OPTIONS), []
    for step in range(first, steps):
        for i, (p, g) in enumerate(zip(params, gradients(step), strict=True)):
            p.grad = None if (step, i) in skip else distribute_tensor(g, *layout) if layout else g
        if clip is not None:
            grads = [p.grad for p in params if p.grad is not None]
            whole, most = get_total_norm(grads), get_total_norm(grads, float("inf"))
            norms += [clip_grad_norm_(params, clip), most]
            assert torch.equal(whole, norms[-2])
        opt.step()
    return params, opt, norms


def same_bits(a, b, what):
    a, b = (x.full_tensor() if isinstance(x, DTensor) else x for x in (a, b))
    if not torch.equal(a.detach(), b.detach()):
        raise AssertionError(f"{what}: {(a - b).abs().max()} apart")


def sharded(*layout):
    return [torch.nn.Parameter(distribute_tensor(x.detach(), *layout)) for x in start()]


def layouts(mesh):
    """Every way to lay tensors out that a mesh of this many ranks has: a mesh and placements."""
    yield mesh, [Shard(0)]
    yield mesh, [Replicate()]
    if mesh.size() == 4:
        grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replica", "shard"))
        yield grid, [Replicate(), Shard(0)]
        yield grid, [Shard(0), Shard(0)]


def check_shards_have_the_bits_of_the_whole(mesh):
    for clip in (None, 0.9, 1e6):
        for skip in ((), {(0, 1), (2, 0)}):
            whole, opt, norms = train(start(), 4, clip, skip)
            for layout in layouts(mesh):
                params, other, found = train(sharded(*layout), 4, clip, skip, layout)
                for i, (p, q) in enumerate(zip(params, whole, strict=True)):
                    same_bits(p, q, f"{layout}, clip {clip}: parameter {i}")
                    own, its = other.state[p], opt.state[q]
                    for slot in ("square_avg", "acc_delta"):
                        assert isinstance(own[slot], DTensor)
                        assert (own[slot].placements, own[slot].device_mesh) == (p.placements, p.device_mesh)
                        same_bits(own[slot], its[slot], f"{layout}: {slot} {i}")
                    assert type(own["step"]) is torch.Tensor
                    assert own["step"] == its["step"]
                assert norms == found, (norms, found)


def check_state_rounded_stochastically(mesh):
    """What is drawn belongs to an element of the whole parameter, whoever holds it."""

    def run(spread):
        # Not the vector: it has no second dimension to be sharded.
        params = [torch.nn.Parameter(spread(x)) for x in tensors(11) if x.ndim > 1]
        opt = Adadelta(params, **OPTIONS, state_dtype=torch.bfloat16, state_rounding="stochastic", seed=5)
        for step in range(3):
            for p, g in zip(params, (g for g in gradients(step) if g.ndim > 1), strict=True):
                p.grad = spread(g)
            opt.step()
        return [(p, *(opt.state[p][slot] for slot in ("square_avg", "acc_delta"))) for p in params]

    grid = init_device_mesh("cpu", (2, mesh.size() // 2), mesh_dim_names=("rows", "columns"))
    whole = run(lambda x: x)
    for layout in ((mesh, [Shard(0)]), (mesh, [Shard(1)]), (grid, [Shard(0), Shard(1)]), (grid, [Shard(0), Shard(0)])):
        for own, its in zip(run(lambda x, layout=layout: distribute_tensor(x, *layout)), whole, strict=True):
            for a, b in zip(own, its, strict=True):
                same_bits(a, b, f"rounded stochastically, {layout}")


def check_gradients_laid_out_otherwise(mesh):
    whole, _, norms = train(start(), 4, 0.9)
    params, _, found = train(sharded(mesh, [Shard(0)]), 4, 0.9, layout=(mesh, [Replicate()]))
    for p, q in zip(params, whole, strict=True):
        same_bits(p, q, "replicated gradients")
    assert norms == found
    # PyTorch refuses a plain gradient of a DTensor where it is assigned, or the optimizer does.
    with pytest.raises(RuntimeError):
        train(sharded(mesh, [Shard(0)]), 1)


def check_clipping_that_must_raise(mesh):
    """On every rank, though only one of them holds what is not finite; and nothing has changed."""
    params = sharded(mesh, [Shard(0)])
    for p, g in zip(params, gradients(0), strict=True):
        g[0] = float("inf")
        p.grad = distribute_tensor(g, mesh, [Shard(0)])
    before = [p.grad.full_tensor() for p in params]
    with pytest.raises(RuntimeError, match="not finite"):
        clip_grad_norm_(params, 1.0, error_if_nonfinite=True)
    with pytest.raises(RuntimeError, match="not finite"):
        get_total_norm([p.grad for p in params], float("inf"), error_if_nonfinite=True)
    for p, g in zip(params, before, strict=True):
        same_bits(p.grad, g, "gradient")


def make_model():
    torch.manual_seed(5)
    return torch.nn.Sequential(torch.nn.Linear(6, 11), torch.nn.Tanh(), torch.nn.Linear(11, 3))


def batch(rank, size):
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(42))
    return x[rank * (8 // size) : (rank + 1) * (8 // size)]


def trained(model, opt, x, clip=None):
    for _ in range(5):
        opt.zero_grad()
        model(x).square().mean().backward()
        if clip is not None:
            clip(model.parameters(), 0.05)
        opt.step()


def close(ours, theirs, what):
    """Within what the order of a sum over ranks makes of float32."""
    for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
        p, q = (x.full_tensor() if isinstance(x, DTensor) else x for x in (p.detach(), q.detach()))
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5, msg=lambda text, i=i: f"{what}, parameter {i}: {text}")


def check_ddp(mesh):
    rank, size = dist.get_rank(), mesh.size()
    for options in ({}, {"gradient_as_bucket_view": True}, {"static_graph": True}):
        model, reference = make_model(), make_model()
        ddp = torch.nn.parallel.DistributedDataParallel(model, **options)
        trained(ddp, Adadelta(ddp.parameters()), batch(rank, size))
        trained(reference, torch.optim.Adadelta(reference.parameters()), batch(0, 1))
        close(model.parameters(), reference.parameters(), f"DDP {options}")
        for p in model.parameters():
            first = p.detach().clone()
            dist.broadcast(first, 0)
            same_bits(p, first, "DDP: ranks differ")


def check_fsdp(mesh):
    rank, size = dist.get_rank(), mesh.size()
    for clip in (None, torch.nn.utils.clip_grad_norm_, clip_grad_norm_):
        model, reference = make_model(), make_model()
        for layer in (model[0], model[2], model):
            fully_shard(layer, mesh=mesh)
        opt = Adadelta(model.named_parameters())
        trained(model, opt, batch(rank, size), clip=clip)
        trained(
            reference,
            torch.optim.Adadelta(reference.parameters()),
            batch(0, 1),
            clip=clip and torch.nn.utils.clip_grad_norm_,
        )
        close(model.parameters(), reference.parameters(), f"FSDP2, {clip}")
        for p in model.parameters():
            assert isinstance(opt.state[p]["acc_delta"], DTensor)


def check_zero_redundancy(mesh):
    params = start()
    opt = ZeroRedundancyOptimizer(params, Adadelta, **OPTIONS)
    train(params, 4, opt=opt)
    whole, reference, _ = train(start(), 4)
    for p, q in zip(params, whole, strict=True):
        same_bits(p, q, "ZeroRedundancyOptimizer")
    opt.consolidate_state_dict(to=0)
    if dist.get_rank() == 0:
        state, its = opt.state_dict()["state"], reference.state_dict()["state"]
        for key in its:
            for slot in its[key]:
                same_bits(state[key][slot], its[key][slot], f"ZeroRedundancyOptimizer: {slot}")
        Adadelta(start()).load_state_dict(opt.state_dict())


def check_zero_redundancy_while_ddp_reduces(mesh):
    """The first rank alone: PyTorch refuses gloo here, because between ranks it may hang."""
    alone, models = dist.new_group([0]), []
    if dist.get_rank() != 0:
        return
    for kind in (Adadelta, torch.optim.Adadelta):
        models.append(make_model())
        ddp = torch.nn.parallel.DistributedDataParallel(models[-1], process_group=alone)
        opt = ZeroRedundancyOptimizer(ddp.parameters(), kind, alone, overlap_with_ddp=True, **OPTIONS)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dist, "get_backend", lambda group: "nccl")
            hook = hook_with_zero_step(allreduce_hook, ddp, opt)
        ddp.register_comm_hook(alone, hook)
        for _ in range(6):
            opt.zero_grad()
            ddp(batch(0, 1)).square().mean().backward()
        assert isinstance(opt.optim, FunctionalAdadelta) == (kind is Adadelta)
    close(*(model.parameters() for model in models), "ZeroRedundancyOptimizer, overlapping")
    assert not torch.equal(models[0][0].weight, make_model()[0].weight)


def check_autograd_knows_of_the_step(mesh):
    """A graph that a step has written to cannot go backward any more; as of plain tensors."""
    for kind in (Adadelta, torch.optim.Adadelta):
        (p, *others) = sharded(mesh, [Shard(0)])
        p.grad, opt = distribute_tensor(gradients(0)[0], mesh, [Shard(0)]), kind([p, *others])
        opt.step()
        slots = [opt.state[p][slot] for slot in ("square_avg", "acc_delta")]
        loss, before = (p**2).sum(), [t._version for t in slots]
        opt.step()
        assert all(t._version > old for t, old in zip(slots, before, strict=True))
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
        assert others[0]._version == 0


class Holder(torch.nn.Module):
    """A model with no more than the parameters."""

    def __init__(self, params):
        super().__init__()
        self.weights = torch.nn.ParameterList(params)


def check_saving(mesh, folder):
    """Three steps on shards, then a checkpoint."""
    holder = Holder(sharded(mesh, [Shard(0)]))
    _, opt, _ = train(list(holder.weights), 3, layout=(mesh, [Shard(0)]))
    model_state, opt_state = get_state_dict(holder, opt)
    dcp.save({"model": model_state, "opt": opt_state}, checkpoint_id=folder)


def check_loading(mesh, folder):
    """Load what another number of ranks has saved, laid out otherwise, and go on: the bits of never having stopped."""
    whole, reference, _ = train(start(), 6)
    for layout in layouts(mesh):
        for kind in (Adadelta, torch.optim.Adadelta):
            holder = Holder(sharded(*layout))
            params = list(holder.weights)
            opt = kind(params, lr=9.0)
            model_state, opt_state = get_state_dict(holder, opt)
            state = {"model": model_state, "opt": opt_state}
            dcp.load(state, checkpoint_id=folder)
            set_state_dict(holder, opt, model_state_dict=state["model"], optim_state_dict=state["opt"])
            assert opt.param_groups[0]["lr"] == OPTIONS["lr"]
            train(params, 6, layout=layout, first=3, opt=opt)
            if kind is Adadelta:
                for p, q in zip(params, whole, strict=True):
                    same_bits(p, q, f"resharded to {layout}")
                    same_bits(opt.state[p]["acc_delta"], reference.state[q]["acc_delta"], "resharded state")
                    assert opt.state[p]["step"] == 6
            else:
                close(params, whole, "PyTorch's, going on from our checkpoint")


def compile_kernels():
    """What the ranks will need, once for all of them."""
    for clip in (None, 0.9):
        train(start(), 1, clip)
    for options in ({}, {**OPTIONS, "state_dtype": torch.bfloat16, "state_rounding": "stochastic"}):
        params = start()
        train(params, 1, opt=Adadelta(params, **options))


def main(rank, size, store, task, folder):
    dist.init_process_group("gloo", rank=rank, world_size=size, init_method=f"file://{store}")
    mesh = init_device_mesh("cpu", (size,))
    checks = [
        check_shards_have_the_bits_of_the_whole,
        check_state_rounded_stochastically,
        check_gradients_laid_out_otherwise,
        check_clipping_that_must_raise,
        check_ddp,
        check_fsdp,
        check_zero_redundancy,
        check_zero_redundancy_while_ddp_reduces,
        check_autograd_knows_of_the_step,
    ]
    if task == "load":
        check_loading(mesh, folder)
    for check in checks:
        check(mesh)
    if task == "save":
        check_saving(mesh, folder)
        check_loading(mesh, folder)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    # PyTorch's distributed packages warn of each other; ours are not to.
    warnings.filterwarnings("error", module=r"multiopt\.")
    torch.set_num_threads(1)
    compile_kernels()
    folder = Path(sys.argv[1])
    # Two load what four have saved.
    for size, task in ((4, "save"), (2, "load")):
        forked(size, lambda rank, size=size, task=task: main(rank, size, folder / task, task, folder / "checkpoint"))
    print("all checks passed")
