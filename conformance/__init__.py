"""The conformance suite: what the real optimizers do, recorded, and the proof that this library does the same.

For tests of one's own: `assert_same_trajectory`, `assert_same_bits`, `assert_published_rule`, `record_trajectory`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data.trajectory import Trajectory
    from .parity.parity import TrajectoryError, assert_published_rule, assert_same_bits, assert_same_trajectory
    from .parity.trajectory import record_trajectory

#: Where each name is: modules are imported when one of theirs is used.
_HOMES = {
    "TrajectoryError": "parity.parity",
    "assert_published_rule": "parity.parity",
    "assert_same_bits": "parity.parity",
    "assert_same_trajectory": "parity.parity",
    "Trajectory": "data.trajectory",
    "record_trajectory": "parity.trajectory",
}
__all__ = [
    "Trajectory",
    "TrajectoryError",
    "assert_published_rule",
    "assert_same_bits",
    "assert_same_trajectory",
    "record_trajectory",
]


def __getattr__(name: str) -> Any:
    """Return an exported function or class."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
