"""The command line, ``python -m prunus``: one module for each command.

A command's module has ``add(subparsers)``, which declares its arguments and leaves the function that runs it
in ``run``; heavy imports happen in that function, so that ``--help`` is quick.
"""

import argparse
import sys
from collections.abc import Sequence

from prunus.cli import bench, demo, info
from prunus.cli.errors import CommandError

__all__ = ["main"]


def parser() -> argparse.ArgumentParser:
    """Declare every command."""
    top = argparse.ArgumentParser(
        prog="python -m prunus", description="Block-sparse tensors at dense-GEMM speed."
    )
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (info, demo, bench):
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
        Exit status: 0, 1 if the command could not do its work, 130 if it was interrupted. Wrong arguments
        end the process with status 2, as argparse does.
    """
    options = parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except CommandError as error:
        print(f"python -m prunus: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
