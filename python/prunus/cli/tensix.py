"""``python -m prunus tensix``: the simulator of Tensix chips."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from prunus.cli import tensix_bench
from prunus.cli._arguments import Commands, densities, mesh, number, share
from prunus.cli._files import refusing, writable
from prunus.cli.errors import CommandError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prunus.tensix.estimate import Estimate
    from prunus.tensix.spec import ChipSpec
    from prunus.tensix.sweep import Sweep
    from prunus.tensix.validation.rows import Row
    from prunus.tensix.validation.run import Prediction

__all__ = ["add", "matmul", "validate"]

_SWEEP = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)

_MATMUL = """\
Run the product of an M x K and a K x N matrix on a simulated chip, without values, and tell what it costs and
what bounds it. With --density the left operand is block-sparse: blocks that are not live are neither read nor
sent nor multiplied. Which ones are live is known before (static), or found out by the cores (dynamic).
With --sweep the three are compared at several densities. With --mesh the product is cut over several chips;
operands go to the chips that need them first, which is part of the cycles."""

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
    product = kinds.add_parser("matmul", help="what a product would cost on a chip", description=_MATMUL)
    arg = product.add_argument
    for size, what in (
        ("m", "rows of the left operand"),
        ("k", "its columns"),
        ("n", "columns of the right one"),
    ):
        arg(size, type=number, metavar=size.upper(), help=what)
    arg("--chip", default="n150", help="a shipped chip, or a TOML file of one (default: n150)")
    arg("--mesh", type=mesh, metavar="RxC", help="rows and columns of chips that Ethernet joins, such as 2x4")
    arg("--density", type=share, help="share of the left operand's blocks that are live (default: dense)")
    arg("--block", type=number, default=32, help="rows and columns of a block (default: 32)")
    arg("--dtype", default="bfloat16", help="format of tiles: bfloat16, bfloat8_b, bfloat4_b, ...")
    arg("--fidelity", default="HiFi2", help="LoFi, HiFi2, HiFi3 or HiFi4 (default: HiFi2)")
    for name, what in (("in0", "the left operand"), ("out", "the result")):
        arg(
            f"--{name}",
            choices=["dram", "l1"],
            default="dram",
            help=f"where {what} of a dense product is (default: dram)",
        )
    arg("--seed", type=int, default=0, help="of which blocks are live")
    arg(
        "--sweep",
        type=_swept,
        nargs="?",
        const=list(_SWEEP),
        metavar="DENSITIES",
        help="dense, static and dynamic at several densities (default, or density: 2%% to 100%%)",
    )
    arg("--plot", metavar="PATH", type=Path, help="draw the sweep (needs matplotlib)")
    product.set_defaults(run=matmul)
    tensix_bench.add(kinds)


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
            _drawable(options.plot)
        rows = {kind: read(path, kind) for kind, path in files.items()}
    found = _run([row for kind in rows for row in rows[kind]], get_num_threads())
    by_kind = {kind: [one for one in found if one.row.kind == kind] for kind in rows}
    _tell_faults(files, found)
    none = all(one.error for one in found)
    if not none:
        print("\n\n".join(groups.report(kind, predictions) for kind, predictions in by_kind.items()))
    with refusing():
        if options.json is not None:
            records = {kind: [one.record() for one in by_kind.get(kind, [])] for kind in _KINDS}
            text = json.dumps(records, indent=1, allow_nan=False)
            Path(options.json).write_text(text + "\n", encoding="utf-8")
            print(f"\npredictions: {options.json}")
        if none:
            raise CommandError("no row could be run")
        if options.plot is not None:
            from prunus.tensix.validation.plot import plot

            plot(options.plot, by_kind)
            print(f"plot: {options.plot}")
    return 0


def _swept(text: str) -> list[float]:
    """Read what is swept: ``density``, for the usual ones, or densities."""
    return list(_SWEEP) if text == "density" else densities(text)


def matmul(options: argparse.Namespace) -> int:
    """Run a product, or several of different densities, and print a row for each."""
    from prunus.tensix.spec import ChipSpec

    if options.mesh is not None and options.sweep is not None:
        raise CommandError("--sweep compares products on one chip: leave --mesh out")
    if options.plot is not None and options.sweep is None:
        raise CommandError("--plot draws a sweep: give --sweep too")
    if options.density is not None and options.sweep is not None:
        raise CommandError("--sweep says itself which densities: give --density, or --sweep 0.1,0.2")
    if options.sweep is not None and "l1" in (options.in0, options.out):
        raise CommandError("--sweep compares products whose operands are in DRAM: leave out --in0 and --out")
    with refusing():
        if options.plot is not None:
            writable(str(options.plot))
            _drawable(options.plot)
        chip = ChipSpec.load(options.chip) if options.chip.endswith(".toml") else ChipSpec.named(options.chip)
        table = _one(options, chip) if options.sweep is None else _sweep(options, chip)
    what = f"{options.m} x {options.k} x {options.n}, {options.dtype} {options.fidelity}"
    many = "" if options.mesh is None else f" mesh of {options.mesh[0]} x {options.mesh[1]}"
    print(f"{chip.name}{many}: {what}, blocks of {options.block} x {options.block}\n")
    print(table)
    return 0


def _one(options: argparse.Namespace, chip: "ChipSpec") -> str:
    """Run a product, and return the table of what it costs."""
    from prunus._progress import Progress
    from prunus._table import format_table
    from prunus.tensix.estimate import Estimate, estimate_matmul

    ways = [("dense", "static")]
    if options.density is not None:
        ways = [("static", "static"), ("dynamic", "dynamic")]
    rows: list[tuple[str, Estimate]] = []
    with Progress(len(ways), "matmul") as bar:
        for label, decide in ways:
            found = estimate_matmul(
                options.m,
                options.k,
                options.n,
                chip,
                live=options.density,
                seed=options.seed,
                block=options.block,
                decide=decide,
                dtype=options.dtype,
                fidelity=options.fidelity,
                in0=options.in0,
                out=options.out,
                mesh=options.mesh,
            )
            rows.append((label if options.density is None else f"{100 * options.density:g} % {label}", found))
            bar.step(label)
    header = ["live", "cycles", "us", "TFLOP/s", "of peak", "DRAM MB", "hop MB", "bound"]
    if options.mesh is not None:
        header[-1:] = ["Ethernet MB", "Ethernet first", "bound"]
    cells = [
        [
            label,
            f"{one.cycles:.0f}",
            f"{1e6 * one.seconds:.1f}",
            f"{one.tflops:.2f}",
            f"{one.utilisation:.0%}",
            f"{one.dram_bytes / 1e6:.1f}",
            f"{one.hop_bytes / 1e6:.1f}",
            *(
                []
                if options.mesh is None
                else [f"{one.ethernet_bytes / 1e6:.1f}", f"{one.ethernet_cycles:.0f}"]
            ),
            f"{one.bound} {max(one.busy.values()):.0%}",
        ]
        for label, one in rows
    ]
    return format_table(header, cells)


def _sweep(options: argparse.Namespace, chip: "ChipSpec") -> str:
    """Run a product at several densities; return the table, and where it breaks even with the dense one."""
    from prunus._progress import Progress
    from prunus._table import format_table
    from prunus.tensix.sweep import plot, sweep

    runs = 1 + 2 * len(options.sweep) + (options.sweep[-1] < 1)
    with Progress(runs, "matmul") as bar:
        found = sweep(
            options.m,
            options.k,
            options.n,
            chip,
            options.sweep,
            seed=options.seed,
            block=options.block,
            dtype=options.dtype,
            fidelity=options.fidelity,
            done=bar.step,
        )
    kinds = {"static": found.static, "dynamic": found.dynamic}
    header = ["live", "dense", *kinds, *(f"{kind} x" for kind in kinds), *(f"{kind} MB" for kind in kinds)]
    cells = []
    for i, density in enumerate(found.densities):
        line = [f"{100 * density:g} %", f"{found.dense.cycles:.0f}"]
        line += [f"{some[i].cycles:.0f}" for some in kinds.values()]
        line += [f"{found.gains(some)[i]:.2f}" for some in kinds.values()]
        line += [f"{some[i].dram_bytes / 1e6:.1f}" for some in kinds.values()]
        cells.append(line)
    lines = [format_table(header, cells), ""]
    for kind, some in kinds.items():
        lines.append(f"{kind}: {_even(found, some, found.dense, 'dense')}")
    own = _even(found, found.dynamic, found.every, "all blocks by the same kernels")
    lines[-1] += f"; {own}"
    if options.plot is not None:
        plot(options.plot, found)
        lines.append(f"plot: {options.plot}")
    return "\n".join(lines)


def _even(found: "Sweep", some: "Sequence[Estimate]", beside: "Estimate", name: str) -> str:
    """Say where products break even with another one."""
    even = found.break_even(some, beside)
    if even is not None:
        return f"as fast as {name} at {even:.0%} live"
    faster = [one.cycles <= beside.cycles for one in some]
    if all(faster):
        return f"faster than {name} at each of these"
    if any(faster):
        return f"slower than {name} at some of these, and not at the highest"
    return f"slower than {name} at each of these"


def _drawable(path: Path) -> None:
    """Refuse a picture that could not be drawn or saved, before the work that it is to show."""
    from prunus.bench.plot import require_matplotlib

    try:
        require_matplotlib()
    except ModuleNotFoundError as error:
        raise CommandError(str(error)) from error
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    known = FigureCanvasAgg.get_supported_filetypes()
    if path.suffix[1:].lower() not in known:
        raise CommandError(f"{path}: a picture's name ends in one of .{', .'.join(sorted(known))}")


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
