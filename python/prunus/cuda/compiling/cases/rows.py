"""Products of rows with tables of units."""

from __future__ import annotations

from typing import Any

from prunus.cuda import rows
from prunus.cuda.branches import Found
from prunus.cuda.compiling.case import Case, Units, float32_as, tensor
from prunus.cuda.runtime import Place

__all__ = ["CASES"]

# Units, and sizes of inputs and outputs: a feed-forward layer of a model of some 8 · 10^9 weights.
_UNITS, _WIDTH = 14336, 4096


def _live(where: Place, count: int, branch: int, shared: bool) -> Any:
    branches = -(-_UNITS // branch)
    if shared:
        return tensor(where, branches, dtype="bool").expand(count, branches)
    return tensor(where, count, branches, dtype="bool")


def _dots(
    dtype: str,
    count: int,
    units: Units,
    *,
    live: int | None = None,
    found: int | None = None,
    norm: str = "max",
    gated: bool = False,
    activation: str | None = "relu",
    shared: bool = False,
    precision: str = "highest",
    more: bool = False,
) -> Case:
    """Return units of some rows: those of branches of ``live`` units, or all, with norms of branches."""

    def call(where: Place) -> None:
        sums = "float64" if dtype == "float64" else "float32"
        x, w = tensor(where, count, _WIDTH, dtype=dtype), tensor(where, _UNITS, _WIDTH, dtype=dtype)
        out = tensor(where, count, _UNITS, dtype=dtype)
        alive = None if live is None else _live(where, count, live, shared)
        known = None
        if found is not None:
            branches = -(-_UNITS // found)
            norms = tensor(where, count, branches, dtype=sums)
            known = Found(found, norm, norms, tensor(where, count, branches, dtype="bool"), 0.5)
        scale = tensor(where, count, _UNITS, dtype=sums) if gated else None
        bias = tensor(where, _UNITS, dtype=dtype)
        with float32_as(precision):
            rows.dots(where, x, w, out, alive, live or 1, bias, activation, scale, known)

    told = [f"{count} rows, {_UNITS} units of {_WIDTH}"]
    told += [] if live is None else [f"branches of {live}"]
    told += [] if found is None else [f"{norm} norms of {found}"]
    told += ["gated"] if gated else []
    told += ["one mask"] if shared else []
    kernel = "dots_few" if count <= 4 else "dots"
    return Case(
        ", ".join(told), dtype if precision == "highest" else "tf32", call, {kernel: units}, more=more
    )


def _combine(
    dtype: str,
    count: int,
    units: Units,
    *,
    live: int | None = 1,
    inner: str | None = None,
    shared: bool = False,
    precision: str = "highest",
    more: bool = False,
) -> Case:
    """Return what live units contribute to some rows."""

    def call(where: Place) -> None:
        h = tensor(where, count, _UNITS, dtype=inner or dtype)
        w, out = tensor(where, _UNITS, _WIDTH, dtype=dtype), tensor(where, count, _WIDTH, dtype=dtype)
        alive = None if live is None else _live(where, count, live, shared)
        with float32_as(precision):
            rows.combine(where, h, w, out, alive, live or 1, tensor(where, _WIDTH, dtype=dtype))

    told = [f"{count} rows, {_UNITS} units to {_WIDTH}"]
    told += [] if live is None else [f"branches of {live}"]
    told += ["one mask"] if shared else []
    kernel = "combine_few" if count <= 4 else "combine"
    return Case(
        ", ".join(told), dtype if precision == "highest" else "tf32", call, {kernel: units}, more=more
    )


def _predicted() -> Case:
    """Return the two thin products of a predictor, for one row."""

    def call(where: Place) -> None:
        narrow, wide = tensor(where, 64, _WIDTH, dtype="float32"), tensor(where, _UNITS, 64, dtype="float32")
        thin, scores = (tensor(where, 1, n, dtype="float32") for n in (64, _UNITS))
        rows.dots(where, tensor(where, 1, _WIDTH, dtype="bfloat16"), narrow, thin)
        rows.dots(where, thin, wide, scores, bias=tensor(where, _UNITS, dtype="float32"))

    return Case(f"1 rows, {_WIDTH} to 64 to {_UNITS}", "float32", call, {"dots_few": Units.PLAIN})


CASES = [
    _predicted(),
    _dots("bfloat16", 1, Units.PLAIN, live=1, gated=True),
    _dots("bfloat16", 1, Units.PLAIN, live=32, more=True),
    _dots("bfloat16", 1, Units.PLAIN, found=1),
    _dots("bfloat16", 2, Units.PLAIN, found=32, norm="l2", activation="silu"),
    _dots("float32", 1, Units.PLAIN, found=1, more=True),
    _dots("float64", 1, Units.PLAIN, live=1, more=True),
    _dots("bfloat16", 16, Units.MATRIX, live=1, gated=True),
    _dots("bfloat16", 16, Units.MATRIX, found=1),
    _dots("bfloat16", 64, Units.NATIVE, found=32, activation="silu"),
    _dots("bfloat16", 512, Units.NATIVE, found=1),
    _dots("bfloat16", 512, Units.NATIVE, live=32, gated=True, activation=None),
    _dots("bfloat16", 512, Units.NATIVE, live=1, shared=True),
    _dots("float16", 512, Units.NATIVE, found=128, norm="l2", activation="gelu", more=True),
    _dots("bfloat16", 512, Units.NATIVE, found=33, more=True),
    _dots("float32", 512, Units.PLAIN, found=1),
    _dots("float32", 512, Units.NATIVE, live=1, precision="high"),
    _dots("float64", 512, Units.DOUBLE, live=1),
    _combine("bfloat16", 1, Units.PLAIN, inner="float32"),
    _combine("bfloat16", 4, Units.PLAIN, inner="float32", live=32, more=True),
    _combine("bfloat16", 16, Units.MATRIX),
    _combine("bfloat16", 64, Units.NATIVE, more=True),
    _combine("bfloat16", 512, Units.NATIVE),
    _combine("bfloat16", 512, Units.NATIVE, live=None),
    _combine("bfloat16", 512, Units.NATIVE, shared=True),
    _combine("bfloat16", 512, Units.NATIVE, live=32, more=True),
    _combine("float32", 512, Units.PLAIN),
    _combine("float32", 512, Units.NATIVE, precision="high"),
    _combine("float64", 512, Units.DOUBLE),
]
