"""The optimizer: a rule bound to arrays, with groups, options and state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import checkpoint
from .averaging import Average
from .backends.base import Array, Backend, Bucket
from .gradients import Accumulator, check_nonfinite
from .options import Group, check_state_dtype, check_threshold
from .rule import ADADELTA, Hyper, Rule
from .stepping import Job, Pass, check_gradients, check_params, check_unswapped, make_buckets, nonfinite, prepare, run
from .tree import Structure

__all__ = ["Adadelta", "Optimizer"]

Schedule = Callable[[int], float]
LOSS_SCALE = Hyper(1.0, low=0.0, open_low=True)
#: What cannot be assigned later, because memory and engines were chosen by it.
FIXED = ("rule", "accumulate", "state_dtype", "engine")
MOMENTUM = Hyper(0.99, low=0.0, high=1.0, open_high=True)


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
        Climb: the gradient's sign is turned, before weight decay.
    clip_value : float or None
        Clip each element of the gradient to ±clip_value.
    clip_norm : float or None
        Then clip the norm of each gradient (per array).
    clip_global_norm : float or None
        Then clip the norm of all gradients together, over all groups.
    accumulate : int
        Average gradients over so many calls of `step`; every so-manieth of them updates.
    loss_scale : float
        What the loss was multiplied by; gradients are divided by it before all else.
    nonfinite : {"propagate", "skip", "raise"}
        What to do with gradients that are infinite or NaN: nothing, as everybody does; leave the step out and count
        it in `skipped`; or raise `FloatingPointError`, with nothing changed.
    ema : float or None
        Momentum of an exponential moving average of the parameters, held in `ema_params`.
    state_dtype : str or None
        Dtype of the state, such as ``"float32"`` for bfloat16 parameters; by default the parameter's.
    engine : {"auto", "host", "cuda", "eager"}
        What computes; by default the fastest that serves the arrays (``multiopt info``).
    **options
        The rule's hyperparameters: a float each, or a callable of the 0-based step (`multiopt.schedules`).
        They, `weight_decay`, `decoupled`, `maximize`, `clip_value` and `clip_norm` may differ between groups, and may
        be assigned at any time: ``opt.lr = 0.1``, ``opt.groups[1]["lr"] = 0.1``.

    Attributes
    ----------
    groups : list of Group
        Mappings from option to value.
    steps : int
        Updates done, which is the 0-based number of the next one.
    skipped : int
        Updates left out because of non-finite gradients.
    grad_norm : array or None
        The global norm of the last step's gradients, before it was clipped, where clipping by norm is on; on the
        gradients' device.

    Raises
    ------
    TypeError
        If something is not an array, has an integer or bool dtype, is of another library than the rest, or an option
        is unknown.
    ValueError
        If an option is out of range, or arrays are read-only or overlap.

    Notes
    -----
    The order of what is done to a gradient: micro-batches are added up; their sum is divided by `accumulate` and by
    `loss_scale`, and for `maximize` its sign is turned (one factor, in double); then `clip_value`, `clip_norm`,
    `clip_global_norm`, coupled `weight_decay`, the rule. Decoupled decay comes just before the rule; the average of
    the parameters after it.

    Norms are exact sums, the same whatever the threads and the split into arrays, rounded to a grid of 2**-32 of the
    threshold; elements beyond 1e139 count as infinite.
    """

    rule: Rule

    def __init__(
        self,
        rule: Rule,
        params: Any,
        *,
        clip_global_norm: float | None = None,
        accumulate: int = 1,
        loss_scale: float = 1.0,
        nonfinite: str = "propagate",
        ema: float | None = None,
        state_dtype: str | None = None,
        engine: str = "auto",
        **options: Any,
    ) -> None:
        if "lr" not in rule.hypers:
            raise ValueError(f"rule: expected a rule with a hyperparameter 'lr', got {rule!r}")
        if isinstance(accumulate, bool) or not isinstance(accumulate, int) or not 1 <= accumulate < 2**31:
            raise ValueError(f"accumulate: expected an integer from 1 to 2**31 - 1, got {accumulate!r}")
        self.rule = rule
        self.accumulate = accumulate
        self.clip_global_norm = clip_global_norm
        self.loss_scale = loss_scale
        self.nonfinite = nonfinite
        self.ema = ema
        self.state_dtype, self.engine = check_state_dtype(state_dtype), engine
        self.defaults = dict(options)
        self.steps = self.micro_steps = self.skipped = 0
        self.grad_norm: Any = None
        self.groups: list[Group] = []
        self._buckets: list[list[tuple[Bucket, list[int]]]] = []
        self._accumulators: list[Accumulator] = []
        self._averages = Average() if ema is not None else None
        params = list(params) if hasattr(params, "__next__") else params
        self.grouped = _is_groups(params)
        if self.grouped:
            for i, group in enumerate(params):
                self._add(group, f"groups[{i}].")
        else:
            self._add({"params": params}, "")

    # --- groups ---

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add ``{"params": ..., **options}``. From then on `step` takes a list with the gradients of each group."""
        before = [*self._every(), *(accumulator.bucket for accumulator in self._accumulators)]
        before += self._averages.buckets if self._averages is not None else []
        self._add(group, f"groups[{len(self.groups)}].")
        if not self.grouped:
            first, self.grouped = self.groups[0], True
            first.where, first.structure.what = "groups[0].", f"groups[0].{first.structure.what}"
            for names in [first.structure.names, *(bucket.names for bucket in before)]:
                names[:] = [f"groups[0].{name}" for name in names]

    def _add(self, group: Mapping[str, Any], where: str) -> None:
        if not isinstance(group, Mapping) or "params" not in group:
            raise TypeError(f"{where.rstrip('.')}: expected a mapping with 'params', got {group!r}")
        structure = Structure(group["params"], f"{where}params")
        options = {name: value for name, value in group.items() if name != "params"}
        made = Group(self.rule, where, structure, {**self.defaults, **options})
        # All groups together: one library, and no memory twice.
        params = [array for old in self.groups for array in old.params] + made.params
        names = [name for old in self.groups for name in old.structure.names] + structure.names
        if not made.params:
            raise ValueError(f"{where}params: expected at least one array, got none")
        check_params(params, names)
        buckets = make_buckets(
            self.rule,
            made.params,
            structure.names,
            state_dtype=self.state_dtype,
            grad_dtype=self.state_dtype if self.accumulate > 1 else None,
            engine=self.engine,
        )
        for bucket, _ in buckets:
            prepare(bucket, self._pass(made))
        self.groups.append(made)
        self._buckets.append(buckets)
        every = [bucket for bucket, _ in buckets]
        if self.accumulate > 1:
            self._accumulators += map(Accumulator, every)
        if self._averages is not None:
            self._averages.add(every)

    def _pass(self, group: Group) -> Pass:
        decay = callable(group["weight_decay"]) or group["weight_decay"] != 0
        return Pass(
            self.rule,
            scaled=group["maximize"] or self.loss_scale != 1.0 or self.accumulate > 1,
            clipped=group["clip_value"] is not None,
            normed=group["clip_norm"] is not None or self.clip_global_norm is not None,
            coupled=decay and not group["decoupled"],
            decoupled=decay and group["decoupled"],
        )

    # --- options of the whole step ---

    @property
    def clip_global_norm(self) -> float | None:
        """Threshold for the norm of all gradients together, or None."""
        return self._clip_global_norm

    @clip_global_norm.setter
    def clip_global_norm(self, value: float | None) -> None:
        self._clip_global_norm = check_threshold("clip_global_norm", value)

    @property
    def loss_scale(self) -> float:
        """What the loss was multiplied by."""
        return self._loss_scale

    @loss_scale.setter
    def loss_scale(self, value: float) -> None:
        self._loss_scale = LOSS_SCALE.check("loss_scale", value)

    @property
    def ema(self) -> float | None:
        """Momentum of the average of the parameters, or None; on or off for good."""
        return self._ema

    @ema.setter
    def ema(self, value: float | None) -> None:
        if "_averages" in self.__dict__ and (value is None) != (self._averages is None):
            raise ValueError(
                f"ema: expected {'None' if value is not None else 'a momentum'}, as when the optimizer was made, "
                f"got {value!r}"
            )
        self._ema = None if value is None else MOMENTUM.check("ema", value)

    @property
    def nonfinite(self) -> str:
        """What to do with gradients that are not finite."""
        return self._nonfinite

    @nonfinite.setter
    def nonfinite(self, value: str) -> None:
        self._nonfinite = check_nonfinite(value)

    def __getattr__(self, name: str) -> Any:
        """An option of the groups, where all have the same."""
        groups = self.__dict__.get("groups") or []
        if hasattr(type(self), name):
            return object.__getattribute__(self, name)  # a property has refused, and says why
        if not groups or name.startswith("_") or name not in groups[0]:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        values = [group[name] for group in groups]
        if any(value != values[0] for value in values[1:]):
            raise AttributeError(f"{name} differs between groups ({values}); see groups[i][{name!r}]")
        return values[0]

    def __setattr__(self, name: str, value: Any) -> None:
        groups = self.__dict__.get("groups") or []
        if groups and name != "params" and name in groups[0]:
            for group in groups:
                group[name] = value
            self.defaults[name] = value
        elif groups and name in FIXED:
            raise AttributeError(f"{name}: fixed when the optimizer was made; make another")
        else:
            object.__setattr__(self, name, value)

    # --- the step ---

    def step(self, grads: Any) -> Any:
        """Update the parameters.

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
        jobs = self._jobs(self._flatten(grads, "grads"))
        if self._nonfinite != "propagate" and (bad := nonfinite(zip(self._entrance(jobs), jobs, strict=True))):
            if self._nonfinite == "raise":
                some = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
                raise FloatingPointError(f"grads: expected finite gradients; infinite or NaN elements for {some}")
            self.skipped += 1
            return self.params
        if self.accumulate > 1 and not self._accumulated(jobs):
            return self.params
        norm = run(jobs, self.clip_global_norm)
        self.grad_norm = norm[0] if norm is not None else None
        if self._averages is not None:
            assert self.ema is not None
            self._averages.update(self._every(), self.ema)
        for accumulator in self._accumulators:
            accumulator.clear()
        self._collect()
        self.steps += 1
        return self.params

    def _flatten(self, tree: Any, what: str) -> list[list[Any]]:
        if not self.grouped:
            return [self.groups[0].structure.flatten(tree, what)]
        if not isinstance(tree, (list, tuple)) or len(tree) != len(self.groups):
            got = f"{len(tree)} entries" if isinstance(tree, (list, tuple)) else f"a {type(tree).__name__}"
            raise ValueError(f"{what}: expected a list with one entry for each of {len(self.groups)} groups, got {got}")
        return [
            group.structure.flatten(entry, f"{what}[{i}]")
            for i, (group, entry) in enumerate(zip(self.groups, tree, strict=True))
        ]

    def _jobs(self, grads: list[list[Array | None]]) -> list[Job]:
        """Check everything, and say what is to be done."""
        if all(g is None for flat in grads for g in flat):
            raise ValueError("grads: expected at least one gradient, got None for every parameter")
        jobs = []
        for group, buckets, flat in zip(self.groups, self._buckets, grads, strict=True):
            one_pass = self._pass(group)
            numbers = {name: group.number(name, self.steps) for name in (*self.rule.hypers, "weight_decay")}
            sign = -1.0 if group["maximize"] else 1.0
            numbers["scale"] = sign / (self.loss_scale * self.accumulate)
            numbers["step"] = self.steps
            numbers["clip_value"] = group["clip_value"]
            for bucket, indices in buckets:
                own = flat if len(indices) == len(flat) else [flat[i] for i in indices]
                prepare(bucket, one_pass)
                check_unswapped(bucket)
                jobs.append(Job(bucket, indices, one_pass, own, numbers, group["clip_norm"]))
        for bucket, job in zip(self._entrance(jobs), jobs, strict=True):
            check_gradients(bucket, job.grads)
        return jobs

    def _entrance(self, jobs: list[Job]) -> list[Bucket]:
        """The buckets at which gradients arrive: those of the sums, if they are accumulated."""
        return [a.bucket for a in self._accumulators] if self._accumulators else [job.bucket for job in jobs]

    def _accumulated(self, jobs: list[Job]) -> bool:
        """Take in a micro-batch; put the sums into the jobs when it is the last."""
        for accumulator, job in zip(self._accumulators, jobs, strict=True):
            accumulator.add(job.grads)
            job.grads = accumulator.sums()
        self.micro_steps = (self.micro_steps + 1) % self.accumulate
        return self.micro_steps == 0

    def _collect(self) -> None:
        """Put new arrays of the buckets where the groups hold theirs."""
        if self.backend.mutable:
            return
        for group, buckets in zip(self.groups, self._buckets, strict=True):
            for bucket, indices in buckets:
                for i, array in zip(indices, bucket.params, strict=True):
                    group.params[i] = array

    def _every(self) -> list[Bucket]:
        return [bucket for buckets in self._buckets for bucket, _ in buckets]

    # --- what it holds ---

    @property
    def backend(self) -> Backend:
        """The backend that serves the arrays."""
        return self._buckets[0][0][0].backend

    @property
    def params(self) -> Any:
        """The parameters, in the structure they came in; with groups, a list with one entry a group."""
        trees = [group["params"] for group in self.groups]
        return trees if self.grouped else trees[0]

    @property
    def state(self) -> Any:
        """The live state: for each parameter a dict from slot to array, in the structure of `params`."""
        return self._tree(lambda bucket, j: {slot: arrays[j] for slot, arrays in bucket.state.items()})

    @property
    def ema_params(self) -> Any:
        """The live averages of the parameters, in the structure of `params`.

        Raises
        ------
        AttributeError
            If `ema` is off.
        """
        if self._averages is None:
            raise AttributeError("ema_params: expected an optimizer made with ema=..., got ema=None")
        every = self._every()
        of = {id(bucket): arrays for bucket, arrays in zip(every, self._averages.arrays(), strict=True)}
        return self._tree(lambda bucket, j: of[id(bucket)][j])

    def _tree(self, pick: Callable[[Bucket, int], Any]) -> Any:
        trees = []
        for group, buckets in zip(self.groups, self._buckets, strict=True):
            leaves: list[Any] = [None] * len(group.params)
            for bucket, indices in buckets:
                for j, i in enumerate(indices):
                    leaves[i] = pick(bucket, j)
            trees.append(group.structure.unflatten(leaves))
        return trees if self.grouped else trees[0]

    def state_dict(self) -> dict[str, Any]:
        """A snapshot of the state and the options: copies, of the same library. See `multiopt.checkpoint`."""
        return checkpoint.state_dict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the state and the options of `state_dict`, of the same or another library.

        Raises
        ------
        ValueError
            If it belongs to another rule or other parameters: names, shapes or dtypes differ. Nothing has been
            changed then.
        """
        checkpoint.load_state_dict(self, state)

    def save(self, path: str | Path) -> None:
        """Write parameters, state and options to one safetensors file, whole or not at all."""
        checkpoint.save(self, path)

    def load(self, path: str | Path) -> Any:
        """Take over what `save` wrote, on the same or another library, and return the parameters.

        Raises
        ------
        ValueError
            If the file is damaged, or belongs to another rule or other parameters. Nothing has been changed then.
        """
        checkpoint.load(self, path)
        return self.params

    def __repr__(self) -> str:
        bucket = self._buckets[0][0][0]
        count = sum(len(group.params) for group in self.groups)
        options = self.groups[0] if len(self.groups) == 1 else self.groups
        return (
            f"{type(self).__name__}({self.rule.name}, {count} {self.backend.name} arrays on {bucket.device}, "
            f"engine={bucket.engine.name}, steps={self.steps}, {options!r})"
        )


class Adadelta(Optimizer):
    """Adadelta (Zeiler 2012, arXiv 1212.5701).

    ``v = rho v + (1 - rho) g²``, ``d = sqrt(u + eps) / sqrt(v + eps) g``, ``u = rho u + (1 - rho) d²``,
    ``x = x - lr d``, where v is ``square_avg`` and u is ``acc_delta``.

    Frameworks' defaults differ so much that the first step of PyTorch's is 2,236 times as long as that of Keras'.
    The defaults here are PyTorch's. Say which you mean by name: `Adadelta.paper`, `Adadelta.torch`, `Adadelta.keras`.

    Parameters
    ----------
    params : array, or container of arrays, or list of groups
        See `Optimizer`.
    lr : float or callable
        Learning rate, outside the accumulators. At least 0.
    rho : float or callable
        Decay of both accumulators, in [0, 1].
    eps : float or callable
        Added under both roots. Above 0: at 0 a zero gradient would give NaN.
    **options
        See `Optimizer`.
    """

    lr: float | Schedule
    rho: float | Schedule
    eps: float | Schedule
    weight_decay: float | Schedule

    def __init__(
        self,
        params: Any,
        lr: float | Schedule = 1.0,
        rho: float | Schedule = 0.9,
        eps: float | Schedule = 1e-6,
        **options: Any,
    ) -> None:
        super().__init__(ADADELTA, params, lr=lr, rho=rho, eps=eps, **options)

    @classmethod
    def paper(cls, params: Any, **options: Any) -> Adadelta:
        """The paper's method: lr 1 (there is none in it), rho 0.95, eps 1e-6."""
        return cls(params, **{"lr": 1.0, "rho": 0.95, "eps": 1e-6, **options})

    @classmethod
    def torch(cls, params: Any, **options: Any) -> Adadelta:
        """The defaults of `torch.optim.Adadelta`: lr 1, rho 0.9, eps 1e-6; weight decay is coupled."""
        return cls(params, **{"lr": 1.0, "rho": 0.9, "eps": 1e-6, "decoupled": False, **options})

    @classmethod
    def keras(cls, params: Any, **options: Any) -> Adadelta:
        """The defaults of `keras.optimizers.Adadelta`: lr 0.001, rho 0.95, eps 1e-7; weight decay is decoupled."""
        return cls(params, **{"lr": 0.001, "rho": 0.95, "eps": 1e-7, "decoupled": True, **options})


def _is_groups(params: Any) -> bool:
    return (
        isinstance(params, Sequence)
        and len(params) > 0
        and all(isinstance(entry, Mapping) and "params" in entry for entry in params)
    )
