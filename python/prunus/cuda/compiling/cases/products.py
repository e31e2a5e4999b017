"""Block-sparse times dense."""

from __future__ import annotations

from prunus.cuda import products
from prunus.cuda.compiling.case import Case, Units, blocks, float32_as, tensor
from prunus.cuda.runtime import Place

__all__ = ["CASES"]


def _dsd(
    dtype: str,
    block: int,
    columns: int,
    units: Units,
    *,
    out: str | None = None,
    size: int = 4096,
    transposed: bool = False,
    right: bool = False,
    epilogue: str | None = None,
    precision: str = "highest",
    more: bool = False,
) -> Case:
    """Return ``w @ x``, or with ``right`` the same of a transposed x and result: ``y @ w.T``."""

    def call(where: Place) -> None:
        w = blocks(where, (size, size), (block, block), dtype)
        kind = out or dtype
        x, y = tensor(where, size, columns, dtype=dtype), tensor(where, size, columns, dtype=kind)
        if right:
            x, y = tensor(where, columns, size, dtype=dtype).T, tensor(where, columns, size, dtype=kind).T
        bias = tensor(where, size, dtype=kind) if epilogue else None
        with float32_as(precision):
            products.dsd(where, w.T if transposed else w, x, y, bias, epilogue)

    told = [f"{size}², {columns} columns, block {block}"]
    told += ["transposed"] if transposed else []
    told += ["from the right"] if right else []
    told += [f"bias, {epilogue}"] if epilogue else []
    kernel = "dsd" if block >= 16 else "dsd_small"
    return Case(
        ", ".join(told), dtype if precision == "highest" else "tf32", call, {kernel: units}, more=more
    )


CASES = [
    *(_dsd("bfloat16", 64, columns, Units.NATIVE) for columns in (512, 4096)),
    _dsd("bfloat16", 64, 16, Units.NATIVE),
    _dsd("bfloat16", 64, 1, Units.NATIVE, more=True),
    _dsd("bfloat16", 128, 4096, Units.NATIVE),
    _dsd("bfloat16", 128, 16, Units.NATIVE, more=True),
    *(_dsd("bfloat16", 32, columns, Units.MATRIX) for columns in (16, 512)),
    _dsd("bfloat16", 32, 4096, Units.MATRIX, more=True),
    _dsd("bfloat16", 16, 512, Units.MATRIX),
    _dsd("bfloat16", 24, 512, Units.MATRIX, more=True),
    _dsd("bfloat16", 4, 512, Units.PLAIN),
    _dsd("bfloat16", 1, 512, Units.PLAIN, more=True),
    _dsd("float16", 64, 512, Units.NATIVE, epilogue="gelu"),
    _dsd("float16", 128, 4096, Units.NATIVE, right=True, epilogue="silu", more=True),
    _dsd("bfloat16", 64, 512, Units.NATIVE, transposed=True),
    _dsd("bfloat16", 64, 512, Units.NATIVE, right=True),
    _dsd("bfloat16", 128, 512, Units.NATIVE, transposed=True, right=True, more=True),
    _dsd("float32", 64, 512, Units.PLAIN),
    _dsd("float32", 64, 512, Units.NATIVE, precision="high"),
    _dsd("float32", 128, 4096, Units.PLAIN),
    _dsd("float32", 128, 4096, Units.NATIVE, precision="high", more=True),
    _dsd("float32", 32, 512, Units.PLAIN, transposed=True, more=True),
    _dsd("float32", 16, 16, Units.PLAIN, more=True),
    _dsd("float32", 8, 512, Units.PLAIN, more=True),
    _dsd("float64", 64, 512, Units.DOUBLE),
    _dsd("float64", 128, 4096, Units.DOUBLE, more=True),
    _dsd("int8", 64, 512, Units.MATRIX, out="int32"),
    _dsd("int8", 128, 4096, Units.MATRIX, out="int32", more=True),
]
