"""What `torch.distributed.optim` calls a functional optimizer: its step is handed the gradients.

`ZeroRedundancyOptimizer(..., overlap_with_ddp=True)` looks one up by the optimizer's class, in a table of PyTorch's.
"""

from __future__ import annotations

import sys
from collections import ChainMap
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .adadelta import Adadelta

__all__ = ["FunctionalAdadelta"]

#: The module that looks it up. Its import takes long and warns, so that it is left to whoever needs it.
ZERO = "torch.distributed.optim.zero_redundancy_optimizer"


class FunctionalAdadelta(Adadelta):
    """`Adadelta` over one group of parameters, with a step that is handed their gradients.

    Parameters
    ----------
    params : list of Tensor
        The group.
    _allow_empty_param_list : bool
        Whether it may be empty, as one rank's part may be.
    **options
        Those of `Adadelta`.
    """

    def __init__(self, params: list[Tensor], *, _allow_empty_param_list: bool = False, **options: Any) -> None:
        group: Any = [{"params": params}] if _allow_empty_param_list else params
        super().__init__(group, **options)

    def step(self, gradients: Sequence[Tensor | None]) -> None:  # type: ignore[override]
        """Update the parameters, whatever gradients they have themselves.

        Parameters
        ----------
        gradients : sequence of Tensor or None
            One for each parameter; None leaves it as it is.

        Raises
        ------
        ValueError
            If there are more or fewer.
        RuntimeError, TypeError
            See `Adadelta.step`.
        """
        (group,) = self.param_groups
        if len(gradients) != len(group["params"]):
            raise ValueError(f"gradients: expected {len(group['params'])}, one a parameter, got {len(gradients)}")
        with torch.no_grad():
            self._step(grads=[list(gradients)])


class _OnImport:
    """Has a module changed as soon as somebody has imported it."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != ZERO:
            return None
        others = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, others), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_enter(module: ModuleType) -> None:
                execute(module)
                _enter(module)

            spec.loader.exec_module = execute_and_enter  # type: ignore[method-assign]
        return spec


def _enter(module: Any) -> None:
    # Into this module's view of the table alone: `DistributedOptimizer` takes what it finds there for TorchScript.
    module.functional_optim_map = ChainMap({Adadelta: FunctionalAdadelta}, module.functional_optim_map)


if ZERO in sys.modules:
    _enter(sys.modules[ZERO])
else:
    sys.meta_path.insert(0, _OnImport())
