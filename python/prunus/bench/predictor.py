"""How well a predictor finds live units of a real model's layer, on inputs that it was not fitted to."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

import prunus as pr
from prunus._table import format_table
from prunus.bench.machine import pinned
from prunus.bench.plot import require_matplotlib
from prunus.bench.smollm import find_model, open_model

__all__ = ["Row", "measure", "plot", "report"]

# The layer whose inputs are nearest to the embeddings that are at hand.
_LAYER = 0
_SAMPLES, _HELD = 4096, 1024
_RANKS = (16, 32, 64, 128, 256, 384)
_SHARES = (1.0, 1.5, 2.0)
# What of a layer is live where the activation itself leaves too much for pruning to pay.
_BIASED, _GATED = 0.1, 0.2
_GOAL = 0.95


@dataclass(frozen=True, slots=True)
class Row:
    """One predictor on one layer.

    Attributes
    ----------
    layer : str
        "relu": the real up-projection with ReLU; "relu, bias": with a bias that leaves 10 % live; "silu
        gate": the real gated layer, where the fifth of all hidden units that is largest counts as live.
    rank : int
        Rank of the predictor.
    share : float
        What it keeps, as a multiple of the live share.
    live, kept, recall, error : float
        See `prunus.Predictor.evaluate`.
    seconds : float
        Median time of a decision for one row.
    nbytes : int
        Bytes that a decision reads.
    dense : int
        Bytes of the matrices that the prediction replaces.
    """

    layer: str
    rank: int
    share: float
    live: float
    kept: float
    recall: float
    error: float
    seconds: float
    nbytes: int
    dense: int


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer to predict, and its inputs."""

    name: str
    x: NDArray[np.float32]
    held: NDArray[np.float32]
    weights: dict[str, Any]
    down: NDArray[np.float32]
    activation: str
    live: float
    tau: float


def measure(
    rounds: int = 5,
    *,
    ranks: Sequence[int] = _RANKS,
    samples: int = _SAMPLES,
    held: int = _HELD,
    shares: Sequence[float] = _SHARES,
) -> list[Row]:
    """Fit predictors to SmolLM2-135M's first feed-forward layer and judge them on other tokens.

    The inputs are embeddings of tokens spread over the vocabulary, normalised as the model does.

    Parameters
    ----------
    rounds : int
        Timed decisions, of which the median counts.
    ranks : sequence of int
        Ranks, at most the number of features (576).
    samples, held : int
        Tokens to fit to, and others to judge by.
    shares : sequence of float
        What is kept, as multiples of the live share.

    Returns
    -------
    list of Row

    Raises
    ------
    prunus.bench.smollm.ModelNotInstalledError
        If the model or the package gguf is not installed.
    """
    # Many small decompositions: threads that wait for each other cost more than they give.
    with pinned(1):
        return [row for layer in _layers(samples, held) for row in _judge(layer, ranks, shares, rounds)]


def _judge(layer: _Layer, ranks: Sequence[int], shares: Sequence[float], rounds: int) -> Iterator[Row]:
    """Fit predictors of every rank to a layer and judge them."""
    matrices = [layer.weights[name] for name in ("w_up", "w_gate") if name in layer.weights]
    for rank in ranks:
        fitted = pr.Predictor.fit(layer.x, **layer.weights, rank=rank, keep=1.0, activation=layer.activation)
        for share in shares:
            found = fitted.with_keep(min(share * layer.live, 1.0))
            result = found.evaluate(layer.held, w_down=layer.down, tau=layer.tau, **layer.weights)
            yield Row(
                layer.name,
                rank,
                share,
                result["live"],
                result["kept"],
                result["recall"],
                result["error"],
                _time(found, layer.held[:1], rounds),
                found.nbytes,
                sum(w.nbytes for w in matrices),
            )


def report(rows: Sequence[Row]) -> str:
    """Make a table of each layer: recall and error against rank.

    Parameters
    ----------
    rows : sequence of Row
        What `measure` returned.
    """
    if not rows:
        return "predictor: nothing was measured"
    parts = []
    for name in dict.fromkeys(row.layer for row in rows):
        own = [row for row in rows if row.layer == name]
        cells = []
        for row in own:
            goal = ""
            if name == "relu" and row.share == 2.0:
                goal = f">= {_GOAL}: {'ok' if row.recall >= _GOAL else 'MISSED'}"
            cells.append(
                [
                    str(row.rank),
                    f"{row.share:g} x",
                    f"{row.kept:.1%}",
                    f"{row.recall:.3f}",
                    f"{row.error:.3f}",
                    f"{row.seconds * 1e6:.0f}",
                    f"{row.nbytes / row.dense:.0%}",
                    goal,
                ]
            )
        title = f"SmolLM2-135M, layer {_LAYER}, {name}: {own[0].live:.1%} live on held-out tokens"
        head = ["rank", "keep / live", "kept", "recall", "output error", "us a row", "bytes / dense", "goal"]
        parts.append(f"{title}\n{format_table(head, cells, left=0)}")
    parts.append(
        "Half of the plain layer's units are live, so twice that is nearly all of them: the layer with a\n"
        "bias is the harder test. Bytes are compared with those of the matrices that a prediction replaces."
    )
    return "\n\n".join(parts)


def plot(path: Path, rows: Sequence[Row]) -> None:
    """Draw recall and output error against rank, a column for each layer.

    Parameters
    ----------
    path : Path
        Where to save; the suffix gives the format.
    rows : sequence of Row
        What `measure` returned.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row.layer for row in rows))
    figure = Figure(figsize=(3.6 * max(len(names), 1), 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, max(len(names), 1), squeeze=False, sharex=True)
    for column, name in enumerate(names):
        own = [row for row in rows if row.layer == name]
        for share in dict.fromkeys(row.share for row in own):
            line = [row for row in own if row.share == share]
            ranks, label = [row.rank for row in line], f"keep {share:g} x live"
            panels[0][column].plot(ranks, [row.recall for row in line], "o-", ms=3, label=label)
            panels[1][column].plot(ranks, [row.error for row in line], "o-", ms=3, label=label)
        panels[0][column].axhline(_GOAL, color="#999999", lw=0.8, ls="--")
        panels[0][column].set(
            title=f"{name}, {own[0].live:.0%} live", ylabel="recall of live units", ylim=(0, 1.02)
        )
        panels[1][column].set(xlabel="rank", ylabel="relative error of the output", ylim=(0, None))
    if names:
        panels[0][0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _layers(samples: int, held: int) -> list[_Layer]:
    """Read the model's layer in its three forms."""
    model = open_model(find_model())
    layer = model.layer(_LAYER)
    tokens = np.random.default_rng(2024).permutation(model.embeddings(samples + held))
    x, hidden = layer.inputs(tokens)
    fit, rest = x[:samples], x[samples:]
    sums = fit @ layer.up.T
    bias = -np.quantile(sums, 1 - _BIASED).astype(np.float32) * np.ones(len(layer.up), np.float32)
    tau = float(np.quantile(np.abs(hidden[:samples]), 1 - _GATED))
    up = {"w_up": layer.up}
    return [
        _Layer("relu", fit, rest, up, layer.down, "relu", float((sums > 0).mean()), 0.0),
        _Layer("relu, bias", fit, rest, up | {"b_up": bias}, layer.down, "relu", _BIASED, 0.0),
        _Layer("silu gate", fit, rest, up | {"w_gate": layer.gate}, layer.down, "silu", _GATED, tau),
    ]


def _time(predictor: pr.Predictor, x: NDArray[np.float32], rounds: int) -> float:
    """Return the median seconds of a decision."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        predictor.foresee(x, predictor.units)
        times.append(time.perf_counter() - start)
    return median(times)
