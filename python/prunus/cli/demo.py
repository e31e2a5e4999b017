"""``python -m prunus demo``: the feed-forward weights of a real language model, pruned block by block."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prunus.cli._arguments import Commands, choices, densities, number, numbers
from prunus.cli.errors import CommandError

if TYPE_CHECKING:
    from prunus.cli._demo import Line

__all__ = ["add", "run"]

_DESCRIPTION = """\
Read the feed-forward weights of SmolLM2-135M, keep the strongest blocks, and multiply them with the model's
own embedding rows. Every result is checked against NumPy in float64. A time is one pass over all weights."""

_LEGEND = """\
ms: median of one pass over all weights; GF/s: on the blocks that were kept; kept: their share of the squared
weights; numpy dense: float32 in every line; error: largest difference from NumPy float64, relative to the
largest value, of any contestant."""

_FFN_LEGEND = """\
live: units that were live for a row, and for at least one row (union), at thresholds found on other rows;
skipped: shares of a dense layer's work and of its weights; error: of the outputs, relative, against float64;
ms: median of one pass over all layers; dense: the fastest of NumPy (float32) and torch."""


def add(commands: Commands) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "demo", help="prune and multiply the weights of a real language model", description=_DESCRIPTION
    )
    arg = command.add_argument
    kept = "per cents of blocks kept (default: %(default)s)"
    arg("--densities", type=densities, default="10,20,30,50", help=kept)
    arg("--block", type=number, default=32, help="height and width of a block (default: %(default)s)")
    arg("--tokens", type=numbers, default="1,64", help="embedding rows multiplied (default: %(default)s)")
    dtypes = choices("float32", "bfloat16")
    arg("--dtypes", type=dtypes, default="float32,bfloat16", help="types (default: %(default)s)")
    arg("--layers", type=number, default=None, help="only the first layers (default: all)")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Read, prune, check, time, and print the table."""
    from prunus._progress import Progress
    from prunus.bench.machine import cpu
    from prunus.bench.peers import Peers, WrongResultError, divides
    from prunus.bench.smollm import ModelNotInstalledError, find_model, open_model
    from prunus.cli import _demo, _demo_ffn

    try:
        path = find_model()
        model = open_model(path)
    except ModelNotInstalledError as error:
        raise CommandError(str(error)) from error
    layers = min(options.layers or model.layers, model.layers)
    tokens = max(options.tokens)
    if tokens > model.vocabulary:
        raise CommandError(f"--tokens: the model has {model.vocabulary} embedding rows, not {tokens}")
    peers = Peers()
    with Progress(3 * layers * (1 + 2 * len(options.dtypes) * len(options.densities)), "demo") as bar:
        tasks = _demo.read_tasks(model, layers, tokens, bar)
        try:
            found = list(
                _demo.lines(
                    tasks,
                    peers,
                    bar,
                    block=options.block,
                    dtypes=options.dtypes,
                    densities=options.densities,
                    tokens=options.tokens,
                )
            )
        except WrongResultError as error:
            raise CommandError(f"a result is wrong: {error}") from error
    shapes = " and ".join(f"{m} x {k}" for m, k in sorted({task.weight.shape for task in tasks}))
    print(f"{path.name}: {len(tasks)} feed-forward weights of {shapes}, in blocks of")
    print(f"{options.block} x {options.block}; x @ W.T, where x comes from the model's own embedding rows.")
    print(f"CPU: {cpu().name}; SIMD level: {cpu().level}")
    print(", ".join(f"{name} {version}" for name, version in peers.versions().items()))
    unfit = [
        name for name, there in (("SciPy", peers.scipy), ("torch BSR", peers.torch)) if there is not None
    ]
    if unfit and not all(divides(options.block, task.weight.shape) for task in tasks):
        print(f"left out where blocks do not divide the shape: {' and '.join(unfit)}")
    print(f"\n{_table(found)}\n\n{_LEGEND}", flush=True)
    with Progress(layers * (1 + 4 * len(options.dtypes)), "demo") as bar:
        try:
            pruned = _demo_ffn.ffn_lines(model, layers, bar, dtypes=options.dtypes, tokens=options.tokens)
        except WrongResultError as error:
            raise CommandError(f"a result is wrong: {error}") from error
    print(f"\nThe same weights as {layers} gated layers whose gate decides which hidden units are live\n")
    print(f"{_demo_ffn.ffn_table(pruned)}\n\n{_FFN_LEGEND}")
    return 0


def _table(found: Sequence["Line"]) -> str:
    from prunus._table import format_table

    names = list(dict.fromkeys(name for line in found for name in line.seconds))
    header = ["dtype", "blocks", "tokens", "kept"]
    for name in names:
        header += [f"{name} ms"] if name.endswith("dense") else [f"{name} ms", "GF/s"]
    rows = []
    for line in found:
        row = [line.dtype, f"{line.density:.0%}", str(line.tokens), f"{line.kept:.0%}"]
        for name in names:
            seconds = line.seconds.get(name)
            cells = ["-", "-"] if seconds is None else _cells(seconds, line.flops)
            row += cells[:1] if name.endswith("dense") else cells
        rows.append([*row, f"{line.error:.0e}"])
    return format_table([*header, "error"], rows)


def _cells(seconds: float, flops: float) -> list[str]:
    return [f"{seconds * 1e3:.1f}", f"{flops / seconds * 1e-9:.1f}"]
