"""A rule bound to arrays and their state: validate them, sort them into buckets, check a step.

The one chain from arrays to engines. Optimizers and faces stand on this module; it stands on the backends.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import is_
from typing import Any, Literal

import numpy as np

from . import backends
from .backends.engines.locate import walks_rows
from .backends.engines.program import Program, TraceError
from .backends.generic import FLOATING, Array, Backend, Described, wider
from .backends.protocol import Bucket
from .backends.rounding import Elements, Rounding
from .memory import Memory, check_gradient, check_params, check_rounded, check_state
from .options import narrowest
from .plan import Plan, PlannedJob
from .rule import Rule
from .update import FusedUpdate

__all__ = ["Binding", "restored", "state_dtype_of"]


class Binding:
    """A rule bound to arrays and their state.

    Parameters
    ----------
    rule : Rule
        What will be computed.
    params : sequence of arrays
        What it updates: arrays of one library.
    names : sequence of str
        The parameters' names, for messages.
    state : sequence of mapping from slot to array, optional
        The state of each parameter; by default new state, filled as the rule says.
    state_dtype : str, optional
        Dtype of new state; by default the parameter's.
    grad_dtypes : sequence of str or "state", optional
        Dtype of each gradient, or that of the state; by default the parameter's.
    engine : str
        See `multiopt.Optimizer`.
    groups : sequence of int, optional
        The group of each parameter, counted from 0, if there are several: each has numbers of its own in `plan`. The
        engine must take them (`Engine.takes_groups`).
    memory : Memory, optional
        Of the arrays that other bindings update; the attribute `memory` adds those of this one.
    backend : Backend, optional
        What the arrays must belong to.
    elements : sequence of Elements, optional
        Which elements of which parameter each array holds, where state is rounded stochastically.
    donate : bool
        Steps may delete immutable parameters and use their memory, as they do with state that is made here.

    Attributes
    ----------
    backend : Backend
        Of the arrays.
    buckets : list of Bucket
        The arrays sorted by device and dtypes: each is updated by one call of an engine.
    places : list of list of int
        Where the arrays of each bucket stand in `params`.
    groups : list of (list of int, array or None)
        For each bucket the groups that its arrays are of, and the place of each array's among them; None: there is one.

    Raises
    ------
    TypeError
        If something is not an array, has another dtype than a floating or complex one, or is of another library.
    ValueError
        If an array is read-only, overlaps itself or shares memory with another, or the engine does not serve it.
    """

    def __init__(
        self,
        rule: Rule,
        params: Sequence[Array],
        names: Sequence[str],
        *,
        state: Sequence[Mapping[str, Array]] | None = None,
        state_dtype: str | None = None,
        grad_dtypes: Sequence[str] | Literal["state"] | None = None,
        engine: str = "auto",
        groups: Sequence[int] | None = None,
        memory: Memory | None = None,
        backend: Backend | None = None,
        elements: Sequence[Elements] | None = None,
        donate: bool = False,
    ) -> None:
        self.rule, self.names, self.engine, self.elements = rule, list(names), engine, elements
        self.backend = check_params(params, names, backend)
        self.memory = (memory or Memory()).plus(self.backend, params, names)
        self._params = list(params) if self.backend.mutable else []  # immutable ones are not kept alive
        self.buckets: list[Bucket] = []
        self.places: list[list[int]] = []
        self.groups: list[tuple[list[int], np.ndarray | None]] = []
        by_kind: dict[tuple[Any, str, str, str], list[int]] = {}
        for i, array in enumerate(params):
            dtype = self.backend.dtype(array)
            held = state_dtype_of(dtype, state_dtype)
            if state and state[i]:
                held = self.backend.dtype(next(iter(state[i].values())))
            grad = dtype if grad_dtypes is None else held if grad_dtypes == "state" else grad_dtypes[i]
            if grad not in FLOATING or grad.startswith("complex") != dtype.startswith("complex"):
                kinds = "complex" if dtype.startswith("complex") else "real"
                raise TypeError(f"gradient of {names[i]}: expected a floating-point dtype, {kinds}, got {grad}")
            for slot, own in state[i].items() if state else ():
                check_state(f"{slot} of {names[i]}", self.backend, own, array, held)
            if elements is not None:
                check_rounded(names[i], held)
                elements[i].check(names[i], tuple(array.shape))
            by_kind.setdefault((self.backend.device(array), dtype, grad, held), []).append(i)
        for (device, dtype, grad, held), places in by_kind.items():
            chosen, _ = backends.engine_for(self.backend, device, (dtype, grad, held), engine)
            if donate and not chosen.donates:
                raise ValueError(f"donate: expected False for {self.backend.name} arrays on {device}, got True")
            own, called = [params[i] for i in places], [names[i] for i in places]
            arrays = {
                slot: [state[i][slot] for i in places]
                if state and state[places[0]]
                else chosen.filled_like(self.backend, own, value, held)
                for slot, value in rule.slots.items()
            }
            bucket = Bucket(self.backend, chosen, device, dtype, grad, held, called, own, arrays, engine)
            bucket.elements = [elements[i] for i in places] if elements is not None else None
            bucket.owned = () if state else tuple(range(not donate, 1 + len(rule.slots)))
            self.buckets.append(bucket)
            self.places.append(places)
            self.groups.append(([0], None) if groups is None else _grouped([groups[i] for i in places]))
            if not state:  # what was made here, and parameters that were checked above, are good
                bucket.good = bucket.memory_fingerprint()

    # --- its arrays ---

    @property
    def params(self) -> list[Array]:
        """The parameters as they are now, in the caller's order."""
        return self._params if self.backend.mutable else self.column(0)

    @property
    def computing(self) -> str:
        """The dtype in which an update is computed; of several, the narrowest."""
        return narrowest(wider(bucket.dtypes) for bucket in self.buckets)

    @property
    def state(self) -> dict[str, list[Array]]:
        """For each slot, the parameters' state, in the caller's order."""
        return {slot: self.column(k) for k, slot in enumerate(self.rule.slots, start=1)}

    def column(self, k: int) -> list[Array]:
        """The parameters (0), or the arrays of the k-th slot, in the caller's order."""
        found: list[Any] = [None] * len(self.names)
        for bucket, places in zip(self.buckets, self.places, strict=True):
            for i, array in zip(places, bucket.arrays()[k], strict=True):
                found[i] = array
        return found

    def rename(self, prefix: str) -> None:
        """Put a prefix before every name."""
        self.names = [f"{prefix}{name}" for name in self.names]
        for bucket in self.buckets:
            bucket.names = [f"{prefix}{name}" for name in bucket.names]

    def replace(self, k: int, arrays: Sequence[Array]) -> None:
        """Take over other arrays, of the same shapes and dtypes, in the caller's order; see `column`."""
        for bucket, places in zip(self.buckets, self.places, strict=True):
            column, own = bucket.arrays()[k], [arrays[i] for i in places]
            if not all(map(is_, column, own)):
                column[:] = own
                bucket.good = None
                bucket.cache.clear()  # it may hold addresses
        if k == 0 and self.backend.mutable:
            self._params[:] = arrays

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for bucket in self.buckets:
            bucket.engine, _ = backends.engine_for(self.backend, bucket.device, bucket.dtypes[:3], bucket.wanted)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out addresses, which are another process' own."""
        return {**self.__dict__, "memory": None}

    # --- a step ---

    def check(self, update: FusedUpdate) -> None:
        """Have the engines compile an update, and check that the parameters are what they were.

        A rule that an engine cannot compile gets the eager engine, with a warning.

        Raises
        ------
        TraceError
            If the engine was asked for by name, and cannot compile the rule.
        ValueError
            If a parameter or its state has got another shape, dtype or device, its memory was freed, or it may not be
            written to any more.
        """
        for bucket in self.buckets:
            _prepare(bucket, update.program)
            _look(bucket)

    def plan(
        self,
        update: FusedUpdate,
        grads: Sequence[Array | None],
        *values: Mapping[str, Any],
        names: Sequence[str] | None = None,
        rounding: Rounding | None = None,
    ) -> Plan:
        """Check a step; nothing is written.

        Parameters
        ----------
        update : FusedUpdate
            What is computed: the binding's rule, and the options that are on.
        grads : sequence of arrays or None
            A gradient for each parameter; None leaves its parameter and state as they are.
        *values : mapping of str to number
            Every number that the update reads, of each group of parameters; if it is `normed`, also ``clip_norm``, the
            threshold for the norm of each gradient, or None.
        names : sequence of str, optional
            The gradients' names, for messages.
        rounding : Rounding, optional
            By what the update rounds stochastically, if it does; the binding has `elements` then.

        Raises
        ------
        TypeError, ValueError
            If a gradient's library, shape, dtype or device is not its parameter's; see also `check`.
        """
        if update.stochastic and (rounding is None or self.elements is None):
            raise ValueError("rounding: expected a seed, a step and the elements of arrays, got none")
        jobs, program = [], update.program
        for bucket, places, (groups, which) in zip(self.buckets, self.places, self.groups, strict=True):
            _prepare(bucket, program)
            _look(bucket)
            own = self.backend.described(grads if len(places) == len(grads) else [grads[i] for i in places])
            _check_gradients(bucket, own, names and [names[i] for i in places])
            rows = [values[i] for i in groups]
            job = PlannedJob(bucket, program, own, rows, which, rounding=rounding, places=places)
            job.location = bucket.engine.locate(job)
            jobs.append(job)
        return Plan(jobs)

    def plan_rows(
        self, update: FusedUpdate, i: int, rows: np.ndarray, g: Array, values: Mapping[str, Any], name: str
    ) -> Plan:
        """Check a step of some rows of one parameter; nothing is written. The other rows keep their state, too.

        Parameters
        ----------
        update : FusedUpdate
            See `plan`. `multiopt.plan.run` refuses one that is `normed`.
        i : int
            Which parameter.
        rows : array of int64, shape (n,)
            Each row once.
        g : array
            The gradient of these rows.
        values : mapping of str to number
            Every number that the update reads.
        name : str
            The gradient's, for messages.

        Returns
        -------
        Plan
            Of one job, whose bucket has this parameter alone: where arrays are immutable, the new ones are put there.

        Raises
        ------
        TypeError, ValueError
            If there is no such row, or the gradient is not like its rows; see also `check`.
        """
        if update.stochastic:
            raise ValueError(f"{name}: expected an update that rounds to nearest, got rows and stochastic rounding")
        found = zip(self.buckets, self.places, strict=True)
        whole, place = next((bucket, places.index(i)) for bucket, places in found if i in places)
        _prepare(whole, update.program)
        _look(whole)
        x, *state = (column[place] for column in whole.arrays())
        given, whole_shape = tuple(getattr(g, "shape", ())), tuple(x.shape)
        if not whole_shape or given[:1] != (len(rows),):
            raise ValueError(f"{name}: expected {len(rows)} rows of an array of shape {whole_shape}, got shape {given}")
        check_gradient(name, self.backend, g[:0, ...], x[:0, ...], whole.grad_dtype)
        if len(rows) == 0:
            return Plan([])
        if rows.min() < 0 or rows.max() >= whole_shape[0]:
            raise ValueError(f"{name}: expected indices of rows in [0, {whole_shape[0]}), got {rows}")
        walked = walks_rows(self.backend, whole.device, [x, *state])
        engine = whole.engine if walked else backends.engine("eager")
        dtypes = whole.dtype, whole.grad_dtype, whole.state_dtype
        alone = {slot: [array] for slot, array in zip(whole.state, state, strict=True)}
        bucket = Bucket(self.backend, engine, whole.device, *dtypes, [self.names[i]], [x], alone, rows=rows)
        job = PlannedJob(bucket, update.program, [g], [values], places=[i])
        job.location = engine.locate(job)
        return Plan([job])


def state_dtype_of(dtype: str, wanted: str | None) -> str:
    """The dtype of state for parameters of `dtype`: as wide as wanted, complex for complex ones."""
    if wanted is None:
        return dtype
    if dtype.startswith("complex"):
        return "complex128" if wanted in ("float64", "complex128") else "complex64"
    return wanted


@contextmanager
def restored(bindings: Sequence[Binding]) -> Iterator[None]:
    """Put immutable arrays back if what is done with them fails; where some are gone by then, the new ones stay."""
    buckets = [bucket for binding in bindings for bucket in binding.buckets]
    before = [[list(column) for column in bucket.arrays()] for bucket in buckets]
    try:
        yield
    except BaseException:
        for bucket, old in zip(buckets, before, strict=True):
            if not any(bucket.backend.freed(array) for column in old for array in column):
                for column, arrays in zip(bucket.arrays(), old, strict=True):
                    column[:] = arrays
        raise


def _grouped(groups: Sequence[int]) -> tuple[list[int], np.ndarray | None]:
    """The groups that there are, and the place of each entry's among them; None where there is one."""
    some, which = np.unique(np.asarray(groups, np.int64), return_inverse=True)
    return some.tolist(), which if len(some) > 1 else None


def _prepare(bucket: Bucket, program: Program) -> None:
    if program in bucket.prepared:
        return
    try:
        bucket.engine.prepare(program, bucket.dtypes)
    except TraceError as error:
        if bucket.wanted != "auto":
            raise
        warnings.warn(f"{error}; the eager engine runs it instead, slower", RuntimeWarning, stacklevel=5)
        bucket.engine = backends.engine("eager")
        bucket.cache.clear()
    bucket.prepared.add(program)


def _look(bucket: Bucket) -> None:
    """Check that the bucket's arrays are what they were when it was made, wherever they lie now."""
    movable = bucket.backend.mutable and bucket.backend.swappable
    if bucket.good is not None and not movable:
        return
    found, bucket.asked = bucket.asked or bucket.memory_fingerprint(), None
    if found is True or found != bucket.good:
        _check_columns(bucket, bucket.arrays())
        bucket.good = found


def _check_columns(bucket: Bucket, columns: Sequence[Sequence[Array]]) -> None:
    backend = bucket.backend
    called = [bucket.names, *([f"{slot} of {name}" for name in bucket.names] for slot in bucket.state)]
    for names, column, signatures in zip(called, columns, bucket.signatures, strict=True):
        for name, array, old, new in zip(names, column, signatures, backend.signature(column), strict=True):
            if old != new:
                raise ValueError(f"{name}: expected {old}, as when the optimizer was made, got {new}")
            if reason := backend.rejects(array):
                raise TypeError(f"{name}: {reason}")
            if backend.freed(array):
                raise ValueError(f"{name}: expected memory, got an array whose memory was freed")
            if backend.mutable and not backend.writable(array):
                raise ValueError(f"{name}: expected an array that can be written to, got a read-only one")
    Memory().plus(backend, [a for column in columns for a in column], [name for names in called for name in names])


def _check_gradients(bucket: Bucket, grads: Sequence[Array | None], names: Sequence[str] | None) -> None:
    backend, kinds = bucket.backend, grads.kinds if isinstance(grads, Described) else set(map(type, grads))
    live: Sequence[Array] = grads
    params: Sequence[Array] = bucket.params
    if type(None) in kinds:
        pairs = [(g, p) for g, p in zip(grads, params, strict=True) if g is not None]
        live, params = [g for g, _ in pairs], [p for _, p in pairs]
        kinds = kinds - {type(None)}
    expected = bucket.accepted
    if params is not bucket.params:
        expected = backend.fingerprint(params) if bucket.dtype == bucket.grad_dtype else None
    if expected is not None and bucket.kinds >= kinds and backend.fingerprint(live) == expected:
        return
    for i, g in enumerate(grads):
        if g is not None:
            name = names[i] if names else bucket.names[i].replace("params", "grads", 1)
            check_gradient(name, backend, g, bucket.params[i], bucket.grad_dtype)
    bucket.kinds |= kinds
    if params is bucket.params:
        bucket.accepted = backend.fingerprint(grads)
