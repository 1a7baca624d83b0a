"""The CUDA kernels without a GPU: run on the CPU they have the host engine's bits; and what they compile to."""

import re
import subprocess

import cuda_host
import numpy as np
import pytest
from cuda_cases import DTYPES, FULL, arrays, needs_stand_in, on_cuda, pair, step
from libraries import OPTIONS
from multiopt.backends.engines.cuda import source as cuda_source
from multiopt.backends.engines.cuda.driver import Nvrtc

from multiopt import ADADELTA, Adadelta, Hyper, Rule
from multiopt.update import FusedUpdate

# --- bits ---


@needs_stand_in
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_has_the_bits_of_the_host_engine(numba, name, dtype):
    rng = np.random.default_rng(2)
    start, steps = arrays(rng, dtype), [arrays(rng, dtype) for _ in range(6)]
    host = Adadelta([a.copy() for a in start], engine="host", **OPTIONS[name])
    for grads in steps:
        host.step(grads)
    with on_cuda() as driver:
        cuda = Adadelta([a.copy() for a in start], engine="cuda", **OPTIONS[name])
        for grads in steps:
            cuda.step(grads)
        pairs = list(zip(host.params, cuda.params, strict=True))
        pairs += [(a[slot], b[slot]) for a, b in zip(host.state, cuda.state, strict=True) for slot in ADADELTA.slots]
        pairs += list(zip(host.ema_params, cuda.ema_params, strict=True)) if host.ema is not None else []
    assert all(a.tobytes() == b.tobytes() for a, b in pairs)
    assert driver.accesses()[0] == 0


@needs_stand_in
@pytest.mark.parametrize(
    ("dtype", "state_dtype"),
    [
        ("float32", None), ("float64", None), ("float16", None), ("bfloat16", None), ("float16", "float32"),
        ("bfloat16", "float32"), ("float32", "float64"), ("float64", "float32"), ("complex64", None),
        ("complex128", None),
    ],
)  # fmt: skip
def test_every_dtype_has_the_bits_of_the_host_engine(numba, dtype, state_dtype):
    program = FusedUpdate(ADADELTA, coupled=True).program if dtype.startswith("complex") else FULL
    decades = (-3, 3) if dtype == "float16" else (-12, 12)
    dtype = DTYPES.get(dtype, dtype)
    step(*pair(dtype, state_dtype, decades=decades), program)


@needs_stand_in
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_edges(numba, dtype):
    info = np.finfo(dtype)
    numbers = np.array([0, 1, info.max, info.tiny, info.smallest_subnormal, np.inf, np.nan, 1e-20, 3e9], dtype)
    numbers = np.concatenate([numbers, -numbers])
    cuda, host, _, _ = pair(dtype, shapes=[(18, 18)])
    x, g = np.meshgrid(numbers, numbers)
    for bucket in (cuda, host):
        bucket.params[0][...] = x
    step(cuda, host, [g], [g])


@needs_stand_in
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_rounded_once_and_right(dtype):
    # Every number and every midpoint between two, and what lies just beside them.
    kind = np.dtype(DTYPES[dtype])
    every = np.arange(1 << 16, dtype=np.uint16).view(kind).astype(np.float32)
    every = np.sort(every[np.isfinite(every)])
    middle = ((every[1:].astype(np.float64) + every[:-1]) / 2).astype(np.float32)
    values = np.concatenate([every, middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(9e9))])
    values = np.concatenate([values, np.array([np.inf, -np.inf, np.nan, 65520.0, 3.4e38], np.float32)])

    def copy(xp, x, g, *, lr):
        return (g,)

    rule = Rule("copy", copy, slots={}, hypers={"lr": Hyper(1.0)})
    bucket = cuda_host.bucket([np.zeros(values.shape, kind)], {}, "float32")
    bucket.engine.update(bucket, FusedUpdate(rule).program, [values], {"lr": 1.0}, None)
    with np.errstate(over="ignore"):
        expected, found = values.astype(kind), bucket.params[0]
    numbers = ~np.isnan(values)
    assert np.array_equal(expected[numbers].view(np.uint16), found[numbers].view(np.uint16))
    assert np.isnan(found[~numbers].astype(np.float32)).all()


# --- what the compiler makes of it ---

#: From the oldest that a supported CUDA has (13 begins with 7.5; 12 has 7.0 too) to the newest data-centre chips.
CAPABILITIES = [70, 75, 80, 86, 89, 90, 100]


def nvcc():
    try:
        listed = subprocess.run(["nvcc", "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return [int(word.removeprefix("compute_")) for word in listed.split()]


def ptx(source, capability, tmp_path):
    """The PTX of a source. The compiler is allowed to contract, so that the source alone must prevent it."""
    try:
        compiler = Nvrtc()
    except ImportError:
        compiler = None
    supported = compiler.supported if compiler else nvcc()
    if supported is None:
        pytest.skip("neither NVRTC (pip install nvidia-cuda-nvrtc) nor nvcc is installed")
    if capability not in supported:
        pytest.skip(f"this CUDA's compiler begins with compute capability {supported[0] / 10}")
    if compiler:
        return compiler.compile(source, capability, ptx=True).decode()
    (tmp_path / "kernel.cu").write_text(source)
    command = ["nvcc", "-ptx", f"-arch=compute_{capability}", "--fmad=true", "-o", "kernel.ptx", "kernel.cu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return (tmp_path / "kernel.ptx").read_text()


KERNELS = {
    "update float32": lambda: cuda_source.update_source(FULL, ("float32",) * 4),
    "update float64": lambda: cuda_source.update_source(FULL, ("float64",) * 4),
    "update float16": lambda: cuda_source.update_source(FULL, ("float16",) * 4),
    "update bfloat16": lambda: cuda_source.update_source(FULL, ("bfloat16", "bfloat16", "float32", "float32")),
    "squares float32": lambda: cuda_source.square_source(FULL, "float32"),
    "squares float64": lambda: cuda_source.square_source(FULL, "float64"),
    "finite": lambda: cuda_source.finite_source("float32"),
    "fill": cuda_source.fill_source,
}


@pytest.mark.parametrize(
    ("name", "capability"),
    [(name, c) for name in KERNELS for c in CAPABILITIES if name == "update float32" or c in (75, 100)],
)
def test_ptx_rounds_right_and_moves_16_bytes(name, capability, tmp_path):
    text = ptx(KERNELS[name](), capability, tmp_path)
    assert not re.search(r"\bfma\b|\.ftz|\.approx|\bmad\.\w*\.?f(32|64)", text)
    # Indexing registers in memory would cost more than the arithmetic.
    assert ".local" not in text
    kind, _, dtype = name.partition(" ")
    if kind == "update":
        real = "f64" if dtype == "float64" else "f32"
        assert text.count(f"sqrt.rn.{real}") >= 2
        assert f"div.rn.{real}" in text
        assert "st.global.v4" in text
    if kind != "fill":
        assert "ld.global.v4" in text
    if kind == "squares":
        assert re.search(r"red\.\S*add\.u64|atom\.\S*add\.u64", text)
    assert not re.search(r"\b(ld|st)\.(u16|f32|f64|v4)", text), "an access of unknown address space"


def test_contraction_would_be_seen(tmp_path):
    # The check above can fail: the same kernel with plain operators contracts, if the compiler may.
    source = cuda_source.update_source(FULL, ("float32",) * 4)
    for name in ("add", "mul"):
        source = source.replace(f"return __##kind##{name}_rn(a, b);", f"return a {'+' if name == 'add' else '*'} b;")
    (tmp_path / "kernel.cu").write_text(source)
    if nvcc() is None:
        pytest.skip("there is no nvcc; NVRTC is always called with contraction off")
    command = ["nvcc", "-ptx", "-arch=compute_80", "-o", "kernel.ptx", "kernel.cu"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert re.search(r"\bfma\b", (tmp_path / "kernel.ptx").read_text())
