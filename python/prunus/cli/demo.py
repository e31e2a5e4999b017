"""``python -m prunus demo``: a real language model on a small budget, and its weights pruned."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prunus.cli._arguments import Commands, byte_count, choices, densities, number, numbers, share
from prunus.cli._files import refusing
from prunus.cli.errors import CommandError

if TYPE_CHECKING:
    from prunus.cli._demo import Line
    from prunus.cli._demo_ffn import FfnLine
    from prunus.cli._demo_llm import Way

__all__ = ["add", "run"]

_DESCRIPTION = """\
Let SmolLM2-135M answer a prompt in memory, within a budget of memory that holds a fraction of its weights,
and there with its dead hidden units left out; then keep the strongest blocks of its feed-forward weights and
multiply them with its own embedding rows, and run these layers with hidden units pruned. Results are checked
against NumPy in float64. The model is packed once, into the user's cache folder (or PRUNUS_CACHE)."""

_WAYS_LEGEND = """\
Each line is a process of its own. MiB read/token: from the drive, by direct I/O; drive in use: of the rate
that large reads in order had just before; live: hidden units that took part; hits: pages found in memory;
peak MiB: resident memory above the interpreter with its imports."""

_LEGEND = """\
ms: median of one pass over all weights; GF/s: on the blocks that were kept; kept: their share of the squared
weights; numpy dense: float32 in every line; error: largest difference from NumPy float64, relative to the
largest value, of any contestant."""

_FFN_LEGEND = """\
live: units that were live for a row, and for at least one row (union), at thresholds found on other rows;
skipped: shares of a dense layer's work and of its weights; error: of the outputs, relative, against float64;
ms: median of one pass over all layers; dense: the fastest of NumPy (float32) and torch."""

_TENSIX = "tensix:n150"


def add(commands: Commands) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "demo", help="run a real language model within 64 MiB, and prune it", description=_DESCRIPTION
    )
    arg = command.add_argument
    arg("--prompt", default="Why is the sky blue?", help="what to ask (default: %(default)s)")
    arg("--budget", type=byte_count, default="64MiB", help="memory for weights (default: %(default)s)")
    arg("--keep", type=share, default=0.6, help="share of hidden units kept (default: %(default)s)")
    arg("--tokens", type=number, default=48, help="tokens to generate (default: %(default)s)")
    kept = "shares of blocks kept, such as 0.1 or 10%% (default: %(default)s)"
    arg("--densities", type=densities, default="10%,30%", help=kept)
    arg("--block", type=number, default=32, help="height and width of a block (default: %(default)s)")
    arg("--rows", type=numbers, default="1,64", help="embedding rows multiplied (default: %(default)s)")
    dtypes = choices("float32", "bfloat16")
    arg("--dtypes", type=dtypes, default="float32,bfloat16", help="types (default: %(default)s)")
    arg("--layers", type=number, default=None, help="only the first layers are multiplied (default: all)")
    arg("--out", type=Path, metavar="FOLDER", help="write figures as PNG (needs matplotlib)")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Generate, read, prune, check, time, and print the tables."""
    from prunus.bench.llm.worker import WorkerError
    from prunus.bench.machine import cpu
    from prunus.bench.peers import WrongResultError
    from prunus.bench.smollm import ModelNotInstalledError
    from prunus.llm.library import find_packaged

    try:
        with refusing():
            path = find_packaged()
            if options.out is not None:
                _prepare(options.out)
            print(f"CPU: {cpu().name}; SIMD level: {cpu().level}")
            packed, ways = _generate(options, path)
            lines, pruned = _prune(options, path)
            _device(options, packed)
            if options.out is not None:
                from prunus.cli import _demo_plot

                for file in _demo_plot.figures(options.out, ways, lines, pruned):
                    print(f"figure: {file}")
    except (WorkerError, ModelNotInstalledError) as error:
        raise CommandError(str(error)) from error
    except WrongResultError as error:
        raise CommandError(f"a result is wrong: {error}") from error
    return 0


def _prepare(folder: Path) -> None:
    """Have what would only fail at the end fail now."""
    from prunus.bench.plot import require_matplotlib

    try:
        require_matplotlib("--out")
    except ModuleNotFoundError as error:
        raise CommandError(str(error)) from error
    folder.mkdir(parents=True, exist_ok=True)


def _say(text: str) -> None:
    print(text, flush=True)


def _generate(options: argparse.Namespace, path: Path) -> tuple[Path, list["Way"]]:
    from prunus._format import size_text
    from prunus.cli import _demo_llm
    from prunus.llm.library import packed as packed_form

    _say(f"\n1. {path.stem} answers, with a budget of {size_text(options.budget)} for its weights\n")
    _say("packing it into the cache folder, unless that was done before")
    packed = packed_form(path, progress=True)
    calibration, fresh = _demo_llm.calibration_of(packed)
    _say(f"packed: {packed}, {size_text(packed.stat().st_size)}")
    _say(f"hidden units are weighed by a calibration made {'now' if fresh else 'before'}: {calibration.name}")
    ways = _demo_llm.answers(
        packed, calibration, options.prompt, options.budget, options.keep, options.tokens
    )
    _say(f"\n> {options.prompt}")
    for way in ways:
        _say(f"\n{way.name}:\n{way.text.strip()}")
    nbytes = size_text(ways[0].found["nbytes"])
    same = "the same text" if ways[0].text == ways[1].text else "NOT the same text"
    _say(f"\nA token's way through the model needs {nbytes} of weights; dense, memory and disk gave {same}.")
    _say(f"\n{_demo_llm.ways_table(ways)}\n\n{_WAYS_LEGEND}")
    return packed, ways


def _prune(options: argparse.Namespace, path: Path) -> tuple[list["Line"], list["FfnLine"]]:
    from prunus._progress import Progress
    from prunus.bench.peers import Peers, divides
    from prunus.bench.smollm import open_model
    from prunus.cli import _demo, _demo_ffn

    model = open_model(path)
    layers = min(options.layers or model.layers, model.layers)
    rows = max(options.rows)
    if rows > model.vocabulary:
        raise CommandError(f"--rows: the model has {model.vocabulary} embedding rows, not {rows}")
    _say(f"\n2. Its feed-forward weights, {layers} layers, with the strongest blocks kept\n")
    peers = Peers()
    with Progress(3 * layers * (1 + 2 * len(options.dtypes) * len(options.densities)), "demo") as bar:
        tasks = _demo.read_tasks(model, layers, rows, bar)
        found = list(
            _demo.lines(
                tasks,
                peers,
                bar,
                block=options.block,
                dtypes=options.dtypes,
                densities=options.densities,
                tokens=options.rows,
            )
        )
    shapes = " and ".join(f"{m} x {k}" for m, k in sorted({task.weight.shape for task in tasks}))
    _say(f"{path.name}: {len(tasks)} feed-forward weights of {shapes}, in blocks of")
    _say(f"{options.block} x {options.block}; x @ W.T, where x comes from the model's own embedding rows.")
    _say(", ".join(f"{name} {version}" for name, version in peers.versions().items()))
    unfit = [
        name for name, there in (("SciPy", peers.scipy), ("torch BSR", peers.torch)) if there is not None
    ]
    if unfit and not all(divides(options.block, task.weight.shape) for task in tasks):
        _say(f"left out where blocks do not divide the shape: {' and '.join(unfit)}")
    _say(f"\n{_table(found)}\n\n{_LEGEND}")
    _say(f"\n3. The same weights as {layers} gated layers whose gate decides which hidden units are live\n")
    with Progress(layers * (1 + 4 * len(options.dtypes)), "demo") as bar:
        pruned = _demo_ffn.ffn_lines(model, layers, bar, dtypes=options.dtypes, tokens=options.rows)
    _say(f"{_demo_ffn.ffn_table(pruned)}\n\n{_FFN_LEGEND}")
    return found, pruned


def _device(options: argparse.Namespace, packed: Path) -> None:
    """Run a layer on a simulated accelerator, where an engine for one is registered."""
    from prunus import engines
    from prunus.cli import _demo_llm

    if _TENSIX in engines.names():
        _say(f"\n4. A layer on {_TENSIX}\n")
        _say(_demo_llm.on_device(_TENSIX, packed, options.keep))


def _table(found: Sequence["Line"]) -> str:
    from prunus._table import format_table

    names = list(dict.fromkeys(name for line in found for name in line.seconds))
    header = ["dtype", "blocks", "rows", "kept"]
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
