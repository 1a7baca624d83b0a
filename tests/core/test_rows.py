"""Steps of some rows of a table: the bits of a table that has these rows alone, and nothing else is touched."""

import ml_dtypes
import numpy as np
import pytest
from multiopt.backends.engines.host.engine import SERIAL
from processes import run_python

from multiopt import ADADELTA
from multiopt.binding import Binding
from multiopt.plan import run
from multiopt.update import FusedUpdate

UPDATE, NUMBERS = FusedUpdate(ADADELTA), {"lr": 0.7, "rho": 0.9, "eps": 1e-6}
ROWS = np.array([7, 0, 4])


def columns_of(shape, dtype, rows):
    """A table, its state, and a gradient of some rows."""
    rng, kind = np.random.default_rng(0), np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    made = [rng.standard_normal((n, *shape[1:])) for n in (shape[0], *shape[:1] * 2, len(rows))]
    if kind.kind == "c":
        made = [a + 1j * rng.standard_normal(a.shape) for a in made]
    x, v, u, g = (np.asarray(a).astype(kind) for a in made)
    parts = [abs(a) if kind.kind != "c" else abs(a.real) + 1j * abs(a.imag) for a in (v, u)]
    return [x, *(np.asarray(a).astype(kind) for a in parts)], g


def bind(columns, engine="auto"):
    x, *state = columns
    return Binding(ADADELTA, [x], ["table"], state=[dict(zip(ADADELTA.slots, state, strict=True))], engine=engine)


def expected(columns, g, rows):
    """The rows as a table of their own, updated by NumPy's operations, and put back."""
    some = [a[rows] for a in columns]
    run([bind(some, "eager").plan(UPDATE, [g], NUMBERS)])
    after = [a.copy() for a in columns]
    for a, new in zip(after, some, strict=True):
        a[rows] = new
    return after


def step(binding, g, rows):
    """One step of rows, and the table and its state after it."""
    plan = binding.plan_rows(UPDATE, 0, rows, g, NUMBERS, "the gradient")
    run([plan])
    return [column[0] for column in plan.jobs[0].bucket.arrays()]


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [*((dtype, (9, 2, 3)) for dtype in ("float16", "bfloat16", "float64", "complex64")), ("float32", (9,))],
    ids=str,
)
def test_rows_have_the_bits_of_a_table_of_their_own(lib, dtype, shape):
    if dtype in ("float16", "bfloat16") and not lib.half:
        pytest.skip("this library has no half precision")
    columns, g = columns_of(shape, dtype, ROWS)
    binding = bind(lib.params(columns), lib.engine)
    for got, wanted in zip(step(binding, lib.grad(g), ROWS), expected(columns, g, ROWS), strict=True):
        assert lib.host(got).tobytes() == wanted.tobytes()


def test_many_rows_are_shared_among_threads():
    rows = np.random.default_rng(1).permutation(3 * SERIAL // 64)[: 2 * SERIAL // 64 + 1]
    columns, g = columns_of((3 * SERIAL // 64, 64), "float32", rows)
    wanted = expected(columns, g, rows)
    for got, array in zip(step(bind(columns), g, rows), wanted, strict=True):
        np.testing.assert_array_equal(got, array)


def test_other_rows_are_not_even_looked_at():
    # Each row is a page; those without a gradient may not be touched: the process would end.
    code = """
import ctypes, mmap, numpy as np
from multiopt import ADADELTA
from multiopt.binding import Binding
from multiopt.plan import run
from multiopt.update import FusedUpdate
page, n = mmap.PAGESIZE, 5
tables = [np.frombuffer(mmap.mmap(-1, n * page), np.float32).reshape(n, -1) for _ in range(3)]
state = [dict(zip(ADADELTA.slots, tables[1:]))]
binding, rows = Binding(ADADELTA, tables[:1], ["table"], state=state), np.array([4, 1])
g, values = np.ones((2, page // 4), np.float32), {"lr": 1.0, "rho": 0.9, "eps": 1e-6}
def protect(how):
    for table in tables:
        for row in (0, 2, 3):
            place, size = ctypes.c_void_p(table.ctypes.data + row * page), ctypes.c_size_t(page)
            assert ctypes.CDLL(None).mprotect(place, size, how) == 0
protect(0)
run([binding.plan_rows(FusedUpdate(ADADELTA), 0, rows, g, values, "g")])
protect(3)
print([bool(row.any()) for row in tables[0]])
"""
    assert run_python(code) == "[False, True, False, False, True]"


def test_a_gradient_may_lie_in_the_table_or_in_what_the_same_step_writes(lib):
    if not lib.mutable:
        pytest.skip("immutable arrays do not change while they are read")
    columns, _ = columns_of((9, 4), "float32", ROWS)
    other = np.ones((3, 4), np.float32)
    for which in ("table", "state", "other"):
        arrays, neighbour = lib.params(columns), lib.param(other)
        g = {"table": arrays[0][2:5, ...], "state": arrays[1][2:5, ...], "other": neighbour}[which]
        wanted = expected(columns, lib.host(g).copy(), ROWS)
        binding, dense = bind(arrays, lib.engine), Binding(ADADELTA, [neighbour], ["other"], engine=lib.engine)
        plan = binding.plan_rows(UPDATE, 0, ROWS, g, NUMBERS, "the gradient")
        run([dense.plan(UPDATE, [lib.grad(other)], NUMBERS), plan])
        for got, array in zip(arrays, wanted, strict=True):
            np.testing.assert_array_equal(lib.host(got), array)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda g, rows: (g, np.array([7, 0, 9])), ValueError, r"the gradient: expected indices of rows in \[0, 9\)"),
        (lambda g, rows: (g, np.array([7, -1, 4])), ValueError, r"expected indices of rows in \[0, 9\)"),
        (
            lambda g, rows: (g[:2], rows),
            ValueError,
            r"the gradient: expected 3 rows of an array of shape \(9, 4\), got shape \(2, 4\)",
        ),
        (lambda g, rows: (g[:, :2], rows), ValueError, r"expected shape \(0, 4\)"),
        (lambda g, rows: (g.astype(np.float64), rows), TypeError, "the gradient: expected dtype float32"),
    ],
)
def test_what_is_refused_changes_nothing(change, kind, message):
    columns, g = columns_of((9, 4), "float32", ROWS)
    before, binding = [a.copy() for a in columns], bind(columns)
    with pytest.raises(kind, match=message):
        step(binding, *change(g, ROWS))
    columns[1].flags.writeable = False
    with pytest.raises(ValueError, match="square_avg of table: expected an array that can be written to"):
        step(binding, g, ROWS)
    for array, old in zip(columns, before, strict=True):
        np.testing.assert_array_equal(array, old)


def test_rows_are_not_measured():
    columns, g = columns_of((9, 4), "float32", ROWS)
    before, normed = columns[0].copy(), FusedUpdate(ADADELTA, normed=True)
    plan = bind(columns).plan_rows(normed, 0, ROWS, g, NUMBERS, "the gradient")
    for measure in (lambda: run([plan], 1.0), plan.nonfinite):
        with pytest.raises(ValueError, match="gradient of table: expected no question of its norm"):
            measure()
    np.testing.assert_array_equal(columns[0], before)


def test_no_rows_are_no_work():
    columns, g = columns_of((9, 4), "float32", ROWS)
    assert bind(columns).plan_rows(UPDATE, 0, ROWS[:0], g[:0], NUMBERS, "the gradient").jobs == []
