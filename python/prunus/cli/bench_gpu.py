"""``python -m prunus bench gpu``: the CUDA engine beside cuBLAS and others, on this machine's GPU."""

import argparse
import sys
from pathlib import Path
from typing import Any

from prunus.cli._arguments import choices, number, seconds
from prunus.cli.errors import CommandError

__all__ = ["add", "run"]

_DESCRIPTION = """\
Time the CUDA engine beside cuBLAS, torch's block-sparse kernels, cuSPARSE, torch's grouped product and
FlexAttention: device time, with cold caches, in interleaved rounds, on random bfloat16. Every result is
checked against a reference in float32 before it is timed. Writes a CSV file and a plot, prints tables last,
and what is left when the minutes are up is skipped by name. The status is 1 if a result of prunus was wrong.
Where kernels are interpreted (TRITON_INTERPRET=1), --sizes tiny shows that all of it runs; its times mean
nothing."""

_SECTIONS = ("ceilings", "overhead", "ffn", "dsd", "moe", "attention", "transposes", "sdd")
_PAGE = Path("docs/cuda-runs.md")
_RESULTS = Path("benches/results")


def add(kinds: Any) -> None:
    """Declare the comparison."""
    gpu = kinds.add_parser("gpu", help="the CUDA engine beside cuBLAS and others", description=_DESCRIPTION)
    arg = gpu.add_argument
    arg("--sections", type=choices(*_SECTIONS), default=",".join(_SECTIONS), help="default: %(default)s")
    arg("--sizes", choices=["full", "tiny"], default="full", help="default: %(default)s")
    arg("--quick", action="store_true", help="fewer cases of each section, and fewer rounds")
    arg("--minutes", type=seconds, default=9.0, help="when to stop (default: %(default)s)")
    arg("--rounds", type=number, default=21, help="timed calls of each at most (default: %(default)s)")
    arg("--device", default="cuda", help="which GPU, such as cuda:1 (default: %(default)s)")
    csv = "results; 'auto': benches/results/GPU-DATE-VERSIONS-cuda.csv with a plot beside it; 'none'"
    arg("--csv", metavar="PATH", default="auto", help=csv + " (default: %(default)s)")
    arg("--plot", metavar="PATH", type=Path, help="the plot; beside the CSV file by default")
    docs = f"instead: make {_PAGE} from the files in {_RESULTS}; a run with --csv auto does so too"
    arg("--docs", action="store_true", help=docs)
    gpu.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the sections, write files, print tables."""
    from prunus._errors import PrunusError
    from prunus.bench.plot import require_matplotlib

    try:
        if options.docs:
            _write_page()
            print(f"page: {_PAGE}")
            return 0
        require_matplotlib()
        return _run(options)
    except (PrunusError, ValueError, OSError, ModuleNotFoundError) as error:
        raise CommandError(str(error)) from error


def _run(options: argparse.Namespace) -> int:
    from prunus.bench.gpu.bench import Bench, Budget
    from prunus.bench.gpu.report import report, summary
    from prunus.bench.gpu.run import machine
    from prunus.bench.gpu.run import run as run_sections
    from prunus.bench.gpu.sizes import SIZES, quick
    from prunus.bench.gpu.timing import timer_of
    from prunus.cuda.runtime import named

    where = named(options.device)
    path = _path(options, where)
    budget = Budget(options.minutes)
    sizes = SIZES[options.sizes]
    rounds = min(options.rounds, 5) if options.quick else options.rounds
    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    bench = Bench(
        where, quick(sizes) if options.quick else sizes, timer_of(where), budget, rounds=rounds, say=say
    )
    run_sections(bench, options.sections)
    this = machine(where, _called(options))
    written = _write(options, path, this, bench.rows)
    print(report(this, bench.rows))
    print(f"\n{summary(bench.rows)}")
    for what, file in written.items():
        print(f"{what}: {file}")
    return int(any(row.kind == "ours" and row.state in ("wrong", "failed") for row in bench.rows))


def _path(options: argparse.Namespace, where: Any) -> Path | None:
    """Return where results go, or None, before anything is run; a name that cannot be written raises."""
    from prunus.bench.gpu.files import name_of
    from prunus.bench.gpu.run import machine

    if options.csv == "none":
        return None
    if options.csv == "auto":
        if where.interpreted:
            raise ValueError(
                "results of the interpreter are not kept beside those of GPUs: give --csv a path, or none"
            )
        if not _RESULTS.is_dir():
            raise FileNotFoundError(f"--csv auto writes to {_RESULTS} of a clone: run it in the clone's root")
        return _RESULTS / name_of(machine(where))
    path = Path(options.csv)
    for name, file in (("--csv", path), ("--plot", options.plot)):
        if file is not None and not file.parent.is_dir():
            raise FileNotFoundError(f"{name} {file}: there is no folder {file.parent}")
        if file is not None and file.is_dir():
            raise IsADirectoryError(f"{name} {file} is a folder, not a file")
    return path


def _called(options: argparse.Namespace) -> str:
    """Return the options that say what was run."""
    words = [] if set(options.sections) == set(_SECTIONS) else [f"--sections {','.join(options.sections)}"]
    words += [f"--sizes {options.sizes}"] if options.sizes != "full" else []
    words += ["--quick"] if options.quick else []
    return " ".join([*words, f"--minutes {options.minutes:g}", f"--rounds {options.rounds}"])


def _write(options: argparse.Namespace, path: Path | None, this: Any, rows: Any) -> dict[str, Path]:
    """Write what was asked for, and return it by its kind."""
    from prunus.bench.gpu.files import write
    from prunus.bench.gpu.plot import plot

    if path is None and options.plot is None:
        return {}
    written = {}
    if path is not None:
        write(path, this, rows)
        written["results"] = path
    picture = options.plot if options.plot is not None or path is None else path.with_suffix(".png")
    try:
        plot(picture, this, rows)
        written["plot"] = picture
    except ValueError as nothing:
        print(f"no plot: {nothing}", file=sys.stderr)
    if options.csv == "auto" and _PAGE.parent.is_dir():
        _write_page()
        written["page"] = _PAGE
    return written


def _write_page() -> None:
    from prunus.bench.gpu.page import page

    if not _PAGE.parent.is_dir() or not _RESULTS.is_dir():
        raise FileNotFoundError(f"{_PAGE} is made in a clone from {_RESULTS}: run it in the clone's root")
    _PAGE.write_text(page(_RESULTS), encoding="utf-8")
