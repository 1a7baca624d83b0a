"""CuPy and PyTorch on a CUDA device: NumPy's bits, one launch, no allocation, no waiting, graphs, streams."""

import contextlib

import ml_dtypes
import numpy as np
import pytest
from libraries import OPTIONS, torch_array, torch_tensor

from multiopt import ADADELTA, Adadelta, backends

pytestmark = pytest.mark.gpu
DTYPES = ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"]
SHAPES = [(), (0,), (1,), (7,), (64, 65), (3, 5, 7), (40_009,)]
#: Cycles that a device spends before it gets to a step: some hundredths of a second, longer than any launch.
LONG = 100_000_000


class Cupy:
    """CuPy, as the tests need it."""

    name = "cupy"

    def __init__(self):
        self.cp = pytest.importorskip("cupy", reason="cupy is not installed")
        try:
            self.devices = self.cp.cuda.runtime.getDeviceCount()
        except self.cp.cuda.runtime.CUDARuntimeError as error:
            pytest.skip(f"CuPy finds no CUDA device: {error}")

    def put(self, array, device=0):
        with self.cp.cuda.Device(device):
            return self.cp.asarray(array)

    def get(self, array):
        return self.cp.asnumpy(array)

    def full(self, size, value, dtype):
        return self.cp.full(size, value, dtype)

    def free(self):
        self.cp.get_default_memory_pool().free_all_blocks()
        return self.cp.cuda.runtime.memGetInfo()[0]

    def wait(self):
        self.cp.cuda.Device().synchronize()

    def stream(self):
        return self.cp.cuda.Stream(non_blocking=True)

    def delay(self):
        spin = """extern "C" __global__ void spin(long long n) {
            const long long start = clock64();
            while (clock64() - start < n);
        }"""
        self.cp.RawKernel(spin, "spin")((1,), (1,), (np.int64(LONG),))

    def done(self):
        return self.cp.cuda.get_current_stream().done

    def allocations(self, action):
        class Counter(self.cp.cuda.MemoryHook):
            name = "multiopt"
            calls = 0

            def malloc_preprocess(self, **kwargs):
                self.calls += 1

        with Counter() as counter:
            action()
        return counter.calls

    def capture(self, action):
        """Capture an action into a graph; return what replays it."""
        pool, stream = self.cp.cuda.MemoryPool(), self.stream()
        self.wait()
        with self.cp.cuda.using_allocator(pool.malloc), stream:
            stream.begin_capture()
            action()
            graph = stream.end_capture()

        def replay():
            graph.launch(stream)
            stream.synchronize()
            assert pool is not None  # what the graph writes to stays the graph's

        return replay

    def no_waiting(self):
        return contextlib.nullcontext()


class Torch:
    """PyTorch, as the tests need it."""

    name = "torch"

    def __init__(self):
        self.torch = pytest.importorskip("torch", reason="torch is not installed")
        if not self.torch.cuda.is_available():
            pytest.skip("PyTorch finds no CUDA device")
        if self.torch.version.hip:
            pytest.skip("this PyTorch is for AMD's devices")
        self.devices = self.torch.cuda.device_count()

    def put(self, array, device=0):
        return torch_tensor(np.array(array)).to(f"cuda:{device}")

    def get(self, tensor):
        return torch_array(tensor)

    def full(self, size, value, dtype):
        return self.torch.full((size,), value, dtype=getattr(self.torch, dtype), device="cuda")

    def free(self):
        self.torch.cuda.empty_cache()
        return self.torch.cuda.mem_get_info()[0]

    def wait(self):
        self.torch.cuda.synchronize()

    @contextlib.contextmanager
    def stream(self):
        stream = self.torch.cuda.Stream()
        stream.wait_stream(self.torch.cuda.current_stream())
        with self.torch.cuda.stream(stream):
            yield
        self.torch.cuda.current_stream().wait_stream(stream)

    def delay(self):
        self.torch.cuda._sleep(LONG)

    def done(self):
        return self.torch.cuda.current_stream().query()

    def allocations(self, action):
        def count():
            return self.torch.cuda.memory_stats().get("allocation.all.allocated", 0)

        before = count()
        action()
        return count() - before

    def capture(self, action):
        graph = self.torch.cuda.CUDAGraph()
        self.wait()
        with self.torch.cuda.graph(graph):
            action()

        def replay():
            graph.replay()
            self.wait()

        return replay

    @contextlib.contextmanager
    def no_waiting(self):
        before = self.torch.cuda.get_sync_debug_mode()
        self.torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            self.torch.cuda.set_sync_debug_mode(before)


@pytest.fixture(params=[Cupy, Torch], ids=lambda kind: kind.name)
def gpu(request):
    return request.param()


def arrays(rng, dtype, shapes=SHAPES, decades=(-12, 12)):
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    if dtype == "float16":
        decades = (-4, 2)
    made = []
    for shape in shapes:
        values = np.asarray(rng.standard_normal(shape) * 10.0 ** rng.integers(*decades, shape))
        values = np.asarray(values + 1j * rng.standard_normal(shape)) if kind.kind == "c" else values
        made.append(values.astype(kind))
    return made


def everything(opt, get):
    columns = [opt.params, *([state[slot] for state in opt.state] for slot in ADADELTA.slots)]
    columns += [opt.ema_params] if opt.ema is not None else []
    return [[np.asarray(get(a)) for a in column] for column in columns]


def assert_same(gpu, ours, numpys):
    for column, expected in zip(everything(ours, gpu.get), everything(numpys, np.asarray), strict=True):
        for a, b in zip(column, expected, strict=True):
            a, b = np.atleast_1d(a), np.atleast_1d(b)
            if b.dtype.kind == "c":
                a, b = a.view(a.real.dtype), b.view(b.real.dtype)
            numbers = ~np.isnan(b.astype(np.float64))
            assert np.array_equal(~np.isnan(a.astype(np.float64)), numbers)
            assert a[numbers].tobytes() == b[numbers].tobytes()


def pair(gpu, dtype="float32", shapes=SHAPES, steps=3, **options):
    """Optimizers on the device and in NumPy, and gradients for some steps."""
    rng = np.random.default_rng(6)
    start, grads = arrays(rng, dtype, shapes), [arrays(rng, dtype, shapes) for _ in range(steps)]
    ours = Adadelta([gpu.put(a) for a in start], engine="cuda", **options)
    return ours, Adadelta([a.copy() for a in start], **options), grads


# --- bits ---


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_has_the_bits_of_numpy(gpu, dtype):
    ours, numpys, steps = pair(gpu, dtype, weight_decay=0.01)
    for grads in steps:
        ours.step([gpu.put(g) for g in grads])
        numpys.step(grads)
    assert_same(gpu, ours, numpys)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_has_the_bits_of_numpy(gpu, name, dtype):
    ours, numpys, steps = pair(gpu, dtype, steps=6, **OPTIONS[name])
    for grads in steps:
        ours.step([gpu.put(g) for g in grads])
        numpys.step(grads)
    assert_same(gpu, ours, numpys)


@pytest.mark.parametrize(
    ("dtype", "state_dtype"), [("float16", "float32"), ("bfloat16", "float32"), ("float32", "float64")]
)
def test_state_of_another_dtype(gpu, dtype, state_dtype):
    ours, numpys, steps = pair(gpu, dtype, state_dtype=state_dtype)
    for grads in steps:
        ours.step([gpu.put(g) for g in grads])
        numpys.step(grads)
    assert_same(gpu, ours, numpys)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_edges_and_subnormals(gpu, dtype):
    info = np.finfo(dtype)
    numbers = np.array([0, 1, info.max, info.tiny, info.smallest_subnormal, np.inf, np.nan, 1e-20, 3e9], dtype)
    x, g = np.meshgrid(np.concatenate([numbers, -numbers]), np.concatenate([numbers, -numbers]))
    ours = Adadelta([gpu.put(x.copy())], engine="cuda", weight_decay=0.1)
    numpys = Adadelta([x.copy()], weight_decay=0.1)
    for _ in range(2):
        ours.step([gpu.put(g.copy())])
        numpys.step([g])
    assert_same(gpu, ours, numpys)


# --- where arrays lie ---


def gaps(array):
    wide = np.zeros((*array.shape, 2), array.dtype)
    wide[..., 0] = array
    return wide


@pytest.mark.parametrize("which", ["parameters", "gradients", "both"])
@pytest.mark.parametrize("way", ["gaps", "transposed", "shifted"])
def test_arrays_with_gaps_transposed_or_off_16_bytes_lose_no_update(gpu, which, way):
    def place(array):
        if way == "gaps":
            return gpu.put(gaps(array))[..., 0]
        if way == "transposed":
            return gpu.put(np.ascontiguousarray(array.T)).T if array.ndim < 3 else gpu.put(array.copy())
        return gpu.put(np.concatenate([np.zeros(1, array.dtype), array.ravel()]))[1:].reshape(array.shape)

    rng = np.random.default_rng(7)
    shapes = [(64, 65), (40_009,), (5,)]
    start = arrays(rng, "float32", shapes)
    params = [place(a) if which != "gradients" else gpu.put(a) for a in start]
    ours = Adadelta(params, engine="cuda", clip_global_norm=1.0)
    numpys = Adadelta([a.copy() for a in start], clip_global_norm=1.0)
    for _ in range(3):
        grads = arrays(rng, "float32", shapes)
        ours.step([place(g) if which != "parameters" else gpu.put(g) for g in grads])
        numpys.step(grads)
    assert_same(gpu, ours, numpys)
    assert all(a is b for a, b in zip(ours.params, params, strict=True))


def test_three_thousand_million_elements_in_one_array(gpu):
    size = 3_000_000_000
    if gpu.free() < 4 * 4 * size + (2 << 30):
        pytest.skip(f"it needs {16 * size / 1e9:.0f} GB on the device, {gpu.free() / 1e9:.0f} GB are free")
    x, g = gpu.full(size, 1.0, "float32"), gpu.full(size, 0.5, "float32")
    places = [0, 1, 2**31 - 1, 2**31, 2**31 + 1, size - 4097, size - 2, size - 1]
    for k, place in enumerate(places):
        g[place] = 0.25 * (k + 1)
    small = np.array([0.25 * (k + 1) for k in range(len(places))], np.float32)
    numpys = Adadelta([np.ones(len(places), np.float32)])
    ours = Adadelta([x], engine="cuda")
    ours.step([g])
    numpys.step([small])
    assert [float(x[p]) for p in places] == numpys.params[0].tolist()
    other = Adadelta([np.ones(1, np.float32)])
    other.step([np.full(1, 0.5, np.float32)])
    assert [float(x[p]) for p in (17, 2**31 + 5, size - 5000)] == [float(other.params[0][0])] * 3


# --- what a step costs ---


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1, "clip_value": 1.0}], ids=["plain", "decay and clip"])
def test_a_step_allocates_nothing_and_waits_for_nothing(gpu, options):
    ours, _, (grads, *_) = pair(gpu, **options)
    own = [gpu.put(g) for g in grads]
    ours.step(own)
    gpu.wait()
    assert gpu.allocations(lambda: ours.step(own)) == 0
    gpu.delay()
    with gpu.no_waiting():
        ours.step(own)
    assert not gpu.done(), "the step has waited for the device"
    gpu.wait()


def test_clipping_by_the_global_norm_does_not_wait(gpu):
    ours, numpys, (grads, *_) = pair(gpu, clip_global_norm=1.0, clip_norm=2.0)
    own = [gpu.put(g) for g in grads]
    ours.step(own)
    gpu.wait()
    gpu.delay()
    with gpu.no_waiting():
        ours.step(own)
    assert not gpu.done(), "the step has waited for the device"
    gpu.wait()
    for _ in range(2):
        numpys.step(grads)
    assert_same(gpu, ours, numpys)
    assert float(ours.grad_norm) == float(numpys.grad_norm)


def test_it_works_on_the_current_stream(gpu):
    ours, numpys, steps = pair(gpu)
    gpu.wait()
    for grads in steps:
        with gpu.stream():
            own = [gpu.put(g) for g in grads]
            gpu.delay()
            # Were the step on another stream, it would read the gradients before they are what they shall be.
            for g in own:
                g *= 2
            ours.step(own)
        gpu.wait()
        numpys.step([np.asarray(g * 2) for g in grads])
    assert_same(gpu, ours, numpys)


# --- graphs ---


@pytest.mark.parametrize("options", [{}, {"clip_global_norm": 1.0}], ids=["plain", "global norm"])
def test_graph_capture(gpu, options):
    ours, numpys, steps = pair(gpu, steps=4, **options)
    static = [gpu.put(g) for g in steps[0]]
    ours.step([gpu.put(g) for g in steps[0]])  # the step before capture, with gradients elsewhere
    numpys.step(steps[0])
    replay = gpu.capture(lambda: ours.step(static))
    assert_same(gpu, ours, numpys)
    backend = backends.of(static[0])
    for grads in steps[1:]:
        for s, g in zip(static, grads, strict=True):
            backend.write(s, gpu.put(g))
        gpu.wait()
        replay()
        numpys.step(grads)
        # And another step between replays, with its gradients elsewhere again.
        ours.step([gpu.put(g) for g in grads])
        gpu.wait()
        numpys.step(grads)
        assert_same(gpu, ours, numpys)


def test_capture_without_a_step_before_it_says_so(gpu):
    ours, _, (grads, *_) = pair(gpu, shapes=[(3,)])
    own = [gpu.put(g) for g in grads]

    def refused():
        with pytest.raises(RuntimeError, match="do one step with the same options before it"):
            ours.step(own)
        own[0] *= 1  # an empty graph would be warned of

    gpu.capture(refused)
    ours.step(own)


def test_capturable_with_the_rate_in_a_tensor():
    gpu = Torch()
    torch = gpu.torch
    from multiopt.torch import Adadelta as TorchAdadelta

    rng = np.random.default_rng(8)
    start, grads = (arrays(rng, "float32", [(40_009,), (7, 9)]) for _ in range(2))
    params = [torch.nn.Parameter(gpu.put(a)) for a in start]
    lr = torch.tensor(0.5, device="cuda")
    opt = TorchAdadelta(params, lr=lr, capturable=True, weight_decay=0.01)
    numpys = Adadelta([a.copy() for a in start], lr=0.5, weight_decay=0.01)
    for p, g in zip(params, grads, strict=True):
        p.grad = gpu.put(g)
    opt.step()
    numpys.step(grads)
    replay = gpu.capture(opt.step)
    for value in (0.5, 0.25, 2.0):
        lr.fill_(value)
        replay()
        numpys.lr = value
        numpys.step(grads)
    for p, expected in zip(params, numpys.params, strict=True):
        assert gpu.get(p).tobytes() == expected.tobytes()
    assert float(opt.state[params[0]]["step"]) == 4


# --- devices and autograd ---


def test_arrays_on_two_devices_in_one_optimizer(gpu):
    if gpu.devices < 2:
        pytest.skip("it needs two CUDA devices")
    rng = np.random.default_rng(9)
    shapes = [(5000,), (33, 3), (7,), (4096,)]
    start, grads = arrays(rng, "float32", shapes), arrays(rng, "float32", shapes)
    for options in ({}, {"clip_global_norm": 1.0}):
        ours = Adadelta([gpu.put(a, i % 2) for i, a in enumerate(start)], engine="cuda", **options)
        numpys = Adadelta([a.copy() for a in start], **options)
        for _ in range(2):
            ours.step([gpu.put(g, i % 2) for i, g in enumerate(grads)])
            numpys.step(grads)
        assert_same(gpu, ours, numpys)


def test_arrays_on_a_device_that_is_not_the_current_one(gpu):
    if gpu.devices < 2:
        pytest.skip("it needs two CUDA devices")
    rng = np.random.default_rng(10)
    start, grads = arrays(rng, "float32", [(5000,)]), arrays(rng, "float32", [(5000,)])
    ours = Adadelta([gpu.put(start[0], 1)], engine="cuda", clip_global_norm=1.0)
    numpys = Adadelta([start[0].copy()], clip_global_norm=1.0)
    ours.step([gpu.put(grads[0], 1)])
    numpys.step(grads)
    assert_same(gpu, ours, numpys)


def test_autograd_is_told_that_parameters_changed():
    gpu = Torch()
    x = gpu.put(np.ones(5, np.float32)).requires_grad_()
    y = (x * x).sum()
    Adadelta([x], engine="cuda").step([gpu.put(np.ones(5, np.float32))])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_non_finite_gradients_are_skipped(gpu):
    ours, _, (grads, *_) = pair(gpu, nonfinite="skip")
    before = everything(ours, gpu.get)
    grads[4][3, 3] = np.nan
    ours.step([gpu.put(g) for g in grads])
    assert ours.skipped == 1
    for old, new in zip(before, everything(ours, gpu.get), strict=True):
        assert all(a.tobytes() == b.tobytes() for a, b in zip(old, new, strict=True))
