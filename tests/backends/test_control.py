"""Whatever a thread's control register says, of rounding or of subnormal numbers, a step gives the same bits."""

import platform
import sys

import pytest
from processes import run_python

pytestmark = pytest.mark.skipif(
    sys.platform not in ("linux", "darwin") or platform.machine() not in ("x86_64", "aarch64", "arm64"),
    reason="the register is set by C's library here",
)

#: FE_TONEAREST, FE_DOWNWARD, FE_UPWARD, FE_TOWARDZERO.
MODES = (0x0, 0x400, 0x800, 0xC00) if platform.machine() == "x86_64" else (0x0, 0x800000, 0x400000, 0xC00000)

STEPS = """
import ctypes, os, zlib
import numpy as np
from multiopt import Adadelta
if ENGINE == "host":
    from multiopt.backends.engines.host import engine
    engine.PIECE, engine.SERIAL = 1000, 0
libm = ctypes.CDLL(None)

def rounded():  # what the register does to this thread's arithmetic
    tiny, third = np.array([1e-310, 1.0]), np.array([1.0, -1.0]) / np.array([3.0, 3.0])
    return (tiny * 0.5).tolist(), third.tolist()

def bits(dtype):
    rng = np.random.default_rng(0)
    draw = lambda: (rng.standard_normal(5003) * 10.0 ** rng.uniform(LOWEST[dtype], 3, 5003)).astype(dtype)
    x, grads = draw(), [draw() for _ in range(3)]
    opt = Adadelta([x], engine=ENGINE, eps=EPS[dtype], weight_decay=0.01, clip_global_norm=1.0, ema=0.5)
    change()
    found = rounded()
    for g in grads:
        opt.step([g])
    assert rounded() == found  # the caller's register is as it was
    state = [x, opt.ema_params[0], np.asarray(opt.grad_norm), *opt.state[0].values()]
    restore()
    return found, [zlib.crc32(a) for a in state], int(sum((abs(a) < np.finfo(dtype).tiny)[a != 0].sum() for a in state))

LOWEST, EPS = {"float32": -45, "float64": -320}, {"float32": 1e-40, "float64": 1e-310}
change = restore = lambda: None
expected = {dtype: bits(dtype) for dtype in LOWEST}
os.environ["MULTIOPT_NUM_THREADS"] = "3"
assert all(subnormal > 100 for _, _, subnormal in expected.values())
"""

FLUSHED = """
import torch
change, restore = lambda: torch.set_flush_denormal(True), lambda: torch.set_flush_denormal(False)
if torch.set_flush_denormal(True):
    torch.set_flush_denormal(False)
    for dtype in LOWEST:
        found, got, _ = bits(dtype)
        assert found != expected[dtype][0], "the register was not changed"
        print(got == expected[dtype][1])
else:
    print("True\\nTrue")
"""

ROUNDED = """
for mode in MODES:
    change, restore = lambda: libm.fesetround(mode), lambda: libm.fesetround(MODES[0])
    for dtype in LOWEST:
        found, got, _ = bits(dtype)
        assert (found != expected[dtype][0]) == (mode != MODES[0])
        print(got == expected[dtype][1])
"""


@pytest.mark.parametrize("threads", ["1", "3"], ids=["helpers start with it", "helpers are there"])
def test_subnormals_are_kept_where_a_library_flushes_them(threads, engine, torch):
    # A thread starts with the register of the thread that starts it.
    found = run_python(f"ENGINE = {engine!r}\n{STEPS}{FLUSHED}", MULTIOPT_NUM_THREADS=threads)
    assert found.split() == ["True"] * 2


def test_every_rounding_mode_gives_the_same_bits(engine):
    found = run_python(f"ENGINE, MODES = {engine!r}, {MODES}\n{STEPS}{ROUNDED}", MULTIOPT_NUM_THREADS="3")
    assert found.split() == ["True"] * 8


@pytest.mark.parametrize(
    ("triple", "instructions"),
    [
        ("x86_64-unknown-linux-gnu", ["stmxcsr", "ldmxcsr", "mulss", "ldmxcsr"]),
        ("aarch64-unknown-linux-gnu", ["mrs FPCR", "msr FPCR", "fmul", "msr FPCR"]),
        ("arm64-apple-macosx11.0.0", ["mrs FPCR", "msr FPCR", "fmul", "msr FPCR"]),
        ("riscv64-unknown-linux-gnu", []),
    ],
    ids=lambda value: value.partition("-")[0] if isinstance(value, str) else "",
)
def test_the_register_is_set_before_the_first_operation_and_restored_after_the_last(triple, instructions, numba):
    import re

    from llvmlite import binding, ir
    from multiopt.backends.engines.host.control import read_and_set, restore

    module = ir.Module()
    module.triple = triple
    number, pointer = ir.FloatType(), ir.PointerType(ir.FloatType())
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [pointer, number]), "square")
    builder = ir.IRBuilder(function.append_basic_block())
    before = read_and_set(builder, triple)
    builder.store(builder.fmul(builder.load(function.args[0]), function.args[1]), function.args[0])
    restore(builder, triple, before)
    builder.ret_void()
    if not instructions:
        assert "call" not in str(module)
        return
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    machine = binding.Target.from_triple(triple).create_target_machine(opt=3)
    parsed = binding.parse_assembly(str(module))
    builder = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(speed_level=3))
    builder.getModulePassManager().run(parsed, builder)
    found = re.findall(r"[sl][td]mxcsr|mulss|fmul|m[rs]{2}\s.*FPCR.*", machine.emit_assembly(parsed))
    assert [re.sub(r"\s.*FPCR.*", " FPCR", line) for line in found] == instructions
