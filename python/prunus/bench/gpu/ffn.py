"""Feed-forward layers that are mostly dead, beside dense ones of torch: one token, and batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np

import prunus as pr
from prunus.bench.gpu.bench import OURS, Bench, Entry, once
from prunus.bench.gpu.operands import DENSE, KIND, multiply, own, rotated
from prunus.bench.gpu.record import Case
from prunus.bench.gpu.timing import Call
from prunus.pruning.lowrank import LowRank

__all__ = ["FORESEEN", "UP", "run"]

_FIXED: Final = f"{OURS} Fixed"
_PREDICTED: Final = f"{OURS} Predictor"
_THRESHOLD: Final = f"{OURS} Threshold"
#: Contestants that know what is live before they multiply, and those that multiply to find out.
FORESEEN: Final = (_FIXED, _PREDICTED)
UP: Final = (_THRESHOLD,)

# Share of hidden units that is live, and of a normal distribution's values above how many deviations it lies.
_LIVE: Final = 0.1
_DEVIATIONS: Final = 1.2815515594600038
# Between these deviations the other values lie.
_WITHIN: Final = 1.6448536269514722
# How sure a predictor is: far surer than its products with an input differ.
_SURE: Final = 100.0


class _Layer(NamedTuple):
    """A layer's weights, and what leaves so many units live: a bias with ReLU, or a threshold of "up"."""

    up: Any
    down: Any
    gate: Any | None
    bias: Any | None
    tau: float

    def pack(self, decide: str) -> Any:
        """Return the layer as prunus has it, in memory of its own."""
        return pr.FFN.pack(self.up, self.down, self.gate, decide=decide, b_up=self.bias)

    @property
    def matrices(self) -> int:
        """How many there are."""
        return 2 if self.gate is None else 3


def run(bench: Bench) -> None:
    """Race for one token and for batches, plain and gated."""
    sizes = bench.sizes
    h, d = sizes.hidden, sizes.features
    up, gate = (bench.randn(h, d, scale=d**-0.5) for _ in range(2))
    down = bench.randn(d, h, scale=h**-0.5)
    bias = bench.torch.full((h,), -_DEVIATIONS, dtype=up.dtype, device=bench.device)
    for rows in (1, *sizes.batches):
        x = bench.randn(rows, d)
        bench.race(_line_up(bench, _Layer(up, down, None, bias, 0.0), x, ""))
        bench.race(_line_up(bench, _Layer(up, down, gate, None, _WITHIN), x, "gated"))


def _hidden(bench: Bench, layer: _Layer, x: Any) -> tuple[Any, Any]:
    """Return a layer's hidden units in float32, and which of them its threshold leaves live."""
    first = multiply(bench, x, layer.up.T)
    if layer.gate is not None:
        return first * multiply(bench, x, layer.gate.T).relu(), first.abs() > layer.tau
    first = (first + layer.bias.float()).relu() if layer.bias is not None else first.relu()
    return first, first > layer.tau


def _line_up(bench: Bench, layer: _Layer, x: Any, detail: str) -> list[Entry]:
    """Line up what knows, what predicts and what computes which units are live."""
    (h, d), rows = layer.up.shape, int(x.shape[0])
    case = Case("ffn", "ffn", KIND, h, 1, rows, detail=detail)
    every = once(partial(_hidden, bench, layer, x))
    # What is known or predicted to be live is what contributes most to the first row.
    most = every()[0][0].abs().topk(max(round(_LIVE * h), 1)).indices
    live = bench.torch.zeros(h, dtype=bench.torch.bool, device=bench.device)
    live[most] = True
    entries = [_dense(bench, case, layer, x, every)]
    known = pr.Fixed(live.cpu().numpy())
    guess = _predictor(bench, live, layer)
    guessing = 2.0 * (d + h) * bench.sizes.rank * rows, float(guess.nbytes)
    found = every()[1]
    union = float(found.any(0).float().mean())
    # Matrices' values that are multiplied for a row, and that are read: where "up" decides it is computed for
    # all units, and what follows for those that are live. A batch reads what one of its rows needs.
    some = float(live.sum()) / h
    after = layer.matrices - 1
    both = some * layer.matrices
    lines: list[tuple[str, Any, str, Any, float, float, float]] = [
        (_FIXED, known, "predictor", live, both, both, some),
        (_PREDICTED, guess, "predictor", live, both, both, some),
        (
            _THRESHOLD,
            pr.Threshold(layer.tau),
            "up",
            found,
            1 + after * float(found.float().mean()),
            1 + after * union,
            union,
        ),
    ]
    at = Case("ffn", "ffn", KIND, h, 1, rows, _LIVE, detail)
    for name, policy, first, mask, multiplied, read, needed in lines:
        flops, nbytes = 2.0 * multiplied * h * d * rows, 2.0 * read * h * d + 4.0 * rows * d
        if name == _PREDICTED:
            flops, nbytes = flops + guessing[0], nbytes + guessing[1]
        wanted = once(partial(_result, bench, layer, every, mask))
        calls = partial(rotated, bench, flops, nbytes, partial(_ours, layer, x, policy, first))
        touched = needed if rows > 1 else math.nan
        entries.append(Entry(at, name, "ours", calls, wanted, flops, nbytes, union=touched))
    return entries


def _result(bench: Bench, layer: _Layer, every: Callable[[], tuple[Any, Any]], mask: Any) -> Any:
    hidden = every()[0] if mask is None else every()[0] * mask
    return multiply(bench, hidden, layer.down.T)


def _ours(layer: _Layer, x: Any, policy: Any, decide: str, copied: bool) -> Call:
    packed, own_x = layer.pack(decide), own(x, copied)
    return lambda: packed(own_x, activation="relu", prune=policy)


def _dense(bench: Bench, case: Case, layer: _Layer, x: Any, every: Callable[[], tuple[Any, Any]]) -> Entry:
    """Line up torch's products."""
    torch = bench.torch
    linear, relu = torch.nn.functional.linear, torch.relu
    flops = 2.0 * layer.matrices * layer.up.numel() * len(x)
    nbytes = 2.0 * layer.matrices * layer.up.numel() + 4.0 * x.numel()

    def make(copied: bool) -> Call:
        up, down, bias, own_x = own(layer.up, copied), own(layer.down, copied), layer.bias, own(x, copied)
        if layer.gate is None:
            return lambda: linear(relu(linear(own_x, up, bias)), down)
        gate = own(layer.gate, copied)
        return lambda: linear(relu(linear(own_x, gate)) * linear(own_x, up), down)

    calls = partial(rotated, bench, flops, nbytes, make)
    return Entry(case, DENSE, "dense", calls, partial(_result, bench, layer, every, None), flops, nbytes)


def _predictor(bench: Bench, live: Any, layer: _Layer) -> Any:
    """Return a predictor that keeps given units of any input: a real one's bytes and operations."""
    h, d = layer.up.shape
    source = np.random.default_rng(3)
    rank = bench.sizes.rank
    narrow = (source.standard_normal((rank, d)) * d**-0.5).astype(np.float32)
    wide = (source.standard_normal((h, rank)) * rank**-0.5).astype(np.float32)
    chosen = live.cpu().numpy()
    up = LowRank(narrow, wide, np.where(chosen, _SURE, -_SURE).astype(np.float32), np.ones(h, np.float32))
    gate = up if layer.gate is not None else None
    return pr.Predictor(up, gate, keep=float(chosen.mean()), activation="relu")
