"""Adadelta, or any rule, as pure functions over trees of arrays: for `jax.jit`, `torch.compile` and functional code.

Nothing is written in place and nothing is looked at, so that a tracing compiler sees plain array operations and fuses
them itself. In eager use on NumPy arrays `multiopt.Adadelta` is many times as fast.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from . import backends
from .adadelta import ADADELTA
from .backends.engines.eager import elementwise
from .backends.generic import FLOATING, wider
from .binding import state_dtype_of
from .options import THRESHOLD, WEIGHT_DECAY, check_state_dtype, check_switch
from .rule import Rule
from .tree import Structure
from .update import FusedUpdate

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
    structure = Structure(params)
    check_state_dtype("state_dtype", state_dtype)
    for name, array in zip(structure.names, structure.leaves, strict=True):
        _floating(name, array)
    slots = {slot: structure.map(partial(_full, value=v, dtype=state_dtype)) for slot, v in rule.slots.items()}
    return State(0, slots)


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
        If a number is out of range, the state is another rule's, or a gradient's shape or dtype is not its
        parameter's.
    """
    if not isinstance(state, State) or state.slots.keys() != rule.slots.keys():
        raise TypeError(f"state: expected what init(params, rule={rule!r}) returns, got {state!r:.80}")
    unknown = hypers.keys() - rule.hypers.keys()
    if unknown:
        raise TypeError(f"update: unknown {sorted(unknown)}; expected some of {', '.join(rule.hypers)}")
    fused = FusedUpdate(
        rule,
        scaled=check_switch("maximize", maximize),
        clipped=clip_value is not None,
        coupled=_is_on(weight_decay) and not check_switch("decoupled", decoupled),
        decoupled=_is_on(weight_decay) and decoupled,
    )
    values = {name: _number(name, hypers.get(name, h.default), h, state.step) for name, h in rule.hypers.items()}
    values |= {"weight_decay": _number("weight_decay", weight_decay, WEIGHT_DECAY, state.step)}
    values |= {} if clip_value is None else {"clip_value": _number("clip_value", clip_value, THRESHOLD, state.step)}
    values |= {"scale": -1.0, "step": state.step}
    scalars = {name: values[name] for name in fused.scalars}
    structure = Structure(params)
    leaves = structure.flatten(grads, "grads")
    # By the rule's order: `jax.jit` returns a dict with its keys sorted.
    slots = [structure.flatten(state.slots[slot], f"state.slots[{slot!r}]") for slot in rule.slots]
    new: list[list[Any]] = []
    for name, x, g, *old in zip(structure.names, structure.leaves, leaves, *slots, strict=True):
        new.append([x, *old] if g is None else _apply(name, fused, scalars, x, g, old))
    columns = [structure.unflatten(list(column)) for column in zip(*new, strict=True)]
    return columns[0], State(state.step + 1, dict(zip(rule.slots, columns[1:], strict=True)))


def _is_on(value: Any) -> bool:
    return not isinstance(value, (int, float)) or value != 0


def _number(name: str, value: Any, hyper: Any, step: Any) -> Any:
    if callable(value):
        value = value(step)
    return hyper.check(name, value) if isinstance(value, (int, float)) or not hasattr(value, "dtype") else value


def _floating(name: str, array: Any) -> str:
    try:
        dtype = backends.of(array).dtype(array)
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None
    if dtype not in FLOATING:
        raise TypeError(f"{name}: expected one of the dtypes {', '.join(FLOATING)}, got {dtype}")
    return dtype


def _full(array: Any, value: float, dtype: str | None) -> Any:
    backend = backends.of(array)
    wide = state_dtype_of(backend.dtype(array), dtype)
    # Not `Backend.full_like`: it asks for the device, which a traced array does not have.
    return backend.xp.full_like(array, value, dtype=backend.native(wide))


def _apply(name: str, fused: FusedUpdate, scalars: dict[str, Any], x: Any, g: Any, old: list[Any]) -> list[Any]:
    backend, dtype = backends.of(x), _floating(name, x)
    told = name.replace("params", "grads", 1)
    if _floating(told, g) != dtype or backends.of(g) is not backend:
        raise TypeError(f"{told}: expected a {backend.name} array of dtype {dtype}, as its parameter, got {g.dtype}")
    if tuple(g.shape) != tuple(x.shape):
        raise ValueError(f"{told}: expected shape {tuple(x.shape)}, as its parameter's, got {tuple(g.shape)}")
    dtypes = [dtype, *(backend.dtype(a) for a in old)]
    function = elementwise(fused.program, scalars, wider(dtypes))
    parts = zip(*(backend.parts(a) for a in (x, g, *old)), strict=True)
    pieces = zip(*(backend.elementwise(function, part) for part in parts), strict=True)
    return [backend.join(list(piece), d) for piece, d in zip(pieces, dtypes, strict=True)]
