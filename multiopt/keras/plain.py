"""One step of Keras' optimizer as plain array operations, one after another, on what the variables hold.

Two things need it. An optimizer of somebody's own computes in `update_step`, of which the engines know nothing. And
`stateless_apply` runs under `jax.jit`, where no value can be looked at: there, choices are made by ``where``.
All arithmetic is that of the core's `Pass`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import backends, functional
from ..averaging import AVERAGE
from ..backends.protocol import Array, Backend
from ..binding import Pass
from ..gradients import PASS as SUM
from ..rule import Hyper, Rule
from .clipping import REPLACE
from .variable import Variable

if TYPE_CHECKING:
    from .base import Optimizer

__all__ = ["is_traced", "stateless_apply", "step", "without_autograd"]


def _keep(xp: Any, x: Any, g: Any, *, lr: float) -> tuple[Any]:
    return (x,)


#: Nothing but the decay.
KEEP = Rule("keep", _keep, slots={}, hypers={"lr": Hyper(1.0, low=0.0)})
NOTHING = functional.State(0, {})


def without_autograd(backend: Backend) -> AbstractContextManager[Any]:
    """Within it, PyTorch's operations are not recorded."""
    if backend.name != "torch":
        return nullcontext()
    import torch

    return torch.no_grad()


def step(opt: Optimizer, grads: Sequence[Array | None], rate: Any, count: Any) -> None:
    """Do one step on what the boxes hold.

    Parameters
    ----------
    opt : Optimizer
        Built.
    grads : sequence of arrays or None
        One for each of its variables.
    rate : float or 0-d array
        The learning rate.
    count : int or 0-d array
        How many steps were done before this one.
    """
    variables = opt._trainable_variables
    _check(grads, variables)
    opt._rate.used = rate
    with without_autograd(variables[0].backend):
        every = opt.gradient_accumulation_steps
        if every:
            _accumulate(opt, grads)
            last = (count + 1) % every == 0
            live = [g is not None for g in grads] if not isinstance(last, bool) else opt._seen
            sums = [s.value if there else None for s, there in zip(opt._accumulated_gradients, live, strict=True)]
            _when(last, opt._trainable_variables + opt._slots(), lambda: _update(opt, sums, rate))
            _when(last, opt._accumulated_gradients, lambda: _clear(opt))
        else:
            _update(opt, grads, rate)
        if opt.use_ema:
            _average(opt, count // every if every else count)


def _check(grads: Sequence[Array | None], variables: Sequence[Variable]) -> None:
    """Check everything about the gradients before anything is written."""
    for g, variable in zip(grads, variables, strict=True):
        if g is None:
            continue
        name = f"gradient of {variable.name!r}"
        try:
            backend = backends.of(g)
        except TypeError as error:
            raise TypeError(f"{name}: {error}") from None
        if backend is not variable.backend or backend.dtype(g) != variable.dtype:
            raise TypeError(
                f"{name}: expected a {variable.backend.name} array of {variable.dtype}, as its variable's, "
                f"got a {backend.name} array of {backend.dtype(g)}"
            )
        if tuple(g.shape) != variable.shape:
            raise ValueError(f"{name}: expected shape {variable.shape}, as its variable's, got {tuple(g.shape)}")


def _pure(rule: Rule, x: Array, g: Array, **options: Any) -> Array:
    return functional.update(x, g, NOTHING, rule=rule, **options)[0]


def _accumulate(opt: Optimizer, grads: Sequence[Array | None]) -> None:
    for i, (g, held) in enumerate(zip(grads, opt._accumulated_gradients, strict=True)):
        if g is not None:
            held.assign(_pure(SUM.rule, held.value, g))
            opt._seen[i] = True


def _clear(opt: Optimizer) -> None:
    for held in opt._accumulated_gradients:
        held.assign(held.backend.xp.zeros_like(held.value))
    opt._seen = [False] * len(opt._seen)


def _update(opt: Optimizer, grads: Sequence[Array | None], rate: Any) -> None:
    prepared = _clipped(opt, grads)
    for g, variable in zip(prepared, opt._trainable_variables, strict=True):
        if g is not None and opt.weight_decay and opt._use_weight_decay(variable):
            decayed = _pure(KEEP, variable.value, g, lr=rate, weight_decay=opt.weight_decay, decoupled=True)
            variable.assign(decayed)
    for g, variable in zip(prepared, opt._trainable_variables, strict=True):
        if g is not None:
            opt._call_update_step(g, variable, rate)


def _clipped(opt: Optimizer, grads: Sequence[Array | None]) -> list[Array | None]:
    """Unscale and clip, in the order of the core."""
    scale = opt._scale()
    one_pass = Pass(REPLACE, scaled=scale != 1.0, clipped=opt.clipvalue is not None)
    values = {"scale": scale, "clip_value": opt.clipvalue}
    made: list[Any] = [None if g is None else one_pass.gradient(backends.of(g).xp, g, values) for g in grads]
    live = [i for i, g in enumerate(made) if g is not None]
    threshold = opt.clipnorm if opt.clipnorm is not None else opt.global_clipnorm
    if threshold is None or not live:
        return made
    squares = {i: _square(made[i]) for i in live}
    total = sum(list(squares.values())[1:], squares[live[0]])
    for i in live:
        xp = backends.of(made[i]).xp
        norm = xp.sqrt(squares[i] if opt.clipnorm is not None else total)
        above = norm > threshold
        # A NaN norm makes its gradients NaN, as everywhere.
        factor = xp.where(above, threshold / xp.where(above, norm, xp.ones_like(norm)), norm * 0 + 1)
        made[i] = made[i] * xp.astype(factor, made[i].dtype)
    return made


def _square(g: Any) -> Any:
    """The square of a gradient's norm, in at least float32."""
    backend = backends.of(g)
    xp, parts = backend.xp, backend.parts(g)
    wide = xp.float64 if backend.dtype(parts[0]) == "float64" else xp.float32
    sums = [xp.sum(xp.astype(part, wide) * xp.astype(part, wide)) for part in parts]
    return sum(sums[1:], sums[0])


def _average(opt: Optimizer, updates: Any) -> None:
    for held, variable in zip(opt._model_variables_moving_average, opt._trainable_variables, strict=True):
        held.assign(_pure(AVERAGE, held.value, variable.value, momentum=opt.ema_momentum))
    if opt.ema_overwrite_frequency:
        due = (updates + 1) % opt.ema_overwrite_frequency == 0
        _when(due, opt._trainable_variables, lambda: opt._overwrite())


def _when(condition: Any, variables: Sequence[Variable], action: Callable[[], None]) -> None:
    """Do something to the variables if the condition holds, be it a bool or a traced array."""
    if isinstance(condition, bool):
        if condition:
            action()
        return
    before = [variable.value for variable in variables]
    action()
    for variable, old in zip(variables, before, strict=True):
        variable.value = variable.backend.xp.where(condition, variable.value, old)


def stateless_apply(
    opt: Optimizer, optimizer_variables: Sequence[Array], grads: Sequence[Any], trainable_variables: Sequence[Array]
) -> tuple[list[Array], list[Array]]:
    """See `Optimizer.stateless_apply`: the boxes hold the given values for as long as the step takes."""
    if not opt.built:
        raise ValueError("stateless_apply: expected an optimizer that is built; call build() first")
    boxes = [*opt._trainable_variables, *opt._variables]
    given, n = [*trainable_variables, *optimizer_variables], len(opt._trainable_variables)
    if len(given) != len(boxes) or len(trainable_variables) != n:
        raise ValueError(
            f"stateless_apply: expected {n} model variables and {len(opt._variables)} of the optimizer's, "
            f"got {len(trainable_variables)} and {len(optimizer_variables)}"
        )
    before, seen, used = [box.value for box in boxes], list(opt._seen), opt._rate.used
    try:
        for box, value in zip(boxes, given, strict=True):
            # Copies, because `update_step` writes into the arrays of a mutable library.
            box.value = value if is_traced(value) else _own(box, value)
        count = opt._iterations.value
        count = count if is_traced(count) else int(count)
        if opt.gradient_accumulation_steps:
            opt._seen = [True] * n  # what earlier calls have seen is not part of the state
        step(opt, opt._ordered(grads, opt._trainable_variables), opt._rate.at(count), count)
        opt._constrain(grads, opt._trainable_variables)
        opt._iterations.value = opt._iterations.value + 1
        after = [box.value for box in boxes]
    finally:
        for box, value in zip(boxes, before, strict=True):
            box.value = value
        opt._seen, opt._rate.used = seen, used
    return after[:n], after[n:]


def is_traced(value: Any) -> bool:
    """Whether JAX is tracing it, so that it has no value yet."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(value, jax.core.Tracer)


def _own(box: Variable, value: Any) -> Array:
    """A copy of a value for a box, of its library and dtype."""
    if box.backend.name == "numpy":
        value = np.asarray(value)  # the counter, which may come back from JAX
    twin = Variable(box.backend.copy(box.value), trainable=False, name=box.name)
    return twin.assign(value).value
