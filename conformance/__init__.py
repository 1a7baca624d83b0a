"""The conformance suite: what the real optimizers do, recorded, and the proof that this library does the same.

For tests of one's own: `assert_same_trajectory`, `assert_same_bits`, `assert_published_rule`, `record_trajectory`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data.trajectory import Trajectory
    from .parity.assertions import TrajectoryError, assert_published_rule, assert_same_bits, assert_same_trajectory
    from .parity.sides import record_trajectory

__all__ = [
    "Trajectory",
    "TrajectoryError",
    "assert_published_rule",
    "assert_same_bits",
    "assert_same_trajectory",
    "record_trajectory",
]
#: Where names are that are not in `parity.assertions`. Modules are imported when one of theirs is used.
_ELSEWHERE = {"Trajectory": ".data.trajectory", "record_trajectory": ".parity.sides"}


def __getattr__(name: str) -> Any:
    """Return an exported function or class."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ELSEWHERE.get(name, ".parity.assertions"), __name__), name)
