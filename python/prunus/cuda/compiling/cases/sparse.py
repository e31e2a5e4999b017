"""Dense times dense at a pattern's blocks, and block-sparse times block-sparse."""

from __future__ import annotations

from prunus.cuda.compiling.case import Case, Units, blocks, dtype_of, float32_as, tensor
from prunus.cuda.runtime import Place
from prunus.cuda.sdd import sdd
from prunus.cuda.ssd import Capacity, ssd
from prunus.cuda.ssd_at import ssd_at

__all__ = ["CASES"]


def _sdd(
    dtype: str,
    block: tuple[int, int],
    units: Units,
    *,
    density: float = 0.25,
    size: int = 4096,
    inner: int = 4096,
    turned: bool = False,
    precision: str = "highest",
    more: bool = False,
) -> Case:
    """Return ``a @ b`` at a pattern's blocks; with ``turned``, of b's transpose, as in attention."""

    def call(where: Place) -> None:
        pattern = blocks(where, (size, size), block, dtype, density)
        a = tensor(where, size, inner, dtype=dtype)
        b = tensor(where, size, inner, dtype=dtype).T if turned else tensor(where, inner, size, dtype=dtype)
        out = tensor(where, *pattern.data.shape, dtype="int32" if dtype == "int8" else dtype)
        with float32_as(precision):
            sdd(where, a, b, pattern.indices, pattern.indptr, out)

    kernel = "sdd_small" if units is Units.PLAIN and max(block) < 64 else "sdd"
    told = f"{size}², blocks {block[0]} x {block[1]}, {density:.0%}" + (", b transposed" if turned else "")
    told += "" if inner == 4096 else f", {inner} inner"
    return Case(told, dtype if precision == "highest" else "tf32", call, {kernel: units}, more=more)


def _ssd(
    dtype: str,
    block: int,
    units: Units,
    *,
    turned: bool = False,
    members: int = 0,
    far: bool = False,
    more: bool = False,
) -> Case:
    """Return the product of two block-sparse operands, with ``turned`` of their transposes.

    With ``members`` the left one is a batch that shares a pattern; with ``far`` there may be lists of pairs
    whose length is counted in 64 bits.
    """

    def call(where: Place) -> None:
        a, b = (blocks(where, (4096, 4096), (block, block), dtype) for _ in range(2))
        if members:
            a = a._replace(data=tensor(where, members, *a.data.shape, dtype=dtype))
        if turned:
            a, b = a.T, b.T
        room = Capacity(8 * len(a.indices) if not far else 2**31 // block, 4 * len(a.indices))
        ssd(where, a, b, dtype_of(dtype), room, ((members,) if members else (), ()))

    kernel = "ssd" if block >= 16 else "ssd_small"
    told = f"4096², blocks {block}" + (", transposed" if turned else "")
    told += (f", {members} members" if members else "") + (", in 64 bits" if far else "")
    return Case(told, dtype, call, {kernel: units}, more=more)


def _ssd_at(
    dtype: str,
    blocksize: tuple[int, int],
    units: Units,
    *,
    turned: bool = False,
    inner: int | None = None,
    more: bool = False,
) -> Case:
    """Return the product of two block-sparse operands at a pattern's blocks, with ``turned`` of transposes.

    Inner blocks are as wide as the result's, or ``inner``.
    """
    br, bc = blocksize
    bi = bc if inner is None else inner

    def call(where: Place) -> None:
        left, right = ((bi, br), (bc, bi)) if turned else ((br, bi), (bi, bc))
        a, b = (blocks(where, (4096, 4096), block, dtype) for block in (left, right))
        at = blocks(where, (4096, 4096), blocksize, "int32" if dtype == "int8" else dtype)
        ssd_at(where, *((a.T, b.T) if turned else (a, b)), at.indices, at.indptr, at.data)

    kernel = "ssd_at" if min(br, bc) >= 16 else "ssd_at_small"
    told = f"4096², blocks {br} x {bc}" + ("" if inner is None else f", {inner} inner")
    return Case(told + (", transposed" if turned else ""), dtype, call, {kernel: units}, more=more)


CASES = [
    _sdd("bfloat16", (64, 64), Units.NATIVE),
    _sdd("bfloat16", (128, 128), Units.NATIVE),
    _sdd("bfloat16", (64, 64), Units.NATIVE, turned=True),
    _sdd("bfloat16", (64, 64), Units.NATIVE, density=0.02, more=True),
    _sdd("bfloat16", (64, 64), Units.NATIVE, inner=2**31, more=True),
    _sdd("bfloat16", (8, 8), Units.PLAIN, inner=2**31 - 16, more=True),
    _sdd("bfloat16", (32, 32), Units.MATRIX),
    _sdd("bfloat16", (16, 16), Units.MATRIX, more=True),
    _sdd("float16", (1, 32), Units.MATRIX, more=True),
    _sdd("bfloat16", (8, 8), Units.PLAIN),
    _sdd("float32", (64, 64), Units.PLAIN),
    _sdd("float32", (64, 64), Units.NATIVE, precision="high"),
    _sdd("float64", (64, 64), Units.DOUBLE, more=True),
    _sdd("int8", (64, 64), Units.MATRIX, more=True),
    _ssd("bfloat16", 64, Units.NATIVE),
    _ssd("bfloat16", 64, Units.NATIVE, turned=True, more=True),
    _ssd("bfloat16", 64, Units.NATIVE, members=8),
    _ssd("bfloat16", 64, Units.NATIVE, far=True, more=True),
    _ssd("bfloat16", 128, Units.NATIVE, more=True),
    _ssd("bfloat16", 128, Units.NATIVE, members=8, far=True, more=True),
    _ssd("bfloat16", 32, Units.MATRIX, more=True),
    _ssd("bfloat16", 8, Units.PLAIN),
    _ssd("bfloat16", 8, Units.PLAIN, members=8, more=True),
    _ssd("bfloat16", 8, Units.PLAIN, members=8, far=True, more=True),
    _ssd("float32", 64, Units.PLAIN, more=True),
    _ssd("float64", 64, Units.DOUBLE, more=True),
    _ssd("float64", 128, Units.DOUBLE, more=True),
    _ssd_at("bfloat16", (64, 64), Units.NATIVE),
    _ssd_at("bfloat16", (64, 64), Units.NATIVE, turned=True, more=True),
    _ssd_at("bfloat16", (128, 128), Units.NATIVE, more=True),
    _ssd_at("bfloat16", (32, 32), Units.MATRIX),
    _ssd_at("bfloat16", (32, 32), Units.MATRIX, inner=5, more=True),
    _ssd_at("bfloat16", (8, 8), Units.PLAIN),
    _ssd_at("bfloat16", (8, 8), Units.PLAIN, turned=True, more=True),
    _ssd_at("float16", (1, 32), Units.PLAIN, more=True),
    _ssd_at("float32", (64, 64), Units.PLAIN, more=True),
    _ssd_at("float64", (64, 64), Units.DOUBLE, more=True),
    _ssd_at("int8", (64, 64), Units.MATRIX, more=True),
]
