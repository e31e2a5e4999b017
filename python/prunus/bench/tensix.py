"""How fast the simulator of Tensix chips is on this machine."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from prunus import _core
from prunus._table import format_table
from prunus._threads import get_num_threads
from prunus.bench.peers import WrongResultError
from prunus.bench.timing import interleave
from prunus.tensix.buffers import tilize, untilize
from prunus.tensix.spec import ChipSpec

__all__ = ["Full", "Timed", "measure_full", "measure_timing", "report_full", "report_timing"]

TILE: Final = 32
# Sums are in float32 there as here, but operands lose low bits in the phases that HiFi2 leaves out.
_BOUND: Final = 0.02


@dataclass(frozen=True, slots=True)
class Timed:
    """A product of which only time was simulated.

    Attributes
    ----------
    chip : str
        The chip.
    size : int
        Rows, columns and inner dimension.
    seconds : float
        Median of the rounds.
    events : int
        Events of one simulation.
    cycles : float
        Cycles that it simulated.
    """

    chip: str
    size: int
    seconds: float
    events: int
    cycles: float


@dataclass(frozen=True, slots=True)
class Full:
    """A product of which values were simulated as well, beside NumPy's of the same operands.

    Attributes
    ----------
    chip : str
        The chip.
    size, threads : int
        Rows, columns and inner dimension; threads of the simulator.
    seconds, numpy : float
        Medians: of the simulator with the matrices' way to tiles and back, and of NumPy, which rounds the
        operands to bfloat16 and multiplies in float32.
    """

    chip: str
    size: int
    threads: int
    seconds: float
    numpy: float


def measure_timing(chip: str, size: int, rounds: int) -> Timed:
    """Time the simulation of a square bfloat16 product without values."""
    text, tiles = ChipSpec.named(chip).text, (-(-size // TILE),) * 3
    runs: list[dict[str, Any]] = []

    def run() -> None:
        runs.append(_core.tensix_estimate(text, tiles, None, "bfloat16", "HiFi2", False))

    timing = interleave({"run": run}, rounds)["run"]
    return Timed(chip, size, timing.median, runs[0]["events"], runs[0]["cycles"])


def measure_full(chip: str, size: int, rounds: int) -> Full:
    """Time the simulation of a square bfloat16 product with values, and NumPy's product, in turn.

    Raises
    ------
    WrongResultError
        If the two products differ by more than their formats explain.
    """
    text, threads = ChipSpec.named(chip).text, get_num_threads()
    generator = np.random.default_rng(0)
    a, b = (generator.standard_normal((size, size), np.float32) for _ in range(2))
    simulated = partial(_simulated, text, a, b, threads)
    got, want = simulated(), _rounded(a, b)
    error = float(np.abs(got - want).max() / np.abs(want).max())
    if not error <= _BOUND:
        raise WrongResultError(f"{chip}, {size} cubed: off by {error:.3g} of the largest value")
    timings = interleave({"simulated": simulated, "numpy": partial(_rounded, a, b)}, rounds)
    return Full(chip, size, threads, timings["simulated"].median, timings["numpy"].median)


def _simulated(
    text: str, a: NDArray[np.float32], b: NDArray[np.float32], threads: int
) -> NDArray[np.float32]:
    (m, k), n = a.shape, b.shape[1]
    tiles = (-(-m // TILE), -(-k // TILE), -(-n // TILE))
    operands = tilize(a, "bfloat16"), tilize(b, "bfloat16")
    _, out = _core.tensix_multiply(text, tiles, *operands, "bfloat16", "HiFi2", True, threads)
    return untilize(out, (m, n), "bfloat16").astype(np.float32)


def _rounded(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    left, right = (matrix.astype(ml_dtypes.bfloat16).astype(np.float32) for matrix in (a, b))
    product: NDArray[np.float32] = left @ right
    return product


def report_timing(found: Sequence[Timed]) -> str:
    """Lay out products of which only time was simulated."""
    header = ["time only", "seconds", "events", "events/s", "ns/event", "cycles", "cycles/s"]
    rows = [
        [
            f"{one.chip} {one.size}\u00b3",
            f"{one.seconds:.3f}",
            f"{one.events}",
            f"{one.events / one.seconds:.3g}",
            f"{1e9 * one.seconds / one.events:.0f}",
            f"{one.cycles:.0f}",
            f"{one.cycles / one.seconds:.3g}",
        ]
        for one in found
    ]
    return format_table(header, rows)


def report_full(found: Sequence[Full]) -> str:
    """Lay out products of which values were simulated as well."""
    header = ["with values", "threads", "seconds", "NumPy", "x NumPy"]
    rows = [
        [
            f"{one.chip} {one.size}\u00b3",
            f"{one.threads}",
            f"{one.seconds:.3f}",
            f"{one.numpy:.3f}",
            f"{one.seconds / one.numpy:.1f}",
        ]
        for one in found
    ]
    return format_table(header, rows)
