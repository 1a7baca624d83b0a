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
    """Return an optimizer of multiopt, PyTorch, Keras 3 or optax, or a `TargetOptimizer`, as one that can be run.

    ``params`` are initial parameters, made of this data type, for optimizers that do not hold theirs: optax, and Keras
    before ``build``. Hooks are called when the gradients are in place, and after the step: for clipping functions and
    schedulers of PyTorch, which are separate from its optimizers.
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
    """A `TargetOptimizer` that calls hooks, and whose arrays are those of one library."""

    before_step: Hook | None = None
    after_step: Hook | None = None

    def __init__(self, name: str, dtype: str, arrays: Arrays) -> None:
        self.name, self.dtype, self.arrays = name, dtype, arrays

    def step(self, number: int, gradients: Sequence[Gradient]) -> float | None:
        used = self.update(number, [self.gradient(g, i) for i, g in enumerate(gradients)])
        if self.after_step is not None:
            self.after_step(number)
        return used

    def gradient(self, g: Gradient, i: int) -> Any:
        """Return a gradient of parameter `i` as the library's array, or None."""
        return None if g is None else self.arrays.make(g, self.dtype)

    @abstractmethod
    def update(self, number: int, gradients: list[Any]) -> float | None:
        """Take one step, and return the learning rate that was used, if it is known."""

    @abstractmethod
    def columns(self) -> Mapping[str, Sequence[Any]]:
        """Return every state, in the library's arrays."""

    def states(self) -> Mapping[str, Sequence[Any]]:
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
        rest = iter(gradients)
        trees = [group.structure.unflatten([next(rest) for _ in group.structure.names]) for group in self.opt.groups]
        self.opt.step(trees if self.opt.grouped else trees[0])

    def columns(self) -> Mapping[str, Sequence[Any]]:
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
        for param, g in zip(self.params, gradients, strict=True):
            param.grad = g
        if self.before_step is not None:
            self.before_step(number)
        used = self.opt.param_groups[0].get("lr")
        self.opt.step()
        return None if used is None else float(used)

    def columns(self) -> Mapping[str, Sequence[Any]]:
        # A state that is not there yet counts as zeros.
        held = [(p, self.opt.state.get(p, {})) for p in self.params]
        slots = SLOTS if "rho" in getattr(self.opt, "defaults", ()) else ()
        return {"x": self.params, **{s: [state.get(s, p.new_zeros(p.shape)) for p, state in held] for s in slots}}

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

    ``clock[0]`` is the number of the step, for learning rates that are functions.
    """

    #: Whether a step without any gradient is passed over, not given to the optimizer, which would refuse it.
    skip_empty = False

    def __init__(
        self, optimizer: Any, variables: Sequence[Any], keras: Any, dtype: str, clock: list[int] | None = None
    ) -> None:
        super().__init__(_name(optimizer), dtype, Arrays("numpy"))
        self.opt, self.variables, self.keras, self.clock = optimizer, list(variables), keras, clock or [0]
        self.ours = not hasattr(keras, "ops")

    def gradient(self, g: Gradient, i: int) -> Any:
        if isinstance(g, Sparse):
            return self.keras.IndexedSlices(g.values, g.indices)
        if g is None or self.ours:
            return super().gradient(g, i)
        return self.keras.ops.convert_to_tensor(g, self.dtype)

    def update(self, number: int, gradients: list[Any]) -> float | None:
        self.clock[0] = number
        if not self.skip_empty or any(g is not None for g in gradients):
            self.opt.apply(gradients, self.variables)
        return None

    def columns(self) -> Mapping[str, Sequence[Any]]:
        columns = {"x": self.variables}
        names = {"square_avg": "_accumulated_grads", "acc_delta": "_accumulated_delta_vars"}
        if getattr(self.opt, "use_ema", False):
            names["average"] = "_model_variables_moving_average"
        return columns | {kind: getattr(self.opt, name) for kind, name in names.items() if hasattr(self.opt, name)}

    def read(self, arrays: Sequence[Any]) -> list[Array]:
        return super().read([a.numpy() if self.ours else self.keras.ops.convert_to_numpy(a) for a in arrays])

    def options(self, updates: int) -> Options | None:
        """Return its options."""
        c = self.opt.get_config()
        rate = c.get("learning_rate")
        if not isinstance(rate, float):
            rate = getattr(self.opt, "_learning_rate", None)
        if not {"learning_rate", "rho", "epsilon"} <= c.keys() or not (isinstance(rate, float) or callable(rate)):
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
        variables = [keras.Variable(x.astype(dtype)) if ours else keras.Variable(x, dtype=dtype) for x in start]
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
        if g is None:
            raise ValueError("gradients: optax takes no None")
        return super().gradient(g, i)

    def update(self, number: int, gradients: list[Any]) -> float | None:
        updates, self.state = self.tx.update(gradients, self.state, self.params)
        self.params = self.optax.apply_updates(self.params, updates)
        return None

    def columns(self) -> Mapping[str, Sequence[Any]]:
        names = zip(SLOTS, ("e_g", "e_x"), strict=True)
        held = {kind: self.optax.tree.get(self.state, name, None) for kind, name in names}
        return {"x": self.params, **{kind: list(arrays) for kind, arrays in held.items() if arrays is not None}}
