"""The optimizer: a rule bound to arrays, with groups, options and state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from . import checkpoint, restore, snapshot
from .accumulation import Accumulator, average
from .backends import Backend
from .backends.rounding import Elements, Rounding
from .binding import Binding, restored
from .joint import Joint
from .lock import Lock, locked
from .memory import Memory
from .options import OPTIONS, Attribute, Group, check_seeded, options_of, with_settings
from .plan import Plan, chained, run
from .rule import Rule
from .tree import Structure, flatten_groups, is_group
from .update import SUM, FusedUpdate, averaging, compose

__all__ = ["Optimizer", "Schedule"]

Schedule = Callable[[int], float]


class Optimizer:
    """Any `Rule`, bound to arrays of one library.

    Parameters
    ----------
    rule : Rule
        What is computed.
    params : array, or container of arrays, or list of groups
        An array; a list, tuple or dict of arrays; containers nested in any way (with optree); or groups, a list of
        dicts ``{"params": ..., **options}``. NumPy, CuPy and PyTorch arrays are updated in place; of JAX and Dask
        arrays, which are immutable, the new ones are returned and held in `params`.
        float16, bfloat16, float32, float64, complex64 and complex128, of any strides.
    weight_decay : float or callable
        Coupled by default: added to the gradient, ``g + weight_decay * x``.
    decoupled : bool
        Decay apart from the gradient: ``x - lr * weight_decay * x`` before the rule.
    maximize : bool
        Maximize the objective: the gradient is negated, before weight decay.
    clip_value : float or None
        Clip each element of the gradient to ±clip_value.
    clip_norm : float or None
        Then clip the norm of each gradient (per array).
    clip_global_norm : float or None
        Then clip the norm of all gradients together, over all groups.
    accumulate : int
        Micro-batches averaged per update: one update for every `accumulate` calls of `step`.
    loss_scale : float
        What the loss was multiplied by; gradients are divided by it first.
    nonfinite : {"propagate", "skip", "raise"}
        What to do with gradients that are infinite or NaN: use them; skip the step and count it in `skipped`; or
        raise `FloatingPointError`, with nothing changed.
    ema : float or None
        Momentum of an exponential moving average of the parameters, held in `ema_params`.
    state_dtype : str or None
        Dtype of the state, such as ``"float32"`` for bfloat16 parameters; by default the parameter's.
    state_rounding : {"nearest", "stochastic"}
        How bfloat16 state, the average too, is rounded. Stochastically it keeps, on average, what is added to it
        however small; the numbers are a hash of `seed`, `steps`, and the number and the index of the element.
    seed : int
        Of stochastic rounding, from 0 to 2**64 - 1; a snapshot or checkpoint brings its own.
    engine : {"auto", "host", "cuda", "xla", "eager"}
        What computes; by default the fastest that serves the arrays (``multiopt info``).
    donate : bool
        JAX on the CPU: a step deletes the parameters' old arrays and uses their memory, as it does with the state's.
    **options
        The rule's hyperparameters: a float each, or a callable of the 0-based step (`multiopt.schedules`).
        They, `weight_decay`, `decoupled`, `maximize`, `clip_value` and `clip_norm` may differ between groups, and may
        be assigned at any time: ``opt.lr = 0.1``, ``opt["beta1"] = 0.5``, ``opt.groups[1]["lr"] = 0.1``.

    Attributes
    ----------
    groups : list of Group
        Mappings from option to value.
    defaults : dict
        The options of a group that gives none.
    settings : dict
        The options of the whole step.
    steps : int
        Updates done, which is the 0-based number of the next one.
    skipped : int
        Updates skipped because of non-finite gradients.
    grad_norm : array or None
        Where clipping by norm is on, the global norm of the last step's gradients before it; on their device.

    Raises
    ------
    TypeError
        If something is not an array, has an integer or bool dtype, is of another library than the rest, or an option
        is unknown.
    ValueError
        If an option is out of range, or vanishes or overflows in the dtype that computes; if arrays are read-only or
        overlap, or two of them have one name.

    Notes
    -----
    The order of operations on a gradient: micro-batches are summed; the sum is divided by `accumulate` and by
    `loss_scale`, and negated for `maximize` (one factor, in double); then `clip_value`, `clip_norm`,
    `clip_global_norm`, coupled `weight_decay`, the rule. Decoupled decay comes just before the rule; the average of
    the parameters after it.

    Norms are exact sums, the same whatever the order, the threads and the split into arrays, and within one unit in the
    last place of float64, however far from the threshold: ``clip_global_norm=math.inf`` only watches `grad_norm`.
    """

    __slots__ = (
        "__weakref__", "_joints", "_memory", "_step_lock", "accumulators", "averages", "bindings", "defaults",
        "grad_norm", "grouped", "groups", "micro_steps", "settings", "skipped", "steps",
    )  # fmt: skip

    lr = Attribute[float | Schedule]()
    weight_decay = Attribute[float | Schedule]()
    decoupled = Attribute[bool]()
    maximize = Attribute[bool]()
    clip_value = Attribute[float | None]()
    clip_norm = Attribute[float | None]()
    clip_global_norm = Attribute[float | None]()
    loss_scale = Attribute[float]()
    nonfinite = Attribute[str]()
    ema = Attribute[float | None]()
    rule = Attribute[Rule]()
    accumulate = Attribute[int]()
    state_dtype = Attribute[str | None]()
    state_rounding = Attribute[str]()
    seed = Attribute[int]()
    engine = Attribute[str]()
    donate = Attribute[bool]()

    def __init__(self, rule: Rule, params: Any, **options: Any) -> None:
        self._step_lock = Lock()
        if "lr" not in rule.hypers or rule.returns_update:
            raise ValueError(f"rule: expected one with a hyperparameter 'lr' that returns parameters, got {rule!r}")
        self.settings: dict[str, Any] = {"rule": rule} | {
            name: option.check(name, options.pop(name, option.default))
            for name, option in OPTIONS.items()
            if option.scope != "group"
        }
        check_seeded(self.settings)
        known = options_of(rule)
        for name in options.keys() - known.keys():
            others = (other for other, option in OPTIONS.items() if option.scope != "group")
            raise TypeError(f"{name}: unknown option; expected one of {', '.join([*known, *others])}")
        self.defaults = options
        self.steps = self.micro_steps = self.skipped = 0
        self.grad_norm: Any = None
        self.groups: list[Group] = []
        self.bindings: list[Binding] = []
        self.accumulators: list[Accumulator] = []
        self.averages: list[Binding] = []
        #: By which the groups' sums, steps and averages are planned.
        self._joints = Joint(), Joint(), Joint()
        self._memory: Memory | None = Memory()
        params = list(params) if hasattr(params, "__next__") else params
        self.grouped = isinstance(params, Sequence) and len(params) > 0 and all(map(is_group, params))
        for i, group in enumerate(params if self.grouped else [{"params": params}]):
            self._add(group, f"groups[{i}]." if self.grouped else "")

    # --- groups ---

    @locked
    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add ``{"params": ..., **options}``. From then on `step` takes a list with the gradients of each group."""
        self._add(group, f"groups[{len(self.groups)}].")
        if not self.grouped:
            first, self.grouped = self.groups[0], True
            first.where, first.structure.what = "groups[0].", f"groups[0].{first.structure.what}"
            first.structure.names[:] = [f"groups[0].{name}" for name in first.structure.names]
            for binding in [self.bindings[0], *self.averages[:1], *(a.binding for a in self.accumulators[:1])]:
                binding.rename("groups[0].")

    def _add(self, group: Mapping[str, Any], where: str) -> None:
        if not is_group(group):
            raise TypeError(f"{where.rstrip('.')}: expected a mapping with 'params', got {group!r}")
        structure = Structure(group["params"], f"{where}params")
        made = Group(
            self.rule, where, structure, {**self.defaults, **{k: v for k, v in group.items() if k != "params"}}
        )
        if not structure.leaves:
            raise ValueError(f"{where}params: expected at least one array, got none")
        before = sum(len(binding.names) for binding in self.bindings)
        elements = [Elements(before + i) for i in range(len(structure.leaves))]
        binding = Binding(
            self.rule, structure.leaves, structure.names, state_dtype=self.state_dtype, engine=self.engine,
            grad_dtypes="state" if self.accumulate > 1 else None, memory=self._occupied(),
            backend=self.bindings[0].backend if self.bindings else None,
            elements=elements if self.state_rounding == "stochastic" else None, donate=self.donate,
        )  # fmt: skip
        made.bind(binding)
        with_settings(self.settings, [made])
        binding.check(self._composed(made)[0])
        accumulators = [Accumulator(binding, self.state_dtype)] if self.accumulate > 1 else []
        averages = [average(binding, self.state_dtype)] if self.ema is not None else []
        self._memory = binding.memory
        self.groups.append(made)
        self.bindings.append(binding)
        self.accumulators += accumulators
        self.averages += averages

    def _occupied(self) -> Memory:
        """The memory of all groups; a copy of an optimizer has its own."""
        if self._memory is None:
            self._memory = Memory()
            for binding in self.bindings:
                self._memory = self._memory.plus(binding.backend, binding.params, binding.names)
        return self._memory

    def __getstate__(self) -> tuple[Any, dict[str, Any]]:
        """Leave out addresses, which are another process' own."""
        slots = {name: getattr(self, name) for name in Optimizer.__slots__ if name != "__weakref__"}
        return getattr(self, "__dict__", None), slots | {"_memory": None}

    def _composed(self, group: Group) -> tuple[FusedUpdate, dict[str, Any]]:
        """What a group's options ask for, and its numbers; composed anew when an option has changed."""
        key = group.version, self.settings
        if group.composed is None or group.composed[0] != key:
            group.composed = key, compose(self.rule, group.options(), self.settings)
        return group.composed[1]

    def _updates(self) -> tuple[list[FusedUpdate], list[dict[str, Any]]]:
        """What the groups' options ask for, and the numbers of this step.

        All is read before a schedule is called: what that assigns holds from the next step on.
        """
        composed, step = [self._composed(group) for group in self.groups], self.steps
        pairs = zip(self.groups, composed, strict=True)
        values = [{**group.numbers(fixed, step), "step": step} for group, (_, fixed) in pairs]
        return [update for update, _ in composed], values

    # --- options ---

    def __getitem__(self, name: str) -> Any:
        """The value of an option in all groups; `ValueError` if they differ in it."""
        values = [group[name] for group in self.groups]
        if any(value != values[0] for value in values[1:]):
            raise ValueError(f"{name} differs between groups ({values}); see groups[i][{name!r}]")
        return values[0]

    @locked
    def __setitem__(self, name: str, value: Any) -> None:
        """Set an option of all groups, and of those that are added later."""
        checked = [group.checked({name: value}) for group in self.groups]
        for group, own in zip(self.groups, checked, strict=True):
            group.update(own)
        self.defaults[name] = value

    # --- the step ---

    @locked
    def step(self, grads: Any) -> Any:
        """Update the parameters; steps of several threads come one after another.

        Interrupted (Ctrl-C), it leaves what is updated in place partly updated and is not counted; no thread goes on.

        Parameters
        ----------
        grads : like params
            A gradient for each parameter, in the same structure, shapes and dtypes, of the same library, on the same
            device; None leaves its parameter and state as they are. With groups, a list with one entry a group.

        Returns
        -------
        like params
            The parameters: the same arrays, updated, or new ones where the library's arrays are immutable.

        Raises
        ------
        TypeError, ValueError
            If a gradient does not agree with its parameter, or none is given. Nothing has been changed then.
        FloatingPointError
            If a gradient is not finite and ``nonfinite="raise"``. Nothing has been changed then.
        """
        structures = [group.structure for group in self.groups]
        flat = flatten_groups(structures, grads, "grads") if self.grouped else [structures[0].flatten(grads, "grads")]
        if all(g is None for own in flat for g in own):
            raise ValueError("grads: expected at least one gradient, got None for every parameter")
        settings, rounding, updates, values = self.settings, Rounding(self.seed, self.steps), *self._updates()
        to_sums, to_step, to_averages = self._joints
        plans, adding, averages = list[Plan](), list[Plan](), list[Plan]()
        if count := len(self.accumulators):
            adding = to_sums.plan([a.binding for a in self.accumulators], [SUM] * count, flat, [{}] * count)
        seen = [accumulator.seen_with(own) for accumulator, own in zip(self.accumulators, flat, strict=False)]
        if last := self.micro_steps + 1 == self.accumulate:
            sums = [accumulator.sums(had) for accumulator, had in zip(self.accumulators, seen, strict=True)]
            plans = to_step.plan(self.bindings, updates, sums or flat, values, rounding)
            if count := len(self.averages):
                own = [binding.params for binding in self.bindings], [{"momentum": settings["ema"]}] * count
                moving = [averaging(self.rule, settings)] * count
                averages = chained(plans, to_averages.plan(self.averages, moving, *own, rounding, updates))
        # All is checked, what is done last too; from here on things are written.
        how = settings["nonfinite"]
        if how != "propagate" and (bad := [name for plan in adding or plans for name in plan.nonfinite()]):
            if how == "raise":
                some = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
                raise FloatingPointError(f"grads: expected finite gradients; infinite or NaN elements for {some}")
            self.skipped += 1
            return self.params
        held = [*self.bindings, *self.averages, *(a.binding for a in self.accumulators)]
        with nullcontext() if self.backend.mutable else restored(held):
            run(adding)
            if not last:
                self.micro_steps += 1
                for accumulator, had in zip(self.accumulators, seen, strict=True):
                    accumulator.seen = had
                return self.params
            for plan, accumulator, had in zip(plans, self.accumulators, seen, strict=False):
                plan.take(accumulator.sums(had))
            norm = run(plans, settings["clip_global_norm"])
            for plan, binding in zip(averages, self.bindings, strict=False):
                plan.take(binding.params)
            run(averages)
            for accumulator in self.accumulators:
                accumulator.clear()
        self.grad_norm = norm[0] if norm is not None else None
        self.micro_steps, self.steps = 0, self.steps + 1
        return self.params

    # --- parameters and state ---

    @property
    def backend(self) -> Backend:
        """The backend that serves the arrays."""
        return self.bindings[0].backend

    @property
    def params(self) -> Any:
        """The parameters, in the structure they came in; with groups, a list with one entry a group."""
        return self._tree([binding.params for binding in self.bindings])

    @property
    def state(self) -> Any:
        """The live state: for each parameter a dict from slot to array, in the structure of `params`."""
        states = [(len(binding.names), binding.state) for binding in self.bindings]
        return self._tree([[{slot: arrays[i] for slot, arrays in s.items()} for i in range(n)] for n, s in states])

    @property
    def ema_params(self) -> Any:
        """The live averages of the parameters, in the structure of `params`; `AttributeError` if `ema` is off."""
        if self.ema is None:
            raise AttributeError("ema_params: expected an optimizer made with ema=..., got ema=None")
        return self._tree([binding.params for binding in self.averages])

    def _tree(self, leaves: Sequence[Sequence[Any]]) -> Any:
        trees = [group.structure.unflatten(own) for group, own in zip(self.groups, leaves, strict=True)]
        return trees if self.grouped else trees[0]

    @locked
    def state_dict(self) -> dict[str, Any]:
        """A snapshot of the state and the options: copies, of the same library. See `multiopt.snapshot`."""
        return snapshot.state_dict(self)

    @locked
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the state and the options of `state_dict`, of the same or another library.

        Raises
        ------
        ValueError
            If something in it cannot be taken over: see `multiopt.restore`. Nothing has been changed then, nor after
            any other error or interrupt.
        """
        restore.load_state_dict(self, state)

    @locked
    def save(self, path: str | Path) -> None:
        """Write parameters, state and options to one safetensors file, whole or not at all.

        `OSError` if there is something else than a regular file, or it cannot be written: see `multiopt.checkpoint`.
        """
        checkpoint.save(self, path)

    @locked
    def load(self, path: str | Path) -> Any:
        """Take over what `save` wrote, on the same or another library, and return the parameters.

        Raises
        ------
        OSError
            If it is not a regular file, or cannot be read.
        ValueError
            If the file is damaged, or belongs to another rule or other parameters. Nothing has been changed then,
            unless somebody changes the file at this moment: see `multiopt.checkpoint`.
        """
        checkpoint.load(self, path)
        return self.params

    def __repr__(self) -> str:
        bucket, count = self.bindings[0].buckets[0], sum(len(binding.names) for binding in self.bindings)
        options = self.groups[0] if len(self.groups) == 1 else self.groups
        return (
            f"{type(self).__name__}({self.rule.name}, {count} {self.backend.name} arrays on {bucket.device}, "
            f"engine={bucket.engine.name}, steps={self.steps}, {options!r})"
        )
