"""What operands on disk launch beside products and rows: sums that go on, and their end."""

from __future__ import annotations

from prunus.cuda import finishing, products
from prunus.cuda.compiling.case import Case, Units, blocks, tensor
from prunus.cuda.runtime import Place

__all__ = ["CASES"]

# Rows of what is stored that a piece of bfloat16 blocks has, of a matrix of 4096 columns at half density.
_SIZE = 4096
_PIECE = 2048


def _piece(dtype: str, block: int, columns: int, units: Units, *, turned: bool, more: bool = False) -> Case:
    """Return a piece that adds to sums; with ``turned`` to all rows of the result."""

    def call(where: Place) -> None:
        w = blocks(where, (_PIECE, _SIZE), (block, block), dtype, 0.5)
        m, k = (_SIZE, _PIECE) if turned else (_PIECE, _SIZE)
        x, sums = tensor(where, k, columns, dtype=dtype), tensor(where, m, columns, dtype="float32")
        products.dsd(where, w.T if turned else w, x, sums, add=True)

    told = f"a piece from disk, {columns} columns, block {block}" + (", transposed" if turned else "")
    return Case(told, dtype, call, {"dsd": units}, more=more)


def _finish(dtype: str, activation: str | None, *, turned: bool) -> Case:
    """Return the end of a product in pieces; with ``turned`` of one from the right."""

    def call(where: Place) -> None:
        shape = (512, _SIZE) if turned else (_SIZE, 512)
        sums, out = tensor(where, *shape, dtype="float32"), tensor(where, *shape, dtype=dtype)
        sums, out = (sums.T, out.T) if turned else (sums, out)
        finishing.finish(where, sums, out, tensor(where, _SIZE, dtype=dtype), activation)

    told = f"the end of sums, bias, {activation or 'no activation'}" + (", from the right" if turned else "")
    return Case(told, dtype, call, {"finishing": Units.PLAIN})


CASES = [
    _piece("bfloat16", 64, 512, Units.NATIVE, turned=False),
    _piece("bfloat16", 64, 512, Units.NATIVE, turned=True),
    _piece("bfloat16", 128, 4096, Units.NATIVE, turned=True),
    _piece("bfloat16", 32, 16, Units.MATRIX, turned=True, more=True),
    _finish("bfloat16", None, turned=False),
    _finish("bfloat16", "gelu", turned=True),
    _finish("float32", "silu", turned=True),
]
