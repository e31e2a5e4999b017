"""``python -m prunus bench paging``: files larger than memory, beside the drive's own rate."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from prunus.cli._arguments import byte_count, choices, number
from prunus.cli.errors import CommandError

__all__ = ["add", "run"]

_DESCRIPTION = """\
Read and write files that are much larger than a small budget of memory, beside fio on the same file (or an
own probe where fio is not installed), memory maps and TensorStore: in pairs next to each other, with a cold
cache, each in a fresh process; tell medians of the paired ratios and what was to be reached. Linux only. It
writes about 3 times --size to the drive that is measured, and deletes it at the end."""

_CASES = (
    "scan",
    "random",
    "rows",
    "product1",
    "product64",
    "passes",
    "add",
    "ffn",
    "bsr",
    "revisit",
    "probe",
)


def add(kinds: Any) -> None:
    """Declare the comparison."""
    paging = kinds.add_parser("paging", help="files beside the drive's own rate", description=_DESCRIPTION)
    arg = paging.add_argument
    arg("--size", type=byte_count, default="4GiB", help="bytes of the file (default: %(default)s)")
    arg("--budget", type=byte_count, default="256MiB", help="bytes of memory to page (default: %(default)s)")
    arg("--pairs", type=number, default=15, help="rounds of prunus and fio (default: %(default)s)")
    arg("--peers", type=number, default=3, help="rounds of memmap and TensorStore (default: %(default)s)")
    where = "a folder on the drive to measure (default: that of temporary files)"
    arg("--path", type=Path, metavar="DIR", help=where)
    arg("--only", type=choices(*_CASES), default=",".join(_CASES), help="cases (default: %(default)s)")
    arg("--keep", action="store_true", help="leave the files there, for the next time")
    arg("--json", type=Path, metavar="PATH", help="write all samples")
    paging.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the cases and print their tables."""
    if sys.platform != "linux":
        raise CommandError("bench paging needs Linux: it reads /proc and drops files from the page cache")
    from prunus.bench.machine import cpu
    from prunus.bench.paging import report
    from prunus.bench.paging.fio import FioError
    from prunus.bench.paging.run import compare

    if options.json is not None and not options.json.parent.is_dir():
        raise CommandError(f"--json {options.json}: there is no folder {options.json.parent}")
    print(f"CPU: {cpu().name}; file: {options.size >> 20} MiB; budget: {options.budget >> 20} MiB")
    print(report.EXPLANATION, flush=True)
    try:
        outcomes = compare(
            options.path,
            options.size,
            options.budget,
            options.pairs,
            options.peers,
            options.only,
            options.keep,
            lambda text: print(f"\n{text}", flush=True),
            lambda text: print(text, file=sys.stderr, flush=True),
        )
    except BrokenPipeError:
        raise
    except (FioError, ValueError, OSError) as error:
        raise CommandError(str(error)) from error
    print(f"\n{report.summary(outcomes, options.budget)}")
    if options.json is not None:
        samples = {
            outcome.case.name: {
                name: [sample.to_json() for sample in found] for name, found in outcome.found.items()
            }
            for outcome in outcomes
        }
        options.json.write_text(json.dumps(samples, indent=1), encoding="utf-8")
    return 0
