"""What an optimizer did with a case: every state after every step."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from .case import Array, Case
from .specification import Config

#: Kinds of state that a step changes, in the order they are judged.
STATES = ("square_avg", "acc_delta", "x", "average")


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Every state of one optimizer in one case. On disk it is a trace (`traces`).

    Attributes
    ----------
    name : str
        Of the recorded system, or of the target.
    case : Case
        What was asked, with lr, rho and eps as the framework had them where the scenario left them to it.
    states : mapping of str to sequence of arrays
        ``"x"``, and where known ``"square_avg"``, ``"acc_delta"`` and ``"average"``: for each tensor one array, with
        time as its first axis; entry 0 is before any step. bfloat16 is held in float32. ``"finalized"``, without time,
        are the parameters after Keras' ``finalize_variable_values``.
    lr : array or None
        The learning rate that each step used.
    iterations : array or None
        The framework's own counters, after each step.
    deviations : tuple of str
        Names of the `deviations.DEVIATIONS` that show here.
    refusal : str or None
        Class name of the exception, if the system refused; then there is ``"x"`` before any step, and no other state.
    options_known : bool
        Whether the options of `case` are those of the optimizer; False where it does not tell them.
    """

    name: str
    case: Case
    states: Mapping[str, Sequence[Array]]
    lr: Array | None = None
    iterations: Array | None = None
    deviations: tuple[str, ...] = ()
    refusal: str | None = None
    options_known: bool = True

    @property
    def scenario(self) -> str:
        """Name of the scenario."""
        return self.case.scenario

    @property
    def dtype(self) -> str:
        """Data type of parameters and state."""
        return self.case.dtype

    @property
    def config(self) -> Config:
        """The options."""
        return self.case.config

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors."""
        return self.case.names

    @property
    def steps(self) -> int:
        """How many steps were taken, or refused."""
        return self.case.steps or len(self.states["x"][0]) - 1

    @property
    def arrays(self) -> dict[str, Array]:
        """Everything as a trace file holds it: ``"KIND/TENSOR"``, ``"lr"`` or ``"iterations"`` to array."""
        found = {f"{kind}/p{i}": values for kind, column in self.states.items() for i, values in enumerate(column)}
        plain = {"lr": self.lr, "iterations": self.iterations}
        return {**self.case.inputs, **found, **{key: values for key, values in plain.items() if values is not None}}

    def has(self, kind: str) -> bool:
        """Tell whether this kind of state is known."""
        return kind in self.states

    def at(self, kind: str, step: int) -> list[Array]:
        """Return ``kind`` of every tensor after ``step`` steps."""
        return [values[step] for values in self.states[kind]]

    def first(self, steps: int) -> Trajectory:
        """Return the beginning, with no more than this many steps."""
        if self.steps <= steps:
            return self
        states = {kind: [a[: steps + 1] for a in self.states[kind]] for kind in STATES if self.has(kind)}
        return replace(
            self,
            case=self.case.first(steps),
            states=states,
            lr=None if self.lr is None else self.lr[:steps],
            iterations=None if self.iterations is None else self.iterations[: steps + 1],
        )

    def bits(self) -> str:
        """Return a hash of every state, and of what was asked."""
        sha = hashlib.sha256(repr((self.scenario, self.dtype, self.config, self.deviations)).encode())
        arrays = self.arrays
        for key in sorted(arrays):
            sha.update(key.encode() + arrays[key].tobytes())
        return sha.hexdigest()
