"""Attention beside torch's: dense, and with most blocks of keys pruned; and the memory that it takes."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import prunus as pr
from prunus._config import cores
from prunus._dtypes import as_dtype
from prunus._progress import Progress
from prunus._table import format_table
from prunus.bench.machine import optional, pinned
from prunus.bench.timing import interleave
from prunus.pruning.policies import TopK

__all__ = ["LENGTH", "Memory", "Row", "measure", "measure_memory", "report"]

# What is measured, as the targets name it: 1 x 8 x 8192 x 64, causal, a tenth of the visible blocks of keys.
LENGTH = 8192
_HEADS = 8
_DIM = 64
_FRACTION = 0.1
_LENGTHS = (8192, 32768)
_TORCH = "torch"
# Pruned at least so many times as fast as torch, and not pruned at most so many times its time.
FASTER = 4.0
WITHIN = 1.3


@dataclass(frozen=True, slots=True)
class Memory:
    """What one call takes beside its operands.

    Attributes
    ----------
    length : int
        Queries, and keys.
    result, extra : int
        Bytes of the result, and by how much the peak of the process rose above operands and result.
    """

    length: int
    result: int
    extra: int


@dataclass(frozen=True, slots=True)
class Row:
    """Medians of one setting.

    Attributes
    ----------
    dtype : str
        Of the operands.
    length : int
        Queries, and keys.
    threads : int
        Of both libraries.
    dense : float
        Seconds of torch's `scaled_dot_product_attention`; NaN where torch is missing.
    unpruned, pruned : float
        Seconds of prunus with all blocks and with a tenth of them.
    memory : tuple of Memory
        The pruned call's, at growing lengths; measured for one row only.
    """

    dtype: str
    length: int
    threads: int
    dense: float
    unpruned: float
    pruned: float
    memory: tuple[Memory, ...] = ()


def measure(
    rounds: int,
    *,
    length: int = LENGTH,
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    lengths: Sequence[int] = _LENGTHS,
) -> list[Row]:
    """Time causal attention with one thread and with all, in turn with torch where it is installed.

    Parameters
    ----------
    rounds : int
        Timed calls of each contestant.
    length : int
        Queries, and keys.
    dtypes : sequence of str
        "float32", "bfloat16", ...
    lengths : sequence of int
        Where to measure memory; the first row tells it.

    Returns
    -------
    list of Row
    """
    torch = optional("torch")
    counts = sorted({1, cores()})
    rows: list[Row] = []
    memory = tuple(measure_memory(n) for n in lengths)
    with Progress(len(counts) * len(dtypes), "attention") as bar:
        for dtype in dtypes:
            calls = _calls(torch, dtype, length)
            for threads in counts:
                with pinned(threads):
                    for call in calls.values():
                        call()
                    # torch's threads spin for a while after a call.
                    times = interleave(calls, rounds, settle=0.05 if threads > 1 else 0.0)
                dense = times[_TORCH].median if _TORCH in times else float("nan")
                unpruned, pruned = times["unpruned"].median, times["pruned"].median
                rows.append(Row(dtype, length, threads, dense, unpruned, pruned, () if rows else memory))
                bar.step(f"{dtype}, {threads} threads")
    return rows


def _operands(length: int, dtype: str) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(64)
    kind = as_dtype(dtype)
    shape = (1, _HEADS, length, _DIM)
    return [rng.standard_normal(shape, np.float32).astype(kind, copy=False) for _ in range(3)]


def _calls(torch: Any, dtype: str, length: int) -> dict[str, Callable[[], object]]:
    q, k, v = _operands(length, dtype)
    policy = TopK(fraction=_FRACTION)
    calls: dict[str, Callable[[], object]] = {
        "unpruned": lambda: pr.attention(q, k, v, causal=True),
        "pruned": lambda: pr.attention(q, k, v, causal=True, prune=policy),
    }
    if torch is not None:
        if dtype == "bfloat16":
            tensors = [torch.from_numpy(x.view(np.uint16)).view(torch.bfloat16) for x in (q, k, v)]
        else:
            tensors = [torch.from_numpy(x) for x in (q, k, v)]
        product = torch.nn.functional.scaled_dot_product_attention
        calls[_TORCH] = lambda: product(*tensors, is_causal=True)
    return calls


def measure_memory(length: int) -> Memory:
    """Measure by how much one pruned call raises the peak memory of a process of its own.

    The peak is the operating system's (``ru_maxrss``), so what compiled code allocates is in it. Operands are
    made and touched before, and a short call has started the threads.

    Parameters
    ----------
    length : int
        Queries, and keys.
    """
    script = "import sys; from prunus.bench.attention import _peak; print(*_peak(int(sys.argv[1])))"
    run = subprocess.run(
        [sys.executable, "-c", script, str(length)], check=True, capture_output=True, text=True
    )
    result, extra = map(int, run.stdout.split())
    return Memory(length, result, extra)


def _peak(length: int) -> tuple[int, int]:
    """Return the bytes of the result, and how far the peak of this process rose above it."""
    try:
        import resource
    except ImportError:  # not on Windows
        return 0, 0
    unit = 1 if sys.platform == "darwin" else 1024
    q, k, v = _operands(length, "float32")
    # Smaller than what is measured in every way, but through the same code.
    pr.attention(q[..., :256, :], k[..., :256, :], v[..., :256, :], causal=True, prune=TopK(1))
    # The generator's own temporary memory may have been the peak: fill what was given back.
    low = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    ballast = np.ones(max(0, low - _resident()), np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    y = pr.attention(q, k, v, causal=True, prune=TopK(fraction=_FRACTION))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    del ballast
    return y.nbytes, max(after - before - y.nbytes, 0)


def _resident() -> int:
    """Return the bytes that this process holds now; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[1])
    except OSError:
        return 0
    import resource

    return pages * resource.getpagesize()


def report(rows: Sequence[Row]) -> str:
    """Make the tables of what `measure` found.

    Parameters
    ----------
    rows : sequence of Row
        What `measure` returned.
    """
    head = [
        "dtype",
        "length",
        "threads",
        "torch ms",
        "unpruned ms",
        "pruned ms",
        "unpruned/torch",
        "torch/pruned",
    ]
    cells = [
        [
            row.dtype,
            str(row.length),
            str(row.threads),
            *(f"{seconds * 1e3:.1f}" for seconds in (row.dense, row.unpruned, row.pruned)),
            f"{row.unpruned / row.dense:.2f}",
            f"{row.dense / row.pruned:.2f}",
        ]
        for row in rows
    ]
    parts = [
        f"causal attention, 1 x {_HEADS} x length x {_DIM}, {_FRACTION:.0%} of the visible blocks of keys; "
        f"targets at {LENGTH}: at most {WITHIN} and at least {FASTER:g}",
        format_table(head, cells),
    ]
    memory = [one for row in rows for one in row.memory]
    if memory:
        scores = [one.length**2 * 4 * _HEADS for one in memory]
        parts += [
            "",
            "memory of the pruned call beside operands and result (peak of a process of its own)",
            format_table(
                ["length", "result MiB", "extra MiB", "scores would be MiB"],
                [
                    [str(one.length), *(f"{size / 2**20:.1f}" for size in (one.result, one.extra, whole))]
                    for one, whole in zip(memory, scores, strict=True)
                ],
            ),
        ]
    return "\n".join(parts)
