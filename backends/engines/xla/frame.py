"""What XLA hands to a function that its programs call, and how its threads are borrowed; in compiled code.

The structures are those of ``xla/ffi/api/c_api.h``, version 0.3 of that interface, of which jaxlib ships the header.
They are read as rows of 64-bit words; the constants below are the places of their members. XLA itself says, by the
version that `described` answers with, whether it still knows them.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from llvmlite.binding import add_symbol
from numba import types
from numba.core.cgutils import alloca_once, raw_memcpy
from numba.extending import intrinsic

__all__ = [
    "ARGUMENT", "ARGUMENTS", "DATA", "DIMS", "DTYPE", "DTYPES", "INT32", "INT64", "RANK", "RAW", "RESULT", "RESULTS",
    "call", "compiled", "copied", "described", "elements_of", "failed", "room", "set_word", "spread", "word",
]  # fmt: skip

#: The version of the interface: XLA refuses what answers with one that it does not support.
MAJOR, MINOR = 0, 3
#: ``XLA_FFI_CallFrame``: its extensions, the functions that it offers, the context and the stage of the call, and the
#: members of the arguments and the results that stand in it.
EXTENSION, API, CONTEXT, STAGE, ARGUMENTS, ARGUMENT, RESULTS, RESULT = 1, 2, 3, 4, 7, 9, 12, 14
#: ``XLA_FFI_Buffer``.
DTYPE, DATA, RANK, DIMS = 2, 3, 4, 5
#: ``XLA_FFI_Metadata_Extension``: what it is, and where the metadata stand; there, the version and the traits.
KIND, METADATA, VERSION, TRAITS = 1, 3, 3, 4
#: ``XLA_FFI_Api``.
CREATE_ERROR, DESTROY_ERROR, SCHEDULE, COUNT_THREADS = 6, 8, 17, 18
#: ``XLA_FFI_Extension_Metadata``, ``XLA_FFI_ExecutionStage_EXECUTE``, ``XLA_FFI_Error_Code_INVALID_ARGUMENT``.
IS_METADATA, EXECUTE, INVALID = 1, 3, 3
#: ``XLA_FFI_DataType``.
DTYPES = {"float16": 10, "bfloat16": 16, "float32": 11, "float64": 12, "complex64": 15, "complex128": 18}
#: Of numbers: two words of 32 bits that hold a float64 (JAX may have none), or an int32, uint32 or int64.
RAW = 8
INT32, INT64 = 4, 5

#: Words at hand on the stack: for the largest structure that is handed to XLA, and the header of `tables`.
ROOM = 16
WORD = ir.IntType(64)
POINTER = WORD.as_pointer()
instruction: Any = intrinsic  # whose own types know nothing of the typing context


def _at(builder: Any, address: Any, k: Any) -> Any:
    return builder.gep(builder.inttoptr(address, POINTER), [k])


@instruction
def word(typingctx: Any, address: Any, k: Any) -> Any:
    """The k-th word of a structure."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_at(builder, *args), align=8)

    return types.int64(types.int64, types.int64), generate


@instruction
def set_word(typingctx: Any, address: Any, k: Any, value: Any) -> Any:
    """Write the k-th word of a structure."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], _at(builder, *args[:2]), align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@instruction
def added(typingctx: Any, address: Any, k: Any, value: Any) -> Any:
    """Add to a word that other threads may change; what it was before."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", _at(builder, *args[:2]), args[2], "seq_cst")

    return types.int64(types.int64, types.int64, types.int64), generate


@instruction
def taken(typingctx: Any, address: Any, k: Any) -> Any:
    """Make a word 1 if it is 0, whoever else tries; 1 if it was."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        done = builder.cmpxchg(_at(builder, *args), WORD(0), WORD(1), "seq_cst", "seq_cst")
        return builder.zext(builder.extract_value(done, 1), WORD)

    return types.int64(types.int64, types.int64), generate


@instruction
def call(typingctx: Any, function: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Call a function of C by its address, with four words: one that takes fewer leaves the others alone."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(WORD, [WORD] * 4).as_pointer()
        return builder.call(builder.inttoptr(args[0], kind), args[1:])

    return types.int64(*[types.int64] * 5), generate


@instruction
def room(typingctx: Any) -> Any:
    """The address of `ROOM` words on the stack."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(alloca_once(builder, ir.ArrayType(WORD, ROOM)), WORD)

    return types.int64(), generate


@instruction
def copied(typingctx: Any, target: Any, source: Any, size: Any) -> Any:
    """Copy so many bytes to an address, from another one."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to, source = (builder.inttoptr(address, ir.IntType(8).as_pointer()) for address in args[:2])
        raw_memcpy(builder, to, source, args[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


INTEGER = types.int64


def compiled(signature: Any) -> Any:
    """A function that compiled code calls, compiled once: to have Numba inline it took several times as long."""
    options: Any = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}  # Python never calls it
    return numba.njit(signature, error_model="numpy", **options)


# --- the frame ---


@compiled(types.boolean(INTEGER))
def described(frame: Any) -> Any:
    """Answer XLA if it asks what this function is: whether it did, or the stage is none in which there is work."""
    asked = word(frame, EXTENSION)
    if asked != 0 and (word(asked, KIND) & 0xFFFFFFFF) == IS_METADATA:
        metadata = word(asked, METADATA)
        set_word(metadata, VERSION, MAJOR | MINOR << 32)
        set_word(metadata, TRAITS, word(metadata, TRAITS) >> 32 << 32)
        return True
    return (word(frame, STAGE) & 0xFFFFFFFF) != EXECUTE


@compiled(INTEGER(INTEGER, INTEGER))
def elements_of(buffer: Any, inner: Any) -> Any:
    """The number of elements along a buffer's axes, without so many of the last ones."""
    product, dims = np.int64(1), word(buffer, DIMS)
    for axis in range(word(buffer, RANK) - inner):
        product *= word(dims, axis)
    return product


@compiled(INTEGER(INTEGER, INTEGER))
def failed(frame: Any, message: Any) -> Any:
    """An error for XLA to raise, with a text of C by its address: what the function returns."""
    arguments = room()
    set_word(arguments, 0, 32)
    set_word(arguments, 1, 0)
    set_word(arguments, 2, message)
    set_word(arguments, 3, INVALID)
    return call(word(word(frame, API), CREATE_ERROR), arguments, 0, 0, 0)


@compiled(types.void(INTEGER, INTEGER))
def forget(frame: Any, error: Any) -> None:
    """Destroy an error that XLA's functions returned."""
    arguments = room()
    set_word(arguments, 0, 24)
    set_word(arguments, 1, 0)
    set_word(arguments, 2, error)
    call(word(word(frame, API), DESTROY_ERROR), arguments, 0, 0, 0)


# --- threads ---

#: Words of a task: by how many threads it is held, 0 if it is free; the next slice that nobody has begun; the slices
#: that are done, and all; the function that does one, and what it is handed.
HOLDERS, NEXT, DONE, TOTAL, FUNCTION, WORK = range(6)
#: Tasks at hand, each on cache lines of its own; who finds none works alone.
TASKS, STRIDE = 64, 128
_tasks = np.zeros(TASKS * STRIDE + STRIDE, np.uint8)
FIRST_TASK = -(-_tasks.ctypes.data // STRIDE) * STRIDE


def _yielding() -> Any:
    """The system's function that lets other threads run."""
    if sys.platform == "win32":
        function = ctypes.WinDLL("kernel32").SwitchToThread
    else:
        function = ctypes.CDLL(None).sched_yield
    add_symbol("multiopt_yield", ctypes.cast(function, ctypes.c_void_p).value)
    return types.ExternalFunction("multiopt_yield", types.int32())


let_others_run = _yielding()


@compiled(INTEGER(INTEGER))
def work_on(task: Any) -> Any:
    """Do slices until none is left; how many there are in all."""
    total, function, work = word(task, TOTAL), word(task, FUNCTION), word(task, WORK)
    k = added(task, NEXT, 1)
    while k < total:
        call(function, work, k, 0, 0)
        added(task, DONE, 1)
        k = added(task, NEXT, 1)
    return total


@numba.cfunc(INTEGER(INTEGER), error_model="numpy")
def help_with(task: Any) -> Any:
    """What one of XLA's threads does, sooner or later: the caller may be gone by then, but the task is still held."""
    work_on(task)
    added(task, HOLDERS, -1)
    return 0


HELP = help_with.address


@compiled(INTEGER(INTEGER))
def threads_of(frame: Any) -> Any:
    """How many threads XLA has."""
    arguments = room()
    set_word(arguments, 0, 32)
    set_word(arguments, 1, 0)
    set_word(arguments, 2, word(frame, CONTEXT))
    set_word(arguments, 3, arguments + 32)
    set_word(arguments, 4, 1)
    error = call(word(word(frame, API), COUNT_THREADS), arguments, 0, 0, 0)
    if error != 0:
        forget(frame, error)
        return 1
    return word(arguments, 4)


@compiled(INTEGER())
def free_task() -> Any:
    """A task that nobody holds, now held once; 0 if there is none."""
    for k in range(TASKS):
        task = FIRST_TASK + k * STRIDE
        if word(task, HOLDERS) == 0 and taken(task, HOLDERS):
            return task
    return 0


@compiled(types.void(*[INTEGER] * 5))
def spread(frame: Any, function: Any, work: Any, total: Any, most: Any) -> None:
    """Call ``function(work, k)`` for each k below `total`, on at most so many of XLA's threads, this one among them.

    Return when all are done. This thread waits for slices that another one has begun, never for one that was asked to
    help and has not come: it finds nothing to do when it does. So it does not matter how many there are, or whether all
    of them wait.
    """
    threads = min(total, most)
    if threads > 1:
        threads = min(threads, threads_of(frame))
    task = free_task() if threads > 1 else 0
    if task == 0:
        for k in range(total):
            call(function, work, k, 0, 0)
        return
    set_word(task, NEXT, 0)
    set_word(task, DONE, 0)
    set_word(task, TOTAL, total)
    set_word(task, FUNCTION, function)
    set_word(task, WORK, work)
    added(task, HOLDERS, threads - 1)
    arguments = room()
    for _ in range(threads - 1):
        set_word(arguments, 0, 40)
        set_word(arguments, 1, 0)
        set_word(arguments, 2, word(frame, CONTEXT))
        set_word(arguments, 3, HELP)
        set_word(arguments, 4, task)
        error = call(word(word(frame, API), SCHEDULE), arguments, 0, 0, 0)
        if error != 0:
            forget(frame, error)
            added(task, HOLDERS, -1)
    work_on(task)
    while added(task, DONE, 0) < total:
        let_others_run()
    added(task, HOLDERS, -1)
