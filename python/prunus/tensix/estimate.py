"""What a product would cost on a chip, dense or with a pattern of live blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunus import _core
from prunus.tensix.spec import ChipSpec

__all__ = ["Estimate", "estimate_matmul", "random_blocks"]

TILE = 32
PHASES = {"LoFi": 1, "HiFi2": 2, "HiFi3": 3, "HiFi4": 4}

# From this share of the time on, a part that works is what a product waits for.
BINDS = 0.7


@dataclass(frozen=True)
class Estimate:
    """The simulated cost of a product.

    Attributes
    ----------
    chip : str
        Name of the chip.
    shape : tuple of int
        m, k and n.
    density : float
        Share of the left operand's blocks that are live; 1 if it is dense.
    cycles, seconds : float
        From the first kernel's start to the last one's end.
    flops : float
        Multiplications and additions with live blocks.
    tflops : float
        These, in 10^12 a second.
    utilisation : float
        Share of the peak of all cores of the compute grid at this fidelity.
    dram_bytes, noc_bytes : int
        To and from DRAM; over links of the networks, a byte counted on each link that it passes.
    busy : dict of str to float
        Share of the time for which the busiest matrix unit ("math"), unpacker, packer, link ("NoC") and
        channel of DRAM work.
    imbalance : float
        Share of the busiest matrix unit's work that the mean one is short of.
    bound : str
        What the product waits for: one of the parts of ``busy``, "imbalance", or "latency" (hand-overs
        between parts none of which works all the time).
    events : int
        Events of the simulation.
    """

    chip: str
    shape: tuple[int, int, int]
    density: float
    cycles: float
    seconds: float
    flops: float
    tflops: float
    utilisation: float
    dram_bytes: int
    noc_bytes: int
    busy: dict[str, float]
    imbalance: float
    bound: str
    events: int


def random_blocks(rows: int, columns: int, density: float, seed: int = 0) -> NDArray[np.bool_]:
    """Draw which blocks are live, each with the same probability and none depending on another.

    Parameters
    ----------
    rows, columns : int
        Blocks.
    density : float
        Probability that a block is live, 0 to 1.
    seed : int
        Of the generator: the same blocks every time.

    Returns
    -------
    ndarray of bool
        Shape (rows, columns).

    Raises
    ------
    ValueError
        If the density is not between 0 and 1.
    """
    if not 0 <= density <= 1:
        raise ValueError(f"density must be between 0 and 1, got {density}")
    return np.random.default_rng(seed).random((rows, columns)) < density


def estimate_matmul(
    m: int,
    k: int,
    n: int,
    chip: str | ChipSpec = "n150",
    *,
    live: NDArray[np.bool_] | None = None,
    block: int = TILE,
    dtype: str = "bfloat16",
    fidelity: str = "HiFi2",
    fp32_dest_acc: bool = False,
) -> Estimate:
    """Run the product of an (m, k) and a (k, n) matrix on a simulated chip, without values.

    Operands lie in DRAM, a tile a page, and the result goes there. A dense product is cut as Tenstorrent's
    benchmark does it. Of a sparse one dead tiles are neither read nor sent nor multiplied; rows of tiles are
    dealt to rows of cores so that each has about as many live ones.

    Parameters
    ----------
    m, k, n : int
        Sizes, at least 1; padded to tiles of 32.
    chip : str or ChipSpec
        The chip.
    live : ndarray of bool, optional
        Shape (ceil(m / block), ceil(k / block)): which blocks of the left operand exist. None: all, as a
        dense product.
    block : int
        Rows and columns of a block, a multiple of 32.
    dtype : str
        Format of the tiles: "bfloat16", "bfloat8_b", "bfloat4_b", "float32", ...
    fidelity : str
        "LoFi", "HiFi2", "HiFi3" or "HiFi4".
    fp32_dest_acc : bool
        Sums in 32 bits.

    Returns
    -------
    Estimate
        Cycles, traffic, and what bounds the product.

    Raises
    ------
    ValueError
        If sizes, blocks, dtype or fidelity are wrong, or nothing fits into L1.

    Examples
    --------
    >>> dense = estimate_matmul(512, 512, 512)
    >>> sparse = estimate_matmul(512, 512, 512, live=random_blocks(16, 16, 0.1))
    >>> sparse.dram_bytes < dense.dram_bytes
    True
    """
    spec = ChipSpec.named(chip) if isinstance(chip, str) else chip
    if min(m, k, n) < 1:
        raise ValueError(f"sizes must be at least 1, got {m} x {k} x {n}")
    if block < TILE or block % TILE:
        raise ValueError(f"block must be a multiple of {TILE}, got {block}")
    if fidelity not in PHASES:
        raise ValueError(f"fidelity must be one of {', '.join(PHASES)}, got {fidelity!r}")
    tiles = (-(-m // TILE), -(-k // TILE), -(-n // TILE))
    rows = None
    share = 1.0
    if live is not None:
        blocks = (-(-m // block), -(-k // block))
        if live.shape != blocks or live.dtype != np.bool_:
            raise ValueError(f"live must be bool of shape {blocks}, got {live.dtype} of shape {live.shape}")
        share = float(live.mean())
        rows = _tile_rows(live, block // TILE, tiles)
    run = _core.tensix_estimate(spec.text, tiles, rows, dtype, fidelity, fp32_dest_acc)
    return _estimate(spec, (m, k, n), share, fidelity, run)


def _tile_rows(
    live: NDArray[np.bool_], factor: int, tiles: tuple[int, int, int]
) -> tuple[Sequence[int], Sequence[int]]:
    """Return columns of live tiles, and where each row of tiles begins."""
    fine = live.repeat(factor, axis=0).repeat(factor, axis=1)[: tiles[0], : tiles[1]]
    starts = np.concatenate([[0], np.cumsum(fine.sum(axis=1))])
    return np.nonzero(fine)[1].tolist(), starts.tolist()


def _estimate(
    spec: ChipSpec, shape: tuple[int, int, int], share: float, fidelity: str, run: dict[str, Any]
) -> Estimate:
    m, k, n = shape
    cycles = run["cycles"]
    seconds = cycles / (spec.clock_ghz * 1e9)
    flops = 2.0 * m * k * n * share
    across, down = spec.workers["compute_grid"]
    peak = 2.0 * TILE**3 / (16 * PHASES[fidelity]) * across * down * spec.clock_ghz * 1e9
    math = [core["math_busy"] for core in run["cores"]]
    busiest = max(math, default=0.0)
    busy = {
        "math": busiest,
        "unpack": max((max(core["unpack_busy"]) for core in run["cores"]), default=0.0),
        "pack": max((core["pack_busy"] for core in run["cores"]), default=0.0),
        "NoC": max((link[4] for link in run["links"]), default=0.0),
        "DRAM": max((channel[2] for channel in run["channels"]), default=0.0),
    }
    busy = {part: work / cycles if cycles else 0.0 for part, work in busy.items()}
    imbalance = 1 - sum(math) / len(math) / busiest if busiest else 0.0
    part = max(busy, key=lambda name: busy[name])
    bound = part if busy[part] >= BINDS else "latency"
    if bound in {"math", "unpack"} and imbalance > 1 - BINDS:
        bound = "imbalance"
    return Estimate(
        chip=spec.name,
        shape=shape,
        density=share,
        cycles=cycles,
        seconds=seconds,
        flops=flops,
        tflops=flops / seconds / 1e12 if seconds else 0.0,
        utilisation=flops / seconds / peak if seconds else 0.0,
        dram_bytes=sum(channel[1] for channel in run["channels"]),
        noc_bytes=run["hop_bytes"],
        busy=busy,
        imbalance=imbalance,
        bound=bound,
        events=run["events"],
    )
