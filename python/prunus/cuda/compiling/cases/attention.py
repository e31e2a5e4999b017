"""Attention over live blocks of keys."""

from __future__ import annotations

from prunus.cuda.attention import attention, pooled_scores
from prunus.cuda.compiling.case import Case, Units, float32_as, tensor
from prunus.cuda.runtime import Place

__all__ = ["CASES"]


def _attention(
    dtype: str,
    queries: int,
    keys: int,
    d: int,
    blocksize: int,
    kernels: dict[str, Units],
    *,
    masked: bool = True,
    precision: str = "highest",
    more: bool = False,
) -> Case:
    heads, shared = 32, 8

    def call(where: Place) -> None:
        q, out = (tensor(where, 1, heads, queries, d, dtype=dtype) for _ in "qo")
        k, v = (tensor(where, 1, shared, keys, d, dtype=dtype) for _ in "kv")
        grid = (1, heads, -(-queries // blocksize), -(-keys // blocksize))
        live = tensor(where, *grid, dtype="bool") if masked else None
        with float32_as(precision):
            attention(where, q, k, v, out, live, d**-0.5, True, blocksize)

    told = f"attention, {queries} queries, {keys} keys, d {d}"
    told += f", blocks of {blocksize}" if masked else ", causal"
    return Case(told, dtype if precision == "highest" else "tf32", call, kernels, more=more)


def _pooled(dtype: str, *, more: bool = False) -> Case:
    def call(where: Place) -> None:
        q = tensor(where, 1, 32, 4096, 128, dtype=dtype)
        k = tensor(where, 1, 8, 4096, 128, dtype=dtype)
        out = tensor(where, 1, 32, 64, 64, dtype="float32")
        pooled_scores(where, q, k, out, 128**-0.5, 64, True)

    return Case("pooled scores, 4096 keys, d 128", dtype, call, {"scores": Units.PLAIN}, more=more)


CASES = [
    _attention("bfloat16", 4096, 4096, 128, 64, {"attention": Units.NATIVE}),
    _attention("bfloat16", 4096, 4096, 128, 64, {"attention": Units.NATIVE}, masked=False),
    _attention("bfloat16", 4096, 4096, 64, 128, {"attention": Units.NATIVE}, more=True),
    _attention("bfloat16", 1, 8192, 128, 64, {"attention": Units.MATRIX}),
    _attention("bfloat16", 1, 8192, 128, 64, {"attention": Units.MATRIX}, masked=False, more=True),
    _attention("float32", 2048, 2048, 64, 64, {"attention": Units.PLAIN}),
    _attention("float32", 2048, 2048, 64, 64, {"attention": Units.NATIVE}, precision="high", more=True),
    _attention("float32", 2048, 2048, 128, 64, {"attention": Units.PLAIN}, more=True),
    _attention("float64", 1024, 1024, 64, 64, {"attention": Units.DOUBLE}, more=True),
    _attention("float16", 1000, 1000, 80, 24, {"attention": Units.MATRIX}, more=True),
    _pooled("bfloat16"),
]
