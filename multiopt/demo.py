"""``multiopt demo``: train a digit classifier with Adadelta, on one array library or on all of them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import info
from .demo_digits import PRESETS, Config, Digits, Run, replay, train

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["add_arguments", "main"]

#: Steps whose gradients, NumPy's, are fed to every library's optimizer with ``--all``.
REPLAYED = 50
#: Okabe and Ito's colours, which colour-blind readers tell apart, black first.
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2", "#F0E442")
MARKERS = "osD^vPX*"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``multiopt demo``."""
    which = parser.add_mutually_exclusive_group()
    known = ", ".join(name.replace("_", "-") for name in info.LIBRARIES)
    which.add_argument(
        "--backend", default="numpy", metavar="NAME", help=f"{known}, or the import name of any array API namespace"
    )
    which.add_argument("--all", action="store_true", help="train on every installed library, and compare")
    parser.add_argument("--device", help="a device of the library, such as cuda; by default the library's own choice")
    parser.add_argument("--epochs", type=_positive, default=Config.epochs, help="passes over the training digits")
    parser.add_argument("--batch", type=_positive, default=Config.batch, help="digits a step")
    parser.add_argument("--preset", choices=PRESETS, default=Config.preset, help="whose lr, rho and eps")
    for name in ("lr", "rho", "eps"):
        parser.add_argument(f"--{name}", type=float, metavar="X", help=f"{name} instead of the preset's")
    parser.add_argument("--activation", choices=("tanh", "relu"), default=Config.activation, help="of hidden layers")
    parser.add_argument("--dtype", choices=("float32", "float64"), default=Config.dtype, help="of all arrays")
    parser.add_argument("--seed", type=_natural, default=Config.seed, help="of the split, the weights and the batches")
    parser.add_argument("--out", type=Path, default=Path("loss.png"), help="where to draw the losses")


def main(args: argparse.Namespace) -> int:
    """Train, tell how it went, and draw the losses.

    Raises
    ------
    ImportError
        If rich, scikit-learn or matplotlib is not installed.
    ValueError
        If the library or the device asked for does not work here, or an option is out of range.
    OSError
        If the picture cannot be written.
    """
    import matplotlib.pyplot  # noqa: F401 - missing ones are told before the work, not after it
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    options = {name: value for name in ("lr", "rho", "eps") if (value := getattr(args, name)) is not None}
    config = Config(args.epochs, args.batch, args.seed, args.dtype, args.activation, args.preset, options)
    console = Console()
    if not args.out.resolve().parent.is_dir():
        raise ValueError(f"--out: there is no folder {str(args.out.resolve().parent)!r}")
    digits = Digits.load(config)
    config.optimizer(config.initial())  # a wrong option is told before the work begins
    places, left_out = _places(args)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]}"))
    runs: list[Run] = []
    same: list[str] = []
    reference = np.empty(0)
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        for name, library, place in places:
            runs.append(_train(progress, name, library, place, config, digits, keep=REPLAYED if not runs else 0))
            if args.all:
                values = replay(library.backend, place, config, runs[0].gradients)
                reference = reference if len(runs) > 1 else values
                same.append(_bits(values, reference))
    _tell(console, runs, [place.engine for *_, place in places], same)
    for line in left_out:
        console.print(f"left out: {line}", markup=False, highlight=False)
    if args.all:
        console.print(f"difference: largest of a step's loss from {runs[0].name}'s, relative. It comes from the network: each")
    draw(runs, config, args.out)
    console.print(f"The losses are drawn in {args.out}.", markup=False, highlight=False)
    return 0


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected an integer that is not negative, got {text!r}")
    return int(text)
