"""Layers: ``linear``, ``FFN`` and ``ffn``."""

from __future__ import annotations

from typing import Any

from prunus.cuda.arrays import BSR
from prunus.cuda.compiling.case import Case, Units, blocks, tensor
from prunus.cuda.layers.ffn import ffn
from prunus.cuda.layers.linear import linear
from prunus.cuda.layers.packed import FFN
from prunus.cuda.runtime import Place
from prunus.pruning.policies import Fixed, Policy, Threshold, TopK

__all__ = ["CASES"]

_UNITS, _WIDTH = 14336, 4096


def _linear(
    dtype: str,
    count: int,
    prune: Policy,
    units: dict[str, Units],
    *,
    branch: int = 32,
    blockrows: int = 16,
    block: int | None = None,
    members: int | None = None,
    more: bool = False,
) -> Case:
    """Return live branches of a layer; with ``block``, of block-sparse weights."""

    def call(where: Place) -> None:
        lead = (count,) if members is None else (members, count)
        x, b = tensor(where, *lead, _WIDTH, dtype=dtype), tensor(where, _UNITS, dtype=dtype)
        w: Any = tensor(where, _UNITS, _WIDTH, dtype=dtype)
        if block is not None:
            w = BSR._wrap(blocks(where, (_UNITS, _WIDTH), (block, block), dtype), (), where)
        linear(x, w, b, activation="relu", prune=prune, branch=branch, blockrows=blockrows)

    told = [f"linear, {count} rows, {_UNITS} units of {_WIDTH}", f"branches of {branch}", repr(prune)]
    told += [f"blocks {block}"] if block else []
    told += [f"{members} members"] if members else []
    return Case(", ".join(told), dtype, call, units, more=more)


def _ffn(
    dtype: str,
    count: int,
    prune: Policy | None,
    units: dict[str, Units],
    *,
    gated: bool = True,
    decide: str | None = "up",
    branch: int = 1,
    more: bool = False,
) -> Case:
    """Return a feed-forward layer; not packed without ``decide``."""

    def call(where: Place) -> None:
        x = tensor(where, count, _WIDTH, dtype=dtype)
        up, down, gate = (
            tensor(where, *size, dtype=dtype)
            for size in ((_UNITS, _WIDTH), (_WIDTH, _UNITS), (_UNITS, _WIDTH))
        )
        b_up, b_down = tensor(where, _UNITS, dtype=dtype), tensor(where, _WIDTH, dtype=dtype)
        third = gate if gated else None
        if decide is None:
            ffn(x, up, down, third, b_up, b_down, "silu", prune, branch)
        else:
            FFN.pack(up, down, third, decide, b_up=b_up, b_down=b_down)(x, "silu", prune, branch)

    told = [f"{'ffn' if decide is None else 'FFN'}, {count} rows, {_WIDTH} to {_UNITS} to {_WIDTH}"]
    told += [f"decided by {decide}"] if decide else []
    told += ["gated"] if gated else []
    told += [f"branches of {branch}"] if branch > 1 else []
    told += [repr(prune)]
    return Case(", ".join(told), dtype, call, units, more=more)


def _every(step: int, branches: int) -> Fixed:
    """Return a mask that keeps one branch in so many."""
    return Fixed([at % step == 0 for at in range(branches)])


_COPIES = {"needed": Units.PLAIN, "gather": Units.PLAIN}
_FEW = {"dots_few": Units.PLAIN, "combine_few": Units.PLAIN}
_KNOWN = {"gated_few": Units.PLAIN, "combine_few": Units.PLAIN}
_MANY = {"dots": Units.NATIVE, "combine": Units.NATIVE}

CASES = [
    _linear("bfloat16", 1, Threshold(0.0), {"dots_few": Units.PLAIN, **_COPIES}),
    _linear("bfloat16", 512, Threshold(0.0), {"dots": Units.NATIVE, **_COPIES}),
    _linear("bfloat16", 512, TopK(fraction=0.1), {"dots": Units.NATIVE, **_COPIES}, members=4, more=True),
    _linear("bfloat16", 512, _every(10, 448), {"dots": Units.NATIVE, **_COPIES}, blockrows=128),
    _linear(
        "bfloat16", 512, Threshold(0.0), {"dsd": Units.NATIVE, "settle": Units.PLAIN, **_COPIES}, block=64
    ),
    _linear("bfloat16", 512, _every(10, 448), {"restrict": Units.PLAIN, "dsd": Units.NATIVE}, block=64),
    _linear(
        "float32", 512, Threshold(0.0), {"dots": Units.PLAIN, **_COPIES}, branch=1, blockrows=1, more=True
    ),
    _linear("float64", 64, Threshold(0.0), {"dots": Units.DOUBLE, **_COPIES}, branch=33, more=True),
    _ffn("bfloat16", 512, None, {"gated": Units.PLAIN}),
    _ffn("float32", 1, None, {"gated": Units.PLAIN}, more=True),
    _ffn("bfloat16", 1, Threshold(0.1), _FEW),
    _ffn("bfloat16", 1, _every(10, _UNITS), _KNOWN, decide="predictor"),
    _ffn("float32", 4, _every(10, _UNITS), _KNOWN, decide="predictor", more=True),
    _ffn("bfloat16", 1, Threshold(0.1), _FEW, gated=False, more=True),
    _ffn("bfloat16", 512, Threshold(0.1), _MANY, decide="gate"),
    _ffn("bfloat16", 512, Threshold(0.1), _MANY, branch=16, more=True),
    _ffn("bfloat16", 512, TopK(fraction=0.1), _MANY, gated=False, more=True),
    _ffn("bfloat16", 1, TopK(fraction=0.1), {"largest": Units.PLAIN, **_FEW}),
    _ffn("float16", 512, _every(10, _UNITS), _MANY, more=True),
    _ffn("bfloat16", 1, Threshold(0.1), {"dots_few": Units.PLAIN, "repair": Units.PLAIN}, decide=None),
    _ffn("bfloat16", 512, Threshold(0.1), {"dots": Units.NATIVE, "repair": Units.PLAIN}, decide=None),
    _ffn("float64", 64, Threshold(0.1), {"repair": Units.PLAIN}, decide=None, more=True),
]
