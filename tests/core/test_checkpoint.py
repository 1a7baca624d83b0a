"""State that is saved, loaded, copied and pickled: the same bits go on, and damage is found before anything changes."""

import contextlib
import copy
import json
import os
import pickle
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from libraries import PLAIN, library_of, refused, snapshot
from processes import run_python
from rules import ADAM

from multiopt import Adadelta, Optimizer, schedules
from multiopt import snapshot as snapshots

pytest.importorskip("safetensors", reason="safetensors is not installed")

SHAPES = {"w": (5, 3), "b": (3,), "scale": (), "none": (0, 2)}
OPTIONS = {
    "lr": schedules.WarmUp(schedules.Cosine(0.7, 30), 4),
    "rho": 0.93,
    "weight_decay": schedules.Exponential(0.1, 5, 0.5),
    "clip_norm": 3.0,
    "clip_global_norm": 2.5,
    "accumulate": 3,
    "loss_scale": 16.0,
    "ema": 0.8,
}


def draw(seed, dtype=np.float32, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.standard_normal(shape)).astype(dtype) for name, shape in shapes.items()}


def make(lib, dtype=np.float32, seed=0, **options):
    params = {name: lib.param(array) for name, array in draw(seed, dtype).items()}
    return Adadelta(params, engine=lib.engine, **{**OPTIONS, **options})


def train(lib, opt, seeds, dtype=np.float32):
    for seed in seeds:
        opt.step({name: lib.grad(array) for name, array in draw(seed, dtype).items()})


def same(one, other):
    assert snapshot(one) == snapshot(other)
    assert one.loss_scale == other.loss_scale
    assert one.clip_global_norm == other.clip_global_norm


@pytest.mark.parametrize("other", [False, True])
def test_state_goes_on_bit_for_bit_with_any_library(plain, other, tmp_path):
    with library_of(PLAIN[PLAIN.index(plain) - other]) as reader:
        whole, first, loaded = make(plain), make(plain), make(reader, seed=9)
        # Seven micro-batches of three to an update: the file holds an unfinished accumulation.
        train(plain, whole, range(100, 117))
        train(plain, first, range(100, 107))
        first.save(tmp_path / "x")
        own = lambda opt: [opt.params["w"], opt.state["w"]["square_avg"], opt.ema_params["w"]]  # noqa: E731
        arrays = own(loaded)
        assert loaded.load(tmp_path / "x").keys() == SHAPES.keys()
        # Where arrays are mutable, what was loaded stands in those that were there before.
        assert {a is b for a, b in zip(arrays, own(loaded), strict=True)} == {reader.mutable}
        assert (loaded.steps, loaded.micro_steps) == (2, 1)
        # A snapshot holds no parameters, as everywhere: they are copied by hand.
        values = {name: reader.param(plain.host(array)) for name, array in first.params.items()}
        taken = Adadelta(values, engine=reader.engine, **OPTIONS)
        taken.load_state_dict(first.state_dict())
        for opt in (loaded, taken):
            same(first, opt)
            train(reader, opt, range(107, 117))
            same(whole, opt)


@pytest.mark.parametrize(
    ("dtype", "state_dtype"),
    [
        *((dtype, None) for dtype in ("float16", "bfloat16", "float64", "complex64", "complex128")),
        *((dtype, "float32") for dtype in ("bfloat16", "float32", "complex128")),
    ],
)
def test_every_dtype(plain, dtype, state_dtype, tmp_path):
    if not plain.half and dtype in ("float16", "bfloat16"):
        pytest.skip(f"{plain} has no {dtype}")
    kind = np.dtype(pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype)
    one, other = (make(plain, kind, seed, state_dtype=state_dtype) for seed in (0, 1))
    train(plain, one, range(5), kind)
    one.save(tmp_path / "a")
    other.load(tmp_path / "a")
    same(one, other)
    other.load_state_dict(one.state_dict())
    same(one, other)
    again = make(plain, kind, 2, state_dtype=state_dtype)
    again.load(tmp_path / "a")
    again.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_arrays_of_any_layout(tmp_path):
    base = draw(0, shapes={"x": (6, 4)})["x"]
    wide, backwards = np.repeat(base, 2, 1)[:, ::2], base[::-1, ::-1].copy()[::-1, ::-1]
    layouts = base.copy(), np.asfortranarray(base), wide, backwards, base.astype(">f4")
    for x in layouts:
        opt = Adadelta(x)
        opt.step(base)
        opt.save(tmp_path / "x")
        for y in layouts:
            other = Adadelta(np.zeros_like(y))
            other.load(tmp_path / "x")
            same(opt, other)


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


def test_without_numba_the_engine_is_chosen_anew(tmp_path, numba):
    opt = Adadelta([np.linspace(0, 1, 7, dtype=np.float32)], ema=0.9, accumulate=2)
    opt.step([np.ones(7, np.float32)])
    opt.save(tmp_path / "x")
    (tmp_path / "pickle").write_bytes(pickle.dumps(opt))
    code = f"""
import sys; sys.modules["numba"] = None
import pickle, numpy as np
from multiopt import Adadelta
loaded = Adadelta([np.zeros(7, np.float32)], ema=0.9, accumulate=2)
loaded.load({str(tmp_path / "x")!r})
unpickled = pickle.load(open({str(tmp_path / "pickle")!r}, "rb"))
for opt in (loaded, unpickled):
    assert "engine=eager" in repr(opt), opt
    opt.step([np.full(7, 3, np.float32)])
    print(opt.params[0].tobytes().hex(), opt.ema_params[0].tobytes().hex(), opt.state[0]["acc_delta"].tobytes().hex())
"""
    opt.step([np.full(7, 3, np.float32)])
    state = opt.params[0], opt.ema_params[0], opt.state[0]["acc_delta"]
    expected = " ".join(array.tobytes().hex() for array in state)
    assert run_python(code) == f"{expected}\n{expected}"


# --- schedules and callables ---


def test_a_function_stays_that_of_the_optimizer_that_loads(tmp_path):
    Adadelta(np.ones(2), lr=lambda step: 0.5).save(tmp_path / "x")
    mine = lambda step: 0.25  # noqa: E731
    opt = Adadelta(np.ones(2), lr=mine)
    opt.load(tmp_path / "x")
    assert opt.lr is mine
    with pytest.raises(ValueError, match=r"expected the optimizer that loads to have the callable '.*<lambda>'"):
        Adadelta(np.ones(2), lr=0.1).load(tmp_path / "x")


# --- what does not fit ---


def strangers():
    """Optimizers whose state is not that of the one in the test, and what the message must say."""
    x, y = np.ones((2, 3), np.float32), np.ones(4, np.float32)
    return {
        "shape": (Adadelta({"a": x.T.copy(), "b": y}), r"expected shape \(2, 3\) and .*, got shape \(3, 2\)"),
        "dtype": (Adadelta({"a": x.astype("f8"), "b": y}), r"dtype float32, got shape \(2, 3\) and dtype float64"),
        "names": (Adadelta({"a": x, "c": y}), r"expected the parameters .*params\['b'\], got .*params\['c'\]"),
        "fewer": (Adadelta({"a": x}), "expected the parameters 2 in 1 group.*, got 1 in 1 group"),
        "list": (Adadelta([x, y]), r"expected the parameters .*params\['a'\].*, got .*params\[0\]"),
        "groups": (Adadelta([{"params": {"a": x}}, {"params": {"b": y}}]), "in 1 group.*in 2 group"),
        "rule": (Optimizer(ADAM, {"a": x, "b": y}), "rule: expected 'adadelta', got 'adam'"),
        "ema": (Adadelta({"a": x, "b": y}, ema=0.5), "ema"),
        "accumulate": (Adadelta({"a": x, "b": y}, accumulate=2), "accumulate: expected 1, got 2"),
        "state_dtype": (Adadelta({"a": x, "b": y}, state_dtype="float64"), "square_avg.*got shape .* dtype float64"),
    }


@pytest.mark.parametrize("kind", strangers())
def test_another_models_state_is_rejected(kind, tmp_path):
    stranger, message = strangers()[kind]
    opt = Adadelta({"a": np.full((2, 3), 2, np.float32), "b": np.full(4, 2, np.float32)})
    opt.step({"a": np.ones((2, 3), np.float32), "b": None})
    stranger.save(tmp_path / "x")
    for load, told in [(opt.load, tmp_path / "x"), (opt.load_state_dict, stranger.state_dict())]:
        with refused(opt, ValueError, message):
            load(told)
        assert opt.ema is None


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.floats(), st.text(max_size=3), st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2), st.just([{"names": None}]), st.just([[]]),
)  # fmt: skip


@given(data=st.data())
def test_a_damaged_snapshot_changes_nothing(data):
    opt, good = (Adadelta([np.ones(2), np.ones(3)], ema=0.5, accumulate=2) for _ in range(2))
    for each in (opt, good):
        each.step([np.ones(2), np.ones(3)])
    state = good.state_dict()
    path, place = [], state
    while isinstance(place, (dict, list)) and place and (not path or data.draw(st.booleans(), "deeper")):
        path.append(data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))), "key"))
        holder, place = place, place[path[-1]]
    old = place
    if data.draw(st.booleans(), "delete"):
        del holder[path[-1]]
    else:
        holder[path[-1]] = data.draw(JUNK, "junk")
    before = snapshot(opt)
    try:
        opt.load_state_dict(state)
    except (TypeError, ValueError) as error:
        assert str(error).startswith("state: ") or path[-1] in str(error), path  # noqa: PT017
        assert snapshot(opt) == before
    else:
        # Some junk is a good value.
        assert path[0] == "about", (path, old)
        assert path[-1] in (*opt.groups[0].options(), *snapshots.SETTINGS, *snapshots.COUNTERS, 0, 1), path


def saved(tmp_path):
    opt = Adadelta({"a": np.linspace(0, 1, 6).reshape(2, 3), "b": np.array(3 + 1j, np.complex64)}, ema=0.9)
    opt.step({"a": np.ones((2, 3)), "b": np.array(1, np.complex64)})
    opt.save(tmp_path / "x")
    return opt, (tmp_path / "x").read_bytes()


def fresh():
    return Adadelta({"a": np.zeros((2, 3)), "b": np.array(0, np.complex64)}, ema=0.9)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_truncated_file_changes_nothing(tmp_path, data):
    _, content = saved(tmp_path)
    size = data.draw(st.integers(0, len(content) - 1))
    (tmp_path / "cut").write_bytes(content[:size])
    opt = fresh()
    with refused(opt, ValueError, "expected a complete checkpoint of multiopt"):
        opt.load(tmp_path / "cut")


def test_every_flipped_bit_is_found_or_harmless(tmp_path):
    one, content = saved(tmp_path)
    opt = fresh()
    before, good, harmless = snapshot(opt), snapshot(one), 0
    header = 8 + int.from_bytes(content[:8], "little")
    rng, path = np.random.default_rng(0), tmp_path / "x"
    told = f"{path}: expected a complete checkpoint of multiopt", f"{path}: damaged"
    for position in range(len(content)):
        with open(path, "r+b") as file:
            file.seek(max(0, position - 1))  # mend the last one
            file.write(content[position - 1 : position])
            file.write(bytes([content[position] ^ 1 << int(rng.integers(8))]))
        try:
            opt.load(path)
        except ValueError as error:
            assert str(error).startswith(told)  # noqa: PT017
            assert snapshot(opt) == before
        else:
            # White space, or the width of a type that the checksum makes sure of: the same arrays came out.
            assert position < header
            assert snapshot(opt) == good
            harmless += 1
            opt = fresh()
    assert harmless < len(content) / 20


def test_other_files_are_rejected(tmp_path):
    from safetensors.numpy import save_file

    save_file({"a": np.ones(3)}, tmp_path / "foreign", {"format": "pt"})
    save_file({"a": np.ones(3)}, tmp_path / "bare")
    (tmp_path / "pickle").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "json").write_text(json.dumps({"multiopt": 1}))
    opt = fresh()
    for name in ("foreign", "bare", "pickle", "empty", "json"):
        with refused(opt, ValueError, f"{name}: expected a complete checkpoint of multiopt"):
            opt.load(tmp_path / name)
    with refused(opt, FileNotFoundError, "absent"):
        opt.load(tmp_path / "absent")
    with pytest.raises(OSError, match="absent"):
        opt.save(tmp_path / "absent" / "x")


# --- writing ---


@contextlib.contextmanager
def full_disk(monkeypatch):
    resource = pytest.importorskip("resource", reason="limits on files are a thing of Unix")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, old[1]))  # the signal that comes with it, Python ignores
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@contextlib.contextmanager
def interrupted(monkeypatch):
    import safetensors.numpy

    def fail(tensors, path, metadata=None):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(safetensors.numpy, "save_file", fail)
    yield


@pytest.mark.parametrize(("failure", "error"), [(full_disk, OSError), (interrupted, KeyboardInterrupt)])
def test_a_failing_write_leaves_the_old_file(failure, error, tmp_path, monkeypatch):
    opt, content = saved(tmp_path)
    opt.steps = 99
    with pytest.raises(error) as caught, failure(monkeypatch):
        opt.save(tmp_path / "x")
    assert error is KeyboardInterrupt or str(tmp_path / "x") in str(caught.value)
    assert (tmp_path / "x").read_bytes() == content
    assert os.listdir(tmp_path) == ["x"]


def test_who_reads_while_another_writes_sees_one_file_whole(tmp_path):
    (tmp_path / "usual").write_bytes(b"")
    opt, content = saved(tmp_path)
    with open(tmp_path / "x", "rb") as reader:
        opt.steps = 99
        opt.save(tmp_path / "x")
        assert reader.read() == content
    assert (tmp_path / "x").read_bytes() != content
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)


def test_without_safetensors_the_extra_is_named(monkeypatch):
    for name in ("safetensors", "safetensors.numpy"):
        monkeypatch.setitem(sys.modules, name, None)
    for act in (fresh().save, fresh().load):
        with pytest.raises(ImportError, match=r'^checkpoints need safetensors: pip install "multiopt\[checkpoint\]"$'):
            act("x")


# --- a file of 0.1.0 ---


def of_version_0_1_0():
    """The optimizer whose checkpoint version 0.1.0 wrote after seven calls, in the middle of an accumulation."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    groups = [
        {"params": {"a": np.ones((3, 2), np.float32), "b": np.ones(4, ml_dtypes.bfloat16)}},
        {"params": [np.ones(2), np.ones(2, np.complex64)], "lr": schedules.Cosine(1.0, 10), "weight_decay": 0.1},
    ]
    return Adadelta(groups, accumulate=3, ema=0.9, clip_global_norm=1.0)


def train_on(opt, calls):
    for k in calls:
        rng = np.random.default_rng(k)
        first = {"a": rng.standard_normal((3, 2)).astype("f4"), "b": rng.standard_normal(4)}
        first["b"] = first["b"].astype(opt.params[0]["b"].dtype)
        opt.step([first, [rng.standard_normal(2), (rng.standard_normal(2) + 1j).astype("c8")]])


def test_a_checkpoint_of_version_0_1_0_goes_on_as_if_never_interrupted():
    loaded, whole = of_version_0_1_0(), of_version_0_1_0()
    loaded.load(Path(__file__).parent / "data" / "checkpoint-0.1.0.safetensors")
    train_on(whole, range(7))
    assert snapshot(loaded)[0] == snapshot(whole)[0]
    for opt in (loaded, whole):
        train_on(opt, range(7, 20))
    assert snapshot(loaded)[0] == snapshot(whole)[0]
    assert loaded.steps == 6
