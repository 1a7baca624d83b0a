"""The CUDA engine on a stand-in for a device: what is launched, which accesses, norms, numbers, rejections."""

import re

import array_api_compat.numpy as xp
import ml_dtypes
import numpy as np
import pytest
from cuda_devices import SHAPES, StandIn, arrays, assert_same_columns, pair, step_both
from cuda_host import HostBackend
from exact_norms import worth
from multiopt.backends.engines import norms
from multiopt.backends.engines.cuda import plan as cuda_plan
from multiopt.backends.engines.cuda.driver import Driver, call
from multiopt.backends.engines.cuda.engine import CudaEngine
from multiopt.backends.protocol import Job

from multiopt import ADADELTA, Hyper, Rule, backends
from multiopt.binding import Binding
from multiopt.plan import run
from multiopt.update import FusedUpdate

FUSED = FusedUpdate(ADADELTA)
FULL = FusedUpdate(ADADELTA, scaled=True, clipped=True, coupled=True)
VALUES = {"lr": 0.7, "rho": 0.9, "eps": 1e-6, "scale": -0.5, "clip_value": 2.0, "weight_decay": 0.1}


@pytest.fixture
def stand_in():
    with StandIn().registered() as made:
        yield made


def bind(params, state=None, engine="auto"):
    return Binding(ADADELTA, params, [f"params[{i}]" for i in range(len(params))], state=state, engine=engine)


def bindings(stand_in, dtype="float32", change=lambda a, j: a.copy(), shapes=SHAPES):
    """The same arrays bound for the CUDA engine and for NumPy, and gradients for each.

    `change` gives those of column j (x, g and the state) another place or order.
    """
    rng = np.random.default_rng(1)
    columns = [arrays(rng, dtype, shapes) for _ in range(4)]
    columns[2:] = [[np.asarray(abs(a)).astype(a.dtype) for a in column] for column in columns[2:]]
    placed = [[change(stand_in.put(a), j) for a in column] for j, column in enumerate(columns)]
    ours, numpys = (
        bind(x, [dict(zip(ADADELTA.slots, pair, strict=True)) for pair in zip(*state, strict=True)], engine)
        for (x, _, *state), engine in ((placed, "cuda"), (columns, "auto"))
    )
    return ours, numpys, placed[1], columns[1]


def step(binding, grads, update=FULL, values=VALUES):
    run([binding.plan(update, grads, values)])


def same(ours, numpys):
    assert_same_columns(*([np.asarray(a) for k in range(3) for a in b.column(k)] for b in (ours, numpys)))


# --- where the arrays lie ---


def shifted(by):
    """Put an array of column j `by[j]` elements beyond a 16-byte boundary."""

    def change(array, j):
        room = np.zeros(array.size + 64, array.dtype)
        first = (-room.ctypes.data % 16) // array.itemsize + by[j]
        view = room[first : first + array.size].reshape(array.shape).view(type(array))
        view[...] = array
        return view

    return change


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("by", [(0, 0, 0, 0), (0, 1, 0, 0), (1, 1, 1, 1), (1, 0, 0, 1), (0, 0, 1, 0)])
def test_16_byte_accesses_where_alignment_allows_and_right_results_where_not(stand_in, dtype, by):
    shapes = [(cuda_plan.CHUNK + 5,), (64,)]
    ours, numpys, placed, grads = bindings(stand_in, dtype, shifted(by), shapes)
    before = stand_in.driver.accesses()[1]
    step(ours, placed)
    step(numpys, grads)
    same(ours, numpys)
    packs = sum(int(np.prod(shape)) * grads[0].itemsize // 16 for shape in shapes)
    # Three arrays are read and written, the gradient is read.
    accesses = sum((1 if j == 1 else 2) for j, offset in enumerate(by) if offset == 0)
    assert stand_in.driver.accesses()[1] - before == accesses * packs


CHANGES = {
    "gaps": lambda a, j: np.repeat(a[..., None], 2, axis=-1)[..., 0],
    "gaps in the state": lambda a, j: CHANGES["gaps"](a, j) if j == 3 else a.copy(),
    "fortran": lambda a, j: a.copy(order="F"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_arrays_in_other_orders_and_with_gaps_are_one_launch(stand_in, change):
    ours, numpys, placed, grads = bindings(stand_in, change=change)
    for _ in range(2):
        step(ours, placed)
        step(numpys, grads)
        same(ours, numpys)
    assert names(stand_in.driver).count("update") == 2
    pairs = (ours, placed), (numpys, grads)
    ours, numpys = (norm_table(b.buckets[0], g, program=FULL.program).table for b, g in pairs)
    assert [worth(row, "float32") for row in ours] == [worth(row, "float32") for row in numpys]


@pytest.mark.parametrize(("own", "other"), ["CF", "FC"])
def test_a_gradient_in_another_order_is_all_that_is_copied(stand_in, own, other):
    ours, _, placed, _ = bindings(stand_in, change=lambda a, j: a.copy(order=other if j == 1 else own))
    (bucket,) = ours.buckets
    _, _, copies = bucket.engine._tables(bucket).locate(located(bucket, FULL.program, placed), own=True)
    assert copies == []


# --- launches ---


def names(driver):
    launched = [name for name, _ in driver.launches]
    driver.launches.clear()
    return launched


def test_more_chunks_than_blocks(stand_in, monkeypatch):
    monkeypatch.setattr(cuda_plan, "MOST_BLOCKS", 2)
    step_both(stand_in, *pair(stand_in, clip_global_norm=1.0))
    assert {("update", 2), ("squares", 2)} <= set(stand_in.driver.launches)


def test_a_step_is_one_launch_unless_something_moved(stand_in):
    ours, numpys, placed, grads = bindings(stand_in, shapes=[(64,)] * 1000)
    step(ours, placed)
    assert names(stand_in.driver) == ["fill"] * 8 + ["update"]  # four columns of 1,000 words
    step(ours, placed)
    assert names(stand_in.driver) == ["update"]
    placed[700] = placed[700].copy()
    step(ours, placed)
    assert names(stand_in.driver) == ["fill", "update"]
    for _ in range(3):
        step(numpys, grads)
    same(ours, numpys)


# --- numbers ---


class DeviceNumber(np.ndarray):
    """A number that is held on a device."""

    device = "cuda:0"


def test_numbers_may_live_on_the_device(stand_in):
    decoupled = FusedUpdate(ADADELTA, decoupled=True)
    ours, numpys, placed, grads = bindings(stand_in)
    lr = np.array(0.3, np.float32)
    for value in (0.3, 0.7):
        lr[()] = value
        # The tensor's float32 is taken exactly, and lr * weight_decay is formed in double; NumPy's numbers are too.
        step(ours, placed, decoupled, {**VALUES, "lr": lr.view(DeviceNumber), "rho": np.float32(0.9)})
        step(numpys, grads, decoupled, {**VALUES, "lr": float(lr), "rho": float(np.float32(0.9))})
        same(ours, numpys)


@pytest.mark.parametrize("skip", [0.0, 1.0])
def test_a_guard_on_the_device_keeps_everything_as_it_was(stand_in, skip):
    ours, numpys, placed, grads = bindings(stand_in)
    step(ours, placed, FusedUpdate(ADADELTA, guarded=True), {**VALUES, "skip": np.array(skip).view(DeviceNumber)})
    if not skip:
        step(numpys, grads, FusedUpdate(ADADELTA))
    same(ours, numpys)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_rounded_once_and_right(stand_in, dtype):
    # Every number and every midpoint between two, and what lies just beside them.
    kind = np.dtype(dtype)
    every = np.arange(1 << 16, dtype=np.uint16).view(kind).astype(np.float32)
    every = np.sort(every[np.isfinite(every)])
    middle = ((every[1:].astype(np.float64) + every[:-1]) / 2).astype(np.float32)
    values = np.concatenate([every, middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(9e9))])
    values = np.concatenate([values, np.array([np.inf, -np.inf, np.nan, 65520.0, 3.4e38], np.float32)])

    def copy(xp, x, g, *, lr):
        return (g,)

    rule = Rule("copy", copy, slots={}, hypers={"lr": Hyper(1.0)})
    params = [stand_in.put(np.zeros(values.shape, kind))]
    bound = Binding(rule, params, ["x"], grad_dtypes=["float32"], engine="cuda")
    run([bound.plan(FusedUpdate(rule), [stand_in.put(values)], {"lr": 1.0})])
    with np.errstate(over="ignore"):
        expected, found = values.astype(kind), np.asarray(params[0])
    numbers = ~np.isnan(values)
    assert np.array_equal(expected[numbers].view(np.uint16), found[numbers].view(np.uint16))
    assert np.isnan(found[~numbers].astype(np.float32)).all()


# --- rows of a table ---


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("change", [lambda a, j: a.copy(), CHANGES["gaps"]], ids=["walked", "copied"])
def test_rows_of_a_table(stand_in, dtype, change):
    ours, numpys, placed, grads = bindings(stand_in, dtype, change, shapes=[(9, 7), (1000, 3)])
    for i, rows in enumerate([np.array([8, 0, 3]), np.random.default_rng(0).permutation(1000)[:700]]):
        for binding, (g, *_) in ((ours, placed[i:]), (numpys, grads[i:])):
            run([binding.plan_rows(FUSED, i, rows, g[: len(rows)], VALUES, "g")])
        same(ours, numpys)


# --- norms and finiteness ---


def bucket_like(stand_in, grads):
    return bind([stand_in.put(np.zeros_like(g)) for g in grads], engine="cuda").buckets[0]


NORMED = FusedUpdate(ADADELTA, normed=True).program


def located(bucket, program, grads):
    job = Job(bucket, program, grads, [VALUES])
    job.location = bucket.engine.locate(job)
    return job


def norm_table(bucket, grads, program=NORMED):
    return bucket.engine.norm_table(located(bucket, program, grads))


def same_worth(table, grads, computing):
    """Whether rows are worth the squares of some gradients, and count what is not finite."""
    assert table.shape == (len(grads), norms.columns(computing))
    for row, g in zip(np.asarray(table), grads, strict=True):
        expected = np.zeros(len(row), np.int64)
        for part in () if g is None else ([g.real, g.imag] if g.dtype.kind == "c" else [g]):
            expected += np.array(norms.square_sums(xp, np.atleast_1d(part).astype(np.float64), computing))
        assert worth(row, computing) == worth(expected, computing)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16", "complex64"])
@pytest.mark.parametrize("decades", [(-3, 3), (-45, 37), (-300, 300)])
def test_the_norm_table_is_worth_what_the_definition_says(stand_in, dtype, decades):
    if decades[0] < -45 and dtype != "float64":
        pytest.skip("beyond its range")
    grads = arrays(np.random.default_rng(4), dtype, decades=decades)
    bucket = bucket_like(stand_in, grads)
    table = norm_table(bucket, [None, *map(stand_in.put, grads[1:])]).table
    same_worth(table, [None, *grads[1:]], "float64" if dtype == "float64" else "float32")


def test_infinite_and_nan_squares_are_counted(stand_in):
    g = np.random.default_rng(5).standard_normal(9000)
    g[[3, 5000, 8999]], g[[4, 6000]], g[7], g[8] = np.inf, np.nan, 1e200, 5e-324
    bucket = bucket_like(stand_in, [g])
    table = norm_table(bucket, [stand_in.put(g)]).table
    with np.errstate(all="ignore"):
        same_worth(table, [g], "float64")
    assert table[0, -2:].tolist() == [3, 2]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64"])
def test_finite(stand_in, dtype):
    kind = np.dtype(dtype)
    largest = (ml_dtypes.finfo if dtype == "bfloat16" else np.finfo)(kind).max
    grads = [stand_in.put(np.full(n, largest, kind)) for n in (5000, 5000, 5000, 3, 1, 0)]
    grads[1][4097], grads[2][0], grads[3][2] = np.nan, -np.inf, np.inf
    bucket = bucket_like(stand_in, grads)
    assert bucket.engine.finite(located(bucket, NORMED, grads)) == [True, False, False, False, True, True]
    grads[1] = None
    assert bucket.engine.finite(located(bucket, NORMED, grads)) == [True, True, False, False, True, True]


def test_constants_of_clipping_are_uploaded_once(stand_in):
    g = stand_in.put(np.ones(30))
    bucket = bucket_like(stand_in, [g])
    found, again = (norm_table(bucket, [g]) for _ in range(2))
    constant, same, other = (
        made.xp.asarray(numbers, dtype=np.float64, device="cpu")
        for made, numbers in ((found, [1.0, 2.0]), (again, [1.0, 2.0]), (again, [1.0, 3.0]))
    )
    assert constant is same
    assert constant is not other
    factors, norm = norms.clip_factors(found.xp, found.table, None, 1.0)
    assert float(norm[0]) == np.sqrt(30.0)
    assert factors[0] == 1 / np.sqrt(30.0)


# --- what it rejects ---


def test_rejection_reasons(stand_in):
    engine, backend, numpy = CudaEngine(stand_in.driver), HostBackend(), backends.get("numpy")
    assert engine.rejects(backend, "cuda:0", ("float32", "float32")) is None
    assert engine.rejects(backend, "cuda:0", ("float32", "float32", "float64")) is None
    assert "not numpy on cpu" in engine.rejects(numpy, "cpu", ("float32", "float32"))
    assert "half" in engine.rejects(backend, "cuda:0", ("float16", "float16", "float64"))


def test_a_machine_without_a_device_is_told_so():
    reason = Driver().rejects(99)
    assert reason is not None
    assert re.search(r"no CUDA driver|no CUDA device 99|NVRTC|pip install cuda-bindings", reason)


def test_errors_of_cuda_are_named(stand_in):
    driver = stand_in.driver
    with pytest.raises(RuntimeError, match="cuMemsetD32Async: CUDA_ERROR_INVALID_CONTEXT"):
        call(driver.cuda.cuMemsetD32Async, 0, 0, 1, 0)
    with pytest.raises(RuntimeError, match="cuDeviceGet: CUDA_ERROR_INVALID_DEVICE"):
        driver.capability(1)
