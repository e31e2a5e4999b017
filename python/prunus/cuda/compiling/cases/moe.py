"""Mixtures of experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunus.cuda.arrays import BSR
from prunus.cuda.compiling.case import Case, Units, blocks, tensor
from prunus.cuda.grouped import outer
from prunus.cuda.layers.moe import moe
from prunus.cuda.runtime import Place
from prunus.pruning.policies import Threshold

if TYPE_CHECKING:
    import torch

__all__ = ["CASES"]


def _moe(
    dtype: str,
    rows: int,
    units: Units,
    *,
    experts: int = 8,
    sizes: tuple[int, int] = (4096, 14336),
    top_k: int = 2,
    gated: bool = True,
    apart: bool = False,
    shared: bool = False,
    prune: float | None = None,
    block: int | None = None,
    turned: bool = False,
    more: bool = False,
) -> Case:
    """Return a mixture; with ``apart`` each expert's matrices stand by themselves.

    With ``block`` they are block-sparse, each by itself; with ``turned`` transposes of what is stored.
    """

    def call(where: Place) -> None:
        d, f = sizes
        x, router = tensor(where, rows, d, dtype=dtype), tensor(where, experts, d, dtype=dtype)
        parts = [tensor(where, experts, *size, dtype=dtype) for size in ((f, d), (d, f), (f, d))]
        given: list[Any] = [list(part) for part in parts] if apart else parts
        if block is not None:
            given = [[_blocks(where, w, block, turned) for w in part] for part in parts]
        up, down, gate = given if gated else (*given[:2], None)
        always = (parts[0][0], parts[1][0]) if shared else None
        policy = None if prune is None else Threshold(prune)
        moe(x, router, up, down, gate, top_k, shared=always, prune=policy)

    told = [f"{rows} rows, {top_k} of {experts} experts {sizes[0]} x {sizes[1]}"]
    told += ["no gate"] if not gated else []
    told += ["apart"] if apart else []
    told += ["shared"] if shared else []
    told += ["pruned"] if prune is not None else []
    told += [f"blocks {block}"] if block is not None else []
    told += ["transposed"] if turned else []
    if block is not None:
        return Case(", ".join(told), dtype, call, {"grouped_blocks": units}, more=more)
    kernels = {"grouped": units}
    if prune is not None:
        kernels["grouped_live"] = Units.MATRIX if units is Units.NATIVE else units
    return Case(", ".join(told), dtype, call, kernels, more=more)


def _outer(dtype: str, units: Units, *, sizes: tuple[int, int] = (4096, 14336), more: bool = False) -> Case:
    """Return gradients of 8 experts' matrices."""

    def call(where: Place) -> None:
        d, f = sizes
        a, b = tensor(where, 16384, f, dtype=dtype), tensor(where, 16384, d, dtype=dtype)
        outer(where, a, b, tensor(where, 9, dtype="int32"), tensor(where, 8, f, d, dtype=dtype))

    name = f"gradients of 8 experts {sizes[0]} x {sizes[1]}"
    return Case(name, dtype, call, {"grouped_outer": units}, more=more)


def _blocks(where: Place, w: torch.Tensor, block: int, turned: bool) -> BSR:
    """Return a block-sparse matrix of a dense one's shape."""
    shape = (int(w.shape[1]), int(w.shape[0])) if turned else (int(w.shape[0]), int(w.shape[1]))
    dtype = str(w.dtype).removeprefix("torch.")
    made = BSR._wrap(blocks(where, shape, (block, block), dtype, 0.25), (), where)
    return made.T if turned else made


CASES = [
    _moe("bfloat16", 8192, Units.NATIVE),
    _moe("bfloat16", 1, Units.MATRIX),
    _moe("bfloat16", 64, Units.MATRIX, experts=64, sizes=(2048, 1408), top_k=6, shared=True),
    _moe("bfloat16", 4096, Units.NATIVE, experts=64, sizes=(2048, 1408), top_k=6, apart=True, more=True),
    _moe("bfloat16", 32, Units.MATRIX, experts=256, sizes=(7168, 2048), top_k=8, more=True),
    _moe("float16", 1024, Units.NATIVE, experts=128, sizes=(2048, 768), top_k=8, more=True),
    _moe("bfloat16", 256, Units.NATIVE, gated=False, more=True),
    _moe("bfloat16", 1024, Units.NATIVE, prune=0.1),
    _moe("bfloat16", 4, Units.MATRIX, prune=0.1, more=True),
    _moe("bfloat16", 1024, Units.NATIVE, block=64, top_k=2),
    _moe("bfloat16", 1024, Units.MATRIX, block=64, prune=0.1),
    _moe("bfloat16", 1, Units.MATRIX, block=128, more=True),
    _moe("float16", 1024, Units.NATIVE, block=32, turned=True, more=True),
    _moe("bfloat16", 64, Units.MATRIX, block=48, turned=True, prune=0.1, more=True),
    _moe("bfloat16", 64, Units.MATRIX, block=8, more=True),
    _moe("float32", 256, Units.PLAIN, sizes=(512, 1024), block=32, prune=0.1, more=True),
    _moe("float64", 64, Units.DOUBLE, sizes=(512, 1024), block=32, more=True),
    _moe("float32", 256, Units.PLAIN, sizes=(512, 1024), more=True),
    _moe("float32", 256, Units.PLAIN, sizes=(512, 1024), prune=0.1, more=True),
    _moe("float64", 256, Units.DOUBLE, sizes=(512, 1024), more=True),
    _outer("bfloat16", Units.NATIVE),
    _outer("float16", Units.NATIVE, sizes=(64, 48), more=True),
    _outer("float32", Units.PLAIN, sizes=(512, 1024), more=True),
    _outer("float64", Units.DOUBLE, sizes=(512, 1024), more=True),
]
