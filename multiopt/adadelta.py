"""Adadelta: the formula, which stands here and nowhere else, its rule, and the optimizer.

Every engine runs this function or a program traced from it.
"""

from __future__ import annotations

from typing import Any

from .optimizer import Optimizer, Schedule
from .options import Attribute
from .rule import Hyper, Rule

__all__ = ["ADADELTA", "Adadelta", "adadelta"]


def adadelta(
    xp: Any, x: Any, g: Any, square_avg: Any, acc_delta: Any, *, lr: float, rho: float, eps: float
) -> tuple[Any, Any, Any]:
    """Adadelta (Zeiler 2012, arXiv 1212.5701, algorithm 1), with a learning rate outside the accumulator.

    The order of operations is fixed, because the bits depend on it.
    """
    square_avg = rho * square_avg + (1 - rho) * (g * g)
    delta = xp.sqrt(acc_delta + eps) / xp.sqrt(square_avg + eps) * g
    acc_delta = rho * acc_delta + (1 - rho) * (delta * delta)
    return x - lr * delta, square_avg, acc_delta


ADADELTA = Rule(
    "adadelta",
    adadelta,
    slots={"square_avg": 0.0, "acc_delta": 0.0},
    hypers={
        "lr": Hyper(1.0, low=0.0),
        "rho": Hyper(0.9, low=0.0, high=1.0),
        "eps": Hyper(1e-6, low=0.0, open_low=True),
    },
)


class Adadelta(Optimizer):
    """Adadelta (Zeiler 2012, arXiv 1212.5701).

    With the gradient ``g`` of the parameter ``x``::

        square_avg = rho * square_avg + (1 - rho) * g²
        delta      = sqrt(acc_delta + eps) / sqrt(square_avg + eps) * g
        acc_delta  = rho * acc_delta + (1 - rho) * delta²
        x          = x - lr * delta

    The defaults are PyTorch's. Those of other frameworks differ widely: the first step with PyTorch's is 2,236 times
    as long as with Keras'. To choose by name, use `Adadelta.paper`, `Adadelta.torch` or `Adadelta.keras`.

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

    __slots__ = ()

    rho = Attribute[float | Schedule]()
    eps = Attribute[float | Schedule]()

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
