"""The same bits, whatever the library, the engine and the dtype: NumPy's, computed eagerly."""

import numpy as np
import pytest
from libraries import LIBRARIES, OPTIONS, PLAIN, gradients

from multiopt import Adadelta

#: Sizes on both sides of the engines' blocks (1,024, 32 Ki and 512 Ki elements), awkward on purpose.
SHAPES = [(), (0,), (1,), (7,), (33, 65), (3, 5, 7), (40_009,)]
FEW = [(), (0,), (7,), (33, 65)]


HALVES = ["float16", "bfloat16"]


def decades(dtype, subnormals=True):
    if np.dtype(dtype).itemsize == 2:
        return -1, 1
    if not subnormals:
        return -4, 4  # so that after scaling by 1e-6 or so the squares are normal numbers
    # Squares must not overflow, or else all that follows is NaN, whose bits are nobody's concern.
    return (-44, 18) if np.dtype(dtype).name in ("float32", "complex64") else (-320, 135)


def run(library, dtype, shapes, steps, options, subnormals, every=1):
    """Train, and return the parameters, state and averages of every so many steps."""
    rng = np.random.default_rng(5)
    starts = [np.asarray(rng.standard_normal(shape)).astype(dtype) for shape in shapes]
    opt = Adadelta(library.params(starts), engine=library.engine, **options)
    seen = []
    for step in range(steps):
        grads = [gradients(rng, shape, dtype, decades(dtype, subnormals), subnormals) for shape in shapes]
        opt.step(library.grads(grads))
        if (step + 1) % every == 0:
            seen.append(everything(library, opt))
    return seen


def everything(library, opt):
    columns = [opt.params, *([state[slot] for state in opt.state] for slot in opt.rule.slots)]
    columns += [opt.ema_params] if opt.ema is not None else []
    return [library.backs(column) for column in columns]


def assert_same(left, right):
    for step, (a, b) in enumerate(zip(left, right, strict=True)):
        for name, xs, ys in zip(("params", "square_avg", "acc_delta", "ema"), a, b, strict=False):
            for i, (x, y) in enumerate(zip(xs, ys, strict=True)):
                assert (x.shape, x.dtype) == (y.shape, y.dtype), (step, name, i)
                assert x.tobytes() == y.tobytes(), (step, name, i, int(np.sum(x != y)))


@pytest.fixture(scope="module")
def reference():
    """What the plain NumPy eager engine computes, once for each question."""
    kept = {}

    def ask(*question):
        return kept.get(repr(question)) or kept.setdefault(repr(question), run(LIBRARIES["numpy-eager"], *question))

    return ask


#: All but the reference itself.
OTHERS = [library for library in LIBRARIES.values() if library.name != "numpy-eager"]
others = pytest.mark.parametrize("lib", OTHERS, indirect=True, ids=str)
#: What computes is the same for all options, and how arrays are held for all dtypes: not each with each.
SOME = ("plain", "all clips", "everything")
QUESTIONS = [
    pytest.param(library, dtype, name, id=f"{library}-{dtype}-{name}")
    for library in OTHERS
    for dtype in ("float32", "float64")
    for name in (OPTIONS if dtype == "float32" and library in PLAIN else SOME)
]


@others
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_over_a_long_run(lib, dtype, reference):
    question = (dtype, [(601,), (3, 7), ()], 60 if lib.slow else 600, {"weight_decay": 1e-3}, lib.subnormals, 20)
    assert_same(run(lib, *question), reference(*question))


@pytest.mark.parametrize(("lib", "dtype", "options"), QUESTIONS, indirect=["lib"])
def test_with_each_option(lib, dtype, options, reference):
    question = (dtype, FEW if lib.slow else SHAPES, 6, OPTIONS[options], lib.subnormals)
    assert_same(run(lib, *question), reference(*question))


def test_gradients_reach_where_it_hurts():
    # The questions here are only worth asking if their numbers are small and large enough.
    for dtype in ("float32", "float64"):
        g = gradients(np.random.default_rng(0), (40_000,), dtype, decades(dtype))
        info = np.finfo(dtype)
        size = np.abs(g[g != 0])
        assert np.sum(size < info.tiny) > 100
        assert np.sum(g == 0) > 100
        with np.errstate(under="ignore"):
            assert np.sum((size**2 < info.tiny) & (size**2 > 0)) > 100
        assert size.max() > 1e15
        assert np.isfinite((size * size).sum())


def half(dtype):
    return np.dtype(dtype) if dtype == "float16" else np.dtype(pytest.importorskip("ml_dtypes").bfloat16)


@others
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("options", "state"), [("plain", None), ("coupled", "float32"), ("everything", "float32")])
def test_half_precision(lib, dtype, state, options, reference):
    if not lib.half:
        pytest.skip(f"{lib} has no {dtype}")
    # Halves that are subnormal are normal in float32, in which the computing is done; JAX flushes them on reading.
    dtype, options = half(dtype), {**OPTIONS[options], "state_dtype": state, "eps": 1e-4}
    question = (dtype, FEW if lib.slow else SHAPES, 6, options, False)
    seen = run(lib, *question)
    assert_same(seen, reference(*question))
    params, square_avg, *_ = seen[-1]
    assert {x.dtype for x in params} == {dtype}
    assert {x.dtype for x in square_avg} == {np.dtype(state or dtype)}


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_is_rounded_once(dtype):
    # Computed in float32 from the halves, and rounded at the end: so says the same run in float32, step by step.
    dtype = half(dtype)
    rng = np.random.default_rng(4)
    x = rng.standard_normal(5000).astype(dtype)
    v, u = np.zeros_like(x), np.zeros_like(x)
    opt = Adadelta(x, eps=1e-3)
    for _ in range(10):
        wide = x.astype(np.float32)
        one = Adadelta(wide, eps=1e-3)
        one.state["square_avg"][...], one.state["acc_delta"][...] = v, u
        g = rng.standard_normal(5000).astype(dtype)
        one.step(g.astype(np.float32))
        opt.step(g)
        v, u = (one.state[slot].astype(dtype) for slot in ("square_avg", "acc_delta"))
        assert x.tobytes() == wide.astype(dtype).tobytes()
        assert opt.state["square_avg"].tobytes() == v.tobytes()
        assert opt.state["acc_delta"].tobytes() == u.tobytes()


@pytest.mark.parametrize("state", ["bfloat16", "float32"])
@pytest.mark.parametrize("moved", ["x", "g", "square_avg", "acc_delta"])
def test_every_bfloat16(numba, moved, state):
    # The host engine rounds pairs of them without asking for NaNs, where these cannot have gone through float32.
    dtype = half("bfloat16")
    every = np.append(np.arange(1 << 16), 0x7F81).astype(np.uint16).view(dtype)
    wide = {"x": dtype, "g": dtype, "square_avg": np.dtype(state), "acc_delta": np.dtype(state)}
    results = []
    for engine in ("host", "eager"):
        arrays = {name: np.full(len(every), 0.5, kind) for name, kind in wide.items()}
        arrays[moved][:] = every
        if state == "float32" and moved in arrays.keys() - {"x", "g"}:
            arrays[moved].view(np.uint32)[...] |= 0xFFFF  # NaNs whose rounding would make them numbers
        opt = Adadelta(arrays["x"], engine=engine, state_dtype=state)
        for slot in ("square_avg", "acc_delta"):
            opt.state[slot][...] = arrays[slot]
        with np.errstate(all="ignore"):
            opt.step(arrays["g"])
        results.append([opt.params, opt.state["square_avg"], opt.state["acc_delta"]])
    for mine, plain in zip(*results, strict=True):
        nan = np.isnan(plain.astype(np.float32))
        np.testing.assert_array_equal(np.isnan(mine.astype(np.float32)), nan)
        assert mine[~nan].tobytes() == plain[~nan].tobytes()
    assert np.isnan(results[0][0].astype(np.float32)).sum() >= 254


def test_float16_keeps_subnormals_and_overflows_to_infinity(numba):
    results = []
    for engine in ("host", "eager"):
        x = np.array([0, 1, 2, 3, 60000, -60000], np.float16).view(np.float16)
        x[:4] = np.array([1, 2, 3, 1023], np.uint16).view(np.float16)
        opt = Adadelta(x, lr=1e5, engine=engine)
        opt.step(np.array([1, -1, 0, 6e-8, -60000, 60000], np.float16))
        results.append((x.tobytes(), opt.state["square_avg"].tobytes(), opt.state["acc_delta"].tobytes()))
        assert opt.state["square_avg"][3] == 0  # (6e-8)² is far below the smallest half
        assert np.isinf(opt.state["square_avg"][4:]).all()
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("dtype", "options"),
    [*(("complex64", name) for name in ("plain", "coupled", "clip_global_norm")), ("complex128", "everything")],
)
def test_complex_numbers_are_two_real_ones(lib, dtype, options):
    real = "float32" if dtype == "complex64" else "float64"
    rng = np.random.default_rng(6)
    shapes = [(), (0,), (5,), (33, 65)]

    def draw():
        return [np.asarray(rng.standard_normal((*s, 2)).astype(real).view(dtype)[..., 0]) for s in shapes]

    starts, grads = draw(), [draw() for _ in range(6)]
    options = OPTIONS[options]
    opt = Adadelta(lib.params(starts), engine=lib.engine, **options)
    # The same numbers, as real arrays with one axis more.
    pairs = Adadelta([as_pairs(x) for x in starts], engine="eager", **options)
    for g in grads:
        opt.step(lib.grads(g))
        pairs.step([as_pairs(x) for x in g])
    for mine, theirs in zip(everything(lib, opt), everything(LIBRARIES["numpy-eager"], pairs), strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert a.dtype == dtype
            assert as_pairs(a).tobytes() == b.tobytes()


def as_pairs(array):
    return np.stack([array.real, array.imag], axis=-1)
