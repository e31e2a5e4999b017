"""The command line, ``python -m prunus``: one module for each command.

A command's module has ``add(subparsers)``, which declares its arguments and leaves the function that runs it
in ``run``; heavy imports happen in that function, so that ``--help`` is quick.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from prunus._core import __version__
from prunus.cli import bench, cuda, demo, info, inspect, llm, pack, tensix, verify
from prunus.cli.errors import CommandError

__all__ = ["main"]


def parser() -> argparse.ArgumentParser:
    """Declare every command."""
    top = argparse.ArgumentParser(
        prog="python -m prunus", description="Block-sparse arrays at dense-GEMM speed."
    )
    top.add_argument("--version", action="version", version=f"prunus {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (info, inspect, verify, pack, llm, demo, bench, cuda, tensix):
        module.add(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    arguments : sequence of str, optional
        The command line, without the program's name; that of the process by default.

    Returns
    -------
    int
        Exit status: 0, 1 if the command could not do its work, 130 if it was interrupted, 141 if whoever read
        the output stopped doing so. Wrong arguments end the process with status 2, as argparse does.
    """
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # As in ``| head``: enough was read. What is still buffered must not fail once more at exit.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())
        return 141


def _run(arguments: Sequence[str] | None) -> int:
    """Run one command and turn what ends it early into an exit status."""
    options = parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except CommandError as error:
        print(f"python -m prunus: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
