"""``python -m prunus bench training``: a block-sparse layer beside torch's, forward and backward."""

import argparse
from pathlib import Path
from typing import Any

from prunus.cli._arguments import choices, densities, number, numbers
from prunus.cli.errors import CommandError

__all__ = ["add", "run"]

_DESCRIPTION = """\
Time prunus.torch.nn.BlockSparseLinear beside torch.nn.Linear, forward and backward, in interleaved rounds,
and tell the medians and the memory that weights, gradients and Adam's states take. Results and gradients are
checked against the dense layer's before anything is timed."""


def add(kinds: Any) -> None:
    """Declare the comparison."""
    command = kinds.add_parser(
        "training", help="a block-sparse layer beside torch.nn.Linear", description=_DESCRIPTION
    )
    arg = command.add_argument
    arg("--size", type=number, default=4096, help="features in and out (default: %(default)s)")
    arg("--tokens", type=numbers, help="rows of the input (default: 128, on a GPU 8192)")
    arg("--blocks", type=numbers, default="32", help="block sizes (default: %(default)s)")
    arg("--densities", type=densities, default="10%,30%", help="shares of blocks (default: %(default)s)")
    arg("--dtypes", type=choices("float32", "bfloat16"), default="float32,bfloat16")
    arg("--threads", type=number, help="of all libraries (default: all cores)")
    arg("--rounds", type=number, default=9, help="timed calls of each (default: %(default)s)")
    arg("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    arg("--save", metavar="PATH", type=Path, help="write the table to a file as well")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure, and print the table."""
    from prunus._threads import get_num_threads
    from prunus.bench.peers import WrongResultError

    try:
        from prunus.bench.training import Case, measure, report

        tokens = options.tokens or ([128] if options.device == "cpu" else [8192])
        cases = [
            Case(options.size, rows, block, density, dtype, options.device)
            for dtype in options.dtypes
            for block in options.blocks
            for density in options.densities
            for rows in tokens
        ]
        table = report(measure(cases, options.threads or get_num_threads(), options.rounds))
        print(table)
        if options.save is not None:
            options.save.write_text(table + "\n", encoding="utf-8")
        return 0
    except (ValueError, WrongResultError, OSError, ImportError, RuntimeError) as error:
        raise CommandError(str(error)) from error
