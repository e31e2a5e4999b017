"""``python -m prunus bench``: comparisons with other libraries on this machine."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from prunus.cli import bench_gpu, bench_llm, bench_paging, bench_pruning, bench_training
from prunus.cli._arguments import Commands, choices, densities, number, numbers, thread_counts
from prunus.cli.errors import CommandError

if TYPE_CHECKING:
    from prunus.bench.run import Plan

__all__ = ["add", "run"]

_DESCRIPTION = """\
Time prunus side by side with NumPy, torch, SciPy and torch BSR (MKL), whichever are installed: in one
process, in interleaved rounds, and tell the medians. Values are random, never zeros; every result is checked
before it is timed; X is packed inside the time; all libraries have the same number of threads."""

_THREADS = "1,all"
_ONE_THREAD = """\
Without threadpoolctl, NumPy's threads cannot be pinned within a process: 1 thread for everyone, in place of 1
and all. pip install '.[bench]' brings it; --threads chooses another number."""


def add(commands: Commands) -> None:
    """Declare the command and its comparisons."""
    command = commands.add_parser("bench", help="comparisons with other libraries on this machine")
    kinds = command.add_subparsers(title="comparisons", metavar="COMPARISON", required=True)
    peers = kinds.add_parser(
        "peers", help="side by side with NumPy, torch and SciPy", description=_DESCRIPTION
    )
    arg = peers.add_argument
    arg("--size", type=number, default=4096, help="height and width of W (default: %(default)s)")
    arg("--blocks", type=numbers, default="16,32,64", help="block sizes (default: %(default)s)")
    arg(
        "--densities",
        type=densities,
        default="5%,10%,30%,50%",
        help="shares of blocks, such as 0.05 or 5%% (default: %(default)s)",
    )
    arg("--columns", type=numbers, default="1,16,128,512", help="columns N of X (default: %(default)s)")
    dtypes = choices("float32", "bfloat16", "float64", "float16")
    arg("--dtypes", type=dtypes, default="float32,bfloat16", help="types (default: %(default)s)")
    arg("--layout", choices=["wx", "xwt", "both"], default="both", help="W @ X, x @ W.T, or both")
    arg("--threads", type=thread_counts, help=f"numbers of threads (default: {_THREADS})")
    arg("--rounds", type=number, default=7, help="timed calls of each contestant (default: %(default)s)")
    ops = choices("dsd", "sdd", "ssd")
    arg("--ops", type=ops, default="dsd,sdd,ssd", help="operations (default: %(default)s)")
    arg("--break-even", action="store_true", help="add densities of 70, 85 and 100 %%, to find the crossing")
    flush = "flush the caches before each call (auto: where N <= 16)"
    arg("--flush", choices=["auto", "always", "never"], default="auto", help=flush)
    arg("--skip-slow", action="store_true", help="leave SciPy out")
    scaling = "instead: the gain from threads at N = 512, and the overhead of one call"
    arg("--scaling", action="store_true", help=scaling)
    arg("--csv", metavar="PATH", help="write all results; 'auto': benches/results/CPU-DATE.csv")
    arg("--plot", metavar="PATH", type=Path, help="draw density against speed-up (needs matplotlib)")
    peers.set_defaults(run=run)
    bench_pruning.add(kinds)
    bench_paging.add(kinds)
    bench_llm.add(kinds)
    bench_gpu.add(kinds)
    bench_training.add(kinds)


def run(options: argparse.Namespace) -> int:
    """Run the comparison and print its tables."""
    from prunus.bench.machine import pin_by_environment
    from prunus.bench.peers import WrongResultError

    try:
        note = _fill_in_threads(options)
        plan = _plan(options)
        pin_by_environment([1] if options.scaling else plan.threads)
        if note:  # only now: the line above may have started the process anew
            print(note, file=sys.stderr)
        if options.scaling:
            return _scaling(plan)
        return _peers(plan, options)
    except BrokenPipeError:
        raise  # no fault of the comparison's; main() knows what to do
    except (ValueError, WrongResultError, OSError, ModuleNotFoundError) as error:
        raise CommandError(str(error)) from error


def _fill_in_threads(options: argparse.Namespace) -> str:
    """Choose numbers of threads where none were given, and return what the user must be told about it."""
    from prunus.bench.machine import optional

    if options.threads is not None:
        return ""
    options.threads = thread_counts(_THREADS)
    # The scaling of prunus alone needs no other library's threads.
    if options.scaling or len(options.threads) == 1 or optional("threadpoolctl") is not None:
        return ""
    options.threads = [1]
    return _ONE_THREAD


def _plan(options: argparse.Namespace) -> "Plan":
    from prunus.bench.run import Plan

    if options.break_even:
        options.densities = sorted({*options.densities, 0.7, 0.85, 1.0})
    return Plan(
        size=options.size,
        blocks=options.blocks,
        densities=options.densities,
        columns=options.columns,
        dtypes=options.dtypes,
        layouts=["wx", "xwt"] if options.layout == "both" else [options.layout],
        threads=options.threads,
        ops=options.ops,
        rounds=options.rounds,
        flush={"auto": None, "always": True, "never": False}[options.flush],
        skip_slow=options.skip_slow,
    )


def _say(text: str) -> None:
    """Tell a log what is being done; a terminal has the progress bar."""
    if not sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)


def _peers(plan: "Plan", options: argparse.Namespace) -> int:
    from prunus.bench.files import auto_path, write_csv
    from prunus.bench.machine import cpu
    from prunus.bench.peers import Peers
    from prunus.bench.plot import plot, require_matplotlib
    from prunus.bench.report import report
    from prunus.bench.run import run as run_plan
    from prunus.bench.targets import format_targets, targets

    this = cpu()
    # What would only fail at the end, after many minutes, fails now.
    path = auto_path(this) if options.csv == "auto" else Path(options.csv) if options.csv else None
    for name, file in (("--csv", path), ("--plot", options.plot)):
        if file is not None and not file.parent.is_dir():
            raise FileNotFoundError(f"{name} {file}: there is no folder {file.parent}")
        if file is not None and file.is_dir():
            raise IsADirectoryError(f"{name} {file} is a folder, not a file")
    if options.plot is not None:
        require_matplotlib()
    peers = Peers(skip_slow=plan.skip_slow)
    versions = peers.versions()
    print(f"CPU: {this.name}; SIMD level: {this.level}; caches: {this.caches_text}")
    print("contestants:", ", ".join(f"{name} {version}" for name, version in versions.items()))
    if plan.skip_slow:
        print("left out by --skip-slow: SciPy")
    records = run_plan(plan, peers, _say)
    print()
    print(report(records))
    print()
    print(format_targets(targets(records)))
    if path is not None:
        write_csv(path, records, this, versions)
        print(f"\nresults: {path}")
    if options.plot is not None:
        plot(options.plot, records, this)
        print(f"plot: {options.plot}")
    return 0


def _scaling(plan: "Plan") -> int:
    from prunus.bench import scaling
    from prunus.bench.machine import cpu
    from prunus.bench.targets import format_targets

    this = cpu()
    print(f"CPU: {this.name}; SIMD level: {this.level}")
    most = max(plan.threads)
    gains = scaling.measure_scaling(plan, most) if most > 1 else []
    if gains:
        print(scaling.format_scaling(gains, most))
    else:
        print("one core: nothing to gain from threads")
    calls = scaling.measure_overhead(plan.rounds)
    print()
    print(scaling.format_overhead(calls))
    print()
    print(format_targets(scaling.scaling_targets(gains, most, calls)))
    return 0
