"""`optax.adadelta` and `optax.scale_by_adadelta`, and with them the whole step in one pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..options import WEIGHT_DECAY
from ..rule import Hyper
from .advance import HYPERS, advance
from .leaves import checked

__all__ = ["Adadelta", "adadelta", "scale_by_adadelta"]


class Adadelta(optax.GradientTransformationExtraArgs):
    """What `adadelta` returns: optax' pair of functions ``init`` and ``update``, and besides ``step``.

    ``update(grads, state, params) -> (updates, state)`` is what optax calls; `optax.apply_updates` then adds the
    updates, which go through memory on their way. ``step(params, grads, state) -> (params, state)`` does both in one
    pass: it moves seven arrays, not nine. The state is the same tree, and so are the bits, but for what the longer way
    does besides: it rounds once more in 16 bits, and XLA's addition flushes subnormal numbers. One can go on with
    either at any time.
    """

    step: Callable[[Any, Any, Any], tuple[Any, Any]]

    def __new__(
        cls,
        init: Callable[[Any], Any],
        update: Callable[..., tuple[Any, Any]],
        step: Callable[[Any, Any, Any], tuple[Any, Any]],
    ) -> Adadelta:
        """Make one of its three functions."""
        made = super().__new__(cls, init, update)
        made.step = step
        return made


def adadelta(
    learning_rate: Any = None,
    rho: Any = 0.9,
    eps: Any = 1e-6,
    weight_decay: Any = 0.0,
    weight_decay_mask: Any = None,
) -> Adadelta:
    """Adadelta as `optax.adadelta`: its arguments, meaning and state; multiopt's formula and engines.

    With the gradient ``g`` of the parameter ``p``, or ``g + weight_decay * p`` in its place::

        e_g    = rho * e_g + (1 - rho) * g²
        delta  = sqrt(e_x + eps) / sqrt(e_g + eps) * g
        e_x    = rho * e_x + (1 - rho) * delta²
        update = -learning_rate * delta

    The state is what ``optax.adadelta(...).init`` makes: a state, or a checkpoint of it, goes on with either.

    The numbers are those that multiopt has everywhere (`multiopt.functional.update`). Those of optax differ in the last
    places, for the compiler orders and contracts its operations; and by more where arrays are of 16 bits, which optax
    rounds after every operation, and here are computed in float32 and rounded once, or complex: here, as in PyTorch, a
    complex number is two real ones; optax squares it as it is.

    Parameters
    ----------
    learning_rate : float, array, callable or None
        A schedule is called with the number of the update, from 0. None gives ``+delta``, as in optax: it is for what
        scales the update later, and ascends where nothing does.
    rho : float or array
        Decay of both accumulators, in [0, 1].
    eps : float or array
        Added under both roots. At least 0; at 0, a zero gradient gives NaN.
    weight_decay : float, array or callable
        Coupled decay, at least 0; a schedule as for `learning_rate`.
    weight_decay_mask : tree of bool, callable or None
        Which parameters decay; see `optax.masked`.

    Returns
    -------
    Adadelta
        An `optax.GradientTransformationExtraArgs`, for `optax.chain`, `optax.inject_hyperparams` and all that take one;
        used alone, its ``step`` is the whole step in one pass.

    Raises
    ------
    TypeError, ValueError
        If a number is none or out of range. ``init``, ``update`` and ``step`` raise, when they are called or traced, if
        a leaf is no floating or complex array, has another shape than its state or was donated, or if trees differ; the
        message begins with the leaf's path.

    Notes
    -----
    Hyperparameters that are arrays, traced ones too, are 0-d. Their values are not looked at, and ``1 - rho`` is then
    formed in the precision of the computation, not in double, except on the CPU, where the engine forms it.

    A gradient of None leaves its parameter and state as they are; its update is None.
    """
    chain = _Chain(
        None if learning_rate is None else _number("learning_rate", learning_rate, HYPERS["lr"], scheduled=True),
        _number("rho", rho, HYPERS["rho"]),
        _number("eps", eps, HYPERS["eps"]),
        _number("weight_decay", weight_decay, WEIGHT_DECAY, scheduled=True),
        weight_decay_mask,
    )
    # The state holds a count for each schedule, and depends on no number.
    scheduled = [value if callable(value) else 0.0 for value in (learning_rate, weight_decay)]
    like = optax.adadelta(scheduled[0], weight_decay=scheduled[1], weight_decay_mask=weight_decay_mask)
    return Adadelta(_checking(like.init), chain.update, chain.step)


def scale_by_adadelta(rho: Any = 0.9, eps: Any = 1e-6) -> optax.GradientTransformation:
    """Rescale gradients by Adadelta, as `optax.scale_by_adadelta`: the update is ``+delta``.

    Parameters
    ----------
    rho, eps : float or array
        See `adadelta`, also for what is raised.

    Returns
    -------
    optax.GradientTransformation
        Its state is optax' `ScaleByAdaDeltaState`.
    """
    hypers = {"lr": -1.0, "rho": _number("rho", rho, HYPERS["rho"]), "eps": _number("eps", eps, HYPERS["eps"])}

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return advance("updates", updates, state, hypers)

    return optax.GradientTransformation(_checking(optax.scale_by_adadelta().init), update)


@dataclass(frozen=True)
class _Chain:
    """The numbers of `adadelta`, of which some are schedules, and what it does with them."""

    learning_rate: Any
    rho: Any
    eps: Any
    weight_decay: Any
    mask: Any

    def update(self, updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        return self._advance("updates", updates, state, params, fused=False)

    def step(self, params: Any, grads: Any, state: Any) -> tuple[Any, Any]:
        return self._advance("grads", grads, state, params, fused=True)

    @property
    def _decays(self) -> Callable[[Any], Any] | None:
        """Says which parameters decay, by True in a tree like the gradients; None: none does."""
        if isinstance(self.weight_decay, float) and self.weight_decay == 0.0:
            return None
        all_ = optax.stateless(lambda grads, params: jax.tree.map(lambda g: True, grads))
        some = all_ if self.mask is None else optax.masked(all_, self.mask)
        return lambda grads: some.update(grads, some.init(grads))[0]

    def _advance(self, what: str, grads: Any, state: Any, params: Any, fused: bool) -> tuple[Any, Any]:
        if not isinstance(state, tuple) or len(state) != 3:
            raise TypeError(f"state: expected what init(params) returns, got {state!r:.80}")
        decays = self._decays
        if decays is not None and params is None:
            raise ValueError("params: expected the parameters, which decay, got None")
        weight_decay, decay_state = _scheduled("weight_decay", self.weight_decay, WEIGHT_DECAY, state[0])
        rate, rate_state = _scheduled("learning_rate", self.learning_rate, HYPERS["lr"], state[2])
        hypers = {"lr": -1.0 if rate is None else rate, "rho": self.rho, "eps": self.eps}
        new, held = advance(
            what, grads, state[1], hypers, params=params, decays=decays, weight_decay=weight_decay, fused=fused
        )
        return new, (decay_state, held, rate_state)


def _number(name: str, value: Any, hyper: Hyper, scheduled: bool = False) -> Any:
    """A float, an array without dimensions, or where that may be a schedule."""
    if scheduled and callable(value):
        return value
    if getattr(value, "shape", ()) != ():
        raise ValueError(f"{name}: expected a number or a 0-d array, got an array of shape {value.shape}")
    if not isinstance(value, jax.Array):
        return hyper.check(name, value)
    if not (jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)):
        raise TypeError(f"{name}: expected a real number, got an array of dtype {value.dtype}")
    return value


def _scheduled(name: str, value: Any, hyper: Hyper, state: Any) -> tuple[Any, Any]:
    """A number at this update, and the part of the state that counts updates for it, after this one."""
    if not callable(value):
        return value, state
    counts = jax.tree.leaves(state)
    if len(counts) != 1:
        raise TypeError(f"state: expected a count of updates for the schedule {name}, got {state!r:.80}")
    return _number(name, value(counts[0]), hyper), jax.tree.map(optax.safe_increment, state)


def _checking(init: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def checking_init(params: Any) -> Any:
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            checked(f"params{jax.tree_util.keystr(path)}", leaf)
        return init(params)

    return checking_init
