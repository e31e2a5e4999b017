"""Attention over block masks beside FlexAttention and torch's scaled_dot_product_attention; decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import prunus as pr
from prunus.bench.gpu import peers
from prunus.bench.gpu.bench import OURS, Bench, Entry, once
from prunus.bench.gpu.operands import KIND
from prunus.bench.gpu.record import Case
from prunus.bench.gpu.sizes import Attention
from prunus.bench.gpu.timing import Call

__all__ = ["run"]

_SHARE = 0.1
# Blocks of keys that a query of a window sees.
_WINDOW = 8


# What makes a call of queries, keys and values.
_Make = Callable[[Any, Any, Any], Call]


class _Heads(NamedTuple):
    """Queries, keys and values (heads, positions, features), and which blocks see which; None: all."""

    q: Any
    k: Any
    v: Any
    grid: Any | None
    causal: bool
    block: int

    @property
    def shared(self) -> bool:
        """Whether several heads have the same keys and values."""
        return len(self.q) != len(self.k)

    @property
    def mask(self) -> Any:
        """The pattern, as prunus takes it."""
        if self.grid is None:
            return None
        n, m = self.q.shape[1], self.k.shape[1]
        blocks = self.grid.cpu().numpy()
        side = self.block
        return pr.BlockMask.from_dense(np.repeat(np.repeat(blocks, side, 0), side, 1)[:n, :m], blocksize=side)

    def sees(self, torch: Any) -> Any:
        """Return which queries see which keys, (n, m)."""
        n, m = self.q.shape[1], self.k.shape[1]
        at = torch.arange(m, device=self.q.device)
        query = torch.arange(n, device=self.q.device)[:, None] + (m - n if self.causal else 0)
        seen = (at <= query) if self.causal else (at >= 0).expand(n, m)
        if self.grid is not None:
            row = torch.arange(n, device=self.q.device) // self.block
            seen = seen & self.grid[row][:, at // self.block]
        return seen


def run(bench: Bench) -> None:
    """Race for all patterns and heads, and for one query."""
    sizes = bench.sizes
    n, block = sizes.length, sizes.block
    blocks = -(-n // block)
    at = bench.torch.arange(blocks, device=bench.device)
    near = (at[:, None] - at).abs() < min(_WINDOW, max(blocks // 2, 1))
    some = bench.grid(blocks, blocks, _SHARE) | (at[:, None] == at)
    for heads in sizes.attention:
        for what, grid, causal in (
            ("causal", None, True),
            ("causal window", near, True),
            ("random blocks", some, False),
        ):
            bench.race(_line_up(bench, what, _heads(bench, heads, n, n, grid, causal)))
    heads = sizes.decoding
    few = bench.grid(1, -(-sizes.keys // block), _SHARE)
    for what, grid in (("one query", None), ("one query, random blocks", few)):
        bench.race(_line_up(bench, what, _heads(bench, heads, 1, sizes.keys, grid, False)))


def _heads(bench: Bench, heads: Attention, n: int, m: int, grid: Any, causal: bool) -> _Heads:
    q = bench.randn(heads.heads, n, heads.features)
    k, v = (bench.randn(heads.groups, m, heads.features) for _ in range(2))
    return _Heads(q, k, v, grid, causal, bench.sizes.block)


def _line_up(bench: Bench, what: str, heads: _Heads) -> list[Entry]:
    torch = bench.torch
    count, n, d = heads.q.shape
    m = int(heads.k.shape[1])
    share = float(heads.sees(torch).float().mean())
    detail = f"{count} heads, d={d}" + (f", {len(heads.k)} of keys" if len(heads.k) < count else "")
    case = Case("attention", what, KIND, m, heads.block, n, round(share, 6), detail)
    flops = 4.0 * share * count * n * m * d
    # Keys that no query sees are not read.
    used = float(heads.sees(torch).any(0).float().mean())
    nbytes = 2.0 * (2 * heads.q.numel() + used * 2 * heads.k.numel())
    reference = once(partial(_exact, bench, heads))
    lines: list[tuple[str, str, Callable[[], _Make], Any]] = [
        (OURS, "ours", partial(_ours, heads), None),
        (peers.FLEX, "peer", partial(_flex, bench, heads), _first),
        (peers.SDPA, "peer", partial(_sdpa, bench, heads), _first),
    ]
    several = partial(_several, bench, flops, nbytes, heads)
    return [
        Entry(case, name, kind, partial(several, begin), reference, flops, nbytes, dense)
        for name, kind, begin, dense in lines
    ]


def _several(
    bench: Bench, flops: float, nbytes: float, heads: _Heads, begin: Callable[[], _Make]
) -> Sequence[Call]:
    """Return calls on sets of operands; what they have in common is made once."""
    make = begin()
    calls = [make(heads.q, heads.k, heads.v)]
    for _ in range(bench.sets(flops, nbytes) - 1):
        calls.append(make(heads.q.clone(), heads.k.clone(), heads.v.clone()))
    return calls


def _first(result: Any) -> Any:
    return result[0]


def _ours(heads: _Heads) -> _Make:
    mask = heads.mask
    given = {"mask": mask, "causal": heads.causal, "blocksize": heads.block}
    return lambda q, k, v: lambda: pr.attention(q, k, v, **given)


def _flex(bench: Bench, heads: _Heads) -> _Make:
    attend, make_mask = peers.flex(bench.where)
    grid, block, causal = heads.grid, heads.block, heads.causal
    n, m = int(heads.q.shape[1]), int(heads.k.shape[1])

    def sees(batch: Any, head: Any, query: Any, key: Any) -> Any:
        seen = query + (m - n) >= key if causal else key >= 0
        return seen if grid is None else seen & grid[query // block, key // block]

    pattern = causal or grid is not None
    mask = make_mask(sees, None, None, n, m, device=str(heads.q.device)) if pattern else None
    given = {"block_mask": mask, "enable_gqa": heads.shared}
    return lambda q, k, v: lambda: attend(q[None], k[None], v[None], **given)


def _sdpa(bench: Bench, heads: _Heads) -> _Make:
    attend = bench.torch.nn.functional.scaled_dot_product_attention
    plain = heads.grid is None
    mask = None if plain else heads.sees(bench.torch)
    given = {"attn_mask": mask, "is_causal": heads.causal and plain, "enable_gqa": heads.shared}
    return lambda q, k, v: lambda: attend(q[None], k[None], v[None], **given)


def _exact(bench: Bench, heads: _Heads) -> Any:
    """Compute it head by head in float32."""
    torch = bench.torch
    share = len(heads.q) // len(heads.k)
    hidden = ~heads.sees(torch)
    results = []
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        for at, q in enumerate(heads.q):
            scores = q.float() @ heads.k[at // share].float().T * q.shape[-1] ** -0.5
            shares = torch.softmax(scores.masked_fill_(hidden, -torch.inf), dim=-1)
            results.append(shares @ heads.v[at // share].float())
    finally:
        torch.set_float32_matmul_precision(before)
    return torch.stack(results)
