"""The plan of a whole comparison: which races are run, and how one race is run."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunus._progress import Progress
from prunus.bench.machine import cpu, pinned
from prunus.bench.peers import Contestant, Peers, Weights, as_dtype, check, wide
from prunus.bench.record import Case, Record
from prunus.bench.timing import CacheFlush, interleave

__all__ = ["Plan", "run"]

# Up to this many columns a product is bound by memory, and W must come from there as it would in real use.
_FLUSH_UP_TO = 16
# OpenBLAS and OpenMP threads spin about this long after a call; see `interleave`.
_SETTLE = 0.03
_SLOW_ROUNDS = 2
# SciPy's sparse @ sparse takes minutes above this density.
_SLOW_SSD_DENSITY = 0.2


@dataclass(frozen=True)
class Plan:
    """What to compare.

    Attributes
    ----------
    size : int
        Height and width of W.
    blocks, columns, threads : list of int
        Block sizes, columns of X, numbers of threads.
    densities : list of float
        Shares of blocks present, 0 to 1.
    dtypes, layouts, ops : list of str
        See `Case`.
    rounds : int
        Timed calls of each contestant; two at most for SciPy.
    flush : bool or None
        Flush the caches before every call; None: where there are at most 16 columns.
    skip_slow : bool
        Leave SciPy out.
    """

    size: int = 4096
    blocks: list[int] = field(default_factory=lambda: [16, 32, 64])
    densities: list[float] = field(default_factory=lambda: [0.05, 0.1, 0.3, 0.5])
    columns: list[int] = field(default_factory=lambda: [1, 16, 128, 512])
    dtypes: list[str] = field(default_factory=lambda: ["float32", "bfloat16"])
    layouts: list[str] = field(default_factory=lambda: ["wx", "xwt"])
    threads: list[int] = field(default_factory=lambda: [1])
    ops: list[str] = field(default_factory=lambda: ["dsd", "sdd", "ssd"])
    rounds: int = 7
    flush: bool | None = None
    skip_slow: bool = False

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, not {self.rounds}")
        for block in self.blocks:
            if self.size < block or self.size % block:
                # Ragged blocks would make the count of useful operations a matter of taste.
                raise ValueError(
                    f"the size must be a multiple of every block, and {self.size} isn't of {block}"
                )

    def flushes(self, case: Case) -> bool:
        """Tell whether the caches are flushed before every call of this race."""
        return 0 < case.columns <= _FLUSH_UP_TO if self.flush is None else self.flush

    def cases(self, dtype: str, block: int) -> Iterator[Case]:
        """Go through the races on one set of weights."""
        for op in self.ops:
            # A sparse @ sparse product has neither columns nor a layout; chosen blocks of a product with an
            # inner dimension of one are no use to anyone.
            columns = {"dsd": self.columns, "sdd": [n for n in self.columns if n >= _FLUSH_UP_TO], "ssd": [0]}
            layouts = ["wx"] if op == "ssd" else self.layouts
            for threads, layout, n in product(self.threads, layouts, columns[op]):
                yield Case(op, dtype, layout, threads, block, n, self.size)

    def count(self) -> int:
        """Count the races."""
        return sum(1 for dtype, block in product(self.dtypes, self.blocks) for _ in self.cases(dtype, block))


def run(plan: Plan, peers: Peers, say: Callable[[str], None] | None = None) -> list[Record]:
    """Run every race of a plan.

    Parameters
    ----------
    plan : Plan
        What to compare.
    peers : Peers
        Who takes part.
    say : callable, optional
        Told in a line what is being done, for logs; a terminal gets a progress bar in any case.

    Returns
    -------
    list of Record
        One for each contestant, density and race.

    Raises
    ------
    WrongResultError
        If a contestant's result is wrong: it isn't timed then.
    """
    rng = np.random.default_rng(2024)
    records: list[Record] = []
    flush = CacheFlush(cpu().last_level)
    try:
        with Progress(plan.count(), "bench") as bar:
            for dtype, block in product(plan.dtypes, plan.blocks):
                dense = _normal(rng, (plan.size, plan.size), dtype)
                weights = [peers.weights(dense, block, density) for density in plan.densities]
                for case in plan.cases(dtype, block):
                    title = f"{case.op} {dtype} {case.layout} b{block} n{case.columns} t{case.threads}"
                    if say is not None:
                        say(title)
                    with pinned(case.threads):
                        entries = _field(case, peers, dense, weights, rng)
                        records += _race(case, entries, plan, flush if plan.flushes(case) else None)
                    bar.step(title)
    finally:
        flush.close()
    return records


@dataclass(frozen=True, slots=True)
class _Entry:
    """A contestant on the starting line, with the result it must reach."""

    density: float
    contestant: Contestant
    reference: Callable[[], NDArray[Any]]


def _normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """Draw random values: never zeros, which some libraries and memory systems treat in a special way."""
    return rng.standard_normal(shape, np.float32).astype(as_dtype(dtype), copy=False)


def _field(
    case: Case, peers: Peers, dense: NDArray[Any], weights: list[Weights], rng: np.random.Generator
) -> list[_Entry]:
    """Line up the contestants of one race: the dense ones once, the sparse ones for every density."""
    lines = {"dsd": _field_dsd, "sdd": _field_sdd, "ssd": _field_ssd}
    return lines[case.op](case, peers, dense, weights, rng)


def _field_dsd(
    case: Case, peers: Peers, dense: NDArray[Any], weights: list[Weights], rng: np.random.Generator
) -> list[_Entry]:
    """Line up for W @ X or x @ W.T."""

    def times_x(w: NDArray[Any]) -> NDArray[Any]:
        product: NDArray[Any] = wide(x) @ w.T if tokens else w @ wide(x)
        return product

    tokens = case.layout == "xwt"
    x = _normal(rng, (case.columns, case.size) if tokens else (case.size, case.columns), case.dtype)
    rivals = peers.dense_product(x, dense.T) if tokens else peers.dense_product(dense, x)
    entries = [_Entry(1.0, c, lambda: times_x(wide(dense))) for c in rivals]
    for w in weights:
        expected = partial(lambda w: times_x(w.masked()), w)
        entries += [_Entry(w.density, c, expected) for c in peers.dsd(w, x, case.layout)]
    return entries


def _field_sdd(
    case: Case, peers: Peers, dense: NDArray[Any], weights: list[Weights], rng: np.random.Generator
) -> list[_Entry]:
    """Line up for a @ b at the blocks of each of the weights."""
    a = _normal(rng, (case.size, case.columns), case.dtype)
    # Token-major: both operands have the inner dimension last, as queries and keys do.
    tokens = case.layout == "xwt"
    b = _normal(rng, a.shape, case.dtype).T if tokens else _normal(rng, a.shape[::-1], case.dtype)
    whole = wide(a) @ wide(b)
    entries = [_Entry(1.0, c, lambda: whole) for c in peers.dense_product(a, b)]
    for w in weights:
        expected = partial(lambda w: whole * w.present(), w)
        entries += [_Entry(w.density, c, expected) for c in peers.sdd(w, a, b)]
    return entries


def _field_ssd(
    case: Case, peers: Peers, dense: NDArray[Any], weights: list[Weights], rng: np.random.Generator
) -> list[_Entry]:
    """Line up for W @ V, where V is another matrix pruned to the same density."""
    other = _normal(rng, dense.shape, case.dtype)
    entries = [_Entry(1.0, c, lambda: wide(dense) @ wide(other)) for c in peers.dense_product(dense, other)]
    for w in weights:
        v = peers.weights(other, case.block, w.density)
        expected = partial(lambda w, v: w.masked() @ v.masked(), w, v)
        entries += [
            _Entry(w.density, c, expected)
            for c in peers.ssd(w, v)
            if not (c.slow and w.density > _SLOW_SSD_DENSITY)
        ]
    return entries


def _race(case: Case, entries: list[_Entry], plan: Plan, flush: CacheFlush | None) -> list[Record]:
    """Check every contestant, then time them in turn."""
    errors: dict[int, float] = {}
    known: dict[float, NDArray[Any]] = {}
    for i, entry in enumerate(entries):
        if entry.density not in known:
            # One reference at a time: those of large products would fill the memory.
            known = {entry.density: entry.reference()}
        errors[i] = check(entry.contestant, known[entry.density], case.dtype)
    timings = interleave(
        {i: entry.contestant.call for i, entry in enumerate(entries)},
        plan.rounds,
        limits={
            i: min(_SLOW_ROUNDS, plan.rounds) for i, entry in enumerate(entries) if entry.contestant.slow
        },
        before=flush,
        settle=_SETTLE if case.threads > 1 else 0.0,
    )
    return [
        Record(
            case,
            entry.density,
            entry.contestant.name,
            entry.contestant.dense,
            timings[i].median,
            timings[i].minimum,
            len(timings[i].seconds),
            entry.contestant.flops,
            flush is not None,
            errors[i],
        )
        for i, entry in enumerate(entries)
    ]
