"""What the CUDA engine is tested on: CuPy, PyTorch, and a stand-in for both on the CPU; and arrays for it."""

import contextlib

import ml_dtypes
import numpy as np
import pytest
from cuda_host import MISSING, CudaArray, HostBackend, HostDriver
from libraries import torch_array, torch_tensor
from multiopt.backends import registry
from multiopt.backends.engines.cuda.engine import CudaEngine
from multiopt.backends.engines.cuda.plan import CHUNK

from multiopt import ADADELTA, Adadelta

#: On both sides of a pack, of a block's share and of a chunk.
SHAPES = [(), (0,), (1,), (7,), (64, 65), (3, 5, 7), (2 * CHUNK + 3,)]
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


class StandIn:
    """NumPy arrays on a CUDA device that is the CPU: the engine's own kernels, compiled by g++."""

    name, devices = "stand-in", 1

    def __init__(self):
        if MISSING:
            pytest.skip(MISSING)
        self.driver = HostDriver()

    @contextlib.contextmanager
    def registered(self):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(registry._by_type, CudaArray, HostBackend())
            patch.setitem(registry._engines, "cuda", CudaEngine(self.driver))
            yield self
        assert self.driver.accesses()[0] == 0, "16-byte accesses that are not aligned"

    def put(self, array, device=0):
        return np.array(array).view(CudaArray)

    def get(self, array):
        return np.asarray(array)

    def wait(self):
        """Wait for nothing: it works at once."""

    def capture(self, action):
        self.driver.captures = True
        try:
            action()
        finally:
            self.driver.captures = False
        return self.driver.replay


def arrays(rng, dtype, shapes=SHAPES, decades=(-12, 12)):
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    if dtype == "float16":
        decades = (-4, 2)
    made = [rng.standard_normal(shape) * 10.0 ** rng.integers(*decades, shape) for shape in shapes]
    if kind.kind == "c":
        made = [real + 1j * rng.standard_normal(np.shape(real)) for real in made]
    return [np.asarray(values).astype(kind) for values in made]


def everything(opt, get):
    arrays = [*opt.params, *(state[slot] for slot in ADADELTA.slots for state in opt.state)]
    return [np.asarray(get(a)) for a in (*arrays, *(opt.ema_params if opt.ema is not None else []))]


def assert_same(device, ours, numpys):
    assert_same_columns(everything(ours, device.get), everything(numpys, np.asarray))


def assert_same_columns(ours, expected):
    """The same bits, but for the payloads of NaNs."""
    for a, b in zip(ours, expected, strict=True):
        a, b = np.atleast_1d(a), np.atleast_1d(b)
        if b.dtype.kind == "c":
            a, b = a.view(a.real.dtype), b.view(b.real.dtype)
        numbers = ~np.isnan(b.astype(np.float64))
        assert np.array_equal(~np.isnan(a.astype(np.float64)), numbers)
        assert a[numbers].tobytes() == b[numbers].tobytes()


def pair(device, dtype="float32", shapes=SHAPES, steps=3, **options):
    """Optimizers on the device and in NumPy, and gradients for some steps."""
    rng = np.random.default_rng(6)
    start, grads = arrays(rng, dtype, shapes), [arrays(rng, dtype, shapes) for _ in range(steps)]
    ours = Adadelta([device.put(a) for a in start], engine="cuda", **options)
    return ours, Adadelta([a.copy() for a in start], **options), grads


def step_both(device, ours, numpys, steps, place=None):
    """Step with the same gradients on the device, put there by `place`, and in NumPy; the bits must be the same."""
    for grads in steps:
        ours.step([None if g is None else (place or device.put)(g) for g in grads])
        numpys.step(grads)
    assert_same(device, ours, numpys)
