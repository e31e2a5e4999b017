"""``python -m prunus bench pruning``: layers that leave dead branches alone, beside torch's dense ones.

Liveness is drawn at random where the data of a model is not to be had: what a policy would find. Every
result is checked against float64 sums before it is timed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

import prunus as pr
from prunus._dtypes import Array, as_dtype
from prunus._progress import Progress
from prunus._table import format_table
from prunus.bench.machine import cpu, optional, pinned
from prunus.bench.peers import WrongResultError
from prunus.bench.timing import CacheFlush, interleave
from prunus.engines import active

__all__ = ["Race", "measure_ffn", "measure_trace", "report_ffn", "report_trace"]

_FEATURES, _UNITS = 4096, 11008
# Rank of the predictor that is timed.
_RANK = 128


@dataclass(frozen=True, slots=True)
class Race:
    """One pruned layer beside its dense peer.

    Attributes
    ----------
    dtype, what, peer : str
        Weights' dtype, what was pruned, and which dense product it is held against.
    rows, threads : int
        Rows of x, and threads of both.
    seconds, dense : float
        Median seconds of prunus and of the peer.
    ideal : float
        Share of the peer's bytes of weights that has to be read: what a layer bound by memory would take.
    limit : float, optional
        Largest ratio that counts as reached.
    """

    dtype: str
    what: str
    peer: str
    rows: int
    threads: int
    seconds: float
    dense: float
    ideal: float
    limit: float | None = None

    @property
    def ratio(self) -> float:
        """Time as a share of the peer's."""
        return self.seconds / self.dense


class _Chosen(pr.Policy):
    """Liveness drawn beforehand, but decided only when the norms are there: as a threshold would."""

    def __init__(self, mask: Array) -> None:
        self.mask = mask

    def select(self, statistics: pr.Statistics) -> Array:
        return self.mask


def _torch_calls(dtype: str, weights: dict[str, Array], x: Array, h: Array) -> dict[str, Callable[[], Any]]:
    """Return the dense layers in torch, or in NumPy where torch is missing and the dtype is its own."""
    torch = optional("torch")
    if torch is None:
        if dtype != "float32":
            return {}
        up, down, gate = (weights[name] for name in ("up", "down", "gate"))

        def silu(v: Array) -> Array:
            value: Array = v / (1 + np.exp(-v))
            return value

        return {
            "down": lambda: h @ down.T,
            "ffn": lambda: np.maximum(x @ up.T, 0) @ down.T,
            "gated": lambda: (silu(x @ gate.T) * (x @ up.T)) @ down.T,
        }
    kind = getattr(torch, dtype)
    up, down, gate = (torch.from_numpy(weights[name]).to(kind) for name in ("up", "down", "gate"))
    tx, th = torch.from_numpy(x).to(kind), torch.from_numpy(h).to(kind)
    silu = torch.nn.functional.silu
    return {
        "down": lambda: th @ down.T,
        "ffn": lambda: torch.relu(tx @ up.T) @ down.T,
        "gated": lambda: (silu(tx @ gate.T) * (tx @ up.T)) @ down.T,
    }


def _check(what: str, got: Array, want: Array, size: float, dtype: str) -> None:
    error = np.abs(got.astype(np.float64) - want).max() / max(size, 1e-30)
    if not error < (2e-5 if dtype == "float32" else 2e-2):
        raise WrongResultError(f"{what} {dtype}: relative error {error:.1e}")


def measure_ffn(dtypes: list[str], threads: list[int], rounds: int) -> list[Race]:
    """Time feed-forward layers 4096 → 11008 → 4096 at 1 and 16 rows.

    Parameters
    ----------
    dtypes : list of str
        "float32", "bfloat16".
    threads : list of int
        Numbers of threads; torch is given as many.
    rounds : int
        Timed calls of each.

    Returns
    -------
    list of Race

    Raises
    ------
    WrongResultError
        If a result is not what float64 says.
    """
    rng = np.random.default_rng(11008)
    d, units = _FEATURES, _UNITS
    weights = {
        "up": rng.standard_normal((units, d), np.float32) / 64,
        "down": rng.standard_normal((d, units), np.float32) / 105,
        "gate": rng.standard_normal((units, d), np.float32) / 64,
    }
    predictor = pr.Predictor.fit(
        rng.standard_normal((3 * _RANK, d), np.float32), weights["up"], rank=_RANK, keep=0.1
    )
    races = []
    flush = CacheFlush(cpu().last_level)
    with Progress(len(dtypes) * len(threads) * 2, "ffn") as bar:
        for dtype in dtypes:
            kept = {name: w.astype(as_dtype(dtype)) for name, w in weights.items()}
            up, down, gate = (kept[name] for name in ("up", "down", "gate"))
            plain, ahead = pr.FFN.pack(up, down), pr.FFN.pack(up, down, decide="predictor")
            gated = pr.FFN.pack(up, down, gate, decide="gate")
            for rows in (1, 16):
                x = rng.standard_normal((rows, d), np.float32)
                cases = _cases(rng, rows, x.astype(as_dtype(dtype)), plain, ahead, gated, dtype)
                if rows == 1:
                    cases |= _predicted(x.astype(as_dtype(dtype)), ahead, predictor, dtype)
                h = np.abs(rng.standard_normal((rows, units), np.float32))
                peers = _torch_calls(dtype, weights, x, h)
                for count in threads:
                    with pinned(count):
                        calls = {name: case[0] for name, case in cases.items()} | peers
                        for call in calls.values():
                            call()
                        times = interleave(calls, rounds, before=flush, settle=0.002)
                    for name, (_, peer, ideal, limit) in cases.items():
                        if peer in peers:
                            dense = times[peer].median
                            races.append(
                                Race(dtype, name, peer, rows, count, times[name].median, dense, ideal, limit)
                            )
                    bar.step(f"{dtype} {rows} rows, {count} threads")
    flush.close()
    return races


_Case = tuple[Callable[[], Any], str, float, float | None]


def _cases(
    rng: np.random.Generator, rows: int, x: Array, plain: pr.FFN, ahead: pr.FFN, gated: pr.FFN, dtype: str
) -> dict[str, _Case]:
    """Return what is timed: the call, its peer, the ideal and the limit; each checked once."""
    units = plain.hidden
    wide = x.astype(np.float64)
    up, down = plain._up, plain._down
    engine = active()
    h = np.abs(rng.standard_normal((rows, units), np.float32))
    y = np.empty((rows, plain.out_features), plain.dtype)

    def drawn(share: float, clustered: bool = False) -> Array:
        if clustered:  # units that nobody needs, and four of five rows that need the others
            return (rng.random(units) < share) & (rng.random((rows, units)) < 0.8)
        return rng.random((rows, units)) < share

    cases: dict[str, _Case] = {}
    one = rows == 1
    for share, of_down, of_layer in ((0.1, 0.16, 0.62), (0.5, 1.0, 1.0)):
        mask = drawn(share)
        union = mask.any(axis=0).mean()
        live = np.flatnonzero(mask.any(axis=0))
        part = np.where(mask, h, 0)[:, live].astype(np.float64)
        call: Callable[[], Any] = partial(engine.combine, h, down, y, mask, 1)
        call()
        _check("down", y, part @ down[live].astype(np.float64), 100.0, dtype)
        cases[f"down-projection, {share:.0%} live"] = call, "down", union, of_down if one else None
        sums = np.maximum(wide @ up[live].astype(np.float64).T, 0) * mask[:, live]
        want = sums @ down[live].astype(np.float64)
        layer = partial(plain, x, prune=_Chosen(mask))
        _check("ffn", layer(), want, np.abs(want).max(), dtype)
        cases[f"after up, {share:.0%} live"] = layer, "ffn", (1 + union) / 2, of_layer if one else None
    mask = drawn(0.1) if one else drawn(0.25, clustered=True)
    union = mask.any(axis=0).mean()
    name = "foreseen, 10% live" if one else "foreseen, union 25%"
    cases[name] = partial(ahead, x, prune=pr.Fixed(mask)), "ffn", union, None if one else 0.45
    mask = drawn(0.4)
    union = mask.any(axis=0).mean()
    call = partial(gated, x, "silu", prune=_Chosen(mask))
    cases["gated, after gate, 40% live"] = call, "gated", (1 + 2 * union) / 3, 0.65 if one else None
    cases["nothing pruned"] = partial(plain, x), "ffn", 1.0, None
    return cases


def _predicted(x: Array, ahead: pr.FFN, predictor: pr.Predictor, dtype: str) -> dict[str, _Case]:
    """Return the layer whose live units a predictor names, its own time included."""
    found = predictor.foresee(x, ahead.hidden)
    live = np.flatnonzero(found[0])
    up, down = (table[live].astype(np.float64) for table in (ahead._up, ahead._down))
    want = np.maximum(x.astype(np.float64) @ up.T, 0) @ down
    layer = partial(ahead, x, prune=predictor)
    _check("predicted", layer(), want, np.abs(want).max(), dtype)
    # Bytes: live rows of both tables, and the factors of low rank, which are float32.
    factors = _RANK * (ahead.features + ahead.hidden) * 4 / (2 * up.size / len(live) * ahead.hidden)
    ideal = len(live) / ahead.hidden + factors / ahead.dtype.itemsize
    return {f"predicted, rank {_RANK}, 10% live": (layer, "ffn", ideal, 0.22)}


def report_ffn(races: list[Race]) -> str:
    """Make the table of `measure_ffn`."""
    rows = [
        [
            r.dtype,
            str(r.rows),
            str(r.threads),
            r.what,
            f"{r.seconds * 1e3:.2f}",
            f"{r.dense * 1e3:.2f}",
            f"{r.ratio:.3f}",
            f"{r.ideal:.3f}",
            "" if r.limit is None else f"<= {r.limit:g} " + ("ok" if r.ratio <= r.limit else "MISSED"),
        ]
        for r in races
    ]
    head = ["dtype", "rows", "threads", f"ffn {_FEATURES} -> {_UNITS} -> {_FEATURES}"]
    head += ["ms", "dense ms", "ratio", "bytes", "target"]
    return format_table(head, rows, left=4)


def measure_trace(rounds: int) -> list[tuple[str, float, float]]:
    """Time operations of some 100 us on one thread, traced and not: (what, seconds, seconds without)."""
    rng = np.random.default_rng(1)
    up, down = (rng.standard_normal((1024, 512), np.float32) for _ in range(2))
    layer = pr.FFN.pack(up, np.ascontiguousarray(down.T))
    w = pr.BSR.from_dense(rng.standard_normal((2048, 2048), np.float32), blocksize=32, density=0.1)
    x, xs = rng.standard_normal((8, 512), np.float32), rng.standard_normal((2048, 32), np.float32)
    found = []
    calls: dict[str, Callable[[], Any]] = {
        "ffn": partial(layer, x, prune=pr.Threshold(0.0)),
        "matmul": partial(operator.matmul, w, xs),
    }
    with pinned(1):
        for name, call in calls.items():
            call()
            running = pr.trace()

            def traced(call: Callable[[], Any] = call, trace: pr.Trace = running) -> None:
                with trace:
                    call()

            times = interleave({"off": call, "on": traced}, max(rounds, 5) * 40)
            found.append((name, times["on"].median, times["off"].median))
    return found


def report_trace(found: list[tuple[str, float, float]]) -> str:
    """Make the table of `measure_trace`."""
    rows = [
        [
            name,
            f"{on * 1e6:.1f}",
            f"{off * 1e6:.1f}",
            f"{on / off - 1:+.1%}",
            "<= 3 % " + ("ok" if on <= 1.03 * off else "MISSED"),
        ]
        for name, on, off in found
    ]
    return format_table(["trace", "on us", "off us", "cost", "target"], rows)
