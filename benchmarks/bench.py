"""``multiopt bench``: arguments, and what is done with them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .cases import CASES, CUDA_CASES, Run
from .field import contenders
from .figures import Result
from .machine import describe, gpus, memory_available, memory_on_gpu
from .race import Pace
from .report import as_json, as_markdown, heading, show

__all__ = ["add_arguments", "main"]

#: Part of the memory at hand that the contenders of one batch may take.
PART = 0.8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``multiopt bench`` to a parser."""
    parser.add_argument("--cases", default="", help=f"comma-separated, by default all: {', '.join(CASES)}")
    parser.add_argument("--rows", default="", help="comma-separated contenders, by default all (the floor always runs)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the arrays are")
    parser.add_argument("--quick", action="store_true", help="tiny workloads: shows that all works, not how fast it is")
    parser.add_argument("--compile", action="store_true", help="torch.compile too, which compiles for a minute or more")
    parser.add_argument("--rounds", type=int, default=None, help="samples of each contender (15; 3 if quick)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the figures as a picture")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample")
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")


def main(args: argparse.Namespace) -> int:
    """Run the cases asked for and report them.

    Returns
    -------
    int
        0; 1 if a contender failed; 2 if what was asked for cannot be done here.
    """
    try:
        names, run = _asked(args)
    except (ValueError, ImportError) as error:
        print(f"multiopt bench: {error}", file=sys.stderr)
        return 2
    facts, command, results = describe(args.device), _command(args), list[Result]()
    print(heading(facts, command), flush=True)
    for name in names:
        with _told() as told:
            results.append(CASES[name](run(told)))
        if args.markdown:
            print(as_markdown(results[-1]), flush=True)
        else:
            show(results[-1])
        if args.json:  # after each case, so that a long run that is broken off is not lost
            args.json.write_text(as_json(facts, results, command), encoding="utf-8")
    if args.plot:
        from .plot import draw

        draw(results, args.plot)
    failed = [
        row for result in results for p in result.points for row in p.rows if (row.absent or "").startswith("failed")
    ]
    return 1 if failed else 0


def _asked(args: argparse.Namespace) -> tuple[list[str], Callable[[Callable[[str], None]], Run]]:
    possible = list(CASES) if args.device == "cpu" else list(CUDA_CASES)
    names = [name.strip() for name in args.cases.split(",") if name.strip()] or possible
    unknown = sorted(set(names) - set(possible))
    if unknown:
        raise ValueError(f"--cases: expected some of {', '.join(possible)}, got {', '.join(unknown)}")
    rows = [row.strip() for row in args.rows.split(",") if row.strip()] or None
    field = contenders(args.device, args.compile, rows)
    rounds = args.rounds if args.rounds is not None else 3 if args.quick else 15
    if rounds < 1:
        raise ValueError(f"--rounds: expected at least 1, got {rounds}")
    if args.device == "cuda" and not gpus():
        raise ValueError("--device cuda: no NVIDIA GPU is visible to this process")
    if not args.markdown:
        _need("rich", "cli")
    if args.plot:
        _need("matplotlib", "bench")
    memory = memory_available() if args.device == "cpu" else memory_on_gpu()
    pace = Pace(rounds, 0.001 if args.quick else 0.05, PART * memory)
    return names, lambda told: Run(field, pace, args.quick, args.device, told)


def _need(module: str, extra: str) -> None:
    try:
        __import__(module)
    except ImportError:
        raise ImportError(f'{module} is not installed: pip install "multiopt[{extra}]"') from None


def _command(args: argparse.Namespace) -> str:
    words = ["multiopt bench"]
    words += [f"--{name} {value}" for name in ("cases", "rows", "rounds") if (value := getattr(args, name))]
    words += ["--device cuda"] * (args.device == "cuda") + ["--compile"] * args.compile + ["--quick"] * args.quick
    return " ".join(words)


@contextmanager
def _told() -> Iterator[Callable[[str], None]]:
    """Show on the error stream what is going on, if somebody is there to see it."""
    if not sys.stderr.isatty():
        yield lambda words: None
        return
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        yield status.update
