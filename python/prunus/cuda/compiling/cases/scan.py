"""Selective scans, and the norms of their gates."""

from __future__ import annotations

from prunus._layout import blocks_along
from prunus.cuda import scan as scans
from prunus.cuda.compiling.case import Case, Units, tensor
from prunus.cuda.runtime import Place

__all__ = ["CASES"]


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
    _scan("bfloat16", 4096, 5120),
    _scan("float32", 512, 1536, more=True),
    _scan("float64", 2048, 768, more=True),
]
