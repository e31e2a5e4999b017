"""Products with transposes and from the right, packed and not, and of two block-sparse matrices."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from prunus.bench.gpu.bench import OURS, Bench, Entry, once
from prunus.bench.gpu.operands import DENSE, KIND, Weights, multiply, own, rotated, weights
from prunus.bench.gpu.record import Case
from prunus.bench.gpu.timing import Call

__all__ = ["run"]

# Name, and what is multiplied, of W and of x or a matrix of rows: the same for a BSR and for a dense W.
Product = Callable[[Any, Any], Any]
_PRODUCTS: Final[tuple[tuple[str, bool, Product], ...]] = (
    ("W.T @ x", False, lambda w, x: w.T @ x),
    ("x @ W", True, lambda w, x: x @ w),
    ("x @ W.T", True, lambda w, x: x @ w.T),
)


def run(bench: Bench) -> None:
    """Race for one size, block and density."""
    sizes = bench.sizes
    size, block = sizes.products[0], sizes.blocks[len(sizes.blocks) // 2]
    columns, density = sizes.columns[len(sizes.columns) // 2], sizes.densities[:2][-1]
    dense = bench.randn(size, size)
    w = weights(bench, dense, block, density)
    for what, rows, product in _PRODUCTS:
        x = bench.randn(columns, size) if rows else bench.randn(size, columns)
        bench.race(_line_up(bench, what, w, dense, x, columns, product))
    _two(bench, w, dense)


def _line_up(
    bench: Bench, what: str, w: Weights, dense: Any, x: Any, columns: int, product: Product
) -> list[Entry]:
    case = Case("transposes", what, KIND, len(dense), int(w.blocks.shape[1]), columns, w.density)
    flops, nbytes = 2.0 * w.stored * columns, w.nbytes + 2.0 * 2 * x.numel()
    full_flops, full_bytes = 2.0 * dense.numel() * columns, 2.0 * (dense.numel() + 2 * x.numel())

    def reference(of: Any) -> Any:
        torch = bench.torch
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            return product(of.float(), x.float())
        finally:
            torch.set_float32_matmul_precision(before)

    def whole(copied: bool) -> Call:
        left, right = own(dense, copied), own(x, copied)
        return lambda: product(left, right)

    def ours(packed: bool, copied: bool) -> Call:
        left, right = w.copied(copied).ours(), own(x, copied)
        left = left.pack() if packed else left
        return lambda: product(left, right)

    entries = [
        Entry(
            case.race,
            DENSE,
            "dense",
            partial(rotated, bench, full_flops, full_bytes, whole),
            partial(reference, dense),
            full_flops,
            full_bytes,
        )
    ]
    right = once(partial(reference, w.values))
    for name, packed in ((OURS, False), (f"{OURS} packed", True)):
        make = partial(rotated, bench, flops, nbytes, partial(ours, packed))
        entries.append(Entry(case, name, "ours", make, right, flops, nbytes))
    return entries


def _two(bench: Bench, w: Weights, dense: Any) -> None:
    """Race for ``W @ V``, whose number of blocks is read back."""
    size, block = len(dense), int(w.blocks.shape[1])
    other = bench.randn(size, size)
    v = weights(bench, other, block, w.density)
    case = Case("transposes", "W @ V", KIND, size, block, 0, w.density)
    # Every block of W meets the blocks of one row of V.
    pairs = float((w.grid.sum(0) * v.grid.sum(1)).sum())
    made = int(((w.grid.float() @ v.grid.float()) > 0).sum()) * block * block
    flops, nbytes = 2.0 * pairs * block**3, w.nbytes + v.nbytes + 2.0 * made
    full = 2.0 * size**3
    left, right = w.ours(), v.ours()
    bench.race(
        [
            Entry(
                case.race,
                DENSE,
                "dense",
                lambda: [lambda: dense @ other],
                partial(multiply, bench, dense, other),
                full,
                6.0 * size * size,
            ),
            Entry(
                case,
                OURS,
                "ours",
                lambda: [lambda: left @ right],
                partial(multiply, bench, w.values, v.values),
                flops,
                nbytes,
                lambda result: result.toarray(),
            ),
        ]
    )
