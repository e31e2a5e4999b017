"""How prunus gains from threads, and what one call costs on an array that is almost nothing."""

import operator
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np

import prunus as pr
from prunus._progress import Progress
from prunus._table import format_table
from prunus.bench.machine import pinned
from prunus.bench.peers import PACKED, PRUNUS, as_dtype
from prunus.bench.report import milliseconds
from prunus.bench.run import Plan
from prunus.bench.targets import Target, hold, not_measured
from prunus.bench.timing import interleave, time_loop

__all__ = [
    "Overhead",
    "Scaling",
    "format_overhead",
    "format_scaling",
    "measure_overhead",
    "measure_scaling",
    "scaling_targets",
]

_COLUMNS = 512
_SMALL = 64
_NUMPY = "numpy a @ b"
# What is to be gained from threads, and the microseconds that a call may cost above NumPy's.
_GAIN = 1.8
_OVERHEAD = 5.0


@dataclass(frozen=True, slots=True)
class Scaling:
    """One product with one thread and with several.

    Attributes
    ----------
    what : tuple of str
        dtype, block, density and layout.
    one, several : float
        Median seconds.
    """

    what: tuple[str, ...]
    one: float
    several: float


@dataclass(frozen=True, slots=True)
class Overhead:
    """A call on a 64 × 64 array beside NumPy's own.

    Attributes
    ----------
    what : str
        The product.
    seconds : float
        Median seconds of one call.
    above : float
        Seconds above NumPy's ``a @ b``.
    """

    what: str
    seconds: float
    above: float


def measure_scaling(plan: Plan, threads: int) -> list[Scaling]:
    """Time W @ X and x @ W.T at N = 512 with one thread and with `threads`, in turn.

    Parameters
    ----------
    plan : Plan
        Its size, blocks, densities, dtypes and rounds are used.
    threads : int
        The larger number of threads.
    """
    rng = np.random.default_rng(512)
    found = []
    with Progress(len(plan.dtypes) * len(plan.blocks) * len(plan.densities), "scaling") as bar:
        for dtype, block, density in product(plan.dtypes, plan.blocks, plan.densities):
            kind = as_dtype(dtype)
            dense = rng.standard_normal((plan.size, plan.size), np.float32).astype(kind)
            w = pr.BSR.from_dense(dense, blocksize=(block, block), density=density).pack()
            x = rng.standard_normal((plan.size, _COLUMNS), np.float32).astype(kind)
            products = {
                "W @ X": partial(operator.matmul, w, x),
                "x @ W.T": partial(operator.matmul, np.ascontiguousarray(x.T), w.T),
            }
            calls = {
                (name, count): _with_threads(call, count)
                for name, call in products.items()
                for count in (1, threads)
            }
            for call in calls.values():
                call()
            times = interleave(calls, plan.rounds)
            for name in products:
                what = (dtype, str(block), f"{density:.0%}", name)
                found.append(Scaling(what, times[name, 1].median, times[name, threads].median))
            bar.step(f"{dtype} b{block} {density:.0%}")
    return found


def _with_threads(call: Callable[[], object], count: int) -> Callable[[], object]:
    def counted() -> object:
        with pr.num_threads(count):
            return call()

    return counted


def format_scaling(found: list[Scaling], threads: int) -> str:
    """Make the table of `measure_scaling`."""
    rows = [
        [*s.what, milliseconds(s.one), milliseconds(s.several), f"{s.one / s.several:.2f}"] for s in found
    ]
    header = ["dtype", "block", "density", "packed W", "1 thread ms", f"{threads} threads ms", "gain"]
    return f"threads at N = {_COLUMNS}\n" + format_table(header, rows)


def measure_overhead(rounds: int) -> list[Overhead]:
    """Time products of 64 × 64 arrays with one thread, in turn with NumPy's ``a @ b``."""
    rng = np.random.default_rng(64)
    a, b = (rng.standard_normal((_SMALL, _SMALL), np.float32) for _ in range(2))
    calls: dict[str, Callable[[], object]] = {_NUMPY: partial(operator.matmul, a, b)}
    for block in (16, 32):
        w = pr.BSR.from_dense(a, blocksize=(block, block), density=0.25)
        p = w.pack()
        calls[f"W @ x, block {block}, 25 %"] = partial(operator.matmul, w, b)
        calls[f"packed W @ x, block {block}, 25 %"] = partial(operator.matmul, p, b)
        calls[f"x @ W.T, block {block}, 25 %"] = partial(lambda w: b @ w.T, w)
        full = pr.BSR.from_dense(a, blocksize=(block, block))
        calls[f"W @ x, block {block}, 100 %"] = partial(operator.matmul, full, b)
    with pinned(1):
        measures = {name: time_loop(call) for name, call in calls.items()}
        times = {name: [measure()] for name, measure in measures.items()}
        for _ in range(rounds - 1):
            for name, measure in measures.items():
                times[name].append(measure())
    own = statistics.median(times[_NUMPY])
    return [
        Overhead(name, statistics.median(values), statistics.median(values) - own)
        for name, values in times.items()
    ]


def format_overhead(found: list[Overhead]) -> str:
    """Make the table of `measure_overhead`."""
    rows = [[o.what, f"{o.seconds * 1e6:.2f}", f"{o.above * 1e6:+.2f}"] for o in found]
    return f"one call on {_SMALL} x {_SMALL} float32, 1 thread\n" + format_table(
        ["call", "us", "above numpy, us"], rows
    )


def scaling_targets(gains: Sequence[Scaling], threads: int, calls: Sequence[Overhead]) -> list[Target]:
    """Hold the gain from threads and the overhead of a call against the targets.

    Parameters
    ----------
    gains : sequence of Scaling
        What `measure_scaling` returned; empty where there is one core.
    threads : int
        The larger number of threads.
    calls : sequence of Overhead
        What `measure_overhead` returned.
    """
    what = f"N={_COLUMNS}, gain from {threads} threads" if gains else f"N={_COLUMNS}, gain from threads"
    values = [(s.one / s.several, " ".join(s.what)) for s in gains]
    overheads = [(o.above * 1e6, o.what) for o in calls if o.what != _NUMPY]
    return [
        hold(what, PACKED, _GAIN, values)
        if values
        else not_measured(what, PACKED, _GAIN, "one thread: use --threads"),
        hold("one call, us above numpy", PRUNUS, _OVERHEAD, overheads, below=True),
    ]
