"""The second part of ``python -m prunus demo``: layers whose dead units are left alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import prunus as pr
from prunus._progress import Progress
from prunus._table import format_table
from prunus.bench.machine import optional
from prunus.bench.peers import WrongResultError, as_dtype
from prunus.bench.smollm import Model
from prunus.bench.timing import interleave

__all__ = ["FfnLine", "ffn_lines", "ffn_table"]

_ROUNDS = 3
# Rows that thresholds are found on; others are timed and judged.
_SAMPLES = 256
# What rounding alone may do to a layer's output, relative to its norm.
_EXACT = {"float32": 1e-5, "bfloat16": 2e-2}


@dataclass(frozen=True, slots=True)
class FfnLine:
    """One line of the table.

    Attributes
    ----------
    dtype : str
        Type of weights and rows.
    target : float, optional
        Share of hidden units that the thresholds were calibrated for; None: nothing is pruned.
    tokens : int
        Rows.
    live, union : float
        Share of units that were live, for each row and for at least one.
    flops_skipped, bytes_skipped : float
        Shares of the dense layers' operations and bytes of weights that were left out.
    error : float
        Norm of the difference from the dense layers in float64, relative to their norm.
    seconds, dense : float
        Median seconds of one pass over all layers, and of the best dense one.
    """

    dtype: str
    target: float | None
    tokens: int
    live: float
    union: float
    flops_skipped: float
    bytes_skipped: float
    error: float
    seconds: float
    dense: float


@dataclass(frozen=True, slots=True)
class _Layer:
    gate: NDArray[np.float32]
    up: NDArray[np.float32]
    down: NDArray[np.float32]
    x: NDArray[np.float32]
    samples: NDArray[np.float32]


def _silu(v: NDArray[Any]) -> NDArray[Any]:
    value: NDArray[Any] = v / (1 + np.exp(-v))
    return value


def _dense(layers: Sequence[_Layer], dtype: str, tokens: int) -> dict[str, Callable[[], None]]:
    """Return passes over all dense layers: NumPy in float32, and torch in ``dtype`` where it is installed."""

    def in_numpy() -> None:
        for layer in layers:
            x = layer.x[:tokens]
            _silu(x @ layer.gate.T) * (x @ layer.up.T) @ layer.down.T

    passes: dict[str, Callable[[], None]] = {"numpy": in_numpy}
    torch = optional("torch")
    if torch is not None:
        kind = getattr(torch, dtype)
        held = [
            [torch.from_numpy(w).to(kind) for w in (layer.x[:tokens], layer.gate, layer.up, layer.down)]
            for layer in layers
        ]

        def in_torch() -> None:
            for x, gate, up, down in held:
                (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T

        passes["torch"] = in_torch
    return passes


def ffn_lines(
    model: Model,
    count: int,
    bar: Progress,
    *,
    dtypes: Sequence[str],
    tokens: Sequence[int],
    targets: Sequence[float | None] = (None, 0.5, 0.3, 0.1),
) -> list[FfnLine]:
    """Pack the first ``count`` layers, calibrate thresholds, check, and time a pass over them.

    Raises
    ------
    WrongResultError
        If a layer with nothing pruned is not the dense one.
    """
    rows = model.embeddings(_SAMPLES + max(tokens))
    order = np.random.default_rng(0).permutation(len(rows))
    layers = []
    for index in range(count):
        layer = model.layer(index)
        x, _ = layer.inputs(rows)
        x = x[order]
        layers.append(_Layer(layer.gate, layer.up, layer.down, x[_SAMPLES:], x[:_SAMPLES]))
        bar.step("ffn: reading")
    exact = []
    for one in layers:
        wide, gate, up, down = (w.astype(np.float64) for w in (one.x, one.gate, one.up, one.down))
        exact.append((_silu(wide @ gate.T) * (wide @ up.T)) @ down.T)
    lines = []
    for dtype in dtypes:
        kind = as_dtype(dtype)
        packed = [pr.FFN.pack(layer.up, layer.down, layer.gate, "gate", dtype=kind) for layer in layers]
        inputs = [layer.x.astype(kind) for layer in layers]
        policies: dict[float | None, list[Any]] = {None: [None] * count}
        for target in targets:
            if target is not None:
                policies[target] = [
                    pr.calibrate(ffn, layer.samples.astype(kind), target=target, activation="silu")
                    for ffn, layer in zip(packed, layers, strict=True)
                ]
            bar.step(f"ffn: calibrating {dtype}", count)
        for n in tokens:
            xs = [x[:n] for x in inputs]
            calls = _dense(layers, dtype, n)
            dense = set(calls)
            for target in targets:
                calls[str(target)] = _pass(packed, xs, policies[target])
            times = interleave(calls, _ROUNDS, settle=0.01)
            best = min(times[name].median for name in dense)
            for target in targets:
                lines.append(_line(dtype, target, n, packed, xs, policies[target], exact, times, best))
    return lines


def _pass(
    packed: Sequence[pr.FFN], xs: Sequence[NDArray[Any]], policies: Sequence[Any]
) -> Callable[[], None]:
    def one_pass() -> None:
        for ffn, x, policy in zip(packed, xs, policies, strict=True):
            ffn(x, "silu", prune=policy)

    return one_pass


def _line(
    dtype: str,
    target: float | None,
    n: int,
    packed: Sequence[pr.FFN],
    xs: Sequence[NDArray[Any]],
    policies: Sequence[Any],
    exact: Sequence[NDArray[np.float64]],
    times: Any,
    best: float,
) -> FfnLine:
    difference = norm = 0.0
    with pr.trace() as t:
        for ffn, x, policy, right in zip(packed, xs, policies, exact, strict=True):
            y = ffn(x, "silu", prune=policy).astype(np.float64)
            difference += float(np.sum((y - right[:n]) ** 2))
            norm += float(np.sum(right[:n] ** 2))
    error = float(np.sqrt(difference / norm))
    if target is None and not error <= _EXACT[dtype]:
        raise WrongResultError(f"layers of {dtype} with nothing pruned are off by {error:.1e}")
    flops, loaded = t.flops + t.flops_skipped, t.bytes_loaded + t.bytes_skipped
    seconds = times[str(target)].median
    skipped = t.flops_skipped / flops, t.bytes_skipped / loaded
    return FfnLine(dtype, target, n, t.live_fraction, t.union_fraction, *skipped, error, seconds, best)


def ffn_table(lines: Sequence[FfnLine]) -> str:
    """Make the table of `ffn_lines`."""
    rows = [
        [
            line.dtype,
            "exact" if line.target is None else f"{line.target:.0%}",
            str(line.tokens),
            f"{line.live:.1%}",
            f"{line.union:.1%}",
            f"{line.flops_skipped:.0%}",
            f"{line.bytes_skipped:.0%}",
            f"{line.error:.1e}",
            f"{line.seconds * 1e3:.1f}",
            f"{line.dense * 1e3:.1f}",
            f"{line.dense / line.seconds:.2f}",
        ]
        for line in lines
    ]
    head = ["dtype", "live wanted", "tokens", "live", "union", "flops skipped", "bytes skipped", "error"]
    return format_table([*head, "ms", "dense ms", "speed-up"], rows, left=2)
