"""What the recorders of all Keras generations but the first share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..targets.optimizers import Keras


class RecordedKeras(Keras):
    """A Keras optimizer with its variables."""

    def rate(self) -> float:
        """Return the learning rate that the optimizer holds."""
        return float(self.read([self.opt.learning_rate])[0])

    def hyperparameters(self) -> dict[str, float | None]:
        # Of lr, the float32 variable that it has become.
        return {"lr": self.rate(), "rho": self.opt.rho, "eps": self.opt.epsilon}

    def columns(self) -> Mapping[str, Sequence[Any]]:
        return {**super().columns(), "iterations": [self.opt.iterations]}

    def finalized(self) -> Sequence[Any] | None:
        """Put the averages into the variables, as Keras does after training."""
        if not self.opt.use_ema:
            return None
        self.opt.finalize_variable_values(self.variables)
        return self.read(self.variables)
