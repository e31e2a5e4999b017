"""Who computes attention, and its gradients: fused forward, and products at the live blocks for the rest.

With ``s`` the scale, ``P = softmax(s Q K^T)`` at the live blocks, ``O = P V`` and gradients ``dO``:

    A = dO V^T,  dS = P * (A - rowsum(P * A)),  dQ = s dS K,  dK = s dS^T Q,  dV = P^T dO

(Dao et al., "FlashAttention", 2022, appendix B.2). With gradients ``gQ, gK, gV`` of these in turn,
``B = s (gQ K^T + Q gK^T)`` and ``C = dO gV^T``, the derivatives of ``sum(B * dS) + sum(C * P)`` by A, P and
S are

    dA = P * (B - beta),  dP = A * B - delta B - beta A + C,  H = P * (dP - rowsum(P * dP))

where ``delta = rowsum(P * A)`` and ``beta = rowsum(P * B)``. Nothing of the size of the scores outlives a
call: P is computed anew from Q and K, of a few heads at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from prunus import engines
from prunus._device import on_device
from prunus._layout import blocks_along
from prunus.pruning.attention import Call, live_blocks
from prunus.pruning.policies import Policy
from prunus.torch.blocks import pattern_of, rows_of
from prunus.torch.ops import kernels
from prunus.torch.ops.kernels import Parts, host
from prunus.torch.rows import softmax, sums

__all__ = ["backward", "decide", "double_backward", "forward"]

# Scores that exist at once in host memory: heads are taken together while they have fewer.
_TOGETHER = 1 << 22


def forward(
    q: Tensor, k: Tensor, v: Tensor, live: Tensor | None, scale: float, causal: bool, size: int
) -> Tensor:
    """Return attention; see :func:`prunus.torch.ops.attention.attention`."""
    out = q.new_empty((*q.shape[:-1], v.shape[-1]))
    if 0 in out.shape:
        return out
    if on_device(q):
        from prunus.cuda.attention import attention as there
        from prunus.cuda.runtime import place_of

        there(place_of(q), q, k, v, out, live, scale, causal, size)
        return out
    grid = None if live is None else host(live)
    engines.active().attention(host(q), host(k), host(v), host(out), grid, scale, causal, size)
    return out


def decide(policy: Policy, q: Tensor, k: Tensor, grid: Tensor | None, *rest: object) -> Tensor:
    """Return the blocks (*batch, heads, rows, cols) that a policy keeps; ``rest`` is scale, causal, size."""
    scale, causal, size = rest
    blocks = tuple(blocks_along(int(x.shape[-2]), int(size)) for x in (q, k))  # type: ignore[call-overload]
    if 0 in q.shape[:-1] or not k.shape[-2]:
        return torch.zeros(*q.shape[:-2], *blocks, dtype=torch.bool, device=q.device)
    if on_device(q):
        from prunus.cuda.layers.attention import live_blocks as there
        from prunus.cuda.runtime import place_of

        call = Call(q, k, k, scale, causal, size, False)  # type: ignore[arg-type]
        return there(policy, call, grid, place_of(q)).contiguous()
    call = Call(host(q), host(k), host(k), scale, causal, size, False)  # type: ignore[arg-type]
    return torch.from_numpy(live_blocks(policy, call, None if grid is None else host(grid)))


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    live: Tensor | None,
    scale: float,
    causal: bool,
    size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v."""
    made = _Sums(q, k, v)
    for part in _parts(q, k, live, causal, size):
        d_o, q_, k_, v_ = made.of(part, grad, q, k, v)
        p = part.weights(q_, k_, scale)
        d_s, _ = part.through(p, part.product(d_o, v_))
        p, d_s = (x.to(q.dtype) for x in (p, d_s.mul_(scale)))
        made.add(part, part.times(d_s, k_), part.times(d_s, q_, True), part.times(p, d_o, True))
    return made.done()


def double_backward(
    g_q: Tensor,
    g_k: Tensor,
    g_v: Tensor,
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    live: Tensor | None,
    scale: float,
    causal: bool,
    size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of what :func:`backward` takes: grad, q, k and v."""
    made, of_grad = _Sums(q, k, v), _Sums(grad, k, v)
    for part in _parts(q, k, live, causal, size):
        d_o, q_, k_, v_ = made.of(part, grad, q, k, v)
        gq, gk, gv = made.of(part, g_q, g_k, g_v)
        p = part.weights(q_, k_, scale)
        a, c = part.product(d_o, v_), part.product(d_o, gv)
        b = part.product(gq, k_).add_(part.product(q_, gk)).mul_(scale)
        d_s, delta = part.through(p, a)
        d_a, beta = part.through(p, b)
        d_p = a * b - part.spread(delta) * b - part.spread(beta) * a + c
        h, _ = part.through(p, d_p)
        p, d_s, h, d_a = (x.to(q.dtype) for x in (p, d_s.mul_(scale), h.mul_(scale), d_a))
        made.add(
            part,
            part.times(h, k_).add_(part.times(d_s, gk)),
            part.times(h, q_, True).add_(part.times(d_s, gq, True)),
            part.times(d_a, d_o, True),
        )
        of_grad.add(part, part.times(d_a, v_).add_(part.times(p, gv)))
    return of_grad.done()[0], *made.done()


class _Part(NamedTuple):
    """Some heads, counted through the batch by what they share, and their live blocks.

    ``groups`` (of all members) and ``one`` say which heads: the ``one``-th of those that share keys in each.
    """

    groups: slice
    one: int
    indices: Tensor
    indptr: Tensor
    rows: Tensor
    hidden: tuple[Tensor, Tensor]
    sizes: tuple[int, int]
    size: int

    @property
    def lines(self) -> int:
        """Rows of blocks."""
        return (self.indptr.shape[1] - 1) * self.indptr.shape[0]

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the blocks of ``a @ b.T``, in the dtype of sums."""
        wide = torch.float64 if a.dtype == torch.float64 else torch.float32
        return kernels.sdd(a, b.mT, self.indices, self.indptr, (self.size, self.size), wide)

    def times(self, data: Tensor, x: Tensor, transposed: bool = False) -> Tensor:
        """Return blocks, or their transpose, times ``x``, in the dtype of sums."""
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        w = Parts(data, self.indices, self.indptr, *self.sizes, transposed)
        return kernels.dsd(w, x, None, False, wide)

    def weights(self, q: Tensor, k: Tensor, scale: float) -> Tensor:
        """Return P."""
        scores = self.product(q, k).mul_(scale)
        at, hidden = self.hidden
        scores[at] = scores[at].masked_fill(hidden, -torch.inf)
        return softmax(scores, self.rows, self.lines)

    def through(self, p: Tensor, d_p: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient ``P * (dP - rowsum(P * dP))`` through a softmax, and the sums."""
        total = sums((p * d_p).sum(-1), self.rows, self.lines)
        return (d_p - self.spread(total)).mul_(p), total

    def spread(self, values: Tensor) -> Tensor:
        """Return a value for each row to each block of it."""
        return values[self.rows][..., None]


class _Sums:
    """Gradients (*batch, heads, length, features), to which heads add theirs."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        self.groups = math.prod(k.shape[:-2])
        self.share = q.shape[-3] // max(k.shape[-3], 1)
        self.like = q, k, v
        # What several heads add to is kept as sums are.
        half = q.dtype in (torch.float16, torch.bfloat16)
        wide = torch.float32 if half and self.share > 1 else q.dtype
        self.q = torch.zeros(self.groups, self.share, *q.shape[-2:], dtype=q.dtype, device=q.device)
        self.k, self.v = (
            torch.zeros(self.groups, *x.shape[-2:], dtype=wide, device=x.device) for x in (k, v)
        )

    def of(self, part: _Part, *operands: Tensor) -> list[Tensor]:
        """Return a part's members (groups, length, features) of operands that have all heads."""
        found = []
        for x in operands:
            own = x.shape[-3] == self.like[0].shape[-3]
            each = x.reshape(self.groups, *([self.share] if own else []), *x.shape[-2:])
            found.append(each[part.groups, part.one] if own else each[part.groups])
        return found

    def add(self, part: _Part, q: Tensor, k: Tensor | None = None, v: Tensor | None = None) -> None:
        """Write a part's gradient of q, and add to those of k and v."""
        self.q[part.groups, part.one] = q.to(self.q.dtype)
        for total, one in ((self.k, k), (self.v, v)):
            if one is not None:
                total[part.groups] += one

    def done(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients."""
        made = (self.q, self.k, self.v)
        q, k, v = (x.to(one.dtype).reshape(one.shape) for x, one in zip(made, self.like, strict=True))
        return q, k, v


def _parts(q: Tensor, k: Tensor, live: Tensor | None, causal: bool, size: int) -> Iterator[_Part]:
    """Yield the heads that are computed together."""
    n, m = int(q.shape[-2]), int(k.shape[-2])
    groups = math.prod(k.shape[:-2])
    share = q.shape[-3] // max(k.shape[-3], 1)
    down, across = blocks_along(n, size), blocks_along(m, size)
    if 0 in (n, m, groups, share):
        return
    at = torch.arange(down, device=q.device)
    ends = ((at + 1) * size).clamp(max=n) + (m - n) if causal else torch.full_like(at, m)
    seen = torch.arange(across, device=q.device) * size < ends[:, None]
    each = (
        None
        if live is None
        else live.expand(*q.shape[:-2], down, across).reshape(groups, share, down, across)
    )
    for one in range(share):
        grid = seen.expand(groups, down, across) if each is None else each[:, one] & seen
        for part in _pieces(grid, size):
            indices, indptr = pattern_of(grid[part])
            rows = rows_of(indices, indptr)
            hidden = _hidden(rows % down, indices, (n, m), causal, size)
            yield _Part(part, one, indices, indptr, rows, hidden, (n, m), size)


def _pieces(grid: Tensor, size: int) -> Iterator[slice]:
    """Yield members of a grid (members, rows, cols) that together have few live blocks."""
    if on_device(grid):  # one launch for all
        yield slice(0, len(grid))
        return
    most, first, total = _TOGETHER // (size * size), 0, 0
    for member, count in enumerate(grid.sum((1, 2)).tolist()):
        if total and total + count > most:
            yield slice(first, member)
            first, total = member, 0
        total += count
    yield slice(first, len(grid))


def _hidden(
    rows: Tensor, cols: Tensor, sizes: tuple[int, int], causal: bool, size: int
) -> tuple[Tensor, Tensor]:
    """Return which blocks have scores that do not count, and where: (some,), (some, size, size)."""
    n, m = sizes
    first = cols.long() * size
    least = (rows * size + (m - n) if causal else torch.full_like(rows, m)).clamp(max=m - 1)
    at = (first + (size - 1) > least).nonzero()[:, 0]
    inside = torch.arange(size, device=rows.device)
    query = rows[at, None] * size + inside + (m - n)
    last = query.clamp(max=m - 1) if causal else torch.full_like(query, m - 1)
    return at, (first[at, None] + inside)[:, None, :] > last[..., None]
