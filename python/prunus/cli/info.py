"""``python -m prunus info``: what this machine has, and how fast it is."""

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from prunus.cli._arguments import Commands, price, seconds
from prunus.cli._files import readable, refusing
from prunus.cli.errors import CommandError

__all__ = ["add", "run"]

_READS = ("random read", "sequential read")
_WRITES = ("sequential write", "random 70 % read, 30 % write")
_BLOCKS = (4 << 10, 16 << 10, 64 << 10, 128 << 10, 1 << 20)
_DEPTHS = (1, 4, 16, 64)
_TEMPORARY = 64 << 20  # bytes of the file that stands for a folder's drive
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
    command.add_argument(
        "--io",
        metavar="PATH",
        help="measure the drive under a file (of 1 MiB or more) or a folder instead: direct reads of the "
        "file, in a folder of a temporary one of 64 MiB, and writes of a scratch file beside it",
    )
    command.add_argument(
        "--price",
        type=price,
        metavar="DOLLARS",
        help="what the drive cost: --io then also prints GB/s for each dollar",
    )
    command.add_argument("-v", "--verbose", action="store_true", help="also show what chooses a path")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the configuration and the table of measurements, or what a drive gives."""
    if options.io is not None:
        with refusing(), _file(options.io) as path:
            print(_drive(path, options.seconds, options.price))
        return 0
    from prunus._config import show_config

    show_config(verbose=options.verbose)
    if options.seconds > 0:
        print()
        print(_measurements(options.seconds))
    return 0


@contextmanager
def _file(path: str) -> Iterator[str]:
    """Return a file that can be measured: what was named or, of a folder, a temporary one in it."""
    if not os.path.isdir(path):
        size = os.stat(path).st_size
        if not os.path.isfile(path):
            raise CommandError(f"{readable(path)}: expected a file or a folder, got a device, pipe or socket")
        if size < max(_BLOCKS):
            raise CommandError(
                f"{readable(path)}: expected a file of at least {max(_BLOCKS)} bytes, the largest block that "
                f"is read, got {size}; a folder is measured by a temporary file in it"
            )
        yield path
        return
    with tempfile.TemporaryDirectory(prefix=".prunus-io-", dir=path) as folder:
        name = os.path.join(folder, "measured")
        with open(name, "wb") as file:
            for _ in range(_TEMPORARY // max(_BLOCKS)):  # written, and with no two alike: drives know zeros
                file.write(os.urandom(max(_BLOCKS)))
            file.flush()
            os.fsync(file.fileno())
        yield name


def _drive(path: str, seconds: float, price: float | None) -> str:
    """Measure blocks of a file by size, order and depth."""
    from prunus import _core
    from prunus._config import size_text
    from prunus._progress import Progress
    from prunus._table import format_table

    plans = [
        *((access, block, depth) for access in _READS for block in _BLOCKS for depth in _DEPTHS),
        *((access, block, 16) for access in _WRITES for block in (64 << 10, 1 << 20)),
    ]
    rows = []
    with Progress(len(plans), "measuring") as bar:
        for access, block, depth in plans:
            found = _core.measure_io(path, None, [access], [block], [depth], seconds or 0.1)
            for engine, _, _, _, rate, mean, cpu, calls in found:
                row = [access, size_text(block), str(depth), engine, f"{rate * 1e-9:.3f}", f"{mean:.1f}"]
                row += [f"{cpu:.1f}", f"{calls:.2f}"]
                rows.append(row if price is None else [*row, f"{rate * 1e-9 / price:.4f}"])
            bar.step(f"{access} {size_text(block)}")
    head = ["access", "block", "depth", "engine", "GB/s", "mean depth", "CPU us", "calls"]
    return format_table(head if price is None else [*head, "GB/s per $"], rows, left=2)


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
