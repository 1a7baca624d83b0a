"""Adadelta, or any rule, as pure functions over trees of arrays: for `jax.jit`, `torch.compile` and functional code.

Nothing is written in place and no array's values are read, so that a tracing compiler sees plain array operations and
fuses them itself: the bits are then that library's. Arrays of NumPy, and tensors of PyTorch on the CPU, that nobody
traces get everybody's bits, from the compiled engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from . import backends
from .adadelta import ADADELTA
from .backends.engines.program import TraceError
from .backends.generic import Array, Backend, wider
from .binding import state_dtype_of
from .memory import backend_of, check_floating, check_gradient, check_state
from .options import OPTIONS, THRESHOLDS, Option, check_fits, check_state_dtype, narrowest, options_of, range_of
from .rule import Rule
from .tree import Structure
from .update import FusedUpdate, compose

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
    **hypers
        The rule's hyperparameters: Python numbers, callables of the step, or 0-d arrays, traced ones too (then
        ``1 - rho`` is formed in the array's precision, not in double).

    Returns
    -------
    params : like params
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
    fused, numbers = compose(rule, options, {name: option.default for name, option in OPTIONS.items()})
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
    by_kind: dict[Any, list[int]] = {}
    for i, (name, g, arrays) in enumerate(zip(structure.names, leaves, new, strict=True)):
        if g is not None:
            by_kind.setdefault(_kind(name, rule, g, *arrays), []).append(i)
    for (backend, device, dtypes), places in by_kind.items():
        names = [structure.names[i] for i in places]
        x, *old = zip(*(new[i] for i in places), strict=True)
        made = _computed(backend, device, dtypes, fused, [x, [leaves[i] for i in places], *old], scalars, names)
        for i, arrays in zip(places, zip(*made, strict=True), strict=True):
            new[i] = list(arrays)
    columns = [structure.unflatten(list(column)) for column in zip(*new, strict=True)]
    return columns[0], State(state.step + 1, dict(zip(rule.slots, columns[1:], strict=True)))


def _checked(option: Option, value: Any, step: Any) -> Any:
    """An option's value at a step; numbers may be arrays, which are not looked at."""
    if callable(value):
        value = value(step)
    looked_at = isinstance(value, (int, float)) or not hasattr(value, "dtype") or isinstance(option.default, bool)
    return option.check(option.name, value) if looked_at else value


def _kind(name: str, rule: Rule, g: Array, x: Array, *old: Array) -> tuple[Backend, Any, tuple[str, ...]]:
    """The backend of arrays that are updated together, their device, None if they may be traced, and their dtypes."""
    backend = backend_of(name, x)
    dtype, plain = check_floating(name, backend, x), backend.plain([x, g, *old])
    check_gradient(name.replace("params", "grads", 1), backend, g, x, dtype, may_be_traced=not plain)
    for slot, array in zip(rule.slots, old, strict=True):
        check_state(f"{slot} of {name}", backend, array, x, backend.dtype(array), may_be_traced=not plain)
    return backend, backend.device(x) if plain else None, tuple(backend.dtype(a) for a in (x, g, *old))


def _computed(
    backend: Backend,
    device: Any,
    dtypes: tuple[str, ...],
    fused: FusedUpdate,
    columns: Sequence[Sequence[Array]],
    scalars: dict[str, Any],
    names: list[str],
) -> list[list[Array]]:
    """New parameters and state: by a compiled engine, if nobody follows the arrays and the numbers."""
    if device is not None and all(isinstance(number, (int, float)) for number in scalars.values()):
        engine, _ = backends.engine_for(backend, device, dtypes)
        with suppress(TraceError):  # then the rule is run operation by operation
            if made := engine.compute(backend, fused.program, columns, scalars, names):
                return made
    return backends.engine("eager").compute(backend, fused.program, columns, scalars, names) or []
