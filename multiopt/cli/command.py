"""The command ``multiopt``: chooses one of its commands, and turns an error into one line.

A command's module is imported only when it is chosen. It offers ``add_arguments(parser)`` and
``main(args) -> int``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from ..backends import libraries

__all__ = ["COMMANDS", "main"]

#: Command: its module, the extra that it needs, and what it does.
COMMANDS = {
    "demo": ("cli.demo", "demo", "train a digit classifier with Adadelta, on one array library or on all of them"),
    "info": ("cli.info", "cli", "show the installed array libraries and the engine that each one gets"),
    "bench": ("benchmarks", "bench", "time a step against other optimizers and the floor of memory traffic"),
    "check": ("conformance.check", "conformance", "check optimizers against recorded traces and laws"),
    "record": ("conformance.recording.record", "record", "record traces of the frameworks' own optimizers"),
}


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults of those options that have one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        empty = action.default is None or action.default is False or action.default == ""
        return action.help if empty else super()._get_help_string(action)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv : sequence of str, optional
        The words after the program's name; by default this process'.

    Returns
    -------
    int
        The exit status: what the command returned, or 2 for a wrong call or something not installed.
    """
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog="multiopt",
        usage="multiopt [--version] [--traceback] COMMAND [...]",
        description="One Adadelta for every array library, with the same bits, at the speed of memory.",
        epilog="commands:\n"
        + "".join(f"  {name:{width}}  {text}\n" for name, (*_, text) in COMMANDS.items())
        + "\nmultiopt COMMAND --help shows a command's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    parser.add_argument("--traceback", action="store_true", help="show the traceback of an error")
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.version:
        from importlib.metadata import version

        print(f"multiopt {version('multiopt')}")
        return 0
    if args.command is None:
        parser.print_help()
        return 2
    if args.command not in COMMANDS:
        parser.error(f"there is no command {args.command!r}; choose from {', '.join(COMMANDS)}")
    try:
        status = _run(args.command, args.rest)
        sys.stdout.flush()  # here, where a reader that has gone is handled
        return status
    except BrokenPipeError:
        # Whoever read the output has gone; do not complain again when Python flushes it at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130
    except (ImportError, OSError, ValueError) as error:
        if args.traceback:
            raise
        print(f"multiopt {args.command}: {_one_line(args.command, error)}", file=sys.stderr)
        return 2


def _run(name: str, rest: Sequence[str]) -> int:
    module_name, _, text = COMMANDS[name]
    module = import_module(f"multiopt.{module_name}")
    description = text[0].upper() + text[1:] + "."
    parser = argparse.ArgumentParser(prog=f"multiopt {name}", description=description, formatter_class=_Formatter)
    module.add_arguments(parser)
    return module.main(parser.parse_args(rest))


def _one_line(command: str, error: BaseException) -> str:
    missing = (getattr(error, "name", None) or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or missing in ("", "multiopt"):
        return " ".join(str(error).split()) or type(error).__name__
    requirement = f'"multiopt[{COMMANDS[command][1]}]"'
    if command != "record":  # which pins its libraries
        requirement = next((lib.requirement for lib in libraries() if lib.name == missing), requirement)
    return f"{missing} is not installed: pip install {requirement}"
