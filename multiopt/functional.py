"""Adadelta, or any rule, as pure functions over trees of arrays: for `jax.jit`, `torch.compile` and functional code.

Nothing is written in place and no array's values are read, so that a tracing compiler sees plain array operations and
fuses them itself: the bits are then that library's. Everybody's bits, from the compiled engine, get arrays of NumPy and
tensors of PyTorch on the CPU that nobody traces (stochastic rounding is done operation by operation), and arrays of JAX
on the CPU, traced or not.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from . import backends
from .adadelta import ADADELTA
from .backends.engines.eager import Elementwise, applied
from .backends.engines.program import TraceError
from .backends.generic import Backend, wider
from .backends.rounding import Draws, Elements, Rounding
from .binding import state_dtype_of
from .memory import backend_of, check_floating, check_gradient, check_rounded, check_state
from .options import (
    OPTIONS,
    THRESHOLDS,
    Option,
    check_fits,
    check_seeded,
    check_state_dtype,
    narrowest,
    options_of,
    range_of,
)
from .rule import Rule
from .tree import Structure
from .update import compose

__all__ = ["State", "init", "update"]


class State(NamedTuple):
    """What `update` carries from step to step: a tree that JAX and PyTorch can trace.

    Attributes
    ----------
    step : int or array
        The 0-based number of the next update.
    slots : dict of str to tree
        For each slot of the rule a tree like the parameters.
    """

    step: Any
    slots: dict[str, Any]


def init(params: Any, *, rule: Rule = ADADELTA, state_dtype: str | None = None) -> State:
    """The state before the first update.

    Parameters
    ----------
    params : array or tree of arrays
        Of any array API library.
    rule : Rule
        What is computed.
    state_dtype : str or None
        Dtype of the state; by default each parameter's.

    Raises
    ------
    TypeError
        If a leaf is not an array of a floating or complex dtype.
    ValueError
        If `state_dtype` is not the name of a real floating dtype.
    """
    structure, fills = Structure(params), []
    check_state_dtype("state_dtype", state_dtype)
    for name, array in zip(structure.names, structure.leaves, strict=True):
        backend = backend_of(name, array)
        dtype = state_dtype_of(check_floating(name, backend, array), state_dtype)
        # Not `Backend.full_like`: it asks for the device, which a traced array does not have.
        fills.append(partial(backend.xp.full_like, array, dtype=backend.native(dtype)))
    return State(0, {slot: structure.unflatten([fill(v) for fill in fills]) for slot, v in rule.slots.items()})


def update(
    params: Any,
    grads: Any,
    state: State,
    *,
    rule: Rule = ADADELTA,
    weight_decay: Any = 0.0,
    decoupled: bool = False,
    maximize: bool = False,
    clip_value: Any = None,
    state_rounding: str = "nearest",
    seed: int = 0,
    **hypers: Any,
) -> tuple[Any, State]:
    """One update, as new arrays.

    Parameters
    ----------
    params, grads : array or tree of arrays
        A gradient of None leaves its parameter and state as they are.
    state : State
        From `init`, or from the update before.
    rule : Rule
        What is computed.
    weight_decay, decoupled, maximize, clip_value
        The first and the last are numbers as the hyperparameters are. See `multiopt.Optimizer`. Clip by norm
        beforehand, if at all: inside a compiled function the order of additions is the compiler's.
    state_rounding, seed
        See `multiopt.Optimizer`, whose bits these are: a parameter's number is that of its leaf. Neither may be traced;
        of a step that is, the low 64 bits count.
    **hypers
        The rule's hyperparameters: Python numbers, callables of the step, or 0-d arrays, traced ones too (then
        ``1 - rho`` is formed in the array's precision, not in double, except by the engine for JAX on the CPU).

    Returns
    -------
    params : like params
        Or the updates, of a rule that returns those.
    state : State

    Raises
    ------
    TypeError, ValueError
        If a number is out of range, or one other than 0 is none in the dtype that computes; if the state is another
        rule's, a gradient's shape or dtype is not its parameter's, or the state's shape.
    """
    if not isinstance(state, State) or state.slots.keys() != rule.slots.keys():
        raise TypeError(f"state: expected what init(params, rule={rule!r}) returns, got {state!r:.80}")
    unknown = hypers.keys() - rule.hypers.keys()
    if unknown:
        raise TypeError(f"update: unknown {sorted(unknown)}; expected some of {', '.join(rule.hypers)}")
    hypers |= {"weight_decay": weight_decay, "decoupled": decoupled, "maximize": maximize, "clip_value": clip_value}
    options = {
        name: _checked(option, hypers.get(name, option.default), state.step)
        for name, option in options_of(rule).items()
    }
    settings = {name: option.default for name, option in OPTIONS.items()}
    given = {"state_rounding": state_rounding, "seed": seed}
    settings |= {name: OPTIONS[name].check(name, value) for name, value in given.items()}
    check_seeded(settings)
    fused, numbers = compose(rule, options, settings)
    rounding = Rounding(seed, _halves(state.step)) if fused.program.stochastic else None
    scalars = {name: value for name, value in {**numbers, "step": state.step}.items() if name in fused.scalars}
    structure = Structure(params)
    leaves = structure.flatten(grads, "grads")
    # By the rule's order: `jax.jit` returns a dict with its keys sorted.
    slots = [structure.flatten(state.slots[slot], f"state.slots[{slot!r}]") for slot in rule.slots]
    computing = narrowest(
        wider([backend_of(name, a).dtype(a) for a in arrays])
        for name, g, *arrays in zip(structure.names, leaves, structure.leaves, *slots, strict=True)
        if g is not None
    )
    for name, value in options.items():  # numbers of one step, as those of a schedule are
        vanishing = 0.0 in range_of(rule, name)
        check_fits(name, value, computing, may_vanish=vanishing, may_overflow=name in THRESHOLDS)
    new = [[x, *old] for x, *old in zip(structure.leaves, *slots, strict=True)]
    followed = rounding is not None or not all(isinstance(number, (int, float)) for number in scalars.values())
    by_kind: dict[tuple[Backend, Any, tuple[str, ...]], list[int]] = {}
    for i, (name, g, (x, *old)) in enumerate(zip(structure.names, leaves, new, strict=True)):
        if g is not None:
            backend, plain = _look(name, rule, x, g, old)
            if rounding is not None:
                for array in old:
                    check_rounded(name, backend.dtype(array))
            kind = tuple(backend.dtype(a) for a in (x, g, *old))
            by_kind.setdefault((backend, backend.device(x) if plain and not followed else None, kind), []).append(i)
    for (backend, device, dtypes), places in by_kind.items():
        names, x, *old = [structure.names[i] for i in places], *zip(*(new[i] for i in places), strict=True)
        made, arrays = None, [x, [leaves[i] for i in places], *old]
        with suppress(TraceError):  # then the rule is run operation by operation
            if device is not None:
                engine, _ = backends.engine_for(backend, device, dtypes)
                made = engine.compute(backend, fused.program, arrays, scalars, names)
            else:
                made = backend.lower(fused.program, arrays, scalars, rounding, places)
        if made is None:
            computed, results = wider([dtypes[0], *dtypes[2:]]), []
            for i, own in zip(places, zip(*arrays, strict=True), strict=True):
                draws = None if rounding is None else Draws(rounding, Elements(i), tuple(own[0].shape))
                results.append(applied(backend, Elementwise(fused.program, scalars, computed, draws), own))
        for i, column in zip(places, results if made is None else zip(*made, strict=True), strict=True):
            new[i] = list(column)
    columns = [structure.unflatten(list(column)) for column in zip(*new, strict=True)]
    return columns[0], State(state.step + 1, dict(zip(rule.slots, columns[1:], strict=True)))


def _checked(option: Option, value: Any, step: Any) -> Any:
    """An option's value at a step; numbers may be arrays, which are not looked at."""
    if callable(value):
        value = value(step)
    looked_at = isinstance(value, (int, float)) or not hasattr(value, "dtype") or isinstance(option.default, bool)
    return option.check(option.name, value) if looked_at else value


def _halves(step: Any) -> Any:
    """A step's number, if it is one of Python, or its low and high 32 bits as arrays of int32."""
    if isinstance(step, int):  # or stands for one in PyTorch's compiler
        return step
    backend = backend_of("state.step", step)
    wide = "64" in backend.dtype(step)
    return backend.cast(step, "int32"), backend.cast(step >> 32, "int32") if wide else 0


def _look(name: str, rule: Rule, x: Any, g: Any, old: list[Any]) -> tuple[Backend, bool]:
    """Check a parameter's arrays: their backend, and whether they are plain ones, which nobody traces."""
    backend = backend_of(name, x)
    dtype, plain = check_floating(name, backend, x), backend.plain([x, g, *old])
    check_gradient(name.replace("params", "grads", 1), backend, g, x, dtype, may_be_traced=not plain)
    for slot, array in zip(rule.slots, old, strict=True):
        check_state(f"{slot} of {name}", backend, array, x, backend.dtype(array), may_be_traced=not plain)
    if backend.donates and any(map(backend.freed, (x, g, *old))):
        raise ValueError(f"{name}: expected memory, got an array, gradient or state that was deleted (donated, say)")
    return backend, plain
