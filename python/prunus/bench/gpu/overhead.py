"""What the host takes to make a call, and whether operations are captured in CUDA graphs and never wait."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

import prunus as pr
from prunus.bench.gpu import peers
from prunus.bench.gpu.bench import OURS, Bench, MissingError, first_line
from prunus.bench.gpu.operands import KIND, weights
from prunus.bench.gpu.record import Case
from prunus.bench.gpu.timing import captured, refusing_to_wait

__all__ = ["CALL", "CAPTURE", "SYNC", "run"]

#: What the rows are called.
CALL: Final = "host time of W @ x"
CAPTURE: Final = "CUDA graph replay equals eager"
SYNC: Final = "no synchronisation"

_BLOCK: Final = 32
_TURNS: Final = 5


class _Operation(NamedTuple):
    """An operation of one operand that changes between calls."""

    name: str
    x: Any
    run: Callable[[Any], Any]


def run(bench: Bench) -> None:
    """Time calls of a tiny product, and look at operations."""
    _calls(bench)
    operations = [] if bench.budget.over else _operations(bench)
    for operation in operations:
        for what, look in ((SYNC, _sync), (CAPTURE, _capture)):
            case = Case("overhead", what, KIND, detail=operation.name)
            if bench.budget.over:
                bench.add(case, OURS, "ours", "skipped", f"{bench.budget.minutes:g} minutes were up")
                continue
            try:
                result = operation.run(operation.x)  # compiled
                if not isinstance(result, bench.torch.Tensor):
                    raise TypeError(f"a result that is no tensor: {type(result).__name__}")
                peers.needs_gpu(bench.where)
                wrong = look(bench, operation)
            except MissingError as why:
                bench.add(case, OURS, "ours", "missing", str(why))
            except Exception as error:
                bench.add(case, OURS, "ours", "failed", first_line(error))
            else:
                bench.add(case, OURS, "ours", "wrong" if wrong else "held", wrong)
    bench.tidy()


def _calls(bench: Bench) -> None:
    size = bench.sizes.little
    dense = bench.randn(size, size)
    w = weights(bench, dense, min(_BLOCK, size), 0.5).ours()
    x = bench.randn(size, 16)
    out = bench.torch.empty_like(x)
    # What is timed is made by a function, since that may fail as well.
    calls: list[tuple[str, str, Callable[[], Callable[[], Any]]]] = [
        (OURS, "ours", lambda: lambda: w @ x),
        (f"{OURS} out=", "ours", lambda: lambda: pr.matmul(w, x, out=out)),
        (f"{OURS} graph", "ours", lambda: _replays(bench, lambda: w @ x)),
        ("torch dense", "dense", lambda: lambda: dense @ x),
    ]
    case = Case("overhead", CALL, KIND, size, min(_BLOCK, size), 16)
    for name, kind, make in calls:
        try:
            call = make()
            call()
            timed = bench.timer.host(call, _TURNS)
        except MissingError as why:
            bench.add(case, name, kind, "missing", str(why))
        except Exception as error:
            bench.add(case, name, kind, "failed", first_line(error))
        else:
            bench.timed(case, name, kind, timed)


def _replays(bench: Bench, call: Callable[[], Any]) -> Callable[[], Any]:
    """Return what replays a call."""
    peers.needs_gpu(bench.where)
    call()
    graph, _ = captured(call)
    replay: Callable[[], Any] = graph.replay
    return replay


def _operations(bench: Bench) -> list[_Operation]:
    """Return operations that are to be captured, on operands that are small and ragged."""
    size = bench.sizes.little
    dense = bench.randn(size, size, scale=size**-0.5)
    w = weights(bench, dense, min(_BLOCK, size), 0.5).ours()
    packed = w.pack()
    x = bench.randn(size, 17)
    rows = bench.randn(9, size)
    mask = pr.BlockMask.random((size, size), 16, 0.5, 3)
    heads = bench.randn(4, size, 32)
    keys, values = bench.randn(4, size, 32), bench.randn(4, size, 32)
    gate = bench.randn(size, size, scale=size**-0.5)
    layer = partial(pr.ffn, w_up=dense, w_down=gate, activation="relu", prune=pr.Threshold(0.0))
    router = bench.randn(4, size, scale=size**-0.5)
    experts = bench.randn(4, size, size, scale=size**-0.5)
    attend = partial(pr.attention, k=keys, v=values, blocksize=16)
    found = [
        _Operation("W @ x", x, lambda x: w @ x),
        _Operation("W.T @ x", x, lambda x: w.T @ x),
        _Operation("x @ W, packed", rows, lambda x: x @ packed),
        _Operation("sddmm", x, lambda x: pr.sddmm(x, x.T, w).data),
        _Operation(
            "linear + threshold",
            rows,
            lambda x: pr.linear(x, dense, activation="relu", prune=pr.Threshold(0.0), branch=16).toarray(),
        ),
        _Operation("ffn + threshold", rows, layer),
        _Operation("moe", rows, lambda x: pr.moe(x, router, experts, experts, top_k=2)),
        _Operation("attention, causal", heads, partial(attend, causal=True)),
        _Operation("attention + top k", heads, partial(attend, prune=pr.TopK(fraction=0.5), causal=True)),
        _Operation("attention, block mask", heads, partial(attend, mask=mask)),
    ]
    return found


def _sync(bench: Bench, operation: _Operation) -> str:
    """Say what waits for the device; nothing: an empty text."""
    cuda = bench.torch.cuda
    cuda.synchronize()
    try:
        with refusing_to_wait():
            operation.run(operation.x)
    except RuntimeError as error:
        return first_line(error)
    finally:
        cuda.synchronize()
    return ""


def _capture(bench: Bench, operation: _Operation) -> str:
    """Say how a replay on another operand differs from the operation itself; not at all: an empty text."""
    torch = bench.torch
    x = operation.x.clone()
    operation.run(x)
    torch.cuda.synchronize()
    graph, replayed = captured(partial(operation.run, x))
    x.copy_(operation.x.flip(0))
    graph.replay()
    torch.cuda.synchronize()
    expected = operation.run(x)
    if torch.equal(replayed, expected):
        return ""
    return f"off by {float((replayed.float() - expected.float()).abs().max()):.1e}"
