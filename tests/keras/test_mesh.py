"""Sharded variables: PyTorch's DTensors in 2 and 4 processes, JAX's arrays on 8 devices. Sharded equals unsharded."""

import os
from pathlib import Path

import processes
import pytest
from processes import run_python

#: What both libraries' programs share: options under which sharded and unsharded runs must agree.
SHARED = """
import numpy as np
import pytest
from multiopt.keras import Adadelta, Optimizer, Variable, schedules
from multiopt.keras.distribute import mesh as meshes

SHAPES = {"w": (4, 6), "b": (6,), "odd": (5,), "s": ()}
OPTIONS = [
    {"clipvalue": 0.5, "clipnorm": 0.7, "weight_decay": 0.1},
    {"global_clipnorm": 0.7, "gradient_accumulation_steps": 2, "loss_scale_factor": 4.0, "use_ema": True},
    {
        "global_clipnorm": 0.3,
        "learning_rate": schedules.ExponentialDecay(1.0, 2, 0.5),
        "use_ema": True,
        "ema_momentum": 0.5,
        "ema_overwrite_frequency": 2,
    },
]

def numbers(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}

def same(a, b, what):
    a, b = np.asarray(a), np.asarray(b)
    assert a.tobytes() == b.tobytes(), (what, a, b)

class Own(Optimizer):
    def update_step(self, gradient, variable, learning_rate):
        variable.assign_sub(gradient * learning_rate)

def compare(spread, whole, mesh):
    for options in OPTIONS:
        options = {"learning_rate": 0.5, "rho": 0.5, **options}
        a = {n: Variable(spread(n, v), name=n) for n, v in numbers(0).items()}
        b = {n: Variable(whole(v), name=n) for n, v in numbers(0).items()}
        one, two = Adadelta(mesh=mesh, **options), Adadelta(**options)
        for opt in (one, two):
            opt.exclude_from_weight_decay(var_names=["b"])
        for t in range(4):
            grads = numbers(t + 1)
            one.apply([spread(n, grads[n]) for n in SHAPES], a.values())
            two.apply([whole(grads[n]) for n in SHAPES], b.values())
        for v in [*a.values(), *one.variables[1:]]:
            name = v.name.rpartition("/")[2]
            assert laid_out(v.value) == laid_out(a[name].value), (v.name, laid_out(v.value))
        pairs = [*zip(a.values(), b.values()), *zip(one.variables, two.variables)]
        for v, w in pairs:
            same(meshes.numpy(v), w.numpy(), (options, v.name))
        # The state goes through files, gathered, and comes back in shards.
        store = {}
        one.save_own_variables(store)
        again = Adadelta(mesh=mesh, **options)
        again.exclude_from_weight_decay(var_names=["b"])
        again.build(list(a.values()))
        again.load_own_variables(store)
        grads = numbers(9)
        again.apply([spread(n, grads[n]) for n in SHAPES], a.values())
        two.apply([whole(grads[n]) for n in SHAPES], b.values())
        for v, w in pairs[: len(a)]:
            same(meshes.numpy(v), w.numpy(), (options, v.name, "loaded"))
    # An optimizer of one's own computes with the library's sharded operations.
    a = {n: Variable(spread(n, v), name=n) for n, v in numbers(0).items()}
    b = {n: Variable(whole(v), name=n) for n, v in numbers(0).items()}
    one, two = (Own(0.5, global_clipnorm=0.7, weight_decay=0.1, mesh=m) for m in (mesh, None))
    grads = numbers(1)
    one.apply([spread(n, grads[n]) for n in SHAPES], a.values())
    two.apply([whole(grads[n]) for n in SHAPES], b.values())
    for v, w in zip(a.values(), b.values()):
        same(meshes.numpy(v), w.numpy(), "own")  # the norm is exact
    extra = one.add_variable((3,), initializer="ones", name="extra")
    assert meshes.mesh_of(extra.value) == mesh
    assert meshes.numpy(extra).tolist() == [1, 1, 1]
"""

TORCH = """
import torch
from processes import forked
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

torch.set_num_threads(1)

def laid_out(tensor):
    return tensor.placements if isinstance(tensor, DTensor) else None

def whole(name, values):
    return torch.tensor(values)

# What is compiled for unsharded ones, the ranks share.
compare(whole, torch.tensor, None)

def work(rank, world, meeting):
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    if world == 2:
        mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("x",))
        layouts = {"w": [Shard(0)], "b": [Replicate()], "odd": [Shard(0)], "s": [Replicate()]}
    else:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("x", "y"))
        layouts = {"w": [Shard(0), Shard(1)], "b": [Replicate(), Shard(0)], "odd": [Shard(0), Replicate()]}
        layouts["s"] = [Replicate()] * 2

    def spread(name, values):
        return distribute_tensor(torch.tensor(values), mesh, layouts[name])

    compare(spread, torch.tensor, mesh)

    # A gradient that is still a sum to be made: every process has a part of it.
    v, w = Variable(spread("w", numbers(0)["w"]), name="w"), Variable(torch.tensor(numbers(0)["w"]))
    part = torch.full(SHAPES["w"], float(rank + 1))
    Adadelta(0.5).apply([DTensor.from_local(part, mesh, [Partial()] * mesh.ndim)], [v])
    Adadelta(0.5).apply([torch.full(SHAPES["w"], float(sum(range(1, world + 1))))], [w])
    same(meshes.numpy(v), w.numpy(), "partial")

    # Autograd through a sharded parameter, as in training.
    v = Variable(spread("w", numbers(0)["w"]), name="w")
    w = Variable(torch.tensor(numbers(0)["w"]), name="w")
    for variable in (v, w):
        opt = Adadelta(0.5, global_clipnorm=1.0)
        for _ in range(3):
            opt.minimize(lambda: (variable.value * variable.value).sum(), [variable])
    same(meshes.numpy(v), w.numpy(), "minimize")

    # Plain tensors beside sharded ones: every process holds the same.
    for first in (v, w):
        for second in (v, w):
            pair = [Variable(first.value.detach().clone()), Variable(second.value.detach().clone())]
            grads = [2 * p.value.detach() for p in pair]
            Adadelta(0.5, global_clipnorm=1.0).apply(grads, pair)
            norms = meshes.numpy(pair[0]) if first is second is v else norms
            same(meshes.numpy(pair[0]), norms, "mixed")
            same(meshes.numpy(pair[1]), norms, "mixed")

    # What does not belong together is refused, everywhere, and nothing has been changed.
    before = meshes.numpy(v)
    opt = Adadelta(0.5, mesh=mesh)
    with pytest.raises(ValueError, match="the optimizer's mesh"):
        opt.build([w])
    with pytest.raises(ValueError, match="expected shards or replicas"):
        Adadelta().build([Variable(DTensor.from_local(part, mesh, [Partial()] * mesh.ndim))])
    with pytest.raises(TypeError, match="expected a DTensor"):
        opt.apply([torch.ones(4, 6)], [v])
    with pytest.raises(ValueError, match="expected shape"):
        opt.apply([spread("w", np.ones((4, 5), np.float32))], [v])
    other = init_device_mesh("cpu", (world,), mesh_dim_names=("other",))
    if world == 4:
        with pytest.raises(ValueError, match="expected it on"):
            opt.apply([distribute_tensor(torch.ones(4, 6), other, [Shard(0)])], [v])
    same(meshes.numpy(v), before, "refused")
    dist.barrier()
    dist.destroy_process_group()

for world in (2, 4):
    forked(world, lambda rank: work(rank, world, f"{FOLDER}/{world}"))
print("done")
"""

JAX = """
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

assert jax.device_count() == 8
mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("x", "y"))
layouts = {"w": P("x", "y"), "b": P("y"), "odd": P(), "s": P()}

def spread(name, values):
    return jax.device_put(values, NamedSharding(mesh, layouts[name]))

def laid_out(array):
    return array.sharding.mesh, tuple(array.sharding.spec)

compare(spread, jax.numpy.asarray, mesh)

# A gradient that lies otherwise is moved to where its variable lies.
v, w = Variable(spread("w", numbers(0)["w"])), Variable(jax.numpy.asarray(numbers(0)["w"]))
opt = Adadelta(0.5, mesh=mesh)
opt.apply([jax.device_put(numbers(1)["w"], NamedSharding(mesh, P(None, "y")))], [v])
Adadelta(0.5).apply([jax.numpy.asarray(numbers(1)["w"])], [w])
same(v.numpy(), w.numpy(), "moved")
assert laid_out(v.value) == (mesh, ("x", "y"))
assert [s.data.shape for s in opt.variables[1].value.addressable_shards] == [(1, 3)] * 8
# The whole step under jit, sharded.
tv, ov = jax.jit(opt.stateless_apply)([a.value for a in opt.variables], [spread("w", numbers(2)["w"])], [v.value])
opt.apply([spread("w", numbers(2)["w"])], [v])
np.testing.assert_allclose(np.asarray(tv[0]), v.numpy(), rtol=1e-6)  # XLA contracts to FMA
assert tv[0].sharding.is_equivalent_to(v.value.sharding, 2)
with pytest.raises(ValueError, match="the optimizer's mesh"):
    Adadelta(mesh=mesh).build([w])
print("done")
"""


@pytest.mark.feature("D:mesh")
def test_dtensors_on_a_device_mesh(tmp_path):
    torch = pytest.importorskip("torch")
    if not torch.distributed.is_available():
        pytest.skip("this PyTorch has no torch.distributed")
    support = os.pathsep.join([str(Path(processes.__file__).parent), os.environ.get("PYTHONPATH", "")])
    code = f"FOLDER = {str(tmp_path)!r}\n{SHARED}{TORCH}"
    assert run_python(code, OMP_NUM_THREADS="1", PYTHONPATH=support) == "done"


@pytest.mark.feature("D:mesh")
def test_named_shardings_on_eight_devices():
    pytest.importorskip("jax")
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    assert run_python(SHARED + JAX, timeout=240, **flags) == "done"
