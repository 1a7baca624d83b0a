"""What the CUDA kernels' sources compile to: right rounding, no contraction, 16-byte accesses."""

import re

import pytest
from multiopt.backends.engines.cuda import driver
from multiopt.backends.engines.cuda import source as cuda_source
from multiopt.backends.engines.cuda.driver import Nvrtc
from multiopt.backends.engines.program import TraceError

from multiopt import ADADELTA, Hyper, Rule
from multiopt.update import FusedUpdate

FULL = FusedUpdate(ADADELTA, scaled=True, clipped=True, coupled=True).program
DRAWN = FusedUpdate(ADADELTA, stochastic=(None, 0, 1)).program
#: From the oldest that a supported CUDA has (13 begins with 7.5; 12 has 7.0 too) to the newest data-centre chips.
CAPABILITIES = [70, 75, 80, 86, 89, 90, 100]


@pytest.fixture
def ptx(monkeypatch):
    """Compile a source to PTX. The compiler is allowed to contract, so that the source alone must prevent it."""
    try:
        compiler = Nvrtc()
    except ImportError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(driver, "OPTIONS", (b"--fmad=true", b"--std=c++17"))

    def compiled(source, capability):
        if capability not in compiler.supported:
            pytest.skip(f"this CUDA's compiler begins with compute capability {compiler.supported[0] / 10}")
        return compiler.compile(source, capability, ptx=True).decode()

    return compiled


KERNELS = {
    "update float32": lambda: cuda_source.update_source(FULL, ("float32",) * 4),
    "update float64": lambda: cuda_source.update_source(FULL, ("float64",) * 4),
    "update float16": lambda: cuda_source.update_source(FULL, ("float16",) * 4),
    "update bfloat16": lambda: cuda_source.update_source(FULL, ("bfloat16", "bfloat16", "float32", "float32")),
    "update stochastic": lambda: cuda_source.update_source(DRAWN, ("float32", "float32", "bfloat16", "bfloat16")),
    "squares float32": lambda: cuda_source.square_source(FULL, "float32"),
    "squares float64": lambda: cuda_source.square_source(FULL, "float64"),
    "finite": lambda: cuda_source.finite_source("float32"),
    "fill": cuda_source.fill_source,
}


@pytest.mark.parametrize(
    ("name", "capability"),
    [(name, c) for name in KERNELS for c in CAPABILITIES if name == "update float32" or c in (75, 100)],
)
def test_ptx_rounds_right_and_moves_16_bytes(ptx, name, capability):
    text = ptx(KERNELS[name](), capability)
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


def test_contraction_would_be_seen(ptx):
    # The check above can fail: the same kernel with plain operators contracts, if the compiler may.
    source = cuda_source.update_source(FULL, ("float32",) * 4)
    for name, sign in {"add": "+", "mul": "*"}.items():
        source = source.replace(f"return __##kind##{name}_rn(a, b);", f"return a {sign} b;")
    assert re.search(r"\bfma\b", ptx(source, 80))


def test_a_rule_of_too_many_numbers_is_rejected():
    def many(xp, x, g, *, lr):
        for k in range(70):
            x = x + k * g
        return (x,)

    with pytest.raises(TraceError, match="at most 64"):
        cuda_source.code_of(FusedUpdate(Rule("many", many, slots={}, hypers={"lr": Hyper(1.0)})).program)
