"""``multiopt demo``: train a digit classifier with Adadelta, on one array library or on all of them."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..backends import libraries
from .digits import PRESETS, Config, Run, load, replay, train
from .libraries import Place, find

__all__ = ["add_arguments", "main"]

#: With ``--all``, the number of steps for which every library's optimizer gets NumPy's gradients.
REPLAYED = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``multiopt demo``."""
    which = parser.add_mutually_exclusive_group()
    known = ", ".join(library.name.replace("_", "-") for library in libraries())
    which.add_argument("--backend", default="numpy", help=f"{known}, or the import name of an array API namespace")
    which.add_argument("--all", action="store_true", help="train on every installed library, and compare")
    parser.add_argument("--device", help="the library's device, such as cuda; by default the library's own choice")
    parser.add_argument("--epochs", type=_integer(1), default=Config.epochs, help="passes over the digits")
    parser.add_argument("--batch", type=_integer(1), default=Config.batch, help="digits per step")
    preset_help = "whose defaults for lr, rho and eps; Keras' lr of 0.001 is too small to learn anything here"
    parser.add_argument("--preset", choices=PRESETS, default=Config.preset, help=preset_help)
    for name in ("lr", "rho", "eps"):
        parser.add_argument(f"--{name}", type=float, default=argparse.SUPPRESS, help="instead of the preset's")
    activation_help = "activation function of the two hidden layers"
    parser.add_argument("--activation", choices=("tanh", "relu"), default=Config.activation, help=activation_help)
    parser.add_argument("--dtype", choices=("float32", "float64"), default=Config.dtype, help="dtype of all arrays")
    parser.add_argument("--seed", type=_integer(0), default=Config.seed, help="of the split, the weights, the batches")
    parser.add_argument("--out", type=Path, default=Path("loss.png"), help="file for the picture of the losses")


def _integer(low: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"expected an integer of at least {low}, got {text!r}")
        return int(text)

    return parse


def main(args: argparse.Namespace) -> int:
    """Train, report the results, and draw the losses.

    Raises
    ------
    ImportError, ValueError, OSError
        If something is not installed, does not work here or is out of range, or the picture cannot be written.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    from .picture import draw

    if not args.out.resolve().parent.is_dir():
        raise ValueError(f"--out: there is no folder {args.out.resolve().parent}")
    options = {name: getattr(args, name) for name in ("lr", "rho", "eps") if hasattr(args, name)}
    config = Config(args.epochs, args.batch, args.seed, args.dtype, args.activation, args.preset, options)
    config.optimizer(config.initial())  # a wrong option is an error before any work
    console = Console(highlight=False)
    places, skipped = _requested(args)
    data = load(config)
    per_epoch = math.ceil(len(data[0]["x"]) / config.batch)

    bar = ("{task.description}", BarColumn(), MofNCompleteColumn(), "{task.fields[loss]}", TimeElapsedColumn())
    runs: list[Run] = []
    replayed: list[np.ndarray] = []
    with Progress(*bar, console=console) as progress:
        for name, place in places.items():
            task = progress.add_task(name, total=per_epoch * config.epochs, loss="")

            def tick(loss: float, task: Any = task) -> None:
                progress.update(task, advance=1, loss=f"loss {loss:.4f}")

            runs.append(train(name, place, config, data, REPLAYED if args.all and not runs else 0, tick))
            if args.all:
                replayed.append(replay(place, config, runs[0].gradients))
    for reason in skipped:
        console.print(f"Skipped: {reason}", markup=False)
    if args.all:
        _compare(console, list(places.values()), runs, replayed)
    else:
        (run,), (place,) = runs, places.values()
        console.print(
            f"{run.name}, {place.engine} engine: {len(run.losses)} steps in {run.seconds:.2f} s, "
            f"loss {run.losses[-1]:.4f}, [bold]{run.accuracy:.1%} of the test digits right[/bold]"
        )
    draw(runs, per_epoch, args.out)
    console.print(f"The losses are drawn in {args.out}", markup=False)
    return 0


def _places(name: str, dtype: str) -> tuple[Place, ...]:
    """The devices of a library, if it works here and has the dtype."""
    found = find(name)
    if found.problem:
        raise ValueError(f"--backend: {name} {found.problem}")
    try:
        dtypes = found.places[0].backend.xp.__array_namespace_info__().dtypes(kind="real floating")
    except AttributeError:  # a namespace older than this part of the standard: the arrays will tell
        return found.places
    if dtype not in dtypes:
        hint = "; set JAX_ENABLE_X64=1" if name == "jax" else ""
        raise ValueError(f"--dtype: {name} has no {dtype} here{hint}")
    return found.places


def _requested(args: argparse.Namespace) -> tuple[dict[str, Place], list[str]]:
    """The devices to train on, by name, NumPy's first; and why other libraries are skipped."""
    if args.all and args.device:
        raise ValueError("--device: goes with --backend; --all takes every device")
    if not args.all:
        name = args.backend.replace("-", "_")
        places = _places(name, args.dtype)
        if not args.device:
            return {name: places[0]}, []
        chosen = {f"{name} on {p.name}": p for p in places if args.device in (p.name, p.name.partition(":")[0])}
        if not chosen:
            known = ", ".join(place.name for place in places)
            raise ValueError(f"--device: {name} has {known} here, got {args.device!r}")
        return dict([*chosen.items()][:1]), []
    chosen, skipped = {}, []
    for library in libraries():
        try:
            places = _places(library.name, args.dtype)
        except ValueError as error:
            skipped.append(str(error).removeprefix("--backend: "))
        else:
            chosen |= {library.name if len(places) == 1 else f"{library.name} on {p.name}": p for p in places}
    return chosen, skipped


def _compare(console: Any, places: Sequence[Place], runs: list[Run], replayed: list[np.ndarray]) -> None:
    from rich import box
    from rich.table import Table

    table = Table("library", "engine", box=box.SIMPLE_HEAD)
    for column in ("seconds", "accuracy", "loss curve", "optimizer"):
        table.add_column(column, justify="right")
    for place, run, values in zip(places, runs, replayed, strict=True):
        largest = float(np.max(np.abs(run.losses - runs[0].losses) / runs[0].losses))
        curve = "same bits" if largest == 0 else f"{largest:.1e}"
        word = f"u{values.itemsize}"
        differ = int(np.count_nonzero(values.view(word) != replayed[0].view(word)))
        bits = "same bits" if differ == 0 else f"{differ} differ"
        table.add_row(run.name, place.engine, f"{run.seconds:.2f}", f"{run.accuracy:.2%}", curve, bits)
    table.columns[0].no_wrap = True
    console.print(table)
    console.print(
        "Seconds: the whole training, network included.\n"
        f"Loss curve: the largest relative difference of a step's loss from {runs[0].name}'s. Matrix products, sums, "
        "exp and tanh round differently in each library, and training amplifies that.\n"
        f"Optimizer: every optimizer got the same gradients, {runs[0].name}'s of the first {len(runs[0].gradients)} "
        f"steps; how many of the {replayed[0].size:,} numbers in its parameters and state then differ.",
    )
