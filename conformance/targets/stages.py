"""multiopt's optimizers on the stage: the core, its functional form (jitted or not) and the Keras face.

Each says which questions it has no words for, and which ones it must refuse.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from multiopt import Adadelta, functional

from ..data.inputs import Gradient, Sparse
from ..recording.keras_arguments import arguments
from .players import Array, Library, Player, Stage

if TYPE_CHECKING:
    from .replay import Question

_SLOTS = ("square_avg", "acc_delta")


def inexpressible(player: Player, question: Question) -> str | None:
    """Say why `player` has no words for a question, or return None."""
    c = question.config
    if lacking := player.lacks(question.dtype):
        return lacking
    if player.engine == "keras":
        if not _keras():
            return "multiopt.keras is not complete here"
        if c.decay_kind == "coupled":
            return "Keras' weight decay is decoupled"
        if c.maximize or c.legacy_decay:
            return "Keras has no " + ("maximize" if c.maximize else "decay in its later optimizers")
        if c.clipnorm is not None and c.global_clipnorm is not None:
            return "Keras clips one kind of norm at a time"
        if c.accumulate > 1 and (c.schedule is not None or c.ema_momentum is not None) and question.rates is None:
            return "under accumulation, Keras' schedules and averages count gradients, not updates"
        return None
    if question.is_sparse:
        return "sparse gradients are a matter of the Keras face"
    if c.constraint is not None:
        return "constraints are a matter of the Keras face"
    if c.ema_every is not None:
        return "averages that replace the parameters are a matter of the Keras face"
    if player.engine in ("functional", "jit"):
        if c.clipnorm is not None or c.global_clipnorm is not None:
            return "multiopt.functional leaves clipping by norm to a function of its own"
        if c.accumulate > 1 or c.ema_momentum is not None:
            return "multiopt.functional leaves accumulation and averages to the caller"
    return None


def refusal(player: Player, question: Question) -> str | None:
    """Say why ours must refuse a question, or return None."""
    c = question.config
    if c.clipvalue is not None and c.clipvalue <= 0:
        return "a bound of 0 or less would make every gradient 0, or turn its sign"
    if player.engine == "keras":
        return None
    if c.eps == 0:
        return "with eps 0 a gradient of 0 gives NaN"
    if player.engine not in ("functional", "jit") and any(all(g is None for g in row) for row in question.gradients):
        return "a step without any gradient is a mistake"
    return None


def stage_of(player: Player, library: Library, question: Question) -> Stage:
    """Return an optimizer of `player`'s kind, ready for the question.

    Raises
    ------
    ValueError
        If it refuses the options.
    """
    if player.stage is not None:
        return player.stage(question)
    if player.engine == "keras":
        return Keras(library, question)
    if player.engine in ("functional", "jit"):
        return Functional(library, question, jit=player.engine == "jit")
    return Core(library, question, player.engine)


class Core:
    """`multiopt.Adadelta`."""

    def __init__(self, library: Library, question: Question, engine: str) -> None:
        self.library, self.dtype = library, question.dtype
        self.opt = Adadelta(
            [library.make(values, question.dtype) for values in question.start],
            engine=engine,
            **core_options(question),
        )

    def step(self, number: int, gradients: Sequence[Gradient]) -> None:
        """Take one step."""
        self.opt.step(_made(self.library, gradients, self.dtype))

    def states(self) -> Mapping[str, Sequence[Array]]:
        """Return every state."""
        columns = {"x": self.opt.params, **{slot: [state[slot] for state in self.opt.state] for slot in _SLOTS}}
        if self.opt.ema is not None:
            columns["average"] = self.opt.ema_params
        return _read(self.library, columns)


def core_options(question: Question) -> dict[str, Any]:
    """Return a question's options in the words of `multiopt.Adadelta`."""
    c = question.config
    return {
        "lr": question.learning_rate(),
        "rho": c.rho,
        "eps": c.eps,
        "weight_decay": c.weight_decay,
        "decoupled": c.decay_kind == "decoupled",
        "maximize": c.maximize,
        "clip_value": c.clipvalue,
        "clip_norm": c.clipnorm,
        "clip_global_norm": c.global_clipnorm,
        "accumulate": c.accumulate,
        "ema": c.ema_momentum,
    }


#: Compiled steps, by all that is fixed in them: most questions differ in their numbers only.
_compiled: dict[Any, Callable[..., Any]] = {}


class Functional:
    """`multiopt.functional`, as it is or under `jax.jit`."""

    def __init__(self, library: Library, question: Question, *, jit: bool) -> None:
        c = question.config
        self.library, self.dtype = library, question.dtype
        self.params = [library.make(values, question.dtype) for values in question.start]
        self.state = functional.init(self.params)
        rate = question.learning_rate()
        self.rate = rate if callable(rate) else lambda step: rate
        options: dict[str, Any] = {
            "rho": c.rho,
            "eps": c.eps,
            "weight_decay": c.weight_decay,
            "decoupled": c.decay_kind == "decoupled",
            "maximize": c.maximize,
            "clip_value": c.clipvalue,
        }

        def update(params: Any, grads: Any, state: Any, lr: Any) -> Any:
            return functional.update(params, grads, state, lr=lr, **options)

        if jit:
            self.update = _compiled.setdefault(tuple(options.values()), importlib.import_module("jax").jit(update))
        else:
            self.update = update

    def step(self, number: int, gradients: Sequence[Gradient]) -> None:
        """Take one step."""
        made = _made(self.library, gradients, self.dtype)
        self.params, self.state = self.update(self.params, made, self.state, float(self.rate(number)))

    def states(self) -> Mapping[str, Sequence[Array]]:
        """Return every state."""
        return _read(self.library, {"x": self.params, **{slot: self.state.slots[slot] for slot in _SLOTS}})


class Keras:
    """`multiopt.keras`, with its averages that replace the parameters, its constraints and its sparse gradients."""

    def __init__(self, library: Library, question: Question) -> None:
        keras, c = _keras(), question.config
        self.library, self.dtype, self.keras, self.clock = library, question.dtype, keras, [0]
        constraint = (lambda x: np.maximum(x, 0)) if c.constraint else None
        self.variables = [
            keras.Variable(library.make(values, question.dtype), constraint=None if i else constraint)
            for i, values in enumerate(question.start)
        ]
        given = {"learning_rate": 1.0, **arguments(c, keras.schedules, self.clock)}
        if given["learning_rate"] is None:
            given["learning_rate"] = 1.0
        rates = question.rates
        if rates is not None:
            given["learning_rate"] = lambda: rates[self.clock[0] // c.accumulate]
        self.opt = keras.Adadelta(**given, gradient_accumulation_steps=c.accumulate if c.accumulate > 1 else None)
        self.opt.build(self.variables)
        if c.first_iteration:
            self.opt.iterations.assign(c.first_iteration)

    def step(self, number: int, gradients: Sequence[Gradient]) -> None:
        """Take one step."""
        self.clock[0] = number
        made = [
            self.keras.IndexedSlices(g.values, g.indices)
            if isinstance(g, Sparse)
            else None
            if g is None
            else self.library.make(g, self.dtype)
            for g in gradients
        ]
        if any(g is not None for g in made):
            self.opt.apply(made, self.variables)

    def states(self) -> Mapping[str, Sequence[Array]]:
        """Return every state."""
        # Its own variables come in this order: iterations, averages if any, then a pair for each variable.
        names = ("_accumulated_grads", "_accumulated_delta_vars")
        boxes = {"x": self.variables, **dict(zip(_SLOTS, (getattr(self.opt, name) for name in names), strict=True))}
        if self.opt.use_ema:
            boxes["average"] = self.opt._model_variables_moving_average
        return {kind: [box.numpy() for box in column] for kind, column in boxes.items()}


def _keras() -> Any:
    """Return `multiopt.keras`, or None where it has no optimizer."""
    module = importlib.import_module("multiopt.keras")
    return module if hasattr(module, "Adadelta") else None


def _made(library: Library, gradients: Sequence[Gradient], dtype: str) -> list[Any]:
    return [None if g is None else library.make(g, dtype) for g in gradients]  # type: ignore[arg-type]


def _read(library: Library, columns: Mapping[str, Sequence[Any]]) -> dict[str, list[Array]]:
    # In one go: a lazy library then computes in one go.
    flat = library.read([array for column in columns.values() for array in column])
    count = len(flat) // len(columns)
    return {kind: flat[i * count : (i + 1) * count] for i, kind in enumerate(columns)}
