"""State that is copied, pickled and taken over: the same bits go on, and nothing is half done."""

import copy
import pickle
import random
import time

import forger
import numpy as np
import pytest
from libraries import LIBRARIES, library_of, refused, snapshot
from rules import LR, descent
from training import make, same, train

from multiopt import Adadelta, Optimizer, Rule, schedules


def test_a_snapshot_is_independent(plain):
    opt = make(plain)
    train(plain, opt, range(4))
    state = opt.state_dict()
    bits = lambda: {key: plain.host(a).tobytes() for key, a in state["arrays"].items()}  # noqa: E731
    kept = bits()
    about = copy.deepcopy(state["about"])
    train(plain, opt, range(4, 9))
    opt.rho = 0.5
    opt.add_param_group({"params": plain.param(np.ones(2, np.float32))})
    assert kept == bits()
    assert about == state["about"]


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle 2": lambda opt: pickle.loads(pickle.dumps(opt, 2)),
    "pickle": lambda opt: pickle.loads(pickle.dumps(opt)),
}


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_independent_and_go_on(plain, kind):
    if plain.name == "array_api_strict" and kind != "deepcopy":
        pytest.skip("array_api_strict's arrays do not pickle")
    opt = make(plain)
    train(plain, opt, range(4))
    before = snapshot(opt)
    twin = COPIES[kind](opt)
    same(opt, twin)
    assert repr(twin) == repr(opt)
    train(plain, twin, range(4, 9))
    twin.rho = 0.1
    assert snapshot(opt) == before
    assert snapshot(twin) != before
    train(plain, opt, range(4, 9))
    opt.rho = 0.1
    same(opt, twin)


def test_a_pickle_compiles_nothing_again(numba):
    from multiopt.backends.engines.host import kernels as numba_kernels

    opt = Adadelta(np.ones(3), weight_decay=0.1, ema=0.5)
    opt.step(np.ones(3))
    compiled = numba_kernels.update_kernel.cache_info().currsize
    for twin in (pickle.loads(pickle.dumps(opt)), copy.deepcopy(opt)):
        twin.step(np.ones(3))
    assert numba_kernels.update_kernel.cache_info().currsize == compiled


def test_an_array_in_two_places_stays_one_in_a_pickle():
    x = np.ones(3)
    both = pickle.loads(pickle.dumps({"x": x, "opt": Adadelta(x)}))
    both["opt"].step(np.ones(3))
    assert both["x"] is both["opt"].params
    assert both["x"][0] < 1


# --- what cannot be taken over ---


def small(lib, seed=0, **options):
    """An optimizer in the middle of an accumulation, with averages."""
    rng = np.random.default_rng(seed)
    params = [lib.param(rng.standard_normal(n).astype(np.float32)) for n in (4, 3)]
    opt = Adadelta(params, ema=0.9, accumulate=2, engine=lib.engine, **options)
    for _ in range(3):
        opt.step([lib.grad(rng.standard_normal(n).astype(np.float32)) for n in (4, 3)])
    return opt


FIRST = "square_avg/params[0]"


def with_first(opt, array):
    """A snapshot in which one array is another."""
    state = opt.state_dict()
    state["arrays"][FIRST] = array
    return state


def strange_tensors(torch):
    """Tensors of the right shape and dtype without values in memory of their own, by what they are."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    freed = torch.ones(4)
    freed.untyped_storage().resize_(0)
    with FakeTensorMode():
        fake = torch.ones(4)
    return {
        "meta": torch.ones(4, device="meta"),
        "sparse": torch.ones(4).to_sparse(),
        "fake": fake,
        "freed": freed,
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(2)], layout=torch.jagged),
        "half": torch.ones(4, dtype=torch.float16),
        "short": torch.ones(3),
        "a list": [1.0] * 4,
    }


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_tensors_without_values_are_refused(name, torch):
    with library_of(LIBRARIES[name]) as lib:
        opt = small(lib)
        for array in strange_tensors(torch).values():
            with refused(opt, ValueError, r"^state: square_avg/params\[0\]: expected "):
                opt.load_state_dict(with_first(opt, array))


def test_within_fake_tensors_nothing_is_taken_over(torch, tmp_path):
    from torch._subclasses.fake_tensor import FakeTensorMode

    opt = small(LIBRARIES["torch"])
    opt.save(tmp_path / "x")
    state = small(LIBRARIES["torch"], 1).state_dict()
    with refused(opt, ValueError, "^state: "), FakeTensorMode():
        opt.load_state_dict(state)
    with refused(opt, ValueError, f"^{tmp_path / 'x'}: "), FakeTensorMode():
        opt.load(tmp_path / "x")


def test_tensors_that_stand_for_others_and_arrays_of_any_kind_are_copied(torch):
    two = np.arange(8, dtype=np.float32)[::2] + 1
    locked = two.copy()
    locked.flags.writeable = False
    arrays = {
        "negative": torch._neg_view(torch.from_numpy(-two)),
        "view": torch.from_numpy(np.repeat(two, 2))[::2],
        "requires grad": torch.from_numpy(two.copy()).requires_grad_(),
        "inference": torch.inference_mode()(lambda: torch.from_numpy(two.copy()) + 0)(),
        "read-only": locked,
        "strided": two,
        "big-endian": two.astype(">f4"),
        "another library's": pytest.importorskip("array_api_strict").asarray(two),
    }
    for name in ("numpy", "torch", "array_api_strict"):
        lib = LIBRARIES[name]
        for kind, array in arrays.items():
            opt = small(lib)
            opt.load_state_dict(with_first(opt, array))
            assert lib.host(opt.state[0]["square_avg"]).tolist() == [1, 3, 5, 7], (name, kind)
    opt = small(LIBRARIES["torch"])
    for array, value in ((torch._efficientzerotensor((4,)), 0.0), (torch.ones(1).expand(4), 1.0)):
        opt.load_state_dict(with_first(opt, array))
        assert opt.state[0]["square_avg"].tolist() == [value] * 4


def test_conjugates_are_copied(torch):
    x = torch.ones(3, dtype=torch.complex64)
    opt = Adadelta([x.clone()])
    opt.load_state_dict(with_first(opt, (x * 1j).conj()))
    assert opt.state[0]["square_avg"].tolist() == [-1j] * 3


def test_numpy_scalars_stand_for_arrays_without_axes():
    opt = Adadelta([np.ones(())])
    opt.load_state_dict(with_first(opt, np.float64(2)))
    assert opt.state[0]["square_avg"] == 2
    with refused(opt, ValueError, "expected a numpy.ndarray, got its subclass MaskedArray"):
        opt.load_state_dict(with_first(opt, np.ma.masked_array(3.0)))


@pytest.mark.parametrize("name", ["numpy", "torch", "dask", "jax"])
def test_arrays_that_cannot_be_computed_are_refused(name, jax):
    dask = pytest.importorskip("dask.array")

    def fail(block):
        raise ZeroDivisionError("a task that fails")

    def widen(block):
        return block.astype("f8")

    with library_of(LIBRARIES[name]) as lib:
        opt, ones = small(lib), dask.ones(4, dtype=np.float32)
        deleted = jax.numpy.ones(4, "float32")
        deleted.delete()
        for array, message in [
            (ones.map_blocks(fail, dtype=ones.dtype, meta=np.empty(0, "f4")), "a task that fails"),
            (ones.map_blocks(widen, dtype=ones.dtype, meta=np.empty(0, "f4")), "float32 values .*, got float64"),
            (deleted, "(deleted|freed)"),
        ]:
            with refused(opt, ValueError, rf"^state: square_avg/params\[0\]: .*{message}"):
                opt.load_state_dict(with_first(opt, array))


def test_arrays_that_were_deleted_are_replaced(jax):
    opt = small(LIBRARIES["jax"])
    state, whole = opt.state_dict(), snapshot(opt)[0]
    state["arrays"] = {key: jax.numpy.array(array, copy=True) for key, array in state["arrays"].items()}
    for leaf in opt.state:
        leaf["square_avg"].delete()
    opt.load_state_dict(state)
    assert snapshot(opt)[0] == whole


def test_live_arrays_that_change_places_give_what_copies_give(plain):
    live, copies = small(plain), small(plain)
    states = []
    for opt, taken in ((live, lambda array: array), (copies, lambda array: plain.param(plain.host(array)))):
        state, own = opt.state_dict(), [dict(leaf) for leaf in opt.state]
        for i, leaf in enumerate(own):
            state["arrays"][f"square_avg/params[{i}]"] = taken(leaf["acc_delta"])
            state["arrays"][f"acc_delta/params[{i}]"] = taken(leaf["square_avg"])
            state["arrays"][f"ema/params[{i}]"] = taken(opt.params[i])
        states.append(state)
    before = plain.host(live.state[0]["square_avg"]).tolist()
    for opt, state in zip((live, copies), states, strict=True):
        opt.load_state_dict(state)
    assert plain.host(live.state[0]["acc_delta"]).tolist() == before
    same(live, copies)
    for opt in (live, copies):
        opt.step([plain.grad(np.ones(n, np.float32)) for n in (4, 3)])
    same(live, copies)


def test_one_array_in_many_places_is_copied_to_each(plain):
    opt, ones = small(plain), plain.param(np.ones(4, np.float32))
    state = opt.state_dict()
    state["arrays"] |= {key: ones for key in state["arrays"] if key.endswith("[0]")}
    opt.load_state_dict(state)
    for _ in range(3):
        opt.step([plain.grad(np.full(n, 2, np.float32)) for n in (4, 3)])
    leaf = opt.state[0]
    assert len({plain.host(array).tobytes() for array in (leaf["square_avg"], leaf["acc_delta"])}) == 2
    assert plain.host(ones).tolist() == [1] * 4


def test_own_arrays_that_cannot_be_written_to_are_found_first(tmp_path, torch):
    numpy, tensors = small(LIBRARIES["numpy"]), small(LIBRARIES["torch"])
    numpy.save(tmp_path / "x")

    def both(opt, message):
        for load, told in (
            (opt.load_state_dict, small(LIBRARIES["numpy"], 1).state_dict()),
            (opt.load, tmp_path / "x"),
        ):
            with refused(opt, ValueError, message):
                load(told)

    last = numpy.state[1]["acc_delta"]
    last.flags.writeable = False
    both(numpy, "own acc_delta/params.1.: expected an array that can be written to")
    last.flags.writeable = True
    tensors.state[1]["acc_delta"].data = torch.ones(3, dtype=torch.float16)
    both(tensors, "own acc_delta/params.1.: expected dtype float32, got float16")
    tensors.state[1]["acc_delta"].data = tensors.state[1]["square_avg"].data
    both(tensors, "acc_delta/params.1.: expected memory of its own, got an array that overlaps .*square_avg/params.1.")
    tensors.state[1]["acc_delta"].data = torch.ones(1).expand(3)
    both(tensors, "acc_delta/params.1.: expected elements with memory of their own")
    tensors.state[1]["acc_delta"].data = freed = torch.ones(3)
    freed.untyped_storage().resize_(0)
    before = tensors.state[0]["square_avg"].clone()
    for load, told in ((tensors.load_state_dict, numpy.state_dict()), (tensors.load, tmp_path / "x")):
        with pytest.raises(ValueError, match=r"own acc_delta/params.1.: expected an array with memory"):
            load(told)
    assert torch.equal(tensors.state[0]["square_avg"], before)


@pytest.mark.parametrize("method", ["copy", "from_host", "write", "full_like"])
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_what_fails_in_the_middle_leaves_all_as_it_was(plain, method, error, monkeypatch):
    opt, other = small(plain), small(plain, 1, rho=0.5)
    other.step([plain.grad(np.ones(n, np.float32)) for n in (4, 3)])  # no accumulation is begun
    state, before, kind = other.state_dict(), snapshot(opt), type(opt.backend)
    real, fail_at = getattr(kind, method), 0
    while True:
        calls = iter(range(10**6))

        def act(*args, calls=calls, stop=fail_at):
            if next(calls) == stop:
                raise error
            return real(*args)

        monkeypatch.setattr(kind, method, act)
        try:
            opt.load_state_dict(state)
            break
        except error:
            monkeypatch.setattr(kind, method, real)
            assert snapshot(opt) == before
            fail_at += 1
        finally:
            monkeypatch.setattr(kind, method, real)
    called = {name: opt.backend.mutable == (name != "from_host") for name in ("write", "copy", "from_host")}
    assert (fail_at > 1) == called.get(method, True)
    assert (opt.rho, opt.micro_steps, opt.steps) == (0.5, 0, 2)


def test_a_snapshot_without_begun_accumulation_ends_one_that_is(plain):
    opt, other = small(plain), small(plain, 1)
    gradient = [plain.grad(np.ones(n, np.float32)) for n in (4, 3)]
    other.step(gradient)
    assert (opt.micro_steps, other.micro_steps) == (1, 0)
    opt.load_state_dict(other.state_dict())
    for _ in range(2):
        for each in (opt, other):
            each.step(gradient)
    assert snapshot(opt)[0].keys() == snapshot(other)[0].keys()
    assert all(snapshot(opt)[0][key] == bits for key, bits in snapshot(other)[0].items() if "square_avg" in key)


def test_a_rule_without_state_has_snapshots_too():
    opt, other = (Optimizer(Rule("descent", descent, {}, LR), np.ones(2), lr=lr) for lr in (0.1, 0.5))
    opt.load_state_dict(other.state_dict())
    assert opt["lr"] == 0.5


# --- forged ones ---


def forged_model():
    groups = [
        {"params": {"a": np.zeros((2, 3)), "b": np.zeros((), np.complex64)}},
        {
            "params": [np.zeros(4, np.float32)],
            "lr": schedules.WarmUp(schedules.Cosine(1.0, 10), 4),
            "weight_decay": abs,
        },
    ]
    return Adadelta(groups, accumulate=3, ema=0.9, clip_global_norm=1.0)


def test_forged_snapshots_are_refused_or_good():
    opt = forged_model()
    opt.step([{"a": np.ones((2, 3)), "b": np.ones((), np.complex64)}, [None]])
    state, loaded = opt.state_dict(), 0
    for seed in range(300):
        loaded += forger.tried_snapshot(forged_model, forger.forge_snapshot(state, random.Random(seed))[1])
    assert 0 < loaded < 100  # some values are as good as those that they replace


def test_a_million_keys_are_refused_quickly():
    opt = forged_model()
    state, ones, many = opt.state_dict(), np.ones(3), range(10**6)
    group = state["about"]["groups"][0]
    for part, forged in {
        "arrays": {**state["arrays"], **{f"x{i}": ones for i in many}},
        "about": {**state["about"], "groups": [{**group, "names": list(map(str, many))}]},
    }.items():
        start = time.process_time()
        with refused(opt, ValueError, "^state: .*(unexpected|expected the parameters)"):
            opt.load_state_dict({**state, part: forged})
        assert time.process_time() - start < 2
