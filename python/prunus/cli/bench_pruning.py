"""``python -m prunus bench pruning``: what leaving dead branches alone gains on this machine."""

import argparse
import sys
from typing import Any

from prunus.cli._arguments import choices, number, thread_counts
from prunus.cli.errors import CommandError

__all__ = ["add", "run"]

_DESCRIPTION = """\
Time layers that find and skip dead branches beside torch's dense ones, in one process and in interleaved
rounds, and tell the medians: feed-forward layers, mixtures of experts, attention, the predictor, a trace."""

_SECTIONS = ("exactness", "ffn", "moe", "attention", "predictor", "trace")


def add(kinds: Any) -> None:
    """Declare the comparison."""
    pruning = kinds.add_parser("pruning", help="pruned layers beside dense ones", description=_DESCRIPTION)
    arg = pruning.add_argument
    arg(
        "--only",
        type=choices(*_SECTIONS),
        default=",".join(_SECTIONS),
        help="sections (default: %(default)s)",
    )
    dtypes = choices("float32", "bfloat16")
    arg("--dtypes", type=dtypes, default="float32,bfloat16", help="types (default: %(default)s)")
    arg("--threads", type=thread_counts, default="1,all", help="numbers of threads (default: %(default)s)")
    arg("--rounds", type=number, default=7, help="timed calls of each contestant (default: %(default)s)")
    pruning.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the sections and print their tables."""
    from prunus.bench.machine import cpu
    from prunus.bench.peers import WrongResultError

    this = cpu()
    print(f"CPU: {this.name}; SIMD level: {this.level}; caches: {this.caches_text}")
    try:
        for section in options.only:
            print(f"\n{_section(section, options)}", flush=True)
    except (ValueError, WrongResultError, OSError) as error:
        raise CommandError(str(error)) from error
    return 0


def _section(name: str, options: argparse.Namespace) -> str:
    from prunus.bench import pruning
    from prunus.bench.smollm import ModelNotInstalledError

    if name == "ffn":
        return pruning.report_ffn(pruning.measure_ffn(options.dtypes, options.threads, options.rounds))
    if name == "exactness":
        from prunus.bench import exactness

        return exactness.report(exactness.measure(options.dtypes))
    if name == "trace":
        return pruning.report_trace(pruning.measure_trace(options.rounds))
    try:
        if name == "moe":
            from prunus.bench import moe

            return moe.report(moe.measure(options.rounds, dtypes=options.dtypes, threads=options.threads))
        if name == "attention":
            from prunus.bench import attention

            return attention.report(attention.measure(options.rounds))
        from prunus.bench import predictor

        return predictor.report(predictor.measure(options.rounds))
    except ModelNotInstalledError as missing:
        raise CommandError(str(missing)) from missing
    except ModuleNotFoundError as missing:
        print(f"{name}: left out, {missing.name} is not installed", file=sys.stderr)
        return f"{name}: not measured"
