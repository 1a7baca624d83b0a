"""Groups that are updated alike share their passes: the same bits as each alone, whatever happens in between."""

import copy
import pickle

import numpy as np
import pytest
from libraries import LIBRARIES, library_of, refused, strided

from multiopt import Adadelta, schedules

#: Options of the groups, by which they make two kinds; the numbers differ within each.
GROUPS = [
    {"lr": 0.5, "eps": 1e-3},
    {"lr": schedules.InverseTime(1.0, 1, 1.0), "rho": 0.5},
    {"clip_value": 0.75, "clip_norm": 0.5, "maximize": True},
    {},
    {"clip_value": 0.25, "clip_norm": 2.0, "maximize": True, "lr": 0.25},
]
#: Arrays of each group, one of no element among them.
KINDS = [((3, 5), "float32"), ((4,), "float64"), ((0,), "float32"), ((7,), "float32")]


def draw(rng):
    return [rng.standard_normal(shape).astype(dtype) for shape, dtype in KINDS]


def columns(params, state, averages):
    return [*params, *(array for slots in state for array in slots.values()), *averages]


@pytest.mark.parametrize("name", ["numpy", "torch", "array_api_strict"])
def test_groups_do_what_each_does_alone(name):
    with library_of(LIBRARIES[name]) as plain:
        check_groups(plain, {"engine": plain.engine, "accumulate": 2, "ema": 0.9, "nonfinite": "skip"})


def check_groups(plain, options):
    rng, every = np.random.default_rng(5), len(GROUPS)
    values = [draw(rng) for _ in GROUPS]
    together = Adadelta(
        [{"params": plain.params(own), **group} for own, group in zip(values[:-1], GROUPS, strict=False)], **options
    )
    alone = [Adadelta(plain.params(own), **group, **options) for own, group in zip(values, GROUPS, strict=True)]

    def step(count):
        for k in range(options["accumulate"]):
            grads = [draw(rng) for _ in range(count)]
            for i, own in enumerate(grads):
                own[(i + k) % 4] = None
            together.step([plain.grads(own) for own in grads])
            for opt, own in zip(alone, grads, strict=False):
                opt.step(plain.grads(own))

    step(every - 1)
    # What is shared is found anew when a group is added, is updated in another way, or the optimizer is a copy.
    together.add_param_group({"params": plain.params(values[-1]), **GROUPS[-1]})
    step(every)
    for group in (together.groups[0], alone[0].groups[0]):
        group.update(weight_decay=0.125, lr=0.75)
    step(every)
    together.load_state_dict(together.state_dict())
    if plain.name != "array_api_strict":  # whose arrays are not copied
        together = pickle.loads(pickle.dumps(copy.deepcopy(together)))
    step(every)
    for i, opt in enumerate(alone):
        found = columns(together.params[i], together.state[i], together.ema_params[i])
        wanted = columns(opt.params, opt.state, opt.ema_params)
        assert [plain.host(a).tobytes() for a in found] == [plain.host(a).tobytes() for a in wanted], GROUPS[i]


def test_groups_of_a_kind_are_one_call(numba, monkeypatch):
    opt = Adadelta(
        [{"params": [np.ones(3), np.ones(2, np.float32)], "lr": 0.5 + i, "weight_decay": i % 2} for i in range(6)],
        accumulate=2, ema=0.5, clip_norm=1.0, nonfinite="raise",
    )  # fmt: skip
    engine, called = type(opt.bindings[0].buckets[0].engine), []

    def watch(name, kept):
        monkeypatch.setattr(engine, name, lambda self, *args: called.append(name) or kept(self, *args))

    for name in ("locate", "update", "norm_table", "finite"):
        watch(name, getattr(engine, name))
    for _ in range(2):
        opt.step([[np.ones(3), np.ones(2, np.float32)] for _ in range(6)])
    # Two dtypes; sums are alike in all groups, updates in every other; averages are moved by the updates' calls.
    counts = {name: called.count(name) for name in ("locate", "update", "norm_table", "finite")}
    assert counts == {"locate": 12, "update": 8, "norm_table": 4, "finite": 4}


def test_gradients_in_the_memory_of_another_group(engine):
    """They are read before anybody writes there; and one that cannot be walked as it lies is copied."""
    x, y, z = (np.linspace(-1, 1, n) for n in (6, 6, 4))
    expected = Adadelta([{"params": a.copy(), "lr": lr} for a, lr in ((x, 0.5), (y, 2.0), (z, 1.0))], engine="eager")
    expected.step([y.copy(), x.copy(), strided(z)])
    opt = Adadelta([{"params": x, "lr": 0.5}, {"params": y, "lr": 2.0}, {"params": strided(z)}], engine=engine)
    x, y, z = opt.step([y, x, strided(z)])
    for got, want in zip((x, y, z), expected.params, strict=True):
        np.testing.assert_array_equal(got, want)


def test_an_error_in_one_group_leaves_all_as_they_were(engine):
    opt = Adadelta([{"params": [np.ones(3)], "lr": 0.5 + i} for i in range(3)], engine=engine)
    grads = [[np.ones(3)] for _ in range(3)]
    opt.step(grads)
    for bad, kind, message in (
        (np.ones(2), ValueError, r"groups\[1\].grads\[0\]: expected shape \(3,\)"),
        (np.ones(3, np.float32), TypeError, r"groups\[1\].grads\[0\]: expected dtype float64"),
    ):
        with refused(opt, kind, message):
            opt.step([grads[0], [bad], grads[2]])
    opt.params[2][0].flags.writeable = False
    with refused(opt, ValueError, r"groups\[2\].params\[0\]: expected an array that can be written to"):
        opt.step(grads)


@pytest.mark.parametrize("k", range(6))
def test_array_that_changed_before_the_first_joint_step_is_refused(k):
    params = [np.ones(4, np.float32), np.ones(3, np.float32)]
    opt = Adadelta([{"params": [p]} for p in params])
    buckets = [bucket for binding in opt.bindings for bucket in binding.buckets]
    array = [a for bucket in buckets for column in bucket.arrays() for a in column][k]
    kept = array.__reduce__()[2]
    array.__setstate__(np.zeros((7, 2), np.float32).__reduce__()[2])
    grads = [[np.ones(4, np.float32)], [np.ones(3, np.float32)]]
    for _ in range(2):
        with pytest.raises(ValueError, match="as when the optimizer was made"):
            opt.step(grads)
    array.__setstate__(kept)
    opt.step(grads)
    with pytest.raises(ValueError, match="expected shape"):
        opt.step([grads[0], [np.ones((7, 2), np.float32)]])
