"""``multiopt bench``: arguments, and what is done with them."""

from __future__ import annotations

import argparse
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from .cases import CASES, CUDA_CASES, UNASKED
from .contenders import choose
from .harness.figures import Result
from .harness.machine import describe, gpu, memory
from .harness.race import Race
from .output.report import as_json, as_markdown, show
from .run import Run

__all__ = ["add_arguments", "main"]

#: Share of the memory at hand that the contenders of one batch may take.
SHARE = 0.8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``multiopt bench`` to a parser."""
    text = f"comma-separated: {', '.join(CASES)}; by default all but {' and '.join(UNASKED)}"
    parser.add_argument("--cases", default="", help=text)
    text = "comma-separated, by default all; the floor always runs"
    parser.add_argument("--contenders", "--rows", default="", help=text)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the arrays are")
    parser.add_argument("--quick", action="store_true", help="tiny workloads, to see that everything works")
    parser.add_argument("--compile", action="store_true", help="include torch.compile, which takes a minute or more")
    parser.add_argument("--rounds", type=int, help="samples per contender (default: 15, or 3 with --quick)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the results to a picture")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample to a JSON file")
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")


def main(args: argparse.Namespace) -> int:
    """Run the cases asked for and report them.

    Returns
    -------
    int
        0; 1 if a contender failed.

    Raises
    ------
    ValueError, ImportError
        If what was asked for cannot be done here; nothing has been measured then.
    """
    from rich.console import Console

    names, run = _requested(args)
    facts, command, results = describe(args.device), _command(args), list[Result]()
    print(f"`{command}`, on: " + ", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
    for name in names:
        with Console(stderr=True).status("starting") as status:  # shown if somebody is there to see it
            results.append(CASES[name](replace(run, race=replace(run.race, progress=status.update))))
        if args.markdown:
            print(as_markdown(results[-1]), flush=True)
        else:
            show(results[-1])
        if args.json:  # after each case, so that a long run that is broken off is not lost
            args.json.write_text(as_json(facts, results, command), encoding="utf-8")
    if args.plot:
        from .output.plot import draw

        draw(results, args.plot)
    rows = [row for result in results for point in result.points for row in point.rows]
    return int(any((row.absent or "").startswith("failed") for row in rows))


def _requested(args: argparse.Namespace) -> tuple[list[str], Run]:
    possible = list(CASES) if args.device == "cpu" else list(CUDA_CASES)
    names = _words(args.cases) or [name for name in possible if name not in UNASKED]
    unknown = sorted(set(names) - set(possible))
    if unknown:
        raise ValueError(f"--cases: expected some of {', '.join(possible)}, got {', '.join(unknown)}")
    contenders = choose(args.device, args.compile, _words(args.contenders))
    rounds = args.rounds if args.rounds is not None else 3 if args.quick else 15
    if rounds < 1:
        raise ValueError(f"--rounds: expected at least 1, got {rounds}")
    if args.device == "cuda" and not gpu():
        raise ValueError("--device cuda: no NVIDIA GPU is visible to this process")
    if args.plot:
        import_module("matplotlib")  # that it is missing is said before anything is measured
    race = Race(rounds, 0.001 if args.quick else 0.05, SHARE * memory(args.device))
    return names, Run(contenders, race, args.quick, args.device)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _command(args: argparse.Namespace) -> str:
    words = ["multiopt bench"]
    words += [f"--{name} {value}" for name in ("cases", "contenders", "rounds") if (value := getattr(args, name))]
    words += ["--device cuda"] * (args.device == "cuda") + ["--compile"] * args.compile + ["--quick"] * args.quick
    return " ".join(words)
