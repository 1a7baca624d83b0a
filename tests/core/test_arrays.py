"""Arrays of every kind: layouts, views, aliases, files; each gets its update, or is refused with nothing written."""

import os
import warnings

import numpy as np
import pytest
from libraries import snapshot
from processes import run_python

from multiopt import Adadelta, Hyper, Optimizer, Rule

RNG = np.random.default_rng(0)
X, G = RNG.standard_normal((6, 8)).astype(np.float32), RNG.standard_normal((6, 8)).astype(np.float32)
ENGINES = ["host", "eager"]


@pytest.fixture(params=ENGINES)
def engine(request):
    if request.param == "host":
        pytest.importorskip("numba", reason="the host engine needs numba")
    return request.param


def expected(x=X, g=G, steps=3, **options):
    x = np.array(x, order="C")
    opt = Adadelta(x, engine="eager", **options)
    for _ in range(steps):
        opt.step(np.array(g, order="C"))
    return x


def into(layout):
    """X's values in an array of some layout."""
    x = layout(X)
    x[...] = X
    return x


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


@pytest.mark.parametrize("grad_layout", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "options", [{}, {"clip_norm": 0.5, "accumulate": 1, "nonfinite": "raise"}], ids=["plain", "clip"]
)
def test_layouts(layout, grad_layout, options, engine):
    x, g = into(LAYOUTS[layout]), LAYOUTS[grad_layout](G)
    g[...] = G
    opt = Adadelta(x, engine=engine, **options)
    for _ in range(3):
        assert opt.step(g) is x
    assert np.ascontiguousarray(x).astype("f4").tobytes() == expected(**options).tobytes()
    assert (g == G).all()


def test_gradients_may_change_layout_between_steps(engine):
    x = X.copy()
    opt = Adadelta(x, engine=engine)
    for layout in ("C", "F", "reversed"):
        g = LAYOUTS[layout](G)
        g[...] = G
        opt.step(g)
    assert x.tobytes() == expected().tobytes()


def test_memory_map(tmp_path, engine):
    X.tofile(tmp_path / "x")
    x = np.memmap(tmp_path / "x", np.float32, "r+", shape=X.shape)
    opt = Adadelta(x, engine=engine)
    for _ in range(3):
        opt.step(G)
    x.flush()
    assert (tmp_path / "x").read_bytes() == expected().tobytes()
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
    for x in strange:
        message = f"expected a numpy.ndarray, got its subclass {type(x).__name__}; pass numpy.asarray"
        with pytest.raises(TypeError, match=f"params: {message}"):
            Adadelta(x)
        opt = Adadelta([X.copy()])
        before = snapshot(opt)
        with pytest.raises(TypeError, match=rf"grads\[0\]: {message}"):
            opt.step([x])
        assert snapshot(opt) == before


# --- overlap ---


def test_overlapping_parameters_are_refused():
    x = np.zeros(100, np.float32)
    wide = np.zeros((10, 10), np.float32)
    for views, first, second in [
        ([x, x], 0, 1),
        ([x[:50], x[49:]], 0, 1),
        ([x, np.zeros(3, np.float32), x[99:]], 0, 2),
        ([x[::2], x[1::2], x[2:3]], 0, 2),
        ([x[::2], x[1::2], x[3:4]], 1, 2),
        ([x[10:90], x[::10]], 0, 1),
        ([x[::-1], x[:1]], 0, 1),
        ([wide[0], wide[:, 0]], 0, 1),
        ([wide.T, wide[5:6, 5:6]], 0, 1),
        ([x[:10], x.view(np.float16)[5:6]], 0, 1),
        ([x[:10], x.view(np.complex64)[4:5]], 0, 1),
    ]:
        message = rf"params\[{second}\]: expected memory of its own, got an array that overlaps params\[{first}\]"
        with pytest.raises(ValueError, match=message):
            Adadelta(views)
        groups = [{"params": views[:1]}, {"params": views[1:]}]
        with pytest.raises(ValueError, match="expected memory of its own"):
            Adadelta(groups)
        opt = Adadelta(groups[:1])
        with pytest.raises(ValueError, match="expected memory of its own"):
            opt.add_param_group(groups[1])
        assert len(opt.groups) == 1
    with pytest.raises(ValueError, match="params: expected elements with memory of their own, got a view that repeats"):
        Adadelta(np.lib.stride_tricks.as_strided(x, (5, 5), (0, 4)))
    with pytest.raises(ValueError, match="got a view that repeats"):
        Adadelta(np.lib.stride_tricks.as_strided(x, (5, 5), (8, 4)))


def test_disjoint_views_of_one_array_are_served(engine):
    whole, gradient = X.copy(), G.copy()
    cuts = [np.s_[::2, ::2], np.s_[::2, 1::2], np.s_[1::2, :3], np.s_[1::2, 3:], np.s_[:0]]
    opt = Adadelta([whole[cut] for cut in cuts], engine=engine)
    for _ in range(3):
        opt.step([gradient[cut] for cut in cuts])
    assert whole.tobytes() == expected().tobytes()


def test_the_same_object_twice_is_refused_everywhere(plain):
    if not plain.mutable:
        pytest.skip("an immutable array twice is two parameters")
    x = plain.param(X)
    with pytest.raises(
        ValueError, match=r"params\['b'\]: expected memory of its own, got an array that overlaps params"
    ):
        Adadelta({"a": x, "b": x})


# --- gradients in the memory of parameters ---


ALIASES = {
    "itself": lambda w: [(w[:40], w[:40])],
    "backwards": lambda w: [(w[:40], w[:40][::-1])],
    "shifted up": lambda w: [(w[:40], w[1:41])],
    "shifted down": lambda w: [(w[1:41], w[:40])],
    "the other": lambda w: [(w[:40], w[40:80]), (w[40:80], w[:40])],
    "across two": lambda w: [(w[:40], w[20:60]), (w[40:80], w[30:70])],
    "strided": lambda w: [(w[:80:2], w[:40]), (w[1:80:2], w[40:80])],
    "nested": lambda w: [(w[:80:10], w[80:88]), (w[1:9], w[18:10:-1]), (w[11:19], w[8:0:-1]), (w[21:29], w[2:10])],
    # Two wide views with others in their gaps; the second's gradient lies on an element of the first.
    "between": lambda w: [
        (w[:80:20], w[90:94]),
        (w[1:5], w[94:98]),
        (w[7:80:20], w[38:42]),
        (w[11:15], w[98:102]),
        (w[21:25], w[102:106]),
        (w[31:35], w[106:110]),
    ],
    "one for all": lambda w: [(w[:40], w[80:]), (w[40:80], w[80:])],
}


@pytest.mark.parametrize("kind", ALIASES)
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("threads", ["1", "3"])
def test_gradients_may_lie_in_the_memory_of_parameters(kind, grouped, threads, engine, monkeypatch):
    from multiopt.backends.engines.host import engine as host

    monkeypatch.setenv("MULTIOPT_NUM_THREADS", threads)
    monkeypatch.setattr(host, "SERIAL", 0)
    monkeypatch.setattr(host, "PIECE", 7)
    results = []
    for apart in (False, True):
        whole = np.linspace(-3, 5, 120)
        pairs = ALIASES[kind](whole)
        params = [x for x, _ in pairs]
        opt = Adadelta([{"params": x} for x in params] if grouped else params, engine=engine, eps=0.1)
        for _ in range(2):
            grads = [g for _, g in pairs]
            opt.step([g.copy() for g in grads] if apart else grads)
        results.append(whole.tobytes())
    assert results[0] == results[1]


def test_a_gradient_of_another_dtype_group_may_be_a_view_of_a_parameter(engine):
    results = []
    for apart in (False, True):
        x = np.linspace(1, 2, 8, dtype=np.float32)
        y = np.linspace(1, 2, 4)
        g = x.view(np.float64)
        opt = Adadelta([x, y], engine=engine, eps=0.5)
        opt.step([np.ones(8, np.float32), g.copy() if apart else g])
        results.append(x.tobytes() + y.tobytes())
    assert results[0] == results[1]


# --- PyTorch ---


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="torch is not installed")


TORCH_LAYOUTS = {
    "contiguous": lambda t: t.clone(),
    "channels last": lambda t: t.clone(memory_format=__import__("torch").channels_last),
    "transposed": lambda t: (
        t.transpose(1, 3).clone(memory_format=__import__("torch").contiguous_format).transpose(1, 3)
    ),
    "strided": lambda t: t.repeat_interleave(2, 3)[..., ::2],
    "offset": lambda t: __import__("torch").cat([t, t])[1:3],
}


@pytest.mark.parametrize("grad_layout", TORCH_LAYOUTS)
@pytest.mark.parametrize("layout", TORCH_LAYOUTS)
def test_torch_layouts(layout, grad_layout, torch, engine):
    x = torch.from_numpy(X.reshape(2, 4, 3, 2).copy())
    p = TORCH_LAYOUTS[layout](x)
    p.copy_(x)
    g = TORCH_LAYOUTS[grad_layout](p)
    g.copy_(torch.from_numpy(G.reshape(p.shape).copy()))
    opt = Adadelta(p.requires_grad_(), engine=engine)
    strides = p.stride()
    for _ in range(3):
        assert opt.step(g) is p
    got, want = p.detach().contiguous().numpy(), expected(X.reshape(p.shape), G.reshape(p.shape))
    assert p.stride() == strides
    if engine == "host":
        assert got.tobytes() == want.tobytes()
    else:
        # PyTorch's own vectorised square root is off by one unit in some elements.
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_torch_autograd_is_told(torch, engine):
    for make in (lambda: torch.ones(3, requires_grad=True), lambda: torch.ones(6, requires_grad=True)):
        p = make()
        saved = (p * p).sum()  # autograd has kept p
        Adadelta(p, engine=engine).step(torch.ones_like(p).detach())
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            saved.backward()
        assert p.grad is None
        assert p.requires_grad
        (p * p).sum().backward()


def test_torch_non_leaf_and_strided_views_are_told_too(torch, engine):
    base = torch.ones(4, 6, requires_grad=True)
    p = base.detach()[:, ::2].requires_grad_()
    saved = (p * p).sum()
    opt = Adadelta(p, engine=engine)
    opt.step(torch.ones(4, 3))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.backward()
    assert (p < 1).all()


def test_torch_state_and_averages_do_not_require_grad(torch):
    opt = Adadelta(torch.ones(3, requires_grad=True), ema=0.5)
    opt.step(torch.ones(3, requires_grad=True) * 2)
    assert not any(t.requires_grad for t in (*opt.state.values(), opt.ema_params))


def test_torch_inference_mode(torch, engine):
    with torch.inference_mode():
        p = torch.from_numpy(X.copy())
        opt = Adadelta(p.clone(), engine=engine)
        opt.step(torch.from_numpy(G.copy()))
        assert opt.steps == 1
        assert not torch.equal(opt.params, p)


def test_torch_conjugate_and_negative_bits(torch, engine):
    rng = np.random.default_rng(1)
    x, g = (rng.standard_normal(9) + 1j * rng.standard_normal(9) for _ in range(2))
    want = {}
    for name, view in {"conj": np.conj, "neg": lambda a: np.ascontiguousarray(np.conj(a).imag)}.items():
        y = np.array(view(x))
        Adadelta(y, engine="eager", eps=0.1).step(np.array(view(g)))
        want[name] = y
    views = {"conj": lambda t: t.conj(), "neg": lambda t: t.conj().imag}
    for name, view in views.items():
        flags = view(torch.from_numpy(x.copy()))
        assert flags.is_conj() or flags.is_neg()
        for p, gradient in [
            (view(torch.from_numpy(x.copy())), view(torch.from_numpy(g.copy()))),
            (view(torch.from_numpy(x.copy())).clone().resolve_conj().resolve_neg(), view(torch.from_numpy(g.copy()))),
        ]:
            opt = Adadelta(p, engine=engine, eps=0.1)
            opt.step(gradient)
            got = p.resolve_conj().resolve_neg().numpy()
            np.testing.assert_allclose(got, want[name], rtol=1e-14)  # eager torch: its square root, as above


@pytest.mark.parametrize("when", ["before the first step", "later"])
def test_torch_data_may_be_swapped(torch, when, engine):
    p = torch.nn.Parameter(torch.from_numpy(X.copy()))
    opt = Adadelta(p, engine=engine)
    if when == "later":
        opt.step(torch.zeros(6, 8))
    old = p.data
    p.data = torch.from_numpy(X.copy())
    opt.step(torch.from_numpy(G.copy()))
    assert torch.equal(old, torch.from_numpy(X))
    assert not torch.equal(p.data, old)


@pytest.mark.parametrize("swap", ["p.data[:3]", "p.data.double()", "p.data.half()", "p.data.repeat(2, 1)", "p.data.T"])
def test_torch_data_of_another_kind_is_refused(torch, swap, engine):
    p = torch.nn.Parameter(torch.from_numpy(X.copy()))
    opt = Adadelta([p], engine=engine)
    opt.step([torch.ones(6, 8)])
    before = opt.state[0]["square_avg"].clone()
    p.data = eval(swap)  # as module.half() does
    kept = p.data.clone()
    for g in (torch.ones(6, 8), torch.ones_like(p.data)):
        with pytest.raises((TypeError, ValueError), match=r"(params|grads)\[0\]: expected"):
            opt.step([g])
    assert torch.equal(p.data, kept)
    assert torch.equal(opt.state[0]["square_avg"], before)
    assert opt.steps == 1


def test_torch_overlap(torch):
    x = torch.zeros(100)
    with pytest.raises(ValueError, match=r"params\[1\]: expected memory of its own"):
        Adadelta([x[:50], x[49:]])
    with pytest.raises(ValueError, match="got a view that repeats some"):
        Adadelta(torch.zeros(1).expand(5))
    with pytest.raises(ValueError, match="expected memory of its own"):
        Adadelta([x[:10], x.view(torch.bfloat16)[1::2]])
    with pytest.raises(ValueError, match="expected memory of its own"):
        Adadelta([x, torch.from_numpy(x.numpy())])
    Adadelta([x[::2], x[1::2]])


def test_torch_tensors_that_are_not_memory_are_refused(torch):
    meta, sparse = torch.zeros(3, device="meta"), torch.zeros(3).to_sparse()
    for x, message in [(meta, "got one on the meta device"), (sparse, "expected a strided tensor")]:
        with pytest.raises(TypeError, match=f"params: .*{message}"):
            Adadelta(x)
        opt = Adadelta(torch.ones(3))
        before = snapshot(opt)
        with pytest.raises(TypeError, match=f"grads: .*{message}"):
            opt.step(x)
        assert snapshot(opt) == before


def test_torch_tensors_without_memory_of_their_own_are_refused(torch):
    class Wrapper(torch.Tensor):
        @staticmethod
        def __new__(cls, inner):
            return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

        @classmethod
        def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
            raise AssertionError("nothing may be asked of it")

        __repr__ = object.__repr__

    message = "expected a tensor with memory of its own, got a Wrapper, which stands for others"
    with pytest.raises(TypeError, match=f"params: {message}"):
        Adadelta(Wrapper(torch.ones(3)))
    opt = Adadelta([torch.ones(3)])
    before = snapshot(opt)
    with pytest.raises(TypeError, match=rf"grads\[0\]: {message}"):
        opt.step([Wrapper(torch.ones(3))])
    assert snapshot(opt) == before


def test_torch_storage_that_was_freed_is_refused(torch, numba):
    # As some libraries for sharded training do between uses. An address of 0 must not pass for "no gradient".
    g = torch.ones(3)
    opt = Adadelta([torch.ones(3)])
    before = snapshot(opt)
    g.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=r"params\[0\]: expected memory, got .* whose memory was freed"):
        opt.step([g])
    assert snapshot(opt) == before
    opt = Adadelta([torch.ones(3)])
    opt.params[0].untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=r"params\[0\]: expected memory"):
        opt.step([torch.ones(3)])


# --- memory ---


@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_needs_no_memory_that_grows_with_the_arrays(engine):
    # NumPy tells tracemalloc of its allocations: 16 million elements, 64 MiB an array.
    code = f"""
import tracemalloc
import numpy as np
from multiopt import Adadelta, Hyper, Optimizer, Rule
n = 1 << 24
options = dict(weight_decay=0.1, maximize=True, clip_value=1.0, clip_norm=1.0, clip_global_norm=1.0, nonfinite="raise")
x, g = np.ones(n, np.float32), np.ones(n, np.float32)
for arrays in ([x], [x.reshape(4096, 4096).T[::-1]], list(np.split(x, 64))):
    opt = Adadelta(arrays, engine={engine!r}, **options)
    grads = [g] if len(arrays) == 1 and arrays[0].ndim == 1 else [g.reshape(4096, 4096)]
    grads = list(np.split(g, 64)) if len(arrays) > 1 else grads
    opt.step([np.zeros_like(a) for a in arrays])
    tracemalloc.start()
    opt.step(grads)
    print(tracemalloc.get_traced_memory()[1] >> 20)
    tracemalloc.stop()
"""
    peaks = [int(line) for line in run_python(code, timeout=300, MULTIOPT_NUM_THREADS="2").split()]
    assert max(peaks) <= 16, peaks


def descent(xp, x, g, *, lr):
    return (x - lr * g,)


@pytest.mark.skipif(not os.environ.get("MULTIOPT_TEST_HUGE"), reason="needs 9 GB; MULTIOPT_TEST_HUGE=1 asks for it")
def test_more_than_two_to_the_31_elements(engine):
    # A rule without state, because memory is dear; the walk over memory is that of every rule.
    n, block = 2**31 + 70_001, 1 << 24
    x, g = np.zeros(n, np.float16), np.ones(n, np.float16)
    g[::1000], g[2**31 :: 1000] = 0.5, -2.0
    opt = Optimizer(Rule("descent", descent, {}, {"lr": Hyper(0.25)}), x, engine=engine, clip_global_norm=1e9)
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
