"""``a @ b`` at the blocks of a pattern, beside cuBLAS and torch's kernels for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import prunus as pr
from prunus.bench.gpu import peers
from prunus.bench.gpu.bench import OURS, Bench, Entry, once
from prunus.bench.gpu.operands import KIND, Weights, dense_product, multiply, own, rotated, weights
from prunus.bench.gpu.record import Case
from prunus.bench.gpu.timing import Call

__all__ = ["run"]


def run(bench: Bench) -> None:
    """Race for all sizes, blocks, densities and inner dimensions (the case's ``columns``)."""
    sizes = bench.sizes
    for size in sizes.products:
        pattern = bench.randn(size, size)
        for inner in sizes.columns:
            a, b = bench.randn(size, inner), bench.randn(inner, size)
            whole = once(partial(multiply, bench, a, b))
            for block in sizes.blocks:
                case = Case("sdd", "a @ b at blocks", KIND, size, block, inner)
                entries = [dense_product(bench, case, a, b)]
                for density in (*sizes.densities, *sizes.crossing):
                    w = weights(bench, pattern, block, density)
                    entries += _line_up(bench, a, b, w, whole, density in sizes.densities)
                bench.race(entries)


def _line_up(bench: Bench, a: Any, b: Any, w: Weights, whole: Callable[[], Any], peer: bool) -> list[Entry]:
    """Line up contestants that compute the same blocks."""
    size, inner = (int(length) for length in a.shape)
    case = Case("sdd", "a @ b at blocks", KIND, size, int(w.blocks.shape[1]), inner, w.density)
    flops, nbytes = 2.0 * w.stored * inner, w.nbytes + 2.0 * 2 * a.numel()

    def ours(copied: bool) -> Call:
        left, right, at = own(a, copied), own(b, copied), w.ours()
        return lambda: pr.sddmm(left, right, at)

    def torchs(copied: bool) -> Call:
        product = peers.sampled(bench.where)
        left, right, at = own(a, copied), own(b, copied), w.torchs()
        return lambda: product(at, left, right)

    lines: list[tuple[str, str, Callable[[bool], Call], Callable[[Any], Any]]] = [
        (OURS, "ours", ours, lambda result: result.toarray())
    ]
    if peer:
        lines.append((peers.TORCH_BSR, "peer", torchs, lambda result: result.to_dense()))
    return [
        Entry(
            case,
            name,
            kind,
            partial(rotated, bench, flops, nbytes, make),
            lambda: w.masked(whole()),
            flops,
            nbytes,
            dense,
        )
        for name, kind, make, dense in lines
    ]
