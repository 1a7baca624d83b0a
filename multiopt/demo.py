"""``multiopt demo``: train a digit classifier with Adadelta, on one array library or on all of them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import info
from .backends.protocol import Backend
from .demo_digits import PRESETS, Config, Digits, Run, replay, train

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

__all__ = ["add_arguments", "main"]

#: With ``--all``: of so many steps NumPy's gradients are fed to every library's optimizer.
REPLAYED = 50
Target = tuple[str, Backend, info.Place]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``multiopt demo``."""
    which = parser.add_mutually_exclusive_group()
    known = ", ".join(name.replace("_", "-") for name in info.LIBRARIES)
    which.add_argument("--backend", default="numpy", help=f"{known}, or the import name of an array API namespace")
    which.add_argument("--all", action="store_true", help="train on every installed library, and compare")
    parser.add_argument("--device", default="its own choice", help="the library's device, such as cuda")
    parser.add_argument("--epochs", type=_positive, default=Config.epochs, help="passes over the digits")
    parser.add_argument("--batch", type=_positive, default=Config.batch, help="digits a step")
    preset_help = "whose lr, rho and eps; keras' lr of 0.001 is too small to learn anything here"
    parser.add_argument("--preset", choices=PRESETS, default=Config.preset, help=preset_help)
    for name in ("lr", "rho", "eps"):
        parser.add_argument(f"--{name}", type=float, default=argparse.SUPPRESS, help="instead of the preset's")
    parser.add_argument("--activation", choices=("tanh", "relu"), default=Config.activation, help="of two layers")
    parser.add_argument("--dtype", choices=("float32", "float64"), default=Config.dtype, help="of all arrays")
    parser.add_argument("--seed", type=_natural, default=Config.seed, help="of split, weights and batches")
    parser.add_argument("--out", type=Path, default=Path("loss.png"), help="picture to draw the losses in")


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
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from . import demo_picture

    if not args.out.resolve().parent.is_dir():
        raise ValueError(f"--out: there is no folder {args.out.resolve().parent}")
    options = {name: getattr(args, name) for name in ("lr", "rho", "eps") if hasattr(args, name)}
    config = Config(args.epochs, args.batch, args.seed, args.dtype, args.activation, args.preset, options)
    config.optimizer(config.initial())  # a wrong option is told before any work
    console = Console(highlight=False)
    targets, left_out = _all(args) if args.all else (_one(args), [])
    digits = Digits.load(config)

    bar = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"))
    runs: list[Run] = []
    replayed: list[np.ndarray] = []
    with Progress(*bar, TimeElapsedColumn(), console=console) as progress:
        for name, backend, place in targets:
            task = progress.add_task(name, total=digits.steps(config), loss="")

            def tick(loss: float, task: TaskID = task) -> None:
                progress.update(task, advance=1, loss=f"loss {loss:.4f}")

            keep = REPLAYED if args.all and not runs else 0
            runs.append(train(name, backend, place, config, digits, keep=keep, tick=tick))
            if args.all:
                replayed.append(replay(backend, place, config, runs[0].gradients))
    for line in left_out:
        console.print(f"Left out: {line}", markup=False)
    if args.all:
        _compare(console, targets, runs, replayed)
    else:
        console.print(
            f"{runs[0].name}, {targets[0][2].engine} engine: {len(runs[0].losses)} steps in {runs[0].seconds:.2f} s, "
            f"loss {runs[0].losses[-1]:.4f}, [bold]{runs[0].accuracy:.1%} of the test digits right[/bold]"
        )
    demo_picture.draw(runs, digits.steps(config) // config.epochs, args.out)
    console.print(f"The losses are drawn in {args.out}", markup=False)
    return 0


def _one(args: argparse.Namespace) -> list[Target]:
    """The library and device asked for."""
    library = info.find(args.backend.replace("-", "_"))
    if library.backend is None:
        raise ValueError(f"--backend: {library.name} {library.problem}")
    _need(library.backend, args.dtype)
    if args.device == "its own choice":
        return [(library.name, library.backend, library.places[0])]
    for place in library.places:
        if args.device in (place.name, place.name.partition(":")[0]):
            return [(f"{library.name} on {place.name}", library.backend, place)]
    names = ", ".join(place.name for place in library.places)
    raise ValueError(f"--device: {library.name} has {names} here, got {args.device!r}")


def _all(args: argparse.Namespace) -> tuple[list[Target], list[str]]:
    """Every library on each of its devices, NumPy first; and why others are left out."""
    if args.device != "its own choice":
        raise ValueError("--device: goes with --backend; --all takes every device")
    targets: list[Target] = []
    left_out = []
    for library in map(info.find, info.LIBRARIES):
        try:
            if library.backend is None:
                raise ValueError(f"{library.name} {library.problem}")
            _need(library.backend, args.dtype)
        except ValueError as error:
            left_out.append(str(error))
            continue
        for place in library.places:
            name = library.name if len(library.places) == 1 else f"{library.name} on {place.name}"
            targets.append((name, library.backend, place))
    return targets, left_out


def _need(backend: Backend, dtype: str) -> None:
    try:
        dtypes = backend.xp.__array_namespace_info__().dtypes(kind="real floating")
    except AttributeError:  # a namespace of before the standard had this; then asking is left to the arrays
        return
    if dtype not in dtypes:
        hint = "; set JAX_ENABLE_X64=1" if backend.name == "jax" else ""
        raise ValueError(f"--dtype: {backend.name} has no {dtype} here{hint}")


def _compare(console: Console, targets: list[Target], runs: list[Run], replayed: list[np.ndarray]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("library", no_wrap=True)
    table.add_column("engine")
    for column in ("seconds", "accuracy", "loss curve", "optimizer"):
        table.add_column(column, justify="right")
    for (name, _, place), run, values in zip(targets, runs, replayed, strict=True):
        far = float(np.max(np.abs(run.losses - runs[0].losses) / runs[0].losses))
        bits = _bits(values, replayed[0])
        curve = "same bits" if far == 0 else f"{far:.1e}"
        table.add_row(name, place.engine, f"{run.seconds:.2f}", f"{run.accuracy:.2%}", curve, bits)
    console.print(table)
    kept = len(runs[0].gradients)
    console.print(
        "Seconds: the whole training, network and all.\n"
        f"Loss curve: the largest relative difference of a step's loss from {runs[0].name}'s. Matrix products, sums, "
        "exp and tanh round differently in each library, and training carries that on.\n"
        f"Optimizer: every optimizer was fed the same gradients, {runs[0].name}'s of the first {kept} steps; "
        f"how many of the {replayed[0].size:,} numbers in its parameters and state then differ.",
    )


def _bits(values: np.ndarray, reference: np.ndarray) -> str:
    word = f"u{values.itemsize}"
    differ = int(np.count_nonzero(values.view(word) != reference.view(word)))
    return "same bits" if differ == 0 else f"{differ} differ"


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected an integer that is not negative, got {text!r}")
    return int(text)
