"""NumPy's arrays of every kind: layouts, files, subclasses; each gets its update or is refused."""

import warnings

import numpy as np
import pytest
from libraries import refused

from multiopt import Adadelta

RNG = np.random.default_rng(0)
X, G = RNG.standard_normal((6, 8)).astype(np.float32), RNG.standard_normal((6, 8)).astype(np.float32)


def expected(**options):
    x = X.copy()
    opt = Adadelta(x, engine="eager", **options)
    for _ in range(3):
        opt.step(G.copy())
    return x.tobytes()


def unaligned(x):
    return np.frombuffer(bytearray(x.nbytes + 1), np.uint8)[1:].view(x.dtype).reshape(x.shape)


LAYOUTS = {
    "C": np.empty_like,
    "F": lambda x: np.empty(x.shape, x.dtype, order="F"),
    "strided": lambda x: np.empty((12, 24), x.dtype)[::2, ::3],
    "reversed": lambda x: np.empty(x.shape, x.dtype)[::-1, ::-1],
    "rows reversed": lambda x: np.empty(x.shape, x.dtype)[::-1],
    "column of many": lambda x: np.empty((*x.shape, 5), x.dtype)[..., 2],
    "transposed": lambda x: np.empty((1, 8, 6), x.dtype).transpose(0, 2, 1)[0],
    "big-endian": lambda x: np.empty(x.shape, x.dtype.newbyteorder(">")),
    "big-endian strided": lambda x: np.empty((12, 8), x.dtype.newbyteorder(">"))[::2],
    "unaligned": unaligned,
    "field of a record": lambda x: np.zeros(x.shape, [("a", "u1"), ("b", x.dtype)])["b"],
}


def laid(layout, values):
    """The values in an array of some layout."""
    x = LAYOUTS[layout](values)
    x[...] = values
    return x


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.5, "nonfinite": "raise"}], ids=["plain", "clip"])
def test_layouts(layout, options, engine):
    want = expected(**options)
    for grad_layout in LAYOUTS:
        x, g = laid(layout, X), laid(grad_layout, G)
        opt = Adadelta(x, engine=engine, **options)
        for _ in range(3):
            assert opt.step(g) is x
        assert np.ascontiguousarray(x).astype("f4").tobytes() == want, grad_layout
        assert (g == G).all()


def test_gradients_may_change_layout_between_steps(engine):
    x = X.copy()
    opt = Adadelta(x, engine=engine)
    for layout in ("C", "F", "reversed"):
        opt.step(laid(layout, G))
    assert x.tobytes() == expected()


def test_memory_map(tmp_path, engine):
    X.tofile(tmp_path / "x")
    x = np.memmap(tmp_path / "x", np.float32, "r+", shape=X.shape)
    opt = Adadelta(x, engine=engine)
    for _ in range(3):
        opt.step(G)
    x.flush()
    assert (tmp_path / "x").read_bytes() == expected()
    with pytest.raises(ValueError, match="params: expected an array that can be written to, got a read-only one"):
        Adadelta(np.memmap(tmp_path / "x", np.float32, "r", shape=X.shape))


def test_read_only_parameters_are_refused():
    x = X.copy()
    x.flags.writeable = False
    with pytest.raises(ValueError, match=r"params\[1\]: expected an array that can be written to, got a read-only one"):
        Adadelta([X.copy(), x])
    strict = pytest.importorskip("array_api_strict")
    with pytest.raises(ValueError, match="params: expected an array that can be written to, got a read-only one"):
        Adadelta(strict.asarray(x, copy=False))


def test_subclasses_are_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)  # NumPy's about its matrix
        strange = [np.ma.masked_array(X, X > 0), np.matrix(X), np.rec.array(X.copy())]
    opt = Adadelta([X.copy()])
    for x in strange:
        message = f"expected a numpy.ndarray, got its subclass {type(x).__name__}; pass numpy.asarray"
        with pytest.raises(TypeError, match=f"params: {message}"):
            Adadelta(x)
        with refused(opt, TypeError, rf"grads\[0\]: {message}"):
            opt.step([x])
