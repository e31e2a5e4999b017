"""A mixture of experts beside torch: the chosen experts' own dense products, and all experts'."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

import prunus as pr
from prunus._config import cores
from prunus._table import format_table
from prunus.bench.machine import pinned
from prunus.bench.peers import Peers, WrongResultError, as_dtype, wide
from prunus.bench.report import milliseconds
from prunus.bench.timing import interleave

__all__ = ["Row", "Size", "measure", "report"]

TOP_K = 2
# Largest time over that of the chosen experts' products, and least gain over all experts, by tokens.
_LIMITS: dict[int, tuple[str, float]] = {1: ("all", 5.0), 4: ("all", 1.8), 64: ("chosen", 1.3)}
_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
# OpenMP threads spin about this long after a call; see `interleave`.
_SETTLE = 0.03


@dataclass(frozen=True, slots=True)
class Size:
    """How large the mixture is."""

    experts: int = 16
    features: int = 1024
    hidden: int = 4096


@dataclass(frozen=True, slots=True)
class Row:
    """One race.

    Attributes
    ----------
    dtype : str
        Type of weights and tokens.
    threads, tokens, touched, experts : int
        Threads of every library, rows of x, experts that at least one row chose, and how many there are.
    seconds : dict
        Medians by contestant: "prunus", "chosen" (the chosen experts' dense products), "all" (all experts').
    peer : str
        Whose dense products: "torch", or "numpy" where that is missing.
    roofline : float
        Seconds that reading the touched experts' weights takes at the memory's measured speed.
    error : float
        Largest difference from the peer, relative to its largest value.
    """

    dtype: str
    threads: int
    tokens: int
    touched: int
    experts: int
    seconds: dict[str, float]
    peer: str
    roofline: float
    error: float


def measure(
    rounds: int = 5,
    *,
    size: Size | None = None,
    tokens: Sequence[int] = (1, 4, 64),
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    threads: Sequence[int] | None = None,
) -> list[Row]:
    """Time `prunus.moe` beside dense products, in turn, round after round.

    Experts are gated (SiLU) and tokens take the best two. The time of `prunus.moe` includes the router and
    the grouping of rows; the dense products are told the groups.

    Parameters
    ----------
    rounds : int
        Timed calls of each contestant.
    size : Size, optional
        16 experts, 1024 features and 4096 hidden units by default.
    tokens : sequence of int
        Numbers of rows.
    dtypes : sequence of str
        "float32", "bfloat16".
    threads : sequence of int, optional
        One and all cores by default.

    Returns
    -------
    list of Row

    Raises
    ------
    WrongResultError
        If the two results differ by more than rounding.
    """
    size = size or Size()
    rng = np.random.default_rng(2024)
    shapes = [
        (size.experts, size.hidden, size.features),
        (size.experts, size.features, size.hidden),
        (size.experts, size.hidden, size.features),
    ]
    router = rng.standard_normal((size.experts, size.features), dtype=np.float32)
    master = [rng.standard_normal(shape, dtype=np.float32) / np.float32(32) for shape in shapes]
    peers = Peers(skip_slow=True)
    rows = []
    for dtype in dtypes:
        weights = [w.astype(as_dtype(dtype), copy=False) for w in master]
        for count in threads or sorted({1, cores()}):
            with pinned(count):
                speed = _read_speed(weights[0], count)
                for n in tokens:
                    x = rng.standard_normal((n, size.features)).astype(as_dtype(dtype))
                    rows.append(_race(x, router.astype(x.dtype), weights, peers, rounds, speed, count))
    return rows


def report(rows: Sequence[Row]) -> str:
    """Make a table of the races, with the goals that they are held against.

    Parameters
    ----------
    rows : sequence of Row
        What `measure` returned.
    """
    if not rows:
        return "moe: nothing was measured"
    head = ["dtype", "threads", "tokens", "experts", "prunus ms", "chosen ms", "all ms", "roofline ms"]
    head += ["/ chosen", "all /", "error", "goal"]
    cells = []
    for row in rows:
        own, chosen, every = (row.seconds[name] for name in ("prunus", "chosen", "all"))
        goal = ""
        if row.tokens in _LIMITS:
            which, limit = _LIMITS[row.tokens]
            reached = own <= limit * chosen if which == "chosen" else every >= limit * own
            text = f"/ chosen <= {limit}" if which == "chosen" else f"all / >= {limit}"
            goal = f"{text}: {'ok' if reached else 'MISSED'}"
        cells.append(
            [
                row.dtype,
                str(row.threads),
                str(row.tokens),
                f"{row.touched} of {row.experts}",
                *(milliseconds(seconds) for seconds in (own, chosen, every, row.roofline)),
                f"{own / chosen:.2f}",
                f"{every / own:.1f}",
                f"{row.error:.1e}",
                goal,
            ]
        )
    title = (
        f"mixture of experts, top {TOP_K}, gated SiLU: prunus.moe against {rows[0].peer}'s dense products of "
        "the chosen\nexperts and of all; the roofline is reading the chosen experts' weights once"
    )
    return f"{title}\n{format_table(head, cells)}"


def _race(
    x: NDArray[Any],
    router: NDArray[Any],
    weights: list[NDArray[Any]],
    peers: Peers,
    rounds: int,
    speed: float,
    threads: int,
) -> Row:
    """Time one number of tokens."""
    up, down, gate = weights
    logits = wide(x) @ wide(router).T
    chosen = np.argsort(-logits, axis=1, kind="stable")[:, :TOP_K]
    live = np.zeros(logits.shape, bool)
    np.put_along_axis(live, chosen, True, axis=1)
    power = np.where(live, np.exp(logits - logits.max(axis=1, keepdims=True)), 0)
    power /= power.sum(axis=1, keepdims=True)
    groups = {e: np.flatnonzero(live[:, e]) for e in np.flatnonzero(live.any(axis=0)).tolist()}
    every = {e: np.arange(len(x)) for e in range(len(up))}
    dense = _torch(peers, x, weights, power) if peers.torch is not None else _numpy(x, weights, power)
    calls: dict[str, Callable[[], Any]] = {
        "prunus": lambda: pr.moe(x, router, up, down, gate, TOP_K),
        "chosen": partial(dense, groups),
        "all": partial(dense, every),
    }
    results = {name: call() for name, call in calls.items()}
    right = results["chosen"]
    right = peers.read_tensor(right) if peers.torch is not None else wide(right)
    error = float(np.abs(wide(results["prunus"]) - right).max() / np.abs(right).max())
    if not error <= _TOLERANCE[str(x.dtype)]:
        raise WrongResultError(f"moe is off by {error:.2e} for {len(x)} tokens of {x.dtype}")
    times = interleave(calls, rounds, settle=_SETTLE if threads > 1 else 0.0)
    touched = sum(w[0].nbytes for w in weights) * len(groups)
    return Row(
        str(x.dtype),
        threads,
        len(x),
        len(groups),
        len(up),
        {name: found.median for name, found in times.items()},
        "numpy" if peers.torch is None else "torch",
        touched / speed,
        error,
    )


Dense = Callable[[dict[int, NDArray[Any]]], Any]


def _torch(peers: Peers, x: NDArray[Any], weights: list[NDArray[Any]], power: NDArray[Any]) -> Dense:
    """Return the products of groups of rows with their experts, in torch."""
    torch = peers.torch
    rows, (up, down, gate) = peers.tensor(x), (peers.tensor(w) for w in weights)
    scale = torch.from_numpy(power.astype(np.float32)).to(rows.dtype)

    def run(groups: dict[int, NDArray[Any]]) -> Any:
        out = torch.zeros((len(x), down.shape[1]), dtype=rows.dtype)
        for e, group in groups.items():
            at = torch.from_numpy(group)
            part = rows[at]
            hidden = torch.nn.functional.silu(part @ gate[e].T) * (part @ up[e].T)
            out.index_add_(0, at, scale[at, e, None] * (hidden @ down[e].T))
        return out

    return run


def _numpy(x: NDArray[Any], weights: list[NDArray[Any]], power: NDArray[Any]) -> Dense:
    """Return the same in NumPy."""
    up, down, gate = (wide(w) for w in weights)

    def run(groups: dict[int, NDArray[Any]]) -> Any:
        out = np.zeros((len(x), down.shape[1]), np.float32)
        for e, at in groups.items():
            part = wide(x)[at]
            first = part @ gate[e].T
            hidden = first / (1 + np.exp(-first)) * (part @ up[e].T)
            out[at] += power[at, e, None] * (hidden @ down[e].T)
        return out

    return run


def _read_speed(array: NDArray[Any], threads: int) -> float:
    """Return bytes a second at which `threads` threads read an array: the fastest of three passes."""
    parts = np.array_split(array.reshape(-1).view(np.int64), threads)
    with ThreadPoolExecutor(threads) as pool:

        def once() -> None:
            # A maximum keeps up with memory where a sum of integers does not.
            list(pool.map(np.maximum.reduce, parts))

        times = interleave({"read": once}, 3)
    return array.nbytes / times["read"].minimum
