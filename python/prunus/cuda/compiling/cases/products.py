"""Block-sparse times dense."""

from __future__ import annotations

from prunus.cuda import configs, products
from prunus.cuda.chips import CHIPS
from prunus.cuda.compiling.case import Case, Units, blocks, float32_as, tensor
from prunus.cuda.compiling.recording import ahead
from prunus.cuda.configs import Tile
from prunus.cuda.costs import Product
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
    tile: Tile | None = None,
    archs: tuple[str, ...] = (),
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
            products.dsd(where, w.T if transposed else w, x, y, bias, epilogue, tile=tile)

    told = [f"{size}², {columns} columns, block {block}"]
    told += ["transposed"] if transposed else []
    told += ["from the right"] if right else []
    told += [f"bias, {epilogue}"] if epilogue else []
    told += [f"by {tile.loads}"] if tile is not None and tile.loads != "pointers" else []
    kernel = "dsd" if block >= 16 else "dsd_small"
    described = tile is not None and tile.loads != "pointers"
    return Case(
        ", ".join(told),
        dtype if precision == "highest" else "tf32",
        call,
        {"dsd_described" if described else kernel: units},
        "TMA" if described else "",
        archs=archs,
        more=more,
    )


def _all_tiles() -> list[Case]:
    """Return cases for each tile that ships, on the architectures that may have it, in both orders."""
    dtypes = {
        "half": "bfloat16",
        "int8": "int8",
        "tf32": "float32",
        "float32": "float32",
        "float64": "float64",
    }
    found: dict[tuple[str, int, Tile], list[str]] = {}
    for kind in dtypes:
        for block in (16, 24, 32, 64, 128):
            for arch in CHIPS:
                what = Product((block, block), 4096, kind, 64, 8)
                for tile in configs.dsd_tiles(ahead(arch), what):
                    found.setdefault((kind, block, tile), []).append(arch)
    cases = []
    for (kind, block, tile), archs in found.items():
        units = Units.NATIVE if tile.m >= 64 else Units.MATRIX
        units = {"float32": Units.PLAIN, "float64": Units.DOUBLE, "int8": Units.MATRIX}.get(kind, units)
        for other in (False, True):
            most = tile.m * tile.n <= 64 * 32 * tile.warps
            cases.append(
                _dsd(
                    dtypes[kind],
                    block,
                    512,
                    units,
                    out="int32" if kind == "int8" else None,
                    transposed=other,
                    right=other,
                    epilogue=("gelu" if most and kind != "int8" else "relu") if other else None,
                    precision="high" if kind == "tf32" else "highest",
                    tile=tile,
                    archs=tuple(archs),
                    more=True,
                )
            )
    return cases


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
    *(
        _dsd(
            "bfloat16",
            block,
            512,
            Units.NATIVE,
            transposed=other,
            right=other,
            tile=Tile(block, 256, 64, 8, 3, loads),
            archs=archs,
        )
        for loads, archs in (("descriptors", ("sm_90", "sm_100")), ("warps", ("sm_100",)))
        for block, other in ((64, False), (128, True))
    ),
    _dsd("float64", 64, 512, Units.DOUBLE),
    _dsd("float64", 128, 4096, Units.DOUBLE, more=True),
    _dsd("int8", 64, 512, Units.MATRIX, out="int32"),
    _dsd("int8", 128, 4096, Units.MATRIX, out="int32", more=True),
    *_all_tiles(),
]
