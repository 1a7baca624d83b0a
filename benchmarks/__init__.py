"""Side-by-side timings: multiopt, other optimizers and the floor, in one run (``multiopt bench``).

Every contender runs in a process of its own: none disturbs another's threads or allocator, and the time until it
is ready is that of a fresh program. Rounds go A B C A B C, and figures are medians. The *floor* moves the bytes of
the update and does next to nothing.
"""

from .bench import add_arguments, main

__all__ = ["add_arguments", "main"]
