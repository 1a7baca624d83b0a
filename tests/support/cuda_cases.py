"""Arrays for the tests of the CUDA engine, in a bucket of its own and in one of the host engine."""

import contextlib

import array_api_compat.numpy as xp
import ml_dtypes
import numpy as np
import pytest
from cuda_host import MISSING, FakeBackend, HostDriver, bucket
from multiopt.backends import registry
from multiopt.backends.engines.cuda import plan as cuda_plan
from multiopt.backends.engines.cuda.engine import CudaEngine
from multiopt.backends.protocol import Bucket

from multiopt import ADADELTA, backends
from multiopt.update import FusedUpdate

needs_stand_in = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
DTYPES = {"float32": "float32", "float64": "float64", "float16": "float16", "bfloat16": ml_dtypes.bfloat16}
#: On both sides of a pack, of a block's share and of a chunk.
SHAPES = [(), (0,), (1,), (7,), (64, 65), (3, 5, 7), (2 * cuda_plan.CHUNK + 3,)]
FULL = FusedUpdate(ADADELTA, scaled=True, clipped=True, normed=False, coupled=True).program
VALUES = {"lr": 0.7, "rho": 0.9, "eps": 1e-6, "scale": -0.5, "clip_value": 2.0, "weight_decay": 0.1}


@contextlib.contextmanager
def on_cuda():
    """NumPy's arrays are taken for CuPy's, and the CUDA engine's kernels run on the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        driver = HostDriver()
        patch.setitem(registry._by_type, np.ndarray, FakeBackend("cupy", xp))
        patch.setitem(registry._engines, "cuda", CudaEngine(driver))
        yield driver


def arrays(rng, dtype, shapes=SHAPES, decades=(-12, 12)):
    made = []
    for shape in shapes:
        values = rng.standard_normal(shape) * 10.0 ** rng.integers(*decades, shape)
        if np.dtype(dtype).kind == "c":
            values = values + 1j * rng.standard_normal(shape)
        with np.errstate(over="ignore"):
            made.append(np.asarray(values).astype(dtype))
    return made


def pair(dtype, state_dtype=None, change=lambda a, j: a.copy(), shapes=SHAPES, decades=(-12, 12)):
    """The same arrays in a bucket for the CUDA engine and in one for the host engine, and gradients.

    `change` gives the CUDA engine's arrays another place or order; it gets the number of the column too.
    """
    rng = np.random.default_rng(1)
    state_dtype = state_dtype or dtype
    params, grads = arrays(rng, dtype, shapes, decades), arrays(rng, dtype, shapes, decades)
    state = {
        slot: [np.asarray(np.abs(a)).astype(a.dtype) for a in arrays(rng, state_dtype, shapes, decades)]
        for slot in ADADELTA.slots
    }
    changed = {slot: [change(a, j) for a in own] for j, (slot, own) in enumerate(state.items(), 2)}
    cuda = bucket([change(a, 0) for a in params], changed)
    names = [np.dtype(d).name for d in (dtype, dtype, state_dtype)]
    numpy = backends.get("numpy")
    host = Bucket(numpy, backends.engine("host"), "cpu", *names, cuda.names, [a.copy() for a in params], state)
    return cuda, host, [change(g, 1) for g in grads], grads


def same(cuda, host):
    for ours, theirs in zip(cuda.arrays(), host.arrays(), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            numbers = ~np.isnan(b)
            assert np.array_equal(np.isnan(a), np.isnan(b))
            assert np.ascontiguousarray(a[numbers]).tobytes() == np.ascontiguousarray(b[numbers]).tobytes()


def step(cuda, host, cuda_grads, grads, program=FULL, times=2, scales=None):
    for _ in range(times):
        cuda.engine.update(cuda, program, cuda_grads, VALUES, scales)
        host.engine.update(host, program, grads, VALUES, scales)
    same(cuda, host)
    assert cuda.engine.driver.accesses()[0] == 0
