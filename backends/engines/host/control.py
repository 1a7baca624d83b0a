"""The CPU's floating-point control register, within kernels: each sets it on entry and restores it on exit.

It belongs to a thread, and anyone may have set it: ``torch.set_flush_denormal``, a library compiled with fast-math,
``fesetround``. A kernel that took it as it came would give other bits on other threads.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core.cgutils import alloca_once
from numba.extending import intrinsic

__all__ = ["default_control", "read_and_set", "restore", "restored_control"]

#: x86-64's MXCSR: to nearest, subnormals kept (neither FTZ nor DAZ), every exception masked.
MXCSR = 0x1F80
INT, LONG, POINTER = ir.IntType(32), ir.IntType(64), ir.PointerType(ir.IntType(8))


def read_and_set(builder: Any, triple: str) -> Any:
    """Write instructions that set the default, and give what was there before; on other machines, nothing and 0."""
    machine = triple.partition("-")[0]
    if machine == "x86_64":
        room = alloca_once(builder, INT)
        _mxcsr(builder, "st", room)
        before = builder.zext(builder.load(room), LONG)
        builder.store(INT(MXCSR), room)
        _mxcsr(builder, "ld", room)
    elif machine in ("aarch64", "arm64"):
        before = builder.call(_declared(builder, "llvm.aarch64.get.fpcr", LONG, []), [])
        _set_fpcr(builder, LONG(0))
    else:
        before = LONG(0)
    _barrier(builder)
    return before


def restore(builder: Any, triple: str, before: Any) -> None:
    """Write instructions that set what `read_and_set` gave."""
    _barrier(builder)
    machine = triple.partition("-")[0]
    if machine == "x86_64":
        room = alloca_once(builder, INT)
        builder.store(builder.trunc(before, INT), room)
        _mxcsr(builder, "ld", room)
    elif machine in ("aarch64", "arm64"):
        _set_fpcr(builder, before)


def _barrier(builder: Any) -> None:
    """No access to memory is moved across; so neither is arithmetic, which begins with a load and ends with a store.

    It is for the compiler, and no instruction.
    """
    builder.fence("seq_cst", targetscope="singlethread")


def _mxcsr(builder: Any, what: str, room: Any) -> None:
    function = _declared(builder, f"llvm.x86.sse.{what}mxcsr", ir.VoidType(), [POINTER])
    builder.call(function, [builder.bitcast(room, POINTER)])


def _set_fpcr(builder: Any, value: Any) -> None:
    builder.call(_declared(builder, "llvm.aarch64.set.fpcr", ir.VoidType(), [LONG]), [value])


def _declared(builder: Any, name: str, returned: Any, taken: list[Any]) -> Any:
    module = builder.module
    return module.globals.get(name) or ir.Function(module, ir.FunctionType(returned, taken), name)


@intrinsic
def default_control(typingctx: Any) -> Any:
    """Set the default in a kernel; what was there before."""
    return types.int64(), lambda context, builder, signature, args: read_and_set(builder, builder.module.triple)


@intrinsic
def restored_control(typingctx: Any, before: Any) -> Any:
    """Set what was there before."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        restore(builder, builder.module.triple, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), generate
