"""Checkpoints: the same bits go on with any library, and damage is found before anything changes."""

import json
import pickle
import random
import time
import tracemalloc
from pathlib import Path

import forger
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from libraries import LIBRARIES, PLAIN, library_of, refused, snapshot
from processes import run_python
from rules import ADAM
from training import OPTIONS, SHAPES, draw, make, same, train

from multiopt import Adadelta, Optimizer, checkpoint, schedules


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


def test_a_function_within_a_schedule_stays_too(tmp_path):
    Adadelta(np.ones(2), lr=schedules.WarmUp(lambda step: 0.5, 3)).save(tmp_path / "x")
    mine = lambda step: 0.25  # noqa: E731
    opt = Adadelta(np.ones(2), lr=schedules.WarmUp(mine, 7))
    opt.load(tmp_path / "x")
    assert (opt.lr.schedule, opt.lr.steps) == (mine, 3)
    with pytest.raises(ValueError, match=r"lr: expected the optimizer that loads to have the callable"):
        Adadelta(np.ones(2), lr=mine).load(tmp_path / "x")


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
    told = f"{path}: expected a complete checkpoint of multiopt ("
    keys = [
        f"{path}: {key}/params[{name!r}]: " for key in ("params", "square_avg", "acc_delta", "ema") for name in "ab"
    ]
    told = told, *(key + what for key in keys for what in ("damaged: its checksum differs", "header"))
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
    (tmp_path / "foreign").write_bytes(forger.framed(b'{"__metadata__":{"format":"pt"}}', b""))
    (tmp_path / "bare").write_bytes(forger.framed(b"{}", b""))
    (tmp_path / "pickle").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "json").write_text(json.dumps({"multiopt": 1}))
    opt = fresh()
    for name in ("foreign", "bare", "pickle", "empty", "json"):
        with refused(opt, ValueError, f"^{tmp_path / name}: expected a complete checkpoint of multiopt"):
            opt.load(tmp_path / name)
    with refused(opt, FileNotFoundError, "absent"):
        opt.load(tmp_path / "absent")
    with refused(opt, OSError, "expected a regular file, got a folder"):
        opt.load(tmp_path)
    with pytest.raises(OSError, match="absent"):
        opt.save(tmp_path / "absent" / "x")
    with pytest.raises(OSError, match="expected a regular file, got a folder"):
        opt.save(tmp_path)


# --- forged ones ---


def forged_model():
    lr = schedules.WarmUp(schedules.Piecewise([3, 5], [1.0, 0.5, 0.1]), 4)
    groups = [
        {"params": {"a": np.zeros((2, 3)), "b": np.zeros((), np.complex64)}},
        {"params": [np.zeros(4, np.float32)], "lr": lr, "weight_decay": abs},
    ]
    return Adadelta(groups, accumulate=3, ema=0.9, clip_global_norm=1.0)


@pytest.fixture
def good(tmp_path):
    """The content of a checkpoint in the middle of an accumulation."""
    opt = forged_model()
    opt.step([{"a": np.linspace(-1, 1, 6).reshape(2, 3), "b": np.ones((), np.complex64)}, [None]])
    opt.save(tmp_path / "good")
    return (tmp_path / "good").read_bytes()


def test_forged_files_are_refused_or_good(good, tmp_path):
    path, loaded = tmp_path / "x", 0
    for seed in range(300):
        path.write_bytes(forger.forge(good, random.Random(seed))[1])
        loaded += forger.tried(forged_model, path)
    assert 0 < loaded < 60  # arrays of one size may change places, and some values are as good as others


def test_cunning_forgeries_are_refused(good, tmp_path):
    path = tmp_path / "x"
    for how, content in forger.special(good).items():
        path.write_bytes(content)
        start = time.process_time()
        assert not forger.tried(forged_model, path), how
        assert time.process_time() - start < 2, how


def test_an_untouched_file_passes_the_forgers_hands(good, tmp_path):
    (tmp_path / "x").write_bytes(forger.put_together(*forger.take_apart(good)))
    assert forger.tried(forged_model, tmp_path / "x")


# --- one array after another ---


def test_neither_saving_nor_loading_holds_a_second_copy(tmp_path):
    size, count = 2**20, 8
    opt = Adadelta([np.ones(size // 4, np.float32) for _ in range(count)], accumulate=2)
    for act in (opt.save, opt.load):
        tracemalloc.start()
        try:
            act(tmp_path / "x")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        # One array, with room for another and for the header; four times `count` are in the optimizer.
        assert peak < 3 * size


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_a_file_that_changes_while_it_is_read(name, tmp_path, monkeypatch):
    with library_of(LIBRARIES[name]) as lib:
        # So large that no array is in the buffer of the one before it.
        opt, other = (Adadelta([lib.param(draw(i, shapes={"x": 5000})["x"]) for _ in range(4)]) for i in range(2))
        other.step([lib.grad(draw(2, shapes={"x": 5000})["x"])] * 4)
        other.rho, path, real, reads = 0.5, tmp_path / "x", checkpoint.InFile.make, iter(range(10**6))
        other.save(path)
        before, after = snapshot(opt), snapshot(other)

        def make_and_cut(stored, place):
            if next(reads) == len(after[0]) + 2:  # when all has been checked, and two arrays have been written
                with open(path, "r+b") as file:
                    file.truncate(len(path.read_bytes()) // 2)
            return real(stored, place)

        monkeypatch.setattr(checkpoint.InFile, "make", make_and_cut)
        if not lib.mutable:
            opt.load(path)  # every array has been read once, and is kept
            assert snapshot(opt) == after
            return
        with pytest.raises(ValueError, match=f"^{path}: .*: damaged") as caught:
            opt.load(path)
        assert "arrays may be new, options and counters are as before" in caught.value.__notes__[0]
        assert snapshot(opt)[1:] == before[1:]
        now = snapshot(opt)[0]
        assert all(now[key] in (before[0][key], after[0][key]) for key in now)
        assert now not in (before[0], after[0])


def test_others_read_the_file(plain, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    opt = make(plain)
    train(plain, opt, range(4))
    opt.save(tmp_path / "x")
    read, held = safetensors.load_file(tmp_path / "x"), snapshot(opt)[0]
    assert {key: array.tobytes() for key, array in read.items()} == held
    assert read["params/params['w']"].shape == SHAPES["w"]


def test_a_lazy_array_that_is_not_what_it_says_is_not_saved(tmp_path):
    dask = pytest.importorskip("dask.array")
    lies = dask.ones(4, dtype="f4").map_blocks(lambda b: b.astype("f8"), dtype="f4", meta=np.empty(0, "f4"))
    with pytest.raises(ValueError, match=r"^params/params: expected float32 values of shape \(4,\), got float64"):
        Adadelta(lies).save(tmp_path / "x")
    assert not list(tmp_path.iterdir())


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
