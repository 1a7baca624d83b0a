"""The CUDA engine without a GPU: where arrays lie, what is launched, graphs, norms, refusals."""

import re

import array_api_compat.numpy as xp
import cuda_host
import ml_dtypes
import numpy as np
import pytest
from cuda_cases import DTYPES, FULL, SHAPES, VALUES, arrays, needs_stand_in, pair, same, step
from multiopt.backends.engines import norms
from multiopt.backends.engines.cuda import plan as cuda_plan
from multiopt.backends.engines.cuda import source as cuda_source
from multiopt.backends.engines.cuda.driver import Driver
from multiopt.backends.engines.cuda.engine import CudaEngine
from multiopt.backends.engines.program import TraceError

from multiopt import ADADELTA, backends
from multiopt.update import FusedUpdate

# --- where the arrays lie ---


def shifted(by):
    """Put an array of column j `by[j]` elements beyond a 16-byte boundary."""

    def change(array, j):
        room = np.zeros(array.size + 64, array.dtype)
        first = (-room.ctypes.data % 16) // array.itemsize + by[j]
        view = room[first : first + array.size].reshape(array.shape)
        view[...] = array
        return view

    return change


@needs_stand_in
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("by", [(0, 0, 0, 0), (0, 1, 0, 0), (1, 1, 1, 1), (1, 0, 0, 1), (0, 0, 1, 0)])
def test_16_byte_accesses_where_alignment_allows_and_right_results_where_not(numba, dtype, by):
    shapes = [(cuda_plan.CHUNK + 5,), (64,)]
    cuda, host, cuda_grads, grads = pair(DTYPES[dtype], change=shifted(by), shapes=shapes)
    before = cuda.engine.driver.accesses()[1]
    step(cuda, host, cuda_grads, grads, times=1)
    itemsize = np.dtype(DTYPES[dtype]).itemsize
    packs = sum(int(np.prod(shape)) * itemsize // 16 for shape in shapes)
    # Three arrays are read and written, the gradient is read.
    accesses = sum((1 if j == 1 else 2) for j, offset in enumerate(by) if offset == 0)
    assert cuda.engine.driver.accesses()[1] - before == accesses * packs


def every_other(array):
    wide = np.zeros((*array.shape, 2), array.dtype)
    wide[..., 0] = array
    return wide[..., 0]


@needs_stand_in
@pytest.mark.parametrize(
    "change",
    [
        lambda a, j: every_other(a),
        lambda a, j: every_other(a) if j == 1 else a.copy(),
        lambda a, j: every_other(a) if j == 0 else a.copy(),
        lambda a, j: every_other(a) if j == 3 else a.copy(),
        lambda a, j: np.array(a, order="F"),
        lambda a, j: np.array(a, order="F") if j == 1 else a.copy(),
        lambda a, j: np.array(a, order="F") if j == 0 else a.copy(),
    ],
    ids=["all", "gradient", "parameter", "state", "fortran", "fortran gradient", "fortran parameter"],
)
def test_arrays_in_other_orders_and_with_gaps_lose_no_update(numba, change):
    cuda, host, cuda_grads, grads = pair("float32", change=change)
    kept = [array for column in cuda.arrays() for array in column]
    step(cuda, host, cuda_grads, grads)
    assert all(a is b for a, b in zip(kept, [a for column in cuda.arrays() for a in column], strict=True))
    table = cuda.engine.norm_table(cuda, FULL, cuda_grads, VALUES, -62).table
    assert np.array_equal(table, host.engine.norm_table(host, FULL, grads, VALUES, -62).table)
    assert [name for name, _ in cuda.engine.driver.launches].count("update") == 2


@needs_stand_in
@pytest.mark.parametrize(("own", "other"), ["CF", "FC"])
def test_a_gradient_in_another_order_is_all_that_is_copied(numba, own, other):
    cuda, _, cuda_grads, _ = pair("float32", change=lambda a, j: np.array(a, order=other if j == 1 else own))
    _, _, copies = cuda.engine._tables(cuda).locate(cuda_grads, own=True)
    assert copies == []


@needs_stand_in
def test_gradients_in_the_memory_of_parameters(numba):
    cuda, host, _, _ = pair("float32", shapes=[(500,), (500,)])
    held = [p.copy() for p in cuda.params]
    # The other's memory, and its own.
    step(cuda, host, [cuda.params[1], cuda.params[1]], [held[1], held[1]], times=1)


@needs_stand_in
def test_skipped_tensors_are_left_alone(numba):
    cuda, host, cuda_grads, grads = pair("float32")
    for skipped in ([0, 4], [4], [], list(range(1, len(SHAPES)))):
        some = [None if i in skipped else g for i, g in enumerate(cuda_grads)]
        step(cuda, host, some, [None if i in skipped else g for i, g in enumerate(grads)], times=1)


@needs_stand_in
def test_more_chunks_than_blocks(numba, monkeypatch):
    monkeypatch.setattr(cuda_plan, "MOST_BLOCKS", 2)
    cuda, host, cuda_grads, grads = pair("float32")
    step(cuda, host, cuda_grads, grads)
    assert ("update", 2) in cuda.engine.driver.launches
    table = cuda.engine.norm_table(cuda, FULL, cuda_grads, VALUES, -62).table
    assert np.array_equal(table, host.engine.norm_table(host, FULL, grads, VALUES, -62).table)


# --- launches ---


def names(driver):
    launched = [name for name, _ in driver.launches]
    driver.launches.clear()
    return launched


@needs_stand_in
def test_a_step_is_one_launch_unless_something_moved(numba):
    cuda, host, cuda_grads, grads = pair("float32", shapes=[(64,)] * 1000)
    driver = cuda.engine.driver
    step(cuda, host, cuda_grads, grads, times=1)
    assert names(driver) == ["fill"] * 8 + ["update"]  # four columns of 1,000 words
    step(cuda, host, cuda_grads, grads, times=1)
    assert names(driver) == ["update"]
    cuda_grads[700] = cuda_grads[700].copy()
    step(cuda, host, cuda_grads, grads, times=1)
    assert names(driver) == ["fill", "update"]


@needs_stand_in
def test_a_captured_graph_keeps_its_own_addresses(numba):
    cuda, host, cuda_grads, grads = pair("float32", shapes=[(300,), (5000,)])
    driver = cuda.engine.driver
    step(cuda, host, cuda_grads, grads, times=1)
    static = [g.copy() for g in cuda_grads]
    driver.captures = True
    cuda.engine.update(cuda, FULL, static, VALUES, None)
    driver.captures = False
    same(cuda, host)  # a capture does nothing yet
    for factor in (2, 3):
        # Other work between replays, with gradients elsewhere.
        moved = [g * factor for g in grads]
        step(cuda, host, moved, moved, times=1)
        for s, g in zip(static, grads, strict=True):
            s[...] = g * np.float32(0.3)
        driver.replay()
        host.engine.update(host, FULL, [g * np.float32(0.3) for g in grads], VALUES, None)
        same(cuda, host)


@needs_stand_in
def test_capture_needs_one_step_before_it(numba):
    cuda, _, cuda_grads, _ = pair("float32")
    before = [a.copy() for column in cuda.arrays() for a in column]
    cuda.engine.driver.captures = True
    with pytest.raises(RuntimeError, match="do one step with the same options before it"):
        cuda.engine.update(cuda, FULL, cuda_grads, VALUES, None)
    cuda.engine.driver.captures = False
    cuda.engine._tables(cuda)
    cuda.engine.driver.captures = True
    with pytest.raises(RuntimeError, match="do one step with the same options before it"):
        cuda.engine.update(cuda, FULL, cuda_grads, VALUES, None)
    with pytest.raises(RuntimeError, match="nonfinite"):
        cuda.engine.finite(cuda, cuda_grads)
    after = [a for column in cuda.arrays() for a in column]
    assert all(a.tobytes() == b.tobytes() for a, b in zip(before, after, strict=True))


class DeviceNumber:
    """A number that is held on a device."""

    device, dtype = "cuda:0", "float64"

    def __init__(self, array):
        self.array = array

    def reshape(self, shape):
        return DeviceNumber(self.array.reshape(shape))

    def astype(self, dtype, copy=True):
        return DeviceNumber(self.array.astype(dtype))

    def __mul__(self, other):
        return DeviceNumber(self.array * getattr(other, "array", other))

    __rmul__ = __mul__

    def __array__(self, dtype=None, copy=None):
        return self.array


@needs_stand_in
def test_numbers_may_live_on_the_device(numba):
    decoupled = FusedUpdate(ADADELTA, decoupled=True).program
    cuda, host, cuda_grads, grads = pair("float32")
    lr = np.array(0.3, np.float32)
    for value in (0.3, 0.7):
        lr[()] = value
        cuda.engine.update(cuda, decoupled, cuda_grads, {**VALUES, "lr": DeviceNumber(lr)}, None)
        # The tensor's float32 is taken exactly, and lr * weight_decay is formed in double.
        host.engine.update(host, decoupled, grads, {**VALUES, "lr": float(lr)}, None)
        same(cuda, host)


@needs_stand_in
@pytest.mark.parametrize("skip", [0.0, 1.0])
def test_a_guard_on_the_device_keeps_everything_as_it_was(numba, skip):
    guarded = FusedUpdate(ADADELTA, guarded=True).program
    cuda, host, cuda_grads, grads = pair("float32")
    cuda.engine.update(cuda, guarded, cuda_grads, {**VALUES, "skip": DeviceNumber(np.array(skip))}, None)
    if not skip:
        host.engine.update(host, FusedUpdate(ADADELTA).program, grads, VALUES, None)
    same(cuda, host)


@needs_stand_in
def test_numbers_of_numpy_count_as_double(numba):
    cuda, host, cuda_grads, grads = pair("float32")
    cuda.engine.update(cuda, FULL, cuda_grads, {**VALUES, "rho": np.float32(0.9)}, None)
    host.engine.update(host, FULL, grads, {**VALUES, "rho": float(np.float32(0.9))}, None)
    same(cuda, host)


# --- norms and finiteness ---


@needs_stand_in
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "complex64"])
@pytest.mark.parametrize("threshold", [1.0, 1e-9, 1e12])
def test_the_norm_table_is_the_definitions(dtype, threshold):
    rng = np.random.default_rng(4)
    kind = DTYPES.get(dtype, dtype)
    grads = arrays(rng, kind, decades=(-30, 19) if dtype != "float64" else (-300, 150))
    cuda = cuda_host.bucket([np.zeros(s, kind) for s in SHAPES], {})
    program, lowest = FusedUpdate(ADADELTA, normed=True).program, norms.lowest_exponent(threshold)
    table = cuda.engine.norm_table(cuda, program, [None, *grads[1:]], VALUES, lowest).table
    expected = np.zeros_like(table)
    for i, g in enumerate(grads):
        for part in ([g.real, g.imag] if g.dtype.kind == "c" else [g]) if i else []:
            expected[i] += np.array(norms.square_sums(xp, np.atleast_1d(part).astype(np.float64), lowest))
    assert np.array_equal(table, expected)


@needs_stand_in
def test_infinite_and_nan_squares_are_counted():
    g = np.random.default_rng(5).standard_normal(9000)
    g[[3, 5000, 8999]], g[[4, 6000]], g[7] = np.inf, np.nan, 1e200
    cuda = cuda_host.bucket([np.zeros(g.shape)], {})
    table = cuda.engine.norm_table(cuda, FusedUpdate(ADADELTA, normed=True).program, [g], VALUES, -62).table
    with np.errstate(all="ignore"):
        assert table[0].tolist() == norms.square_sums(xp, g, -62)
    assert table[0, norms.LEVELS :].tolist() == [4, 2]


@needs_stand_in
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64"])
def test_finite(dtype):
    kind = DTYPES.get(dtype, dtype)
    largest = ml_dtypes.finfo(kind).max if dtype == "bfloat16" else np.finfo(kind).max
    grads = [np.full(n, largest, kind) for n in (5000, 5000, 5000, 3, 1, 0)]
    grads[1][4097], grads[2][0], grads[3][2] = np.nan, -np.inf, np.inf
    cuda = cuda_host.bucket([np.zeros_like(g) for g in grads], {})
    assert cuda.engine.finite(cuda, grads) == [True, False, False, False, True, True]
    assert cuda.engine.finite(cuda, [None if i == 1 else g for i, g in enumerate(grads)]) == [
        True, True, False, False, True, True,
    ]  # fmt: skip


@needs_stand_in
def test_constants_of_clipping_are_uploaded_once():
    cuda = cuda_host.bucket([np.zeros(30)], {})
    tables = [
        cuda.engine.norm_table(cuda, FusedUpdate(ADADELTA, normed=True).program, [np.ones(30)], VALUES, -62)
        for _ in range(2)
    ]
    assert tables[0].xp is tables[1].xp
    constant = tables[0].xp.asarray([1.0, 2.0], dtype=np.float64, device="cpu")
    assert tables[1].xp.asarray([1.0, 2.0], dtype=np.float64, device="cpu") is constant
    assert tables[1].xp.asarray([1.0, 3.0], dtype=np.float64, device="cpu") is not constant
    factors, norm = norms.clip_factors(tables[0].xp, tables[0].table, -62, None, 1.0)
    assert float(norm[0]) == np.sqrt(30.0)
    assert factors[0] == 1 / np.sqrt(30.0)


# --- what it refuses ---


def test_refusals_say_why():
    engine = CudaEngine(cuda_host.HostDriver())
    numpy, fake = backends.get("numpy"), cuda_host.FakeBackend("numpy", xp)
    assert engine.rejects(fake, "cuda:0", ("float32", "float32")) is None
    assert engine.rejects(fake, "cuda:0", ("float32", "float32", "float64")) is None
    assert "not numpy on cpu" in engine.rejects(numpy, "cpu", ("float32", "float32"))
    assert "half" in engine.rejects(fake, "cuda:0", ("float16", "float16", "float64"))


def test_a_machine_without_a_device_is_told_so():
    refusal = Driver().rejects(99)
    assert refusal is not None
    assert re.search(r"no CUDA driver|found no device|no CUDA device 99|NVRTC", refusal)


def test_a_rule_of_too_many_numbers_is_refused():

    from multiopt.rule import Hyper, Rule

    def many(xp, x, g, *, lr):
        for k in range(70):
            x = x + k * g
        return (x,)

    with pytest.raises(TraceError, match="at most 64"):
        cuda_source.code_of(FusedUpdate(Rule("many", many, slots={}, hypers={"lr": Hyper(1.0)})).program)
