"""The first part of ``python -m prunus demo``: a language model that may hold a fraction of its weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunus._errors import FormatError
from prunus._format import size_text
from prunus._progress import Progress
from prunus._table import format_table
from prunus.bench.llm import words
from prunus.bench.llm.worker import work
from prunus.llm import Calibration, load
from prunus.llm.report import disk_rate

__all__ = ["Way", "answers", "calibration_of", "on_device", "ways_table"]

# Tokens of Python's reference that tell what each hidden unit weighs; the text judged is the user's own.
_CALIBRATED = 1000
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run the model.

    Attributes
    ----------
    name : str
        In the table.
    text : str
        What it answered.
    found : dict
        What `prunus.bench.llm.tasks.generate` found.
    rate : float
        Bytes a second that the drive gave, measured beside it.
    """

    name: str
    text: str
    found: dict[str, Any]
    rate: float

    @property
    def speed(self) -> float:
        """Tokens a second after the first."""
        seconds = float(self.found["seconds"])
        return float(self.found["steps"]) / seconds if seconds else 0.0

    @property
    def each(self) -> float:
        """Bytes read from disk for a token."""
        return float(self.found["bytes_io"]) / max(int(self.found["steps"]), 1)


def calibration_of(packed: Path) -> tuple[Path, bool]:
    """Return the calibration beside a packed model, and whether it was made now rather than before."""
    path = packed.with_name(f"{packed.stem}-calibration-{_CALIBRATED}.safetensors")
    if path.exists():
        try:
            Calibration.load(path)
            return path, False
        except FormatError:
            path.unlink()  # of another version, or damaged: it is made anew
    with load(packed, progress=True) as model:
        # Some five letters a token: enough text, and no more than that is cut into tokens.
        tokens = model.tokens(words.text()[: 16 * _CALIBRATED])[:_CALIBRATED]
        model.calibrate(tokens, progress=True).save(path)
    return path, True


def answers(packed: Path, calibration: Path, prompt: str, budget: int, keep: float, tokens: int) -> list[Way]:
    """Answer a prompt three ways, each in a process of its own.

    Raises
    ------
    WorkerError
        If one fails.
    """
    common = {"model": str(packed), "prompt": prompt, "tokens": tokens}
    paged: dict[str, Any] = {"budget": budget}
    within = f"within {size_text(budget)}"
    ways: list[tuple[str, dict[str, Any]]] = [
        ("in memory", {}),
        (f"{within}, dense", paged),
        (f"{within}, {keep:.0%} kept", {**paged, "calibration": str(calibration), "keep": keep}),
    ]
    made = []
    with Progress(len(ways) * tokens, "demo") as bar:
        for name, more in ways:
            rate = disk_rate(str(packed))
            done = 0

            def told(count: int, name: str = name) -> None:
                nonlocal done
                done += count
                bar.step(f"generating {name}", count)

            found = work("generate", {**common, **more}, told=told)
            made.append(Way(name, str(found["text"]), found, rate))
            bar.step("", tokens - done)
    return made


def ways_table(ways: Sequence[Way]) -> str:
    """Make the table of `answers`."""
    rows = []
    for way in ways:
        found = way.found
        pages = found["hits"] + found["misses"]
        used = found["bytes_io"] / (found["seconds"] * way.rate) if found["seconds"] else 0.0
        peak = found["peak"]
        rows.append(
            [
                way.name,
                f"{way.speed:.1f}",
                f"{way.each / _MIB:.1f}",
                f"{used:.0%} of {way.rate * 1e-9:.2f} GB/s" if found["bytes_io"] else "-",
                f"{found['live']:.1%}",
                f"{found['hits'] / pages:.0%}" if pages else "-",
                "-" if peak is None else f"{peak / _MIB:.0f}",
            ]
        )
    head = ["weights", "tokens/s", "MiB read/token", "drive in use", "live", "hits", "peak MiB"]
    return format_table(head, rows)


def on_device(name: str, packed: Path, keep: float) -> str:
    """Run the first layer of a packed model on an engine; return what it did there, as tables.

    Raises
    ------
    WrongResultError
        If the result is not the CPU's.
    """
    import numpy as np

    import prunus as pr
    from prunus.bench.peers import WrongResultError
    from prunus.llm.pruning import Ranked, Tally

    with load(packed, progress=True) as model:
        layer = model.weights.layers[0].ffn
        x = model.weights.embed(np.arange(1))
    policy = Ranked(keep, None, Tally())
    want = layer(x, "silu", prune=policy)
    with pr.device(name) as engine, pr.trace() as traced:
        found = layer(x, "silu", prune=policy)
    error = float(np.abs(found - want).max() / np.abs(want).max())
    if not error < 2e-2:
        raise WrongResultError(f"the layer on {name} is off by {error:.1e}")
    chip = getattr(engine, "chip", None)
    return str(traced.table()) if chip is None else f"{traced.table()}\n\n{chip.report().table()}"
