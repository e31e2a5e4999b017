"""Mixtures of experts beside torch's grouped product, and a loop over experts."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import prunus as pr
from prunus.bench.gpu import peers
from prunus.bench.gpu.bench import OURS, Bench, Entry, once
from prunus.bench.gpu.operands import KIND, multiply
from prunus.bench.gpu.record import Case
from prunus.bench.gpu.sizes import Experts
from prunus.bench.gpu.timing import Call

__all__ = ["run"]

_CHOSEN = 2


class _Mixture(NamedTuple):
    """Experts on axis 0, as prunus takes them, and what a router said of each token."""

    x: Any
    logits: Any
    up: Any
    gate: Any
    down: Any


def run(bench: Bench) -> None:
    """Race for all mixtures."""
    for size in bench.sizes.experts:
        bench.race(_line_up(bench, size))


def _line_up(bench: Bench, size: Experts) -> list[Entry]:
    e, d, f = size
    tokens = bench.sizes.tokens
    up, gate = (bench.randn(e, f, d, scale=d**-0.5) for _ in range(2))
    down = bench.randn(e, d, f, scale=f**-0.5)
    # Given, and in float32: who computes them would otherwise decide which experts are the largest.
    logits = bench.randn(tokens, e, dtype=bench.torch.float32)
    m = _Mixture(bench.randn(tokens, d), logits, up, gate, down)
    case = Case("moe", f"moe of {e}", KIND, f, 0, tokens, _CHOSEN / e, f"top {_CHOSEN}, {d} features")
    flops = 2.0 * 3 * d * f * tokens * _CHOSEN
    nbytes = 2.0 * 3 * e * d * f + 4.0 * tokens * d
    reference = once(partial(_loop, bench, m, True))

    def ours() -> list[Call]:
        return [lambda: pr.moe(m.x, None, up, down, gate, top_k=_CHOSEN, logits=logits)]

    def grouped() -> list[Call]:
        return [partial(_grouped, bench, m, peers.grouped(bench.where))]

    def loop() -> list[Call]:
        return [partial(_loop, bench, m, False)]

    return [
        Entry(case, name, kind, make, reference, flops, nbytes)
        for name, kind, make in (
            (OURS, "ours", ours),
            (peers.GROUPED, "peer", grouped),
            (peers.LOOP, "peer", loop),
        )
    ]


def _routed(bench: Bench, m: _Mixture) -> tuple[Any, Any]:
    """Return weights and experts of each token, (tokens, chosen)."""
    values, experts = bench.torch.topk(m.logits, _CHOSEN, dim=-1)
    return bench.torch.softmax(values, dim=-1), experts


def _grouped(bench: Bench, m: _Mixture, product: Any) -> Any:
    """Compute it by torch's grouped product, on rows sorted by expert: nothing is read back."""
    torch = bench.torch
    weights, experts = _routed(bench, m)
    flat = experts.reshape(-1)
    order = torch.argsort(flat, stable=True)
    every = torch.arange(len(m.up), device=flat.device)
    offsets = torch.searchsorted(flat[order], every, right=True).to(torch.int32)
    rows = m.x[order // _CHOSEN]
    hidden = torch.nn.functional.silu(product(rows, m.gate.transpose(1, 2), offsets))
    hidden = hidden * product(rows, m.up.transpose(1, 2), offsets)
    out = product(hidden, m.down.transpose(1, 2), offsets)
    scattered = torch.empty_like(out)
    scattered[order] = out
    parts = scattered.view(*weights.shape, -1)
    return (parts * weights[:, :, None].to(parts.dtype)).sum(1)


def _loop(bench: Bench, m: _Mixture, exact: bool) -> Any:
    """Compute it expert by expert, in float32 where it is to be ``exact``."""
    torch = bench.torch
    weights, experts = _routed(bench, m)
    result = torch.zeros(m.x.shape, dtype=torch.float32 if exact else m.x.dtype, device=m.x.device)
    product = partial(multiply, bench) if exact else torch.matmul
    for at in range(len(m.up)):
        row, turn = (experts == at).nonzero(as_tuple=True)
        rows = m.x[row]
        hidden = torch.nn.functional.silu(product(rows, m.gate[at].T)) * product(rows, m.up[at].T)
        part = product(hidden, m.down[at].T) * weights[row, turn, None].to(result.dtype)
        result.index_add_(0, row, part)
    return result
