"""Optimizers of several frameworks as `TargetOptimizer`s: parameters and gradients in, every state out.

An optimizer is stepped as its documentation says, outside any compiler. `adapt` finds out what it is given by its
type; nothing is imported that the optimizer has not imported itself.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from multiopt import Optimizer

from ..data.case import Array, Gradient, Sparse
from ..data.specification import Config
from .arrays import Arrays, arrays_like
from .protocol import Options, TargetOptimizer

#: What is called before and after each step: ``hook(step)``, counted from 0.
Hook = Callable[[int], Any]
SLOTS = ("square_avg", "acc_delta")


def adapt(
    optimizer: Any,
    params: Sequence[Array] | None = None,
    *,
    dtype: str = "float32",
    before_step: Hook | None = None,
    after_step: Hook | None = None,
) -> TargetOptimizer:
    """Return an optimizer as one that can be run.

    Parameters
    ----------
    optimizer : object
        A `multiopt.Optimizer`, a `torch.optim.Optimizer`, a Keras optimizer (of Keras 3 or `multiopt.keras`), an
        optax transformation, or what is a `TargetOptimizer` already.
    params : sequence of arrays, optional
        Initial parameters, for optimizers that do not hold theirs: optax, and Keras before ``build``.
    dtype : str
        Data type of those parameters.
    before_step, after_step : callable, optional
        ``hook(step)`` is called when the gradients are in place, and after the step: for clipping functions and
        schedulers of PyTorch, which are separate from its optimizers.

    Raises
    ------
    TypeError
        If it is no optimizer that is known here.
    ValueError
        If it needs `params` and there are none.
    """
    roots = {base.__module__.partition(".")[0] for base in type(optimizer).__mro__}
    made: Steps
    if isinstance(optimizer, Optimizer):
        made = Core(optimizer)
    elif "torch" in roots and hasattr(optimizer, "param_groups"):
        made = TorchOptim(optimizer)
    elif hasattr(optimizer, "apply") and hasattr(optimizer, "build"):
        made = _keras(optimizer, params, dtype)
    elif hasattr(optimizer, "init") and hasattr(optimizer, "update"):
        made = Optax(optimizer, _given(params, "optax"), dtype)
    elif all(hasattr(optimizer, member) for member in ("name", "dtype", "step", "states")):
        found: TargetOptimizer = optimizer
        return found
    else:
        raise TypeError(
            "expected an optimizer of multiopt, torch, Keras or optax, or an object with name, dtype, step and states, "
            f"got {type(optimizer).__module__}.{type(optimizer).__qualname__}"
        )
    if before_step is not None and not isinstance(made, TorchOptim):
        raise ValueError("before_step: expected a torch optimizer, whose gradients are in place before a step")
    made.before_step, made.after_step = before_step, after_step
    return made


def options_of(optimizer: TargetOptimizer, updates: int) -> Options | None:
    """Return what an optimizer was asked for, as far as it says; ``updates`` is how many rates are needed."""
    found: Options | None = optimizer.options(updates) if hasattr(optimizer, "options") else None
    return found


def _name(optimizer: Any) -> str:
    kind = type(optimizer)
    # Keras' classes live in private modules.
    module = "keras.optimizers" if kind.__module__.startswith("keras.src") else kind.__module__
    return f"{module}.{kind.__qualname__}".replace("multiopt.optimizer.", "multiopt.")


def _dtype(arrays: Sequence[Any]) -> str:
    found = {str(a.dtype).rpartition(".")[2] for a in arrays}
    if len(found) != 1:
        raise ValueError(f"params: expected parameters of one dtype, got {', '.join(sorted(found)) or 'none'}")
    return found.pop()


def _given(params: Sequence[Array] | None, name: str) -> Sequence[Array]:
    if params is None:
        raise ValueError(f"params: {name} does not hold its parameters before it is used; pass params=[...]")
    return params


def _options(lr: Any, updates: int, weight_decay: float, *, decoupled: bool = False, **options: Any) -> Options:
    rates = tuple(float(lr(t)) for t in range(updates)) if callable(lr) else None
    kind = None if not weight_decay else "decoupled" if decoupled else "coupled"
    config = Config(lr=rates[0] if rates else lr, weight_decay=weight_decay, decay_kind=kind, **options)
    return Options(config, rates)


class Steps(ABC):
    """A `TargetOptimizer` that calls hooks, and whose arrays are those of one library.

    Subclasses have `update`, which takes one step and may return the learning rate that it used, and `columns`, which
    are every state, in the library's arrays.
    """

    before_step: Hook | None = None
    after_step: Hook | None = None

    def __init__(self, name: str, dtype: str, arrays: Arrays) -> None:
        self.name, self.dtype, self.arrays = name, dtype, arrays

    def step(self, number: int, gradients: Sequence[Gradient]) -> float | None:
        """See `TargetOptimizer`."""
        used = self.update(number, [self.gradient(g, i) for i, g in enumerate(gradients)])
        if self.after_step is not None:
            self.after_step(number)
        return used

    def gradient(self, g: Gradient, i: int) -> Any:
        """Return a gradient of parameter `i` as the library's array, or None."""
        return None if g is None else self.arrays.make(g, self.dtype)

    @abstractmethod
    def update(self, number: int, gradients: list[Any]) -> float | None:
        """Take one step."""

    @abstractmethod
    def columns(self) -> Mapping[str, Sequence[Any]]:
        """Return every state, in the library's arrays."""

    def states(self) -> Mapping[str, Sequence[Any]]:
        """See `TargetOptimizer`."""
        columns = self.columns()
        flat = iter(self.read([array for column in columns.values() for array in column]))
        return {kind: [next(flat) for _ in column] for kind, column in columns.items()}

    def read(self, arrays: Sequence[Any]) -> list[Array]:
        """Return copies as NumPy arrays."""
        return self.arrays.read(arrays)


class Core(Steps):
    """A `multiopt.Optimizer` of a flat list, or tree, of parameters."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.opt = optimizer
        arrays = self._params()
        super().__init__(f"{_name(optimizer)} on {optimizer.backend.name}", _dtype(arrays), arrays_like(arrays[0]))

    def _params(self) -> list[Any]:
        return [a for group in self.opt.groups for a in group.structure.flatten(group["params"], "params")]

    def update(self, number: int, gradients: list[Any]) -> None:
        """See `Steps`."""
        rest = iter(gradients)
        trees = [group.structure.unflatten([next(rest) for _ in group.structure.names]) for group in self.opt.groups]
        self.opt.step(trees if self.opt.grouped else trees[0])

    def columns(self) -> Mapping[str, Sequence[Any]]:
        """See `Steps`."""
        arrays = self.opt.state_dict()["arrays"]
        names = [name for group in self.opt.groups for name in group.structure.names]
        kinds = {slot: slot for slot in self.opt.rule.slots} | ({} if self.opt.ema is None else {"average": "ema"})
        return {"x": self._params(), **{kind: [arrays[f"{key}/{name}"] for name in names]
                                        for kind, key in kinds.items()}}  # fmt: skip

    def options(self, updates: int) -> Options | None:
        """Return its options, where all groups have the same and the rule is Adadelta."""
        opt = self.opt
        groups = [group.options() for group in opt.groups]
        if any(group != groups[0] for group in groups) or opt.rule.name != "adadelta" or opt.loss_scale != 1.0:
            return None
        g = groups[0]
        if any(callable(g[name]) for name in ("rho", "eps", "weight_decay")):
            return None
        return _options(
            g["lr"], updates, g["weight_decay"], decoupled=g["decoupled"], rho=g["rho"], eps=g["eps"],
            clipvalue=g["clip_value"], clipnorm=g["clip_norm"], global_clipnorm=opt.clip_global_norm,
            maximize=g["maximize"], accumulate=opt.accumulate, ema_momentum=opt.ema,
        )  # fmt: skip


class TorchOptim(Steps):
    """A `torch.optim.Optimizer`."""

    def __init__(self, optimizer: Any) -> None:
        self.opt = optimizer
        self.params = [p for group in optimizer.param_groups for p in group["params"]]
        super().__init__(_name(optimizer), _dtype(self.params), arrays_like(self.params[0].detach()))

    def update(self, number: int, gradients: list[Any]) -> float | None:
        """See `Steps`."""
        for param, g in zip(self.params, gradients, strict=True):
            param.grad = g
        if self.before_step is not None:
            self.before_step(number)
        used = self.opt.param_groups[0].get("lr")
        self.opt.step()
        return None if used is None else float(used)

    def columns(self) -> Mapping[str, Sequence[Any]]:
        """See `Steps`; a state that is not there yet counts as zeros."""
        columns = {"x": self.params}
        if "rho" in getattr(self.opt, "defaults", ()):
            states = [self.opt.state.get(p, {}) for p in self.params]
            for slot in SLOTS:
                columns[slot] = [s.get(slot, p.new_zeros(p.shape)) for s, p in zip(states, self.params, strict=True)]
        return columns

    def options(self, updates: int) -> Options | None:
        """Return its options, where all groups have the same and nothing is done besides."""
        unlike = ("params", "param_names")
        groups = [{k: v for k, v in group.items() if k not in unlike} for group in self.opt.param_groups]
        g = groups[0]
        plain = {"lr", "rho", "eps", "weight_decay", "maximize"} <= g.keys()
        if not plain or self.before_step or self.after_step or any(other != g for other in groups):
            return None
        return _options(float(g["lr"]), updates, float(g["weight_decay"]), rho=float(g["rho"]), eps=float(g["eps"]),
                        maximize=bool(g["maximize"]))  # fmt: skip


class Keras(Steps):
    """An optimizer of Keras 3 or of `multiopt.keras`, whose module is `keras`, and its variables.

    ``clock[0]`` is the number of the step, for learning rates that are functions. `skip_empty` tells whether a step
    without any gradient is passed over, not given to the optimizer, which would refuse it.
    """

    def __init__(
        self,
        optimizer: Any,
        variables: Sequence[Any],
        keras: Any,
        dtype: str,
        *,
        clock: list[int] | None = None,
        skip_empty: bool = False,
    ) -> None:
        super().__init__(_name(optimizer), dtype, Arrays("numpy"))
        self.opt, self.variables, self.keras, self.skip_empty = optimizer, list(variables), keras, skip_empty
        self.clock = [0] if clock is None else clock
        self.ours = not hasattr(keras, "ops")

    def gradient(self, g: Gradient, i: int) -> Any:
        """See `Steps`."""
        if isinstance(g, Sparse):
            return self.keras.IndexedSlices(g.values, g.indices)
        if g is None or self.ours:
            return super().gradient(g, i)
        return self.keras.ops.convert_to_tensor(g, self.dtype)

    def update(self, number: int, gradients: list[Any]) -> float | None:
        """See `Steps`."""
        self.clock[0] = number
        if not self.skip_empty or any(g is not None for g in gradients):
            self.opt.apply(gradients, self.variables)
        return None

    def columns(self) -> Mapping[str, Sequence[Any]]:
        """See `Steps`."""
        columns = {"x": self.variables}
        for slot, held in zip(SLOTS, ("_accumulated_grads", "_accumulated_delta_vars"), strict=True):
            if hasattr(self.opt, held):
                columns[slot] = getattr(self.opt, held)
        if getattr(self.opt, "use_ema", False):
            columns["average"] = self.opt._model_variables_moving_average
        return columns

    def read(self, arrays: Sequence[Any]) -> list[Array]:
        """See `Steps`."""
        if self.ours:
            return super().read([box.numpy() for box in arrays])
        return super().read([self.keras.ops.convert_to_numpy(box) for box in arrays])

    def options(self, updates: int) -> Options | None:
        """Return its options."""
        c = self.opt.get_config()
        if not {"learning_rate", "rho", "epsilon"} <= c.keys():
            return None
        rate = (
            c["learning_rate"] if isinstance(c["learning_rate"], float) else getattr(self.opt, "_learning_rate", None)
        )
        if not isinstance(rate, float) and not callable(rate):
            return None
        return _options(
            rate, updates, c.get("weight_decay") or 0.0, decoupled=True, rho=c["rho"], eps=c["epsilon"],
            clipvalue=c.get("clipvalue"), clipnorm=c.get("clipnorm"), global_clipnorm=c.get("global_clipnorm"),
            accumulate=c.get("gradient_accumulation_steps") or 1,
            ema_momentum=c["ema_momentum"] if c.get("use_ema") else None,
        )  # fmt: skip


def _keras(optimizer: Any, params: Sequence[Array] | None, dtype: str) -> Keras:
    ours = any(base.__module__.startswith("multiopt.keras") for base in type(optimizer).__mro__)
    keras = importlib.import_module("multiopt.keras" if ours else "keras")
    variables = list(getattr(optimizer, "_trainable_variables", None) or ())
    if not variables:
        start = [np.array(values) for values in _given(params, _name(optimizer))]
        variables = [
            keras.Variable(values.astype(dtype)) if ours else keras.Variable(values, dtype=dtype) for values in start
        ]
        optimizer.build(variables)
    return Keras(optimizer, variables, keras, _dtype(variables))


class Optax(Steps):
    """An optax transformation; its options are hidden in closures."""

    def __init__(self, transformation: Any, params: Sequence[Array], dtype: str) -> None:
        arrays = Arrays("jax.numpy")
        self.tx, self.optax = transformation, importlib.import_module("optax")
        self.params = [arrays.make(values, dtype) for values in params]
        # JAX makes float32 of float64 unless it is told otherwise.
        super().__init__("optax", _dtype(self.params), arrays)
        self.state = transformation.init(self.params)

    def gradient(self, g: Gradient, i: int) -> Any:
        """See `Steps`."""
        if g is None:
            raise ValueError("gradients: optax takes no None")
        return super().gradient(g, i)

    def update(self, number: int, gradients: list[Any]) -> float | None:
        """See `Steps`."""
        updates, self.state = self.tx.update(gradients, self.state, self.params)
        self.params = self.optax.apply_updates(self.params, updates)
        return None

    def columns(self) -> Mapping[str, Sequence[Any]]:
        """See `Steps`."""
        names = zip(SLOTS, ("e_g", "e_x"), strict=True)
        held = {kind: self.optax.tree.get(self.state, name, None) for kind, name in names}
        return {"x": self.params, **{kind: list(arrays) for kind, arrays in held.items() if arrays is not None}}
