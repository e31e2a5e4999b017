"""``python -m prunus tensix bench``: how fast simulated chips are simulated."""

import argparse
from typing import Any

from prunus.cli._arguments import number
from prunus.cli.errors import CommandError

__all__ = ["add", "run"]

_DESCRIPTION = """\
Time simulations of square bfloat16 products on this machine: without values, in events and simulated cycles a
second, and with values, beside NumPy's product of the same operands in interleaved rounds."""

_CHIP, _FULL = "p150", ("n150", 1024)


def add(kinds: Any) -> None:
    """Declare the command."""
    bench = kinds.add_parser("bench", help="how fast the simulator is here", description=_DESCRIPTION)
    arg = bench.add_argument
    arg(
        "--sizes",
        type=number,
        nargs="+",
        default=[1024, 4096],
        help="products without values (default: 1024 4096; 16384 takes most of a minute a round)",
    )
    arg("--rounds", type=number, default=5, help="timed runs of each (default: %(default)s)")
    bench.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run both parts and print their tables."""
    from prunus.bench.machine import cpu
    from prunus.bench.peers import WrongResultError
    from prunus.bench.tensix import measure_full, measure_timing, report_full, report_timing

    print(f"CPU: {cpu().name}\n")
    try:
        timed = [measure_timing(_CHIP, size, options.rounds) for size in options.sizes]
        print(report_timing(timed), flush=True)
        print(f"\n{report_full([measure_full(*_FULL, options.rounds)])}")
    except (ValueError, WrongResultError) as error:
        raise CommandError(str(error)) from error
    return 0
