"""Attention over live blocks of keys."""

from __future__ import annotations

from typing import Any

from prunus._layout import blocks_along
from prunus.cuda.compiling.case import Case, Units, float32_as, tensor
from prunus.cuda.layers.attention import attention
from prunus.cuda.runtime import Place
from prunus.pruning.policies import TopK

__all__ = ["CASES"]


def _attention(
    dtype: str,
    n: int,
    m: int,
    units: Units,
    *,
    d: int = 128,
    heads: tuple[int, int] = (32, 8),
    causal: bool = True,
    block: int | None = None,
    keep: float | None = None,
    precision: str = "highest",
    more: bool = False,
    archs: tuple[str, ...] = (),
) -> Case:
    """Return attention of n queries and m keys; of a mask's blocks, or of those that a policy keeps."""

    def call(where: Place) -> None:
        q = tensor(where, 1, heads[0], n, d, dtype=dtype)
        k = tensor(where, 1, heads[1], m, d, dtype=dtype)
        v = tensor(where, 1, heads[1], m, d, dtype=dtype)
        mask: Any = None
        if block is not None and keep is None:
            mask = tensor(where, blocks_along(n, block), blocks_along(m, block), dtype="bool")
        policy = None if keep is None else TopK(fraction=keep)
        with float32_as(precision):
            attention(q, k, v, mask, policy, causal, blocksize=block or 64, where=where)

    told = [f"attention {n} x {m}, d {d}, heads {heads[0]} of {heads[1]}"]
    told += [] if causal else ["not causal"]
    told += [] if block is None else [f"blocks {block}" + ("" if keep is None else f", {keep:.0%} kept")]
    kind = dtype if precision == "highest" else "tf32"
    return Case(", ".join(told), kind, call, {"attention": units}, more=more, archs=archs)


CASES = [
    _attention("bfloat16", 4096, 4096, Units.NATIVE),
    _attention("bfloat16", 4096, 4096, Units.NATIVE, block=64, keep=0.25),
    _attention("bfloat16", 4096, 4096, Units.NATIVE, block=128),
    _attention("bfloat16", 1, 8192, Units.MATRIX),
    _attention("bfloat16", 1, 8192, Units.MATRIX, block=64, keep=0.1),
    _attention("bfloat16", 4096, 4096, Units.NATIVE, d=64),
    _attention("bfloat16", 4096, 4096, Units.NATIVE, d=64, block=64, keep=0.25, more=True),
    _attention("bfloat16", 4096, 4096, Units.NATIVE, d=64, block=128, more=True),
    _attention("bfloat16", 4096, 4096, Units.MATRIX, block=16, more=True),
    _attention("bfloat16", 4096, 4096, Units.MATRIX, block=32, d=64, more=True),
    _attention("bfloat16", 4096, 4096, Units.NATIVE, d=256, archs=("sm_80", "sm_100"), more=True),
    _attention("bfloat16", 4096, 4096, Units.MATRIX, d=256, archs=("sm_90",), more=True),
    _attention("bfloat16", 4096, 4096, Units.NATIVE, d=256, block=64, more=True),
    _attention("bfloat16", 64, 8192, Units.NATIVE, heads=(8, 8), more=True),
    _attention("float16", 4096, 4096, Units.NATIVE),
    _attention("float16", 4096, 4096, Units.NATIVE, d=64, more=True),
    _attention("float16", 4096, 4096, Units.NATIVE, block=64, more=True),
    _attention("float16", 4096, 4096, Units.NATIVE, d=64, block=128, causal=False, more=True),
    _attention("float16", 1, 8192, Units.MATRIX, more=True),
    _attention("float16", 4096, 4096, Units.NATIVE, d=256, archs=("sm_80", "sm_100"), more=True),
    _attention("float16", 4096, 4096, Units.MATRIX, d=256, archs=("sm_90",), more=True),
    _attention("float16", 4096, 4096, Units.NATIVE, d=256, block=64, more=True),
    _attention("float16", 4096, 4096, Units.NATIVE, d=80, causal=False, more=True),
    _attention("float32", 1024, 1024, Units.PLAIN, d=64),
    _attention("float32", 1024, 1024, Units.PLAIN, block=64, more=True),
    _attention("float32", 1024, 1024, Units.PLAIN, d=256, more=True),
    _attention("float32", 1024, 1024, Units.MATRIX, precision="high", more=True),
    _attention("float64", 512, 512, Units.DOUBLE, d=64, block=64, more=True),
    _attention("float64", 512, 512, Units.DOUBLE, d=256, more=True),
    _attention("float16", 1000, 1000, Units.MATRIX, d=80, block=24, more=True),
]
