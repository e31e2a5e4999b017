"""The measurements of ``python -m prunus demo``."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunus._progress import Progress
from prunus.bench.peers import Contestant, Peers, Weights, as_dtype, check
from prunus.bench.smollm import Model
from prunus.bench.timing import interleave

__all__ = ["Line", "Task", "lines", "read_tasks"]

# A pass over all layers takes seconds in SciPy, and noise on it doesn't change the picture.
_ROUNDS = 3
_SLOW_ROUNDS = 1
_SETTLE = 0.03


@dataclass(frozen=True, slots=True)
class Task:
    """One weight of the model and the rows that it multiplies: ``x @ weight.T``."""

    weight: NDArray[np.float32]
    x: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the demo's table.

    Attributes
    ----------
    dtype : str
        Type of the weights and rows.
    density : float
        Share of blocks kept.
    tokens : int
        Rows multiplied.
    kept : float
        Share of the sum of squared weights that the kept blocks hold.
    seconds : dict
        Median seconds of one pass over all weights, by contestant.
    flops : float
        Operations on the kept blocks in one pass.
    error : float
        Largest difference from NumPy in float64 of any contestant, relative to the largest value.
    """

    dtype: str
    density: float
    tokens: int
    kept: float
    seconds: dict[str, float]
    flops: float
    error: float


def read_tasks(model: Model, layers: int, tokens: int, bar: Progress) -> list[Task]:
    """Read the feed-forward weights of the first layers, and compute the rows that each multiplies."""
    rows = model.embeddings(tokens)
    tasks: list[Task] = []
    for index in range(layers):
        layer = model.layer(index)
        x, hidden = layer.inputs(rows)
        tasks += [Task(layer.gate, x), Task(layer.up, x), Task(layer.down, hidden)]
        bar.step("reading", 3)
    return tasks


def lines(
    tasks: Sequence[Task],
    peers: Peers,
    bar: Progress,
    *,
    block: int,
    dtypes: Sequence[str],
    densities: Sequence[float],
    tokens: Sequence[int],
) -> Iterator[Line]:
    """Prune, check and time; one line for each dtype, density and number of tokens.

    Each weight counts as two steps of `bar` for each dtype and density.

    Raises
    ------
    WrongResultError
        If any contestant's result is wrong.
    """
    total = sum(float(np.vdot(task.weight, task.weight)) for task in tasks)
    for dtype in dtypes:
        kind = as_dtype(dtype)
        inputs = [task.x[: max(tokens)].astype(kind) for task in tasks]
        wholes = [task.weight.astype(kind) for task in tasks]
        # The dense products don't depend on the density: lined up and checked once.
        dense = {count: _dense(tasks, wholes, inputs, peers, dtype, count) for count in tokens}
        for density in densities:
            pruned: list[Weights] = []
            expected: list[NDArray[np.float64]] = []
            kept = 0.0
            for whole, x in zip(wholes, inputs, strict=True):
                weights = peers.weights(whole, block, density)
                pruned.append(weights)
                expected.append(_exact(x, weights.masked()))
                kept += float(np.sum(weights.bsr.data.astype(np.float32) ** 2))
                bar.step("pruning")
            for count in tokens:
                contestants, error = dense[count]
                contestants = dict(contestants)
                for weights, x, right in zip(pruned, inputs, expected, strict=True):
                    for contestant in peers.dsd(weights, x[:count], "xwt"):
                        error = max(error, check(contestant, right[:count], dtype))
                        contestants.setdefault(contestant.name, []).append(contestant)
                    if count == tokens[-1]:
                        bar.step(f"checking {dtype} {density:.0%}")
                flops = sum(weights.flops(count) for weights in pruned)
                yield Line(dtype, density, count, kept / total, _times(contestants), flops, error)


def _exact(x: NDArray[Any], weight: NDArray[Any]) -> NDArray[np.float64]:
    """Compute ``x @ weight.T`` in float64."""
    product: NDArray[np.float64] = x.astype(np.float64) @ weight.T.astype(np.float64)
    return product


def _dense(
    tasks: Sequence[Task],
    wholes: Sequence[NDArray[Any]],
    inputs: Sequence[NDArray[Any]],
    peers: Peers,
    dtype: str,
    tokens: int,
) -> tuple[dict[str, list[Contestant]], float]:
    """Line up the products with the whole weights and check them; with the largest error of any of them."""
    found: dict[str, list[Contestant]] = {}
    error = 0.0
    for task, whole, x in zip(tasks, wholes, inputs, strict=True):
        field = peers.dense_product(x[:tokens], whole.T)
        right = _exact(x[:tokens], whole)
        error = max([error, *(check(contestant, right, dtype) for contestant in field)])
        if not any(contestant.name == "numpy" for contestant in field):
            # NumPy has no fast bfloat16: its user would compute in float32.
            wide = peers.dense_product(task.x[:tokens], task.weight.T)
            field += [contestant for contestant in wide if contestant.name == "numpy"]
        for contestant in field:
            found.setdefault(f"{contestant.name} dense", []).append(contestant)
    return found, error


def _times(contestants: dict[str, list[Contestant]]) -> dict[str, float]:
    """Time one pass over all weights: median seconds by contestant."""

    def whole(found: Sequence[Contestant]) -> Callable[[], None]:
        def one_pass() -> None:
            for contestant in found:
                contestant.call()

        return one_pass

    limits = dict.fromkeys((name for name, found in contestants.items() if found[0].slow), _SLOW_ROUNDS)
    # By the time a pass comes back to a weight, the others have pushed it out of the caches, as in the model.
    calls = {name: whole(found) for name, found in contestants.items()}
    times = interleave(calls, _ROUNDS, limits=limits, settle=_SETTLE)
    return {name: timing.median for name, timing in times.items()}
