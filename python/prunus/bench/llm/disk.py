"""The disk's case: layers in the shape of a 7B model, larger than the budget, a tenth of them live."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import prunus as pr
from prunus._dtypes import BFLOAT16, Array
from prunus._progress import Progress
from prunus.bench.llm.found import Section, Verdict
from prunus.bench.llm.plan import Plan
from prunus.bench.paging.data import drop
from prunus.bench.peers import WrongResultError
from prunus.paged.pagers import new_pager

__all__ = ["Shape", "foreseen"]

_KEEP, _RANK = 0.1, 64
_MIB = 1 << 20


class Shape(NamedTuple):
    """Sizes of a gated layer, and how many times the budget all layers are."""

    features: int = 4096
    units: int = 11008
    times: int = 8

    @property
    def bundle(self) -> int:
        """Bytes that belong to a unit: a row of each of three matrices, in bfloat16."""
        return 3 * 2 * self.features


def _weights(shape: Shape) -> dict[str, Array]:
    rng = np.random.default_rng(11008)
    size = (shape.units, shape.features)
    return {name: rng.standard_normal(size, np.float32) / 64 for name in ("up", "gate", "down")}


def _write(path: Path, shape: Shape, count: int) -> pr.Predictor:
    """Write layers with the same weights in as many places; return their predictor."""
    weights = _weights(shape)
    rank = min(_RANK, shape.features // 2)
    samples = np.random.default_rng(2).standard_normal((3 * rank, shape.features), np.float32)
    predictor = pr.Predictor.fit(
        samples, weights["up"], rank=rank, keep=_KEEP, w_gate=weights["gate"], activation="silu"
    )
    down = np.ascontiguousarray(weights["down"].T)
    layer: Any = pr.FFN.pack(weights["up"], down, weights["gate"], decide="predictor", dtype=BFLOAT16)
    pr.save(path, {str(number): layer for number in range(count)})
    return predictor


def foreseen(plan: Plan, shape: Shape | None = None) -> Section:
    """Send tokens through the layers, all units and those that the predictor names, in turns."""
    shape = Shape() if shape is None else shape
    count = max(-(-shape.times * plan.budget // (shape.units * shape.bundle)), 2)
    path = plan.folder / "layers.safetensors"
    plan.say(f"disk: writing {count} layers {shape.features} -> {shape.units}, and fitting a predictor")
    predictor = _write(path, shape, count)
    rng = np.random.default_rng(7)
    used, seconds, whole, read = [], [], [], []
    with Progress(2 * plan.rounds, "disk") as bar:
        for number in range(plan.rounds):
            x = rng.standard_normal((1, shape.features), np.float32)
            for policy in (None, predictor):
                drop([str(path)])
                pager = new_pager(plan.budget)
                file: Any = pr.open(path, pager=pager)
                layers = [file[str(i)] for i in range(count)]
                begin = time.perf_counter()
                with pr.trace() as traced:
                    results = [layer(x, "silu", prune=policy) for layer in layers]
                took = time.perf_counter() - begin
                moved = int(pager.stats()["bytes_read"])
                file.close()
                if policy is None:
                    whole.append(took)
                else:
                    live = round(traced.live_fraction * shape.units) * count
                    used.append(live * shape.bundle)
                    read.append(moved)
                    seconds.append(took)
                    _check(shape, x, results, policy)
                bar.step(f"round {number + 1}")
    path.unlink()
    rows = [
        ["all units", f"{np.median(whole) * 1e3:.0f}", f"{count * shape.units * shape.bundle / _MIB:.0f}"],
        ["foreseen", f"{np.median(seconds) * 1e3:.0f}", f"{np.median(read) / _MIB:.0f}"],
    ]
    return Section(
        "disk",
        f"{count} gated layers {shape.features} -> {shape.units}, bfloat16, "
        f"budget {plan.budget / _MIB:g} MiB, "
        f"{_KEEP:.0%} live by a predictor",
        ["", "ms", "MiB read"],
        rows,
        [
            Verdict(
                "bytes read / live bundles", [r / u for r, u in zip(read, used, strict=True)], 1.15, False
            ),
            Verdict(
                "time of all units / foreseen", [w / s for w, s in zip(whole, seconds, strict=True)], 5.0
            ),
        ],
    )


def _check(shape: Shape, x: Array, results: list[Array], predictor: pr.Predictor) -> None:
    """Compare one result with the live units' own sums."""
    weights = {name: w.astype(BFLOAT16).astype(np.float64) for name, w in _weights(shape).items()}
    live = np.flatnonzero(predictor.foresee(x, shape.units)[0])
    gate = x.astype(np.float64) @ weights["gate"][live].T
    hidden = gate / (1 + np.exp(-gate)) * (x @ weights["up"][live].T)
    want = hidden @ weights["down"][live]
    for found in results:
        error = np.abs(found - want).max() / np.abs(want).max()
        if not error < 2e-2:
            raise WrongResultError(f"disk: relative error {error:.1e}")
