"""The command line: ``multiopt demo | info | bench | check | record``."""

from .command import main

__all__ = ["main"]
