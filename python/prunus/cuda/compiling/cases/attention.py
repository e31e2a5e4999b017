"""Attention, and selective scans."""

from __future__ import annotations

from typing import Any

from prunus._layout import blocks_along
from prunus.cuda import scan as scans
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
    told += [] if precision == "highest" else ["tf32"]
    return Case(", ".join(told), dtype, call, {"attention": units}, more=more, archs=archs)


def _scan(dtype: str, length: int, channels: int, states: int = 16, more: bool = False) -> Case:
    """Return a selective scan as Mamba has it."""

    def call(where: Place) -> None:
        u = tensor(where, 1, length, channels, dtype=dtype)
        delta, z, out = (tensor(where, 1, length, channels, dtype=dtype) for _ in range(3))
        wide = "float64" if dtype == "float64" else "float32"
        a = tensor(where, channels, states, dtype=wide)
        b, c = (tensor(where, 1, length, states, dtype=dtype) for _ in range(2))
        d = tensor(where, channels, dtype=wide)
        state = tensor(where, 1, channels, states, dtype=wide)
        live = tensor(where, length, blocks_along(channels, 16), dtype="bool")
        norms = tensor(where, length, blocks_along(channels, 16), dtype="float32")
        scans.gates(where, z, 16, "max", norms)
        scans.gates(where, z, 16, "l2", norms)
        scans.scan(where, u, delta, a, b, c, d, z, d, True, state, out)
        scans.scan(where, u, delta, a, b, c, d, z, d, True, None, out, live, 16)

    name = f"scan of {length} steps, {channels} channels, {states} states"
    return Case(name, dtype, call, {"scan": Units.PLAIN}, more=more)


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
    _attention("float16", 4096, 4096, Units.NATIVE, d=80, causal=False, more=True),
    _attention("float32", 1024, 1024, Units.PLAIN, d=64),
    _attention("float32", 1024, 1024, Units.PLAIN, block=64, more=True),
    _attention("float32", 1024, 1024, Units.PLAIN, d=256, more=True),
    _attention("float32", 1024, 1024, Units.MATRIX, precision="high", more=True),
    _attention("float64", 512, 512, Units.DOUBLE, d=64, block=64, more=True),
    _attention("float64", 512, 512, Units.DOUBLE, d=256, more=True),
    _scan("bfloat16", 4096, 5120),
    _scan("float32", 512, 1536, more=True),
    _scan("float64", 2048, 768, more=True),
]
