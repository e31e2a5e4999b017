"""``python -m prunus tensix``: the simulator of Tensix chips."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from prunus.cli._arguments import Commands
from prunus.cli._files import refusing, writable
from prunus.cli.errors import CommandError

if TYPE_CHECKING:
    from prunus.tensix.validation.rows import Row
    from prunus.tensix.validation.run import Prediction

__all__ = ["add", "validate"]

_KINDS = ("gemm", "noc", "dram")
_SHOWN = 20

_DESCRIPTION = """\
Run published measurements as programs on simulated chips, and tell how far the simulated times are off. A row
whose measured column is missing or empty is predicted only. Products without a configuration are cut as the
benchmark of Tenstorrent's library does it."""


def add(commands: Commands) -> None:
    """Declare the command and what it can do."""
    command = commands.add_parser("tensix", help="simulated Tensix chips")
    kinds = command.add_subparsers(title="commands", metavar="COMMAND", required=True)
    compare = kinds.add_parser(
        "validate", help="the simulator beside published measurements", description=_DESCRIPTION
    )
    arg = compare.add_argument
    arg("--gemm", metavar="FILE.csv", help="dense products: device or arch, m, k, n, dtype, fidelity, ...")
    arg("--noc", metavar="FILE.csv", help="traffic on chip: arch, mechanism, pattern, transaction_bytes, ...")
    arg("--dram", metavar="FILE.csv", help="traffic with DRAM: arch, placement, direction, num_readers, ...")
    arg("--json", metavar="PATH", help="write a prediction for each row")
    arg("--plot", metavar="PATH", type=Path, help="draw errors against measurements (needs matplotlib)")
    compare.set_defaults(run=validate)


def validate(options: argparse.Namespace) -> int:
    """Run all rows of the files and print tables of errors."""
    from prunus._threads import get_num_threads
    from prunus.tensix.validation import groups
    from prunus.tensix.validation.rows import read

    files = {kind: getattr(options, kind) for kind in _KINDS if getattr(options, kind) is not None}
    if not files:
        raise CommandError("nothing to do: give at least one of --gemm, --noc, --dram")
    with refusing():
        # What would only fail at the end, after minutes, fails now.
        for path in (options.json, options.plot):
            if path is not None:
                writable(str(path))
        if options.plot is not None:
            _require_matplotlib()
        rows = {kind: read(path, kind) for kind, path in files.items()}
    found = _run([row for kind in rows for row in rows[kind]], get_num_threads())
    by_kind = {kind: [one for one in found if one.row.kind == kind] for kind in rows}
    _tell_faults(files, found)
    if all(one.error for one in found):
        raise CommandError("no row could be run")
    print("\n\n".join(groups.report(kind, predictions) for kind, predictions in by_kind.items()))
    with refusing():
        if options.json is not None:
            records = {kind: [one.record() for one in by_kind.get(kind, [])] for kind in _KINDS}
            Path(options.json).write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
            print(f"\npredictions: {options.json}")
        if options.plot is not None:
            from prunus.tensix.validation.plot import plot

            plot(options.plot, by_kind)
            print(f"plot: {options.plot}")
    return 0


def _require_matplotlib() -> None:
    from prunus.bench.plot import require_matplotlib

    try:
        require_matplotlib()
    except ModuleNotFoundError as error:
        raise CommandError(str(error)) from error


def _run(rows: "list[Row]", threads: int) -> "list[Prediction]":
    from prunus._progress import Progress
    from prunus.tensix.validation.run import predict_all

    with Progress(len(rows), "validate") as bar:
        return predict_all(rows, threads, lambda one: bar.step(f"{one.row.kind} {one.group}"))


def _tell_faults(files: dict[str, str], found: "list[Prediction]") -> None:
    """Name the rows that could not be run."""
    faults = [one for one in found if one.error]
    for one in faults[:_SHOWN]:
        print(f"{files[one.row.kind]}, line {one.row.line}: {one.error}", file=sys.stderr)
    if len(faults) > _SHOWN:
        print(f"and {len(faults) - _SHOWN} more rows that could not be run", file=sys.stderr)
