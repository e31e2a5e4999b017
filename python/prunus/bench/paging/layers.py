"""Products with weights on disk: layers whose dead units are not read, and a block-sparse matrix."""

import time
from pathlib import Path
from typing import Any

import numpy as np

import prunus as pr
from prunus._dtypes import BFLOAT16, Array
from prunus.bench.paging.meter import Meter
from prunus.bench.paging.sample import Sample
from prunus.bench.paging.tasks import Arguments, Task, engine_of
from prunus.bench.peers import WrongResultError
from prunus.paged.pagers import new_pager

__all__ = ["BUNDLE", "FEATURES", "TASKS", "UNITS", "layer_bytes"]

FEATURES, UNITS = 4096, 11008
# What belongs to one unit lies together: its row of the first matrix, and its column of the second.
BUNDLE = 2 * FEATURES * 2
_LIVE = 0.1
_BLOCK = 64
_DENSITY = 0.5


def layer_bytes() -> int:
    """Return the bytes of one layer's weights."""
    return UNITS * BUNDLE


def _weights() -> tuple[Array, Array]:
    """Make the matrices of a layer, each with its units as rows."""
    rng = np.random.default_rng(11008)
    up, down = ((rng.random((UNITS, FEATURES), np.float32) / 64 - 1 / 128).astype(BFLOAT16) for _ in range(2))
    return up, down


def _live(arguments: Arguments, layer: int) -> Array:
    mask: Array = np.random.default_rng([arguments["seed"], layer]).random((1, UNITS)) < _LIVE
    return mask


def _token() -> Array:
    x: Array = np.random.default_rng(9).standard_normal((1, FEATURES), np.float32).astype(BFLOAT16)
    return x


def _expected(mask: Array) -> Array:
    up, down = _weights()
    live = np.flatnonzero(mask)
    hidden = np.maximum(_token().astype(np.float64) @ up[live].astype(np.float64).T, 0)
    want: Array = hidden @ down[live].astype(np.float64)
    return want


def ffn_make(arguments: Arguments, meter: Meter) -> Sample:
    """Write layers, if they are not there yet; the same weights by several names take up as many places."""
    path = Path(arguments["path"])
    if not path.exists():
        up, down = _weights()
        layer: Any = pr.FFN.pack(up, np.ascontiguousarray(down.T), decide="predictor")
        pr.save(path, {str(number): layer for number in range(arguments["layers"])})
    return meter.sample(path.stat().st_size, 0, "")


def ffn(arguments: Arguments, meter: Meter) -> Sample:
    """Send one token through layers whose live units are known beforehand, a tenth of them, drawn anew."""
    pager = new_pager(arguments["budget"])
    f: Any = pr.open(arguments["path"], pager=pager)
    layers = [f[str(number)] for number in range(arguments["layers"])]
    masks = [_live(arguments, number) for number in range(len(layers))]
    x = _token()
    results = []
    with meter.timed(pager):
        for layer, mask in zip(layers, masks, strict=True):
            results.append(layer(x, activation="relu", prune=pr.Fixed(mask)))
    live = sum(int(mask.sum()) for mask in masks)
    found = meter.sample(live * BUNDLE, live, engine_of(f))
    for result, mask in zip(results[:2], masks, strict=False):
        want = _expected(mask)
        error = np.abs(result.astype(np.float64) - want).max() / np.abs(want).max()
        if not error < 2e-2:
            raise WrongResultError(f"ffn: relative error {error:.1e}")
    return found


def ffn_in_memory(arguments: Arguments, meter: Meter) -> Sample:
    """Do the same with one layer in memory, as often as there are layers on disk."""
    up, down = _weights()
    layer = pr.FFN.pack(up, np.ascontiguousarray(down.T), decide="predictor")
    x, live = _token(), 0
    layer(x, activation="relu", prune=pr.Fixed(_live(arguments, 0)))
    for number in range(arguments["layers"]):
        mask = _live(arguments, number)
        with meter.timed():
            layer(x, activation="relu", prune=pr.Fixed(mask))
        live += int(mask.sum())
    return meter.sample(live * BUNDLE, live, "memory")


def _blocks(rows: int, columns: int) -> Any:
    """Make a matrix of float32 blocks, as many in each row."""
    rng = np.random.default_rng(13)
    high, wide = rows // _BLOCK, columns // _BLOCK
    each = max(int(wide * _DENSITY), 1)
    indices = np.concatenate([np.sort(rng.permutation(wide)[:each]) for _ in range(high)])
    indptr = np.arange(high + 1) * each
    data = rng.random((high * each, _BLOCK, _BLOCK), np.float32)
    return pr.BSR((data, indices, indptr), shape=(rows, columns))


def bsr_make(arguments: Arguments, meter: Meter) -> Sample:
    """Write a block-sparse matrix, if it is not there yet."""
    path = Path(arguments["path"])
    if not path.exists():
        pr.save(path, {"w": _blocks(*arguments["shape"])})
    return meter.sample(path.stat().st_size, 0, "")


def bsr(arguments: Arguments, meter: Meter) -> Sample:
    """Multiply ``w @ x`` with the blocks of w on disk."""
    pager = new_pager(arguments["budget"])
    f: Any = pr.open(arguments["path"], pager=pager)
    w = f["w"]
    x = np.random.default_rng(3).random((w.shape[1], arguments["columns"]), np.float32)
    x -= 0.5
    with meter.timed(pager):
        y = w @ x
    found = meter.sample(w.values.nbytes, w.nnzb, engine_of(f), x.nbytes + y.nbytes)
    if not np.isfinite(y).all():
        raise WrongResultError("w @ x: not finite")
    return found


def bsr_in_memory(arguments: Arguments, meter: Meter) -> Sample:
    """Multiply a part of the same kind of matrix that is in memory; the time is scaled to all of it."""
    rows, columns = arguments["shape"]
    part = max(min(arguments["budget"] * 2 // (columns * 4) // _BLOCK * _BLOCK, rows), _BLOCK)
    w = _blocks(part, columns)
    x = np.random.default_rng(3).random((columns, arguments["columns"]), np.float32)
    y = w @ x
    times = []
    for _ in range(3):
        began = time.perf_counter()
        np.matmul(w, x, out=y)
        times.append(time.perf_counter() - began)
    meter.seconds = min(times) * rows / part
    used = rows * columns * 4 * _DENSITY
    return meter.sample(int(used), int(used) >> 14, "memory")


TASKS: dict[str, Task] = {
    "ffn make": ffn_make,
    "ffn": ffn,
    "ffn in memory": ffn_in_memory,
    "bsr make": bsr_make,
    "bsr": bsr,
    "bsr in memory": bsr_in_memory,
}
