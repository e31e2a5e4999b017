"""``python -m prunus info``: what this machine has, and how fast it is."""

import argparse

from prunus.cli._arguments import Commands, seconds

__all__ = ["add", "run"]

_DTYPES = ("float32", "float64", "bfloat16", "float16", "int8")


def add(commands: Commands) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "info",
        help="SIMD levels, threads, caches, and measured FLOP/s and memory GB/s",
        description="Show what prunus uses on this machine, and measure arithmetic and memory.",
    )
    command.add_argument(
        "--seconds",
        type=seconds,
        default=0.2,
        help="how long each figure is measured (default: %(default)s); 0 leaves the measurements out",
    )
    command.add_argument("-v", "--verbose", action="store_true", help="also show what chooses a path")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the configuration and the table of measurements."""
    from prunus._config import show_config

    show_config(verbose=options.verbose)
    if options.seconds > 0:
        print()
        print(_measurements(options.seconds))
    return 0


def _measurements(seconds: float) -> str:
    """Measure with one thread and with all of them."""
    from prunus import _core
    from prunus._progress import Progress
    from prunus._table import format_table
    from prunus._threads import get_num_threads

    # What prunus may use, which is what its user wants to know; one column where that is one thread.
    counts = sorted({1, get_num_threads()})
    rows = []
    with Progress((len(_DTYPES) + 1) * len(counts), "measuring") as bar:
        for dtype in _DTYPES:
            row = [f"{dtype} multiply-add", "GOP/s" if dtype == "int8" else "GFLOP/s"]
            for count in counts:
                row.append(f"{_core.measure_flops(dtype, count, seconds) * 1e-9:.0f}")
                bar.step(dtype)
            rows.append(row)
        row = ["memory read", "GB/s"]
        for count in counts:
            row.append(f"{_core.measure_bandwidth(count, seconds) * 1e-9:.1f}")
            bar.step("memory")
        rows.append(row)
    header = ["measured", "unit", *(f"{n} thread{'s' if n > 1 else ''}" for n in counts)]
    return format_table(header, rows, left=2)
