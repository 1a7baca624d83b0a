"""Optimizers of several frameworks behind one face: parameters and gradients in, every state out, as NumPy arrays.

An optimizer is stepped as its documentation says, outside any compiler. `adapt` finds out what it is given by its
type; nothing is imported that the optimizer has not imported itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from multiopt import Optimizer

from ..data.specification import Config
from .namespaces import Foreign
from .players import Array, CuPy, Dask, Jax, Library, NumPy, Torch

#: What adapters call before and after each step: ``hook(step)``, counted from 0.
Hook = Callable[[int], Any]
_SLOTS = ("square_avg", "acc_delta")


class Adapter(Protocol):
    """What can be compared. Anything with these members can, an optimizer of one's own framework too.

    ``name`` stands in messages, ``dtype`` is the data type of parameters and state, such as ``"float32"``.
    """

    name: str
    dtype: str

    def step(self, number: int, gradients: Sequence[Array | None]) -> None:
        """Take step `number`, counted from 0, with a gradient for each parameter, or None."""

    def states(self) -> Mapping[str, Sequence[Array]]:
        """Return copies: ``"x"``, the parameters, and where known ``"square_avg"``, ``"acc_delta"``, ``"average"``."""


@dataclass(frozen=True)
class Asked:
    """What an optimizer was asked for: options, and the learning rate of each update where it changes."""

    config: Config
    rates: tuple[float, ...] | None = None


def asked(adapter: Any, updates: int) -> Asked | None:
    """Return what an adapter was asked for, as far as it says; ``updates`` is how many rates are needed."""
    return adapter.asked(updates) if hasattr(adapter, "asked") else None


def adapt(
    optimizer: Any,
    params: Sequence[Array] | None = None,
    *,
    dtype: str = "float32",
    before_step: Hook | None = None,
    after_step: Hook | None = None,
) -> Adapter:
    """Return an adapter for an optimizer.

    Parameters
    ----------
    optimizer : object
        A `multiopt.Optimizer`, a `torch.optim.Optimizer`, a Keras optimizer (of Keras 3 or `multiopt.keras`), an
        optax transformation, or what is an adapter already.
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
    adapter: Any
    if isinstance(optimizer, Optimizer):
        adapter = Multiopt(optimizer)
    elif "torch" in roots and hasattr(optimizer, "param_groups"):
        adapter = TorchOptim(optimizer, before_step)
    elif hasattr(optimizer, "apply") and hasattr(optimizer, "build"):
        adapter = Keras(optimizer, params, dtype)
    elif hasattr(optimizer, "init") and hasattr(optimizer, "update"):
        adapter = Optax(optimizer, params, dtype)
    elif all(hasattr(optimizer, member) for member in ("name", "dtype", "step", "states")):
        return optimizer
    else:
        raise TypeError(
            "expected an optimizer of multiopt, torch, Keras or optax, or an object with name, dtype, step and states, "
            f"got {type(optimizer).__module__}.{type(optimizer).__qualname__}"
        )
    if before_step is not None and not isinstance(adapter, TorchOptim):
        raise ValueError("before_step: expected a torch optimizer, whose gradients are in place before a step")
    adapter.after_step = after_step
    return adapter


def library_of(array: Any) -> Library:
    """Return how arrays like this one are made and read."""
    root = type(array).__module__.partition(".")[0]
    match "jax" if root == "jaxlib" else root:
        case "numpy":
            return NumPy("numpy")
        case "torch":
            return Torch("torch", str(array.device))
        case "jax":
            return Jax("jax.numpy")
        case "dask":
            return Dask("dask.array")
        case "cupy":
            return CuPy("cupy")
    return Foreign(array.__array_namespace__().__name__)


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


class Multiopt:
    """A `multiopt.Optimizer` of a flat list, or tree, of parameters."""

    after_step: Hook | None = None

    def __init__(self, optimizer: Optimizer) -> None:
        self.opt = optimizer
        self.name = f"{_name(optimizer)} on {optimizer.backend.name}"
        arrays = self._flat()
        self.library, self.dtype = library_of(arrays[0]), _dtype(arrays)

    def _flat(self) -> list[Any]:
        return [array for group in self.opt.groups for array in group.params]

    def _tree(self, leaves: Sequence[Any]) -> Any:
        rest = iter(leaves)
        trees = [group.structure.unflatten([next(rest) for _ in group.params]) for group in self.opt.groups]
        return trees if self.opt.grouped else trees[0]

    def step(self, number: int, gradients: Sequence[Array | None]) -> None:
        """See `Adapter`."""
        self.opt.step(self._tree([None if g is None else self.library.make(g, self.dtype) for g in gradients]))
        if self.after_step is not None:
            self.after_step(number)

    def states(self) -> Mapping[str, Sequence[Array]]:
        """See `Adapter`."""
        arrays = self.opt.state_dict()["arrays"]
        names = [name for group in self.opt.groups for name in group.structure.names]
        columns = {"x": self._flat()}
        for slot in self.opt.rule.slots:
            columns[slot] = [arrays[f"{slot}/{name}"] for name in names]
        if self.opt.ema is not None:
            columns["average"] = [arrays[f"ema/{name}"] for name in names]
        return {kind: self.library.read(column) for kind, column in columns.items()}

    def asked(self, updates: int) -> Asked | None:
        """Return its options, where all groups have the same and the rule is Adadelta."""
        opt = self.opt
        groups = [group.options() for group in opt.groups]
        if any(group != groups[0] for group in groups) or opt.rule.name != "adadelta" or opt.loss_scale != 1.0:
            return None
        g = groups[0]
        if any(callable(g[name]) for name in ("rho", "eps", "weight_decay")):
            return None
        rates = tuple(float(g["lr"](t)) for t in range(updates)) if callable(g["lr"]) else None
        config = Config(
            lr=rates[0] if rates else g["lr"],
            rho=g["rho"],
            eps=g["eps"],
            weight_decay=g["weight_decay"],
            decay_kind=None if not g["weight_decay"] else "decoupled" if g["decoupled"] else "coupled",
            clipvalue=g["clip_value"],
            clipnorm=g["clip_norm"],
            global_clipnorm=opt.clip_global_norm,
            maximize=g["maximize"],
            accumulate=opt.accumulate,
            ema_momentum=opt.ema,
        )
        return Asked(config, rates)


class TorchOptim:
    """A `torch.optim.Optimizer`."""

    after_step: Hook | None = None

    def __init__(self, optimizer: Any, before_step: Hook | None = None) -> None:
        self.opt, self.before_step = optimizer, before_step
        self.name = _name(optimizer)
        self.params = [p for group in optimizer.param_groups for p in group["params"]]
        self.library, self.dtype = library_of(self.params[0].detach()), _dtype(self.params)

    def step(self, number: int, gradients: Sequence[Array | None]) -> None:
        """See `Adapter`."""
        for param, g in zip(self.params, gradients, strict=True):
            param.grad = None if g is None else self.library.make(g, self.dtype)
        if self.before_step is not None:
            self.before_step(number)
        self.opt.step()
        if self.after_step is not None:
            self.after_step(number)

    def states(self) -> Mapping[str, Sequence[Array]]:
        """See `Adapter`; a state that is not there yet counts as zeros."""
        columns = {"x": self.library.read([p.detach() for p in self.params])}
        for slot in _SLOTS:
            held = [self.opt.state[p].get(slot) if p in self.opt.state else None for p in self.params]
            known = hasattr(self.opt, "defaults") and "rho" in self.opt.defaults
            if known:
                zeros = [np.zeros_like(x) for x in columns["x"]]
                pairs = zip(held, zeros, strict=True)
                columns[slot] = [z if h is None else self.library.read([h])[0] for h, z in pairs]
        return columns

    def asked(self, updates: int) -> Asked | None:
        """Return its options, where all groups have the same and nothing is done besides."""
        groups = [{k: v for k, v in group.items() if k not in ("params", "param_names")} for group in
                  self.opt.param_groups]  # fmt: skip
        g = groups[0]
        plain = {"lr", "rho", "eps", "weight_decay", "maximize"} <= g.keys()
        if not plain or self.before_step or self.after_step or any(other != g for other in groups):
            return None
        decay = float(g["weight_decay"])
        return Asked(Config(lr=float(g["lr"]), rho=float(g["rho"]), eps=float(g["eps"]), weight_decay=decay,
                            decay_kind="coupled" if decay else None, maximize=bool(g["maximize"])))  # fmt: skip


class Keras:
    """An optimizer of Keras 3, or of `multiopt.keras`."""

    after_step: Hook | None = None

    def __init__(self, optimizer: Any, params: Sequence[Array] | None, dtype: str) -> None:
        self.opt, self.name = optimizer, _name(optimizer)
        roots = [base.__module__ for base in type(optimizer).__mro__]
        ours = any(root.startswith("multiopt.keras") for root in roots)
        self.keras = importlib.import_module("multiopt.keras" if ours else "keras")
        self.ours = ours
        held = list(getattr(optimizer, "_trainable_variables", None) or ())
        if held:
            self.variables = held
        else:
            start = [np.array(values) for values in _given(params, self.name)]
            self.variables = [
                self.keras.Variable(values.astype(dtype)) if ours else self.keras.Variable(values, dtype=dtype)
                for values in start
            ]
            optimizer.build(self.variables)
        self.dtype = _dtype(self.variables)

    def _read(self, variable: Any) -> Array:
        values = variable.numpy() if self.ours else self.keras.ops.convert_to_numpy(variable)
        return np.array(values, dtype=np.float32) if self.dtype == "bfloat16" else np.array(values)

    def step(self, number: int, gradients: Sequence[Array | None]) -> None:
        """See `Adapter`."""
        made = [g if g is None or self.ours else self.keras.ops.convert_to_tensor(g, self.dtype) for g in gradients]
        self.opt.apply(made, self.variables)
        if self.after_step is not None:
            self.after_step(number)

    def states(self) -> Mapping[str, Sequence[Array]]:
        """See `Adapter`."""
        columns = {"x": self.variables}
        for slot, held in zip(_SLOTS, ("_accumulated_grads", "_accumulated_delta_vars"), strict=True):
            if hasattr(self.opt, held):
                columns[slot] = getattr(self.opt, held)
        if getattr(self.opt, "use_ema", False):
            columns["average"] = self.opt._model_variables_moving_average
        return {kind: [self._read(v) for v in column] for kind, column in columns.items()}

    def asked(self, updates: int) -> Asked | None:
        """Return its options."""
        c = self.opt.get_config()
        if not {"learning_rate", "rho", "epsilon"} <= c.keys():
            return None
        lr, rates = c["learning_rate"], None
        if not isinstance(lr, float):
            schedule = getattr(self.opt, "_learning_rate", None)
            if not callable(schedule):
                return None
            rates = tuple(float(schedule(t)) for t in range(updates))
            lr = rates[0]
        decay = c.get("weight_decay") or 0.0
        config = Config(
            lr=lr,
            rho=c["rho"],
            eps=c["epsilon"],
            weight_decay=decay,
            decay_kind="decoupled" if decay else None,
            clipvalue=c.get("clipvalue"),
            clipnorm=c.get("clipnorm"),
            global_clipnorm=c.get("global_clipnorm"),
            accumulate=c.get("gradient_accumulation_steps") or 1,
            ema_momentum=c["ema_momentum"] if c.get("use_ema") else None,
        )
        return Asked(config, rates)


class Optax:
    """An optax transformation; its options are hidden in closures."""

    after_step: Hook | None = None

    def __init__(self, transformation: Any, params: Sequence[Array] | None, dtype: str) -> None:
        self.tx, self.name, self.dtype = transformation, "optax", dtype
        self.library = Jax("jax.numpy")
        self.optax = importlib.import_module("optax")
        self.params = [self.library.make(np.asarray(values), dtype) for values in _given(params, self.name)]
        self.dtype = _dtype(self.params)  # JAX makes float32 of float64 unless it is told otherwise
        self.state = transformation.init(self.params)

    def step(self, number: int, gradients: Sequence[Array | None]) -> None:
        """See `Adapter`."""
        if any(g is None for g in gradients):
            raise ValueError("gradients: optax takes no None")
        made = [self.library.make(g, self.dtype) for g in gradients if g is not None]
        updates, self.state = self.tx.update(made, self.state, self.params)
        self.params = self.optax.apply_updates(self.params, updates)
        if self.after_step is not None:
            self.after_step(number)

    def states(self) -> Mapping[str, Sequence[Array]]:
        """See `Adapter`."""
        columns = {"x": self.params}
        for slot, field in zip(_SLOTS, ("e_g", "e_x"), strict=True):
            held = self.optax.tree.get(self.state, field, None)
            if held is not None:
                columns[slot] = list(held)
        return {kind: self.library.read(arrays) for kind, arrays in columns.items()}
