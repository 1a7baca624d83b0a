"""Engines: threads, blocks, chunks and the split into arrays change no bit, and a step needs no memory to speak of."""

import os
import tracemalloc

import numpy as np
import pytest
from libraries import LIBRARIES, OPTIONS, gradients, library_of
from multiopt.backends.engines.locate import blocks
from multiopt.backends.protocol import Ranges
from processes import run_python
from rules import DESCENT

from multiopt import Adadelta, Hyper, Optimizer, Rule


def split_run(whole, grads, cuts, options, engine="host"):
    """Train on the same numbers, cut into arrays."""
    x = whole.copy()
    opt = Adadelta(np.split(x, cuts), engine=engine, **options)
    for g in grads:
        opt.step(np.split(g, cuts))
    state = [np.concatenate([s[slot] for s in opt.state]) for slot in ("square_avg", "acc_delta")]
    return [a.tobytes() for a in (x, *state)], opt.grad_norm


SIZE = 1_300_003
CUTS = {
    "whole": [],
    "two": [524_288],
    "odd": [1, 2, 1000, 524_287, 524_289, 1_048_576],
    "even": list(range(7, SIZE, 9973)),
}


@pytest.mark.parametrize("options", [{}, {"clip_value": 1.0, "weight_decay": 0.1}, {"clip_global_norm": 1.0}], ids=str)
def test_threads_and_split_change_nothing(options, monkeypatch, numba):
    rng = np.random.default_rng(8)
    numbers = rng.standard_normal(SIZE).astype(np.float32), [gradients(rng, SIZE, np.float32) for _ in range(2)]
    expected, norm = split_run(*numbers, [], options, engine="eager")
    for cuts in CUTS.values():
        for threads in (1, 2, 3, 7):
            monkeypatch.setenv("MULTIOPT_NUM_THREADS", str(threads))
            got, its = split_run(*numbers, cuts, options)
            assert got == expected
            assert norm is None or float(its) == float(norm)


@pytest.mark.parametrize("block", [1, 3, 1000, 1 << 15])
def test_blocking_changes_nothing(block, monkeypatch, numba):
    from multiopt.backends.engines import eager
    from multiopt.backends.engines.host import engine as host

    rng = np.random.default_rng(9)
    start, g = rng.standard_normal((9, 11, 5)).astype(np.float32), gradients(rng, (9, 11, 5), np.float32, (-20, 10))
    results = []
    monkeypatch.setattr(eager, "BLOCK", block)
    monkeypatch.setattr(host, "COPIED", block)
    monkeypatch.setattr(host, "SERIAL", 0)
    monkeypatch.setattr(host, "PIECE", block)
    for library in ("numpy-eager", "numpy", "numpy-strided", "numpy-strided-eager", "torch-strided"):
        with library_of(LIBRARIES[library]) as lib:
            opt = Adadelta(lib.param(start), engine=lib.engine, clip_global_norm=2.0)
            for _ in range(3):
                opt.step(lib.grad(g))
            results.append([lib.back(a).tobytes() for a in (opt.params, *opt.state.values())])
    assert all(result == results[0] for result in results)


def test_blocks_tile_every_shape():
    for shape in [(), (0,), (5,), (3, 4), (2, 3, 4, 5), (4, 0, 3), (1, 1, 7)]:
        for size in (1, 2, 5, 7, 60, 1000):
            seen = np.zeros(shape, int)
            for block in blocks(shape, size):
                assert seen[block].size <= size
                seen[block] += 1
            assert (seen == 1).all()


def test_gradients_in_the_memory_of_parameters_are_found():
    params, length = np.array([1000, 2000, 3000]), 100
    ranges = Ranges.union([Ranges(params[:1], params[:1] + length), Ranges(params[1:], params[1:] + length)])

    def found(*grads, lengths=length):
        begins = np.array(grads)
        ends = begins + lengths
        return ranges.aliases((begins, ends), (begins == params) & (ends == params + length))

    assert found(5000, 6000, 7000) == []
    assert found(1000, 2000, 3000) == []  # each its own parameter: read before it is written
    assert found(2000, 1000, 3000) == [0, 1]
    assert found(1004, 2100, 2901) == [0, 2]
    assert found(0, 1900, 3000) == []  # absent; side by side
    assert found(1000, 0, 0, lengths=np.array([200, 0, 0])) == [0]
    # One parameter in the gaps of another.
    wide = Ranges(np.array([0, 50]), np.array([200, 60]))
    assert wide.aliases((np.array([300, 55]), np.array([400, 56])), np.array([False, False])) == [1]


def test_dask_chunks_change_nothing():
    pytest.importorskip("dask.array")
    import dask.array as da

    rng = np.random.default_rng(2)
    start, g = rng.standard_normal((9, 6)).astype(np.float32), gradients(rng, (9, 6), np.float32)
    results = []
    for chunks, other in [((9, 6), (9, 6)), ((4, 6), (4, 6)), ((4, 4), (5, 6)), ((1, 1), (9, 6))]:
        opt = Adadelta(da.from_array(start, chunks=chunks), clip_norm=0.5)
        for _ in range(3):
            x = opt.step(da.from_array(g, chunks=other))
        assert x.chunks == da.from_array(start, chunks=chunks).chunks
        results.append([a.compute().tobytes() for a in (x, *opt.state.values())])
    assert all(result == results[0] for result in results)


def views(rng, dtype):
    """Pairs of a parameter and a gradient that do not lie as one run of memory, or not in the same order."""

    def drawn(*shape):
        return gradients(rng, shape, dtype)

    n, m = 150, 130
    return [
        (drawn(2 * n * m)[::2], drawn(2 * n * m)[1::2]), (drawn(n, 3 * m)[:, ::3], drawn(n, m)),
        (drawn(n, m + 9)[:, 5:-4], np.asfortranarray(drawn(n, m))), (drawn(n, m), np.asfortranarray(drawn(n, m))),
        (drawn(n, m)[::-1, ::-1], drawn(n, m)), (drawn(m, 2 * n)[:, ::2].T, drawn(n, 2 * m)[:, ::2]),
        (drawn(n, m), np.broadcast_to(drawn(1), (n, m))), (drawn(n, m), np.broadcast_to(drawn(m), (n, m))),
        (drawn(m, 5, 8, 3).transpose(2, 0, 3, 1), drawn(8, m, 3, 5)), (drawn(9, 2)[:, 0], drawn(9)),
        (drawn(40000, 3)[:, :2], drawn(40000, 2)), (drawn(7, 1, 5)[:, :, ::2], drawn(7, 1, 3)),
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float16", "complex64"])
def test_views_are_walked_where_they_lie(dtype, numba, monkeypatch):
    from multiopt.backends.engines.host import engine as host
    from multiopt.backends.engines.host import tiles

    rng = np.random.default_rng(11)
    x, grads = zip(*views(rng, dtype), strict=True)
    options = {"clip_norm": 0.5, "nonfinite": "skip", "weight_decay": 0.1}
    expected = Adadelta([a.copy() for a in x], engine="eager", **options)
    expected.step(list(grads))
    monkeypatch.setenv("MULTIOPT_NUM_THREADS", "2")
    monkeypatch.setattr(host, "copy_blocks", None)
    monkeypatch.setattr(tiles, "ROOM", 1 << 12)  # many tiles
    monkeypatch.setattr(host, "PIECE", 5000)
    monkeypatch.setattr(host, "SERIAL", 0)
    opt = Adadelta(list(x), **options)
    opt.step(list(grads))
    for got, want in zip((opt.params, opt.state), (expected.params, expected.state), strict=True):
        arrays = [a for row in got for a in (row.values() if isinstance(row, dict) else [row])]
        others = [a for row in want for a in (row.values() if isinstance(row, dict) else [row])]
        assert [a.tobytes() for a in arrays] == [a.tobytes() for a in others]
    bad = [g.copy() for g in grads]
    bad[5][-1, -1] = np.inf
    opt.step(bad)
    assert [a.tobytes() for a in opt.params] == [a.tobytes() for a in expected.params]


def test_of_a_tile_only_what_has_gaps_is_copied(numba):
    from multiopt.backends.engines.host import tiles

    gaps, none = (2,), (1,)
    ndim, words = tiles.planned((10_000,), (gaps, gaps, none, none), (4,) * 4, 1, 1000)
    number, room, *_ = words
    buffers = words[tiles.HEAD - 1 + 2 * ndim + 2 :: tiles.COLUMN + ndim]
    assert (number, ndim) == (10, 1)
    assert [buffer > 0 for buffer in buffers] == [True, True, False, False]
    assert buffers[1] - buffers[0] >= 4000
    assert buffers[1] + 4000 <= 8 * room <= 10_000


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_dask_chunks_run_the_compiled_engine_on_one_thread_each(dtype, numba, monkeypatch):
    da = pytest.importorskip("dask.array")
    from multiopt.backends.engines.host import engine as host

    rng = np.random.default_rng(3)
    start, g = (gradients(rng, (700, 300), dtype) for _ in range(2))
    options = {"clip_norm": 0.5, "weight_decay": 0.1, "ema": 0.9}
    expected = Adadelta(start.copy(), engine="eager", **options)
    expected.step(g)
    pieces, elementwise = [], []
    run = host.threads.run
    monkeypatch.setattr(host.threads, "run", lambda work, own, *rest: pieces.append(len(own)) or run(work, own, *rest))
    monkeypatch.setattr("multiopt.backends.numpy.NumpyBackend.elementwise", lambda *given: elementwise.append(given))
    opt = Adadelta(da.from_array(start, chunks=(400, 300)), **options)
    opt.step(da.from_array(g, chunks=(300, 300)))
    assert set(pieces) == {1}
    assert elementwise == []
    held = zip((opt.params, opt.ema_params), (expected.params, expected.ema_params), strict=True)
    assert all(np.asarray(a).tobytes() == b.tobytes() for a, b in held)


# --- memory ---


def test_a_step_needs_no_memory_that_grows_with_the_arrays(engine, monkeypatch):
    # NumPy tells tracemalloc of its allocations: 4 million elements, 16 MiB an array.
    monkeypatch.setenv("MULTIOPT_NUM_THREADS", "2")
    x, g = np.ones(1 << 22, np.float32), np.ones(1 << 22, np.float32)
    square = (2048, 2048)
    for params, grads in [
        ([x], [g]),
        ([x.reshape(square).T[::-1]], [g.reshape(square)]),
        (np.split(x, 64), np.split(g, 64)),
    ]:
        opt = Adadelta(params, engine=engine, nonfinite="raise", **OPTIONS["all clips"], maximize=True)
        opt.step(grads)
        tracemalloc.start()
        opt.step(grads)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 10 << 20  # buffers of one size, whatever the arrays'


@pytest.mark.skipif(not os.environ.get("MULTIOPT_TEST_HUGE"), reason="needs 9 GB; MULTIOPT_TEST_HUGE=1 asks for it")
def test_more_than_two_to_the_31_elements(engine):
    # A rule without state, because memory is dear; the walk over memory is that of every rule.
    n, block = 2**31 + 70_001, 1 << 24
    x, g = np.zeros(n, np.float16), np.ones(n, np.float16)
    g[::1000], g[2**31 :: 1000] = 0.5, -2.0
    opt = Optimizer(DESCENT, x, lr=0.25, engine=engine, clip_global_norm=1e9)
    opt.step(g)
    values, counts = [0.5, 1.0, -2.0], [0, 0, 0]
    for start in range(0, n, block):
        part = g[start : start + block]
        assert (x[start : start + block] == np.float16(-0.25) * part).all()
        counts = [count + int((part == v).sum()) for count, v in zip(counts, values, strict=True)]
    assert float(opt.grad_norm) == np.sqrt(sum(count * v * v for count, v in zip(counts, values, strict=True)))
    g[n - 1], opt.nonfinite = np.nan, "raise"
    with pytest.raises(FloatingPointError):
        opt.step(g)


# --- compiled programs ---


def test_compiled_programs_are_bounded_and_one_in_use_stays(numba, monkeypatch):
    import gc
    import linecache
    from functools import lru_cache

    from multiopt.backends.engines.host import kernels

    monkeypatch.setattr(kernels, "update_kernel", lru_cache(2)(kernels.update_kernel.__wrapped__))
    before = {name for name in linecache.cache if name.startswith("<multiopt")}

    def made(factor):
        rule = Rule(
            "scaled", lambda xp, x, g, *, lr: (x - lr * (factor * g),), slots={}, hypers={"lr": Hyper(1.0, low=0.0)}
        )
        return Optimizer(rule, np.zeros(3))

    opts = [made(float(factor)) for factor in range(1, 5)]
    for _ in range(3):  # of four that take turns, two are kept
        for opt in opts:
            opt.step(np.ones(3))
    assert [opt.params[0] for opt in opts] == [-3.0, -6.0, -9.0, -12.0]
    assert kernels.update_kernel.cache_info().currsize == 2
    gc.collect()
    assert len({name for name in linecache.cache if name.startswith("<multiopt")} - before) <= 2


def test_without_numbas_compiler_the_eager_engine_runs(numba):
    code = """
import numpy as np
from multiopt import Adadelta
from multiopt.backends.engines.host import kernels  # can be imported
opt = Adadelta(np.ones(3, np.float32), clip_global_norm=1.0)
opt.step(np.ones(3, np.float32))
print(repr(opt).count("engine=eager"), opt.params.tobytes().hex())
try:
    Adadelta(np.ones(3), engine="host")
except ValueError as error:
    print(error)
"""
    eager, message = run_python(code, NUMBA_DISABLE_JIT="1").splitlines()
    usual = run_python(code.replace("engine=eager", "engine=host")).splitlines()[0]
    assert eager == usual
    assert message.endswith("here: Numba's compiler is off: NUMBA_DISABLE_JIT is set")
