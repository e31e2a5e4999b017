"""``python -m prunus cuda``: kernels for GPUs, compiled ahead of time, and their configurations."""

import argparse
import time

from prunus.cli._arguments import Commands, choices, number
from prunus.cli.errors import CommandError

__all__ = ["add", "compile_ahead"]

_ARCHS = ("sm_80", "sm_90", "sm_100")

_COMPILE = """\
Compile the kernels that calls of typical shapes launch, for each architecture, without a GPU, and print what
each needs: shared memory and what a program may use, registers, bytes that are spilled (there must be none),
and which instructions multiply. If a kernel does not fit, the reasons are printed and the status is 1."""


def add(commands: Commands) -> None:
    """Declare the command and what it can do."""
    command = commands.add_parser("cuda", help="kernels for GPUs")
    kinds = command.add_subparsers(title="commands", metavar="COMMAND", required=True)
    ahead = kinds.add_parser("compile", help="compile ahead of time, without a GPU", description=_COMPILE)
    arg = ahead.add_argument
    arg("--all", action="store_true", help="more shapes and dtypes (some minutes)")
    arg(
        "--arch",
        type=choices(*_ARCHS),
        default=list(_ARCHS),
        metavar="NAMES",
        help=f"of {', '.join(_ARCHS)} (default: all)",
    )
    arg("--kernel", metavar="NAME", help="only cases that are about this kernel, such as dsd")
    arg("--jobs", type=number, default=2, metavar="N", help="processes that compile (default: %(default)s)")
    ahead.set_defaults(run=compile_ahead)


def compile_ahead(options: argparse.Namespace) -> int:
    """Print the table, and what is wrong."""
    from prunus._errors import PrunusError
    from prunus._progress import Progress
    from prunus.cuda.versions import libraries

    try:
        found = libraries()
    except PrunusError as error:
        raise CommandError(str(error)) from None
    if found.interpreted:
        raise CommandError("kernels are compiled without TRITON_INTERPRET in the environment; it is set")
    from prunus.cuda.compiling import table

    begin = time.perf_counter()
    todo = table.plan(archs=options.arch, kernel=options.kernel, more=options.all)
    if not todo.jobs and not todo.failed:
        raise CommandError(f"no case is about a kernel {options.kernel!r}")
    made: list[table.Row] = []
    with Progress(len(todo.jobs) + len(todo.failed), "compiling") as bar:
        for row in table.rows(todo, options.jobs):
            made.append(row)
            bar.step(f"{row.arch} {row.kernel}")
    print(f"torch {found.versions[0]}, triton {found.versions[1]}\n")
    print(table.format_rows(made))
    wrong = table.faults(made)
    seconds = time.perf_counter() - begin
    print(f"\n{len(made)} kernels in {seconds:.0f} s, {len(wrong)} faults")
    for line in wrong:
        print(f"fault: {line}")
    return 1 if wrong else 0
