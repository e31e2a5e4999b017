"""``W @ x`` beside cuBLAS, torch's block-sparse kernels and cuSPARSE."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from prunus.bench.gpu import peers
from prunus.bench.gpu.bench import OURS, Bench, Entry, once
from prunus.bench.gpu.operands import KIND, Weights, dense_product, multiply, own, rotated, weights
from prunus.bench.gpu.record import Case
from prunus.bench.gpu.timing import Call

__all__ = ["run"]

# What makes a call of a contestant, with whose operands.
Line = Callable[[Weights, Any], Call]


def run(bench: Bench) -> None:
    """Race for all sizes, blocks, densities and numbers of columns."""
    sizes = bench.sizes
    # Peers that take another path for each block are timed with all blocks, others with one.
    middle = sizes.blocks[len(sizes.blocks) // 2]
    for size in sizes.products:
        dense = bench.randn(size, size)
        for columns in sizes.columns:
            x = bench.randn(size, columns)
            for block in sizes.blocks:
                case = Case("dsd", "W @ x", KIND, size, block, columns)
                entries = [dense_product(bench, case, dense, x)]
                for density in (*sizes.densities, *sizes.crossing):
                    lines: list[tuple[str, str, Line]] = [(OURS, "ours", _ours)]
                    if density in sizes.densities:
                        lines.append((peers.TORCH_BSR, "peer", partial(_torch_bsr, bench)))
                        if block == middle:
                            lines.append((peers.SPARSE_MM, "peer", partial(_sparse_mm, bench)))
                            lines.append((peers.CUSPARSE, "peer", partial(_cusparse, bench)))
                    entries += _line_up(bench, weights(bench, dense, block, density), x, lines)
                bench.race(entries)


def _line_up(bench: Bench, w: Weights, x: Any, lines: list[tuple[str, str, Line]]) -> list[Entry]:
    """Line up contestants that multiply the same blocks."""
    size, columns = (int(length) for length in x.shape)
    case = Case("dsd", "W @ x", KIND, size, int(w.blocks.shape[1]), columns, w.density)
    flops, nbytes = 2.0 * w.stored * columns, w.nbytes + 2.0 * 2 * x.numel()
    reference = once(partial(multiply, bench, w.values, x))

    def calls(line: Line) -> list[Call]:
        return rotated(bench, flops, nbytes, lambda copied: line(w.copied(copied), own(x, copied)))

    return [
        Entry(case, name, kind, partial(calls, line), reference, flops, nbytes) for name, kind, line in lines
    ]


def _ours(w: Weights, x: Any) -> Call:
    left = w.ours()
    return lambda: left @ x


def _torch_bsr(bench: Bench, w: Weights, x: Any) -> Call:
    product = peers.bsr_dense(bench.where)
    left = w.torchs()
    return lambda: product(left, x)


def _sparse_mm(bench: Bench, w: Weights, x: Any) -> Call:
    peers.needs_gpu(bench.where)
    left, multiply_sparse = w.torchs(), bench.torch.sparse.mm
    return lambda: multiply_sparse(left, x)


def _cusparse(bench: Bench, w: Weights, x: Any) -> Call:
    peers.needs_gpu(bench.where)
    left, multiply_sparse = peers.sparse_csr(w.values), bench.torch.sparse.mm
    return lambda: multiply_sparse(left, x)
