"""How the optimizer holds its state: in which dtype, how rounded, and what it rounds by at a step."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..adadelta import ADADELTA
from ..backends.rounding import Elements, Rounding
from ..backends.torch import PLAIN, is_sharded, local, shard_start
from ..binding import state_dtype_of
from ..memory import check_rounded
from ..options import OPTIONS, STATE_DTYPES
from .tensors import BACKEND

__all__ = ["State", "StateKind", "counter_dtype"]

State = MutableMapping[str, Any]
Groups = Sequence[MutableMapping[str, Any]]


def counter_dtype() -> torch.dtype:
    """The dtype of a step counter, as PyTorch has it."""
    return torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32


@dataclass(frozen=True)
class StateKind:
    """The choices of the program about state, which are no part of groups and checkpoints.

    Parameters
    ----------
    dtype : torch.dtype or None
        None: each parameter's.
    rounding : {"nearest", "stochastic"}
        What is rounded stochastically is by the groups' ``seed`` and ``rounding_step``, which checkpoints bring along.
    """

    dtype: torch.dtype | None = None
    rounding: str = "nearest"

    def __post_init__(self) -> None:
        if self.dtype not in KINDS:
            raise TypeError(f"state_dtype: expected one of {', '.join(map(str, KINDS))}, got {self.dtype!r}")
        OPTIONS["state_rounding"].check("state_rounding", self.rounding)

    @property
    def stochastic(self) -> bool:
        """Whether state is rounded stochastically."""
        return self.rounding == "stochastic"

    def options(self, seed: int) -> dict[str, int]:
        """The options of each group by which it is rounded; a seed without use is refused."""
        OPTIONS["seed"].check("seed", seed)
        if self.stochastic:
            return {"seed": seed, "rounding_step": 0}
        if seed:
            raise ValueError(f"seed: expected 0 without state_rounding='stochastic', got {seed}")
        return {}

    def check(self, name: str, p: Tensor) -> None:
        """Check that a parameter's state can be held so."""
        if self.stochastic:
            check_rounded(name, self._name(p))

    def new(self, p: Tensor, capturable: bool) -> State:
        """The state of a parameter that has had no gradient yet."""
        state = {"step": torch.zeros((), dtype=counter_dtype(), device=p.device if capturable else "cpu")}
        dtype = p.dtype if self.dtype is None else BACKEND.native(self._name(p))
        for slot, value in ADADELTA.slots.items():
            state[slot] = torch.full_like(
                p, value, dtype=dtype, memory_format=torch.preserve_format, requires_grad=False
            )
        return state

    def take(self, p: Tensor, own: State) -> None:
        """Give state its dtype again, which PyTorch makes the parameter's where it loads some."""
        if self.dtype is not None:
            dtype = BACKEND.native(self._name(p))
            own.update({slot: own[slot].to(dtype) for slot in ADADELTA.slots if isinstance(own.get(slot), Tensor)})

    def _name(self, p: Tensor) -> str:
        wanted = None if self.dtype is None else str(self.dtype).removeprefix("torch.")
        return state_dtype_of(BACKEND.dtype(p), wanted)

    def elements(self, name: str, number: int, p: Tensor) -> Elements:
        """Which elements of the parameter of a number are here."""
        if type(p) in PLAIN:
            return Elements(number)
        if not is_sharded(p):
            raise RuntimeError(
                f"{name}: expected a plain tensor or a DTensor for state_rounding='stochastic', got {type(p)}"
            )
        return Elements.of_block(number, p.shape, shard_start(p), local(p).shape)

    def rounding_of(self, groups: Groups) -> Rounding | None:
        """What the coming step rounds by."""
        if not self.stochastic:
            return None
        seeds = {OPTIONS["seed"].check("seed", group.get("seed", 0)) for group in groups}
        if len(seeds) > 1:
            raise ValueError(f"seed: expected the same in all groups, got {sorted(seeds)}")
        return Rounding(seeds.pop(), _steps(groups))

    def count(self, groups: Groups) -> None:
        """Count a step that is done."""
        if self.stochastic:
            steps = _steps(groups) + 1
            for group in groups:
                group["rounding_step"] = steps


def _steps(groups: Groups) -> int:
    """Steps done: one that was added later has counted fewer, and what another optimizer has saved, none."""
    return max(OPTIONS["seed"].check("rounding_step", group.get("rounding_step", 0)) for group in groups)


KINDS = tuple(None if name is None else getattr(torch, name) for name in STATE_DTYPES)
