"""What all optimizers of Keras' later API share: variables, gradients, averages, configuration, state."""

from __future__ import annotations

import inspect
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np

from ..backends.protocol import Array
from ..options import WEIGHT_DECAY, check_switch, check_threshold
from ..rule import Hyper
from . import arguments, initializers, plain, schedules, sparse
from . import mesh as meshes
from .differentiate import gradients
from .rate import Rate
from .variable import Boxes, IndexedSlices, Variable

__all__ = ["Optimizer"]

MOMENTUM = Hyper(0.99, low=0.0, high=1.0)
LOSS_SCALE = Hyper(1.0, low=0.0, open_low=True)


class Optimizer(ABC):
    """The base of optimizers: subclass it, and give `update_step`, `build` and `get_config`.

    Parameters
    ----------
    learning_rate : float, schedule, or callable without arguments
        A callable is called at each step.
    name : str
        The optimizer's name.
    weight_decay : float or None
        Decoupled: ``x - learning_rate * weight_decay * x``, before the update.
    clipnorm, clipvalue, global_clipnorm : float or None
        Bounds for each gradient's norm, for each element, and for the norm of all gradients together. One norm at most.
    use_ema : bool
        Keep an exponential moving average of the variables. It moves with every call, and the variables are
        overwritten by it before constraints are applied.
    ema_momentum : float
        In ``new = ema_momentum * old + (1 - ema_momentum) * value``; in [0, 1].
    ema_overwrite_frequency : int or None
        Every so many iterations the variables are overwritten by their averages.
    jit_compile : bool
        True: the fastest engine for the arrays, which is compiled (for JAX's, XLA). False: the eager engine,
        operation by operation, with the same bits in float32 and float64. There is no XLA for the others, so this
        is what the flag stands for; an optimizer with its own `update_step` runs that as it is.
    loss_scale_factor : float or None
        What `scale_loss` multiplies by; gradients are divided by it before all else.
    gradient_accumulation_steps : int or None
        Average the gradients of so many calls, at least 2, and update with the last of them; `iterations` counts
        updates then, while a schedule sees calls. 0 and None are off.
    mesh : torch DeviceMesh, jax Mesh or None
        Where all variables must lie; those made by `add_variable` are replicated on it. State that belongs to a
        variable takes its sharding, with or without this. It is no part of the configuration.
    **kwargs
        Only for configurations of tf_keras: ``is_legacy_optimizer=False``.

    Raises
    ------
    TypeError, ValueError
        If an option is unknown, of the wrong type or out of range; if both norms are set.

    Notes
    -----
    Gradients are taken as they are. Those of DTensors and of sharded JAX arrays are sums over the mesh already;
    of plain arrays in several processes, it is for the caller to add them up.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        name: str = "Optimizer",
        weight_decay: float | None = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        jit_compile: bool = True,
        loss_scale_factor: float | None = None,
        gradient_accumulation_steps: int | None = None,
        mesh: Any = None,
        **kwargs: Any,
    ) -> None:
        arguments.refuse_unknown(kwargs)
        self.name = name
        self.weight_decay = None if weight_decay is None else WEIGHT_DECAY.check("weight_decay", weight_decay)
        self.clipnorm = check_threshold("clipnorm", clipnorm)
        self.clipvalue = check_threshold("clipvalue", clipvalue)
        self.global_clipnorm = check_threshold("global_clipnorm", global_clipnorm)
        if clipnorm is not None and global_clipnorm is not None:
            raise ValueError(
                f"clipnorm, global_clipnorm: expected one of them at most, got {clipnorm!r} and {global_clipnorm!r}"
            )
        self.use_ema = check_switch("use_ema", use_ema)
        self.ema_momentum = MOMENTUM.check("ema_momentum", ema_momentum)
        self.ema_overwrite_frequency = arguments.count("ema_overwrite_frequency", ema_overwrite_frequency, 1)
        self.jit_compile = check_switch("jit_compile", jit_compile)
        self.loss_scale_factor = (
            None if loss_scale_factor is None else LOSS_SCALE.check("loss_scale_factor", loss_scale_factor)
        )
        steps = gradient_accumulation_steps or None
        self.gradient_accumulation_steps = arguments.count("gradient_accumulation_steps", steps, 2)
        self.mesh = meshes.check_mesh(mesh)
        self.built = False
        self._boxes = Boxes()
        self._variables: list[Variable] = []
        self._trainable_variables: list[Variable] = []
        self._index_dict: dict[int, int] = {}
        self._excluded: set[int] = set()
        self._excluded_names: list[str] = []
        self._seen: list[bool] = []
        self._iterations = Variable(np.zeros((), np.int64), trainable=False, name="iteration")
        self._variables.append(self._iterations)
        self._rate = Rate(learning_rate)

    # --- the learning rate and the counter ---

    @property
    def learning_rate(self) -> Any:
        """The learning rate: a `Variable` of float64, which may be assigned; of a schedule, what the last step used.

        Raises
        ------
        TypeError
            If a number is assigned where there was a schedule.
        """
        return self._rate.shown()

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self._rate.assign(value)

    @property
    def iterations(self) -> Variable:
        """How many steps were done: calls of `apply_gradients`; with accumulation, updates."""
        if not self.gradient_accumulation_steps:
            return self._iterations
        updates = self._iterations.numpy() // self.gradient_accumulation_steps
        return Variable(np.asarray(updates), trainable=False, name="iteration")

    # --- variables ---

    @property
    def variables(self) -> list[Variable]:
        """The optimizer's own: iterations, averages, sums of gradients, then what `build` adds, in this order."""
        return list(self._variables)

    def build(self, var_list: Sequence[Any]) -> None:
        """Make the optimizer's variables; subclasses call ``super().build(var_list)`` first.

        Parameters
        ----------
        var_list : sequence of Variable or mutable arrays
            All that will ever be updated.

        Raises
        ------
        TypeError
            If one is neither, or is immutable without being a Variable.
        ValueError
            If one occurs twice, or does not lie on the mesh.
        """
        if self.built:
            return
        boxes = [self._boxes.of(given, f"var_list[{i}]") for i, given in enumerate(var_list)]
        if len({id(box) for box in boxes}) < len(boxes):
            raise ValueError("var_list: expected each variable once, got one twice")
        if not boxes:
            raise ValueError("var_list: expected at least one variable, got none")
        meshes.check_on_mesh(self.mesh, [box.value for box in boxes], [box.name for box in boxes])
        self._trainable_variables = boxes
        self._index_dict = {self._var_key(box): i for i, box in enumerate(boxes)}
        if self.use_ema:
            self._model_variables_moving_average = [
                self.add_variable_from_reference(box, "average", initial_value=box) for box in boxes
            ]
        if self.gradient_accumulation_steps:
            self._accumulated_gradients = [
                self.add_variable_from_reference(box, "gradient_accumulator") for box in boxes
            ]
            self._seen = [False] * len(boxes)
        self.built = True

    def add_variable(
        self,
        shape: Sequence[int] | None = None,
        dtype: str | None = None,
        initializer: Any = "zeros",
        name: str | None = None,
    ) -> Variable:
        """Make a variable of the optimizer's own: of the library and device of the first model variable, once built.

        Parameters
        ----------
        shape : sequence of int or None
            Scalar if None.
        dtype : str or None
            ``"float32"`` if None.
        initializer : {"zeros", "ones"}, callable, array or number
            A callable gets ``shape`` and ``dtype`` and returns a value.
        name : str or None
            Its name.

        Returns
        -------
        Variable
            On the mesh, if there is one, it is replicated.

        Raises
        ------
        ValueError
            If the initializer is not known.
        """
        like = self._trainable_variables[0] if self._trainable_variables else None
        value = initializers.fresh(shape or (), dtype, initializer, None if self.mesh is not None else like)
        if self.mesh is not None:
            value = meshes.replicated(value, self.mesh)
        made = Variable(value, trainable=False, name=name or "variable")
        self._variables.append(made)
        return made

    def add_variable_from_reference(
        self,
        model_variable: Any,
        variable_name: str,
        shape: Sequence[int] | None = None,
        initial_value: Any = None,
    ) -> Variable:
        """Make a variable for a model variable: of its library, dtype and sharding.

        Parameters
        ----------
        model_variable : Variable, or mutable array
            The reference.
        variable_name : str
            The new one is called ``{variable_name}/{model_variable.name}``.
        shape : sequence of int or None
            Another shape, if given.
        initial_value : Variable, array, number or None
            What it holds; 0 if None.
        """
        box = self._boxes.of(model_variable, "model_variable")
        start: Any = "zeros" if initial_value is None else initial_value
        if isinstance(start, (int, float)):
            start = np.full(box.shape if shape is None else tuple(shape), start)
        value = initializers.like(box, start.value if isinstance(start, Variable) else start, shape)
        made = Variable(value, trainable=False, name=f"{variable_name}/{box.name}")
        self._variables.append(made)
        return made

    def _var_key(self, variable: Any) -> int:
        return id(variable)

    def _get_variable_index(self, variable: Any) -> int:
        return self._index_dict[self._var_key(self._boxes.of(variable))]

    def _slots(self) -> list[Variable]:
        """Variables that an update changes, besides the model's: all but the counter, averages and sums."""
        others = {id(self._iterations)}
        others |= {id(v) for v in getattr(self, "_model_variables_moving_average", ())}
        others |= {id(v) for v in getattr(self, "_accumulated_gradients", ())}
        return [v for v in self._variables if id(v) not in others]

    def assign(self, variable: Variable, value: Any) -> None:
        """Put a value into a variable."""
        variable.assign(value)

    def assign_add(self, variable: Variable, value: Any) -> None:
        """Add a value to a variable."""
        variable.assign_add(value)

    def assign_sub(self, variable: Variable, value: Any) -> None:
        """Subtract a value from a variable."""
        variable.assign_sub(value)

    # --- weight decay ---

    def exclude_from_weight_decay(
        self, var_list: Iterable[Any] | None = None, var_names: Iterable[str] | None = None
    ) -> None:
        """Spare variables from weight decay.

        Parameters
        ----------
        var_list : iterable of variables or None
            These.
        var_names : iterable of str or None
            And those in whose name one of these regular expressions is found.

        Raises
        ------
        ValueError
            If the optimizer is built already.
        """
        if self.built:
            raise ValueError("exclude_from_weight_decay: expected before the optimizer is built, got it after that")
        self._excluded = {self._var_key(self._boxes.of(given, "var_list")) for given in var_list or ()}
        self._excluded_names = list(var_names or ())

    def _use_weight_decay(self, variable: Variable) -> bool:
        if self._var_key(variable) in self._excluded:
            return False
        return not any(re.search(name, variable.name) for name in self._excluded_names)

    # --- gradients ---

    def compute_gradients(
        self, loss: Any, var_list: Any, tape: Any = None, *, grad_fn: Callable[..., Any] | None = None
    ) -> list[tuple[Any, Variable]]:
        """Differentiate a loss.

        Parameters
        ----------
        loss : callable or tensor
            A callable takes no arguments and returns the loss. A tensor needs the tape that computed it.
        var_list : sequence of Variable, or callable that returns one
            With respect to these.
        tape : GradientTape or None
            See `multiopt.keras.GradientTape`.
        grad_fn : callable or None
            ``grad_fn(*arrays)`` returns the gradients: for NumPy and CuPy, which have no differentiation.

        Returns
        -------
        list of (gradient, Variable)
            A gradient may be None.

        Raises
        ------
        ValueError
            If gradients cannot be computed; see `multiopt.keras.differentiate.gradients`.
        """
        return gradients(loss, var_list, tape=tape, grad_fn=grad_fn, boxes=self._boxes)

    def minimize(
        self, loss: Any, var_list: Any, tape: Any = None, *, grad_fn: Callable[..., Any] | None = None
    ) -> None:
        """Differentiate a loss and apply the gradients; see `compute_gradients` and `apply_gradients`."""
        self.apply_gradients(self.compute_gradients(loss, var_list, tape, grad_fn=grad_fn))

    def scale_loss(self, loss: Any) -> Any:
        """The loss times `loss_scale_factor`, if that is set."""
        return loss if self.loss_scale_factor is None else loss * self.loss_scale_factor

    def _scale(self) -> float:
        """What the gradients of one update are multiplied by."""
        return 1.0 / ((self.loss_scale_factor or 1.0) * (self.gradient_accumulation_steps or 1))

    # --- the step ---

    def apply_gradients(self, grads_and_vars: Iterable[tuple[Any, Any]]) -> None:
        """Do one step.

        Parameters
        ----------
        grads_and_vars : iterable of (gradient, variable)
            A gradient is an array, an `IndexedSlices`, or None, which leaves its variable as it is. Nothing happens
            if there are no pairs.

        Raises
        ------
        TypeError
            If this is no such iterable, or a gradient is not of its variable's library and dtype.
        ValueError
            If no gradient is given, a shape differs, or a variable occurs twice.
        KeyError
            If a variable is not among those that the optimizer was built with.
        """
        pairs = arguments.pairs(grads_and_vars)
        self.apply([g for g, _ in pairs], [v for _, v in pairs])

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Do one step, given gradients and variables apart; see `apply_gradients`.

        Parameters
        ----------
        grads : sequence of gradients
        trainable_variables : sequence of variables or None
            None stands for those that the optimizer was built with.
        """
        grads = list(grads)
        if not grads:
            return
        if trainable_variables is None:
            if not self.built:
                raise ValueError("trainable_variables: expected variables, or an optimizer that is built, got None")
            trainable_variables = self._trainable_variables
        variables = list(trainable_variables)
        if len(grads) != len(variables):
            raise ValueError(f"grads: expected one for each of {len(variables)} variables, got {len(grads)}")
        if not self.built:
            if all(g is None for g in grads):
                raise ValueError("grads: expected at least one gradient, got None for every variable")
            self.build([self._boxes.of(given, f"variable {i}") for i, given in enumerate(variables)])
        count = int(self._iterations.value)
        self._step(self._ordered(grads, variables), self._rate.at(count), count)
        self._constrain(grads, variables)
        self._iterations.assign_add(1)

    def _ordered(self, grads: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
        """A gradient for each variable that the optimizer was built with, dense and laid out as the variable is."""
        found: list[Any] = [None] * len(self._trainable_variables)
        seen: set[int] = set()
        missing = []
        for i, (g, given) in enumerate(zip(grads, variables, strict=True)):
            box = self._boxes.of(given, f"variable {i}")
            place = self._index_dict.get(self._var_key(box))
            if place is None:
                raise KeyError(
                    f"{box.name}: expected one of the {len(found)} variables that the optimizer was built with; "
                    "call build() with all that will be updated"
                )
            if place in seen:
                raise ValueError(f"{box.name}: expected each variable once, got it twice")
            seen.add(place)
            if g is None:
                missing.append(box.name)
                continue
            name = f"gradient of {box.name!r}"
            g = sparse.as_gradient(g)
            if isinstance(g, IndexedSlices):
                g.check(box.shape, name)
                g = sparse.dense(g, box)
            # NumPy's own arithmetic turns 0-d arrays into scalars.
            g = np.asarray(g) if isinstance(g, np.generic) else g
            found[place] = meshes.aligned(g, box.value, name)
        if len(missing) == len(grads):
            raise ValueError(f"grads: expected at least one gradient, got None for every variable: {missing}")
        if missing:
            warnings.warn(f"no gradient for the variables {missing}; they are left as they are", stacklevel=4)
        return found

    def _step(self, grads: Sequence[Array | None], rate: Any, count: Any) -> None:
        plain.step(self, grads, rate, count)

    def _constrain(self, grads: Sequence[Any], variables: Sequence[Any]) -> None:
        for g, given in zip(grads, variables, strict=True):
            box = self._boxes.of(given)
            if g is not None and box.constraint is not None:
                with plain.without_autograd(box.backend):
                    box.assign(box.constraint(box.value))

    @abstractmethod
    def update_step(self, gradient: Array, variable: Variable, learning_rate: Any = None) -> None:
        """Update a variable: what a subclass gives, with two arguments, or with three as in Keras 3.

        Parameters
        ----------
        gradient : array
            Unscaled, averaged and clipped.
        variable : Variable
            Decayed already.
        learning_rate : float or 0-d array
            That of this step.
        """

    def _call_update_step(self, gradient: Array, variable: Variable, rate: Any) -> None:
        takes = inspect.signature(self.update_step).parameters.values()
        wide = len(takes) > 2 or any(p.kind is p.VAR_POSITIONAL for p in takes)
        self.update_step(gradient, variable, rate) if wide else self.update_step(gradient, variable)

    def stateless_apply(
        self, optimizer_variables: Sequence[Array], grads: Sequence[Any], trainable_variables: Sequence[Array]
    ) -> tuple[list[Array], list[Array]]:
        """One step as a function: nothing is written; it may run under `jax.jit`.

        Parameters
        ----------
        optimizer_variables : sequence of arrays
            Values for `variables`.
        grads : sequence of arrays
            One for each of the variables that the optimizer was built with.
        trainable_variables : sequence of arrays
            Values for these.

        Returns
        -------
        trainable_variables, optimizer_variables : list of arrays
            The new values.

        Raises
        ------
        ValueError
            If the optimizer is not built, or a list has another length.
        """
        return plain.stateless_apply(self, optimizer_variables, grads, trainable_variables)

    # --- averages ---

    def finalize_variable_values(self, var_list: Iterable[Any]) -> None:
        """Put the averages into the variables, if `use_ema` is on; to be called when training is over.

        Raises
        ------
        KeyError
            If a variable is not among those that the optimizer was built with.
        """
        if self.use_ema:
            boxes = [self._boxes.of(given, f"var_list[{i}]") for i, given in enumerate(var_list)]
            for place in [self._get_variable_index(box) for box in boxes]:
                self._trainable_variables[place].assign(self._model_variables_moving_average[place])

    def _overwrite(self) -> None:
        for held, box in zip(self._model_variables_moving_average, self._trainable_variables, strict=True):
            box.assign(held)

    # --- configuration and state ---

    def get_config(self) -> dict[str, Any]:
        """The options, as plain data; a callable learning rate is called."""
        names = (
            "weight_decay clipnorm global_clipnorm clipvalue use_ema ema_momentum ema_overwrite_frequency "
            "jit_compile loss_scale_factor gradient_accumulation_steps"
        )
        return {
            "name": self.name,
            "learning_rate": self._rate.config(),
            **{name: getattr(self, name) for name in names.split()},
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None) -> Optimizer:
        """An optimizer from what `get_config` returned, here, in tf_keras or in Keras 3.

        Parameters
        ----------
        config : mapping
        custom_objects : mapping or None
            Your own schedules, by name.
        """
        options = dict(config)
        if isinstance(options.get("learning_rate"), Mapping):
            options["learning_rate"] = schedules.deserialize(options["learning_rate"], custom_objects)
        return cls(**options)

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Assign arrays to `variables`, in their order.

        Raises
        ------
        ValueError
            If the optimizer is not built, or number or shapes differ. Nothing has been written then.
        """
        if not self.built:
            raise ValueError("set_weights: expected an optimizer that is built; call build() first")
        if len(weights) != len(self._variables):
            raise ValueError(f"weights: expected {len(self._variables)} arrays, got {len(weights)}")
        for variable, weight in zip(self._variables, weights, strict=True):
            if tuple(np.shape(weight)) != variable.shape:
                raise ValueError(
                    f"weights: {variable.name}: expected shape {variable.shape}, got {tuple(np.shape(weight))}"
                )
        for variable, weight in zip(self._variables, weights, strict=True):
            meshes.assign(variable, weight)
        if self.gradient_accumulation_steps:
            # In the middle of a cycle, all that the sums hold counts.
            begun = int(self._iterations.value) % self.gradient_accumulation_steps != 0
            self._seen = [begun] * len(self._seen)

    def save_own_variables(self, store: MutableMapping[str, Any]) -> None:
        """Put NumPy copies of `variables` into a mapping, under ``"0"``, ``"1"``, … ; sharded ones are gathered."""
        for i, variable in enumerate(self._variables):
            store[str(i)] = meshes.numpy(variable)

    def load_own_variables(self, store: Mapping[str, Any]) -> None:
        """Take over what `save_own_variables` gave.

        Raises
        ------
        ValueError
            See `set_weights`. (Keras warns and goes on without the state.)
        """
        expected = [str(i) for i in range(len(self._variables))]
        if sorted(store.keys()) != sorted(expected):
            raise ValueError(
                f"store: expected {len(expected)} arrays for optimizer {self.name!r}, got {sorted(store.keys())}"
            )
        self.set_weights([np.asarray(store[key]) for key in expected])

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what goes by identity."""
        return {**self.__dict__, "_index_dict": {}, "_boxes": None, "_excluded": self._spared()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._boxes = Boxes()
        self._index_dict = {self._var_key(box): i for i, box in enumerate(self._trainable_variables)}
        self._excluded = {self._var_key(box) for box in state["_excluded"]}

    def _spared(self) -> list[Variable]:
        return [box for box in self._trainable_variables if self._var_key(box) in self._excluded]
