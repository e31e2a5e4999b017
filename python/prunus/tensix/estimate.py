"""What a product would cost on a chip, dense or with a pattern of live blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunus import _core
from prunus.tensix.errors import UnsupportedError
from prunus.tensix.mesh import mesh_of
from prunus.tensix.report import Operation
from prunus.tensix.spec import ChipSpec
from prunus.tensix.usage import TILE_FLOPS

__all__ = ["Estimate", "estimate_matmul", "random_blocks"]

TILE = 32
PHASES = {"LoFi": 1, "HiFi2": 2, "HiFi3": 3, "HiFi4": 4}

# What the machine counts tiles with has 32 bits.
_MOST = (1 << 32) - 1

# Where operands are.
PLACES = ("dram", "l1")

# Who says what is live of the left operand.
DECIDE = ("static", "dynamic", "epilogue", "host")


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
    dram_bytes, noc_bytes, hop_bytes : int
        To and from DRAM; into the networks; over links between routers, a byte counted on each that it
        passes.
    busy : dict of str to float
        Share of the time for which the busiest matrix unit ("math"), unpacker, packer, link ("NoC") and
        channel of DRAM work.
    imbalance : float
        Share of the busiest matrix unit's work that the mean one is short of.
    bound : str
        What the product waits for: one of the parts of ``busy``, "imbalance", or "latency" (hand-overs
        between parts none of which works all the time); :mod:`prunus.tensix.bounds` has the rule. In a mesh
        ``busy``, ``imbalance`` and ``bound`` are of the longer one of two parts: operands that go to the
        chips that need them ("ethernet" is a link between chips), or the product.
    events : int
        Events of the simulation.
    mesh : tuple of int
        Rows and columns of chips; all other figures are of all of them together.
    ethernet_bytes : int
        Bytes of data times links between chips that they passed.
    ethernet_cycles : float
        The part of ``cycles`` in which operands go to the chips that need them.
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
    hop_bytes: int
    busy: dict[str, float]
    imbalance: float
    bound: str
    events: int
    mesh: tuple[int, int] = (1, 1)
    ethernet_bytes: int = 0
    ethernet_cycles: float = 0.0


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
    live: NDArray[np.bool_] | float | None = None,
    seed: int = 0,
    block: int = TILE,
    decide: str = "static",
    balance: bool = True,
    dtype: str = "bfloat16",
    fidelity: str = "HiFi2",
    fp32_dest_acc: bool = False,
    in0: str = "dram",
    out: str = "dram",
    mesh: tuple[int, int] | None = None,
) -> Estimate:
    """Run the product of an (m, k) and a (k, n) matrix on a simulated chip, without values.

    Operands lie in DRAM, a tile a page, and the result goes there, unless they are said to lie in L1. A dense
    product is cut as Tenstorrent's benchmark does it, on a grid of cores whose rows and columns share
    operands; a tall or flat one into parts on a line, where one operand goes to all cores, if that is
    predicted to take fewer cycles. Of a sparse one dead tiles are neither read nor sent nor multiplied. Its
    pattern is known before the program runs, or found out as it runs; finding out is part of the program and
    its cost.

    Parameters
    ----------
    m, k, n : int
        Sizes, at least 1; padded to tiles of 32.
    chip : str or ChipSpec
        The chip.
    live : ndarray of bool, or float, optional
        Shape (ceil(m / block), ceil(k / block)): which blocks of the left operand are live; or the share of
        them that is, drawn by :func:`random_blocks`. None: all, as a dense product.
    seed : int
        Of the blocks that are drawn.
    block : int
        Rows and columns of a block, a multiple of 32.
    decide : str
        Who says which blocks are live. "static": they are known before, DRAM holds no others, and each kernel
        has its list. With the other three the operand lies in DRAM with all its tiles and rows of tiles stay
        where they are. "dynamic": the cores find the largest magnitude of each tile, tell each other what is
        live, and make their lists. "epilogue": the operation before has left with each core which of its
        share of tiles are live; that is told and listed. "host": as "dynamic", but the magnitudes go to the
        host, and what is live comes back; the host's own work costs nothing.
    balance : bool
        Of a pattern that is known before: rows of tiles are dealt to rows of cores so that each has about as
        many live ones. False: they stay where they are.
    dtype : str
        Format of the tiles: "bfloat16", "bfloat8_b", "bfloat4_b", "float32", ...
    fidelity : str
        "LoFi", "HiFi2", "HiFi3" or "HiFi4".
    fp32_dest_acc : bool
        Sums in 32 bits.
    in0, out : str
        Where the left operand and the result of a dense product are: "dram", or "l1": a core has the part of
        the result that it computes, and of the left operand the rows of its row of cores, dealt to these
        along k.
    mesh : tuple of int, optional
        Rows and columns of chips. Rows of the left operand and of the result are cut over rows of chips,
        columns of the right one and of the result over their columns. Each chip holds one part of each
        operand: of the left one its block of K columns by its column in the mesh, of the right one by its
        row. Before the product those of a row of chips send each other their parts of the left operand, those
        of a column theirs of the right one, over Ethernet.

    Returns
    -------
    Estimate
        Cycles, traffic, and what bounds the product.

    Raises
    ------
    ValueError
        If sizes, blocks, density, dtype, fidelity, ``decide``, ``mesh`` or places are wrong, or L1 is too
        small: the message says how much is needed.
    UnsupportedError
        If the board has no links for the mesh, or a mesh is to have operands in L1.

    Examples
    --------
    >>> dense = estimate_matmul(512, 512, 512)
    >>> sparse = estimate_matmul(512, 512, 512, live=random_blocks(16, 16, 0.1))
    >>> sparse.dram_bytes < dense.dram_bytes
    True
    >>> pruned = estimate_matmul(512, 512, 512, live=0.1, decide="dynamic")
    >>> pruned.cycles > sparse.cycles  # what is live had to be found out
    True
    """
    spec = ChipSpec.named(chip) if isinstance(chip, str) else chip
    if min(m, k, n) < 1:
        raise ValueError(f"sizes must be at least 1, got {m} x {k} x {n}")
    if max(m, k, n) > _MOST:
        raise ValueError(f"sizes must be at most {_MOST}, got {m} x {k} x {n}")
    if block < TILE or block % TILE:
        raise ValueError(f"block must be a multiple of {TILE}, got {block}")
    if fidelity not in PHASES:
        raise ValueError(f"fidelity must be one of {', '.join(PHASES)}, got {fidelity!r}")
    if decide not in DECIDE:
        raise ValueError(f"decide must be one of {', '.join(DECIDE)}, got {decide!r}")
    if live is None and decide != "static":
        raise ValueError(f'decide="{decide}" needs to know what will be live: give a mask or a density')
    for name, place in (("in0", in0), ("out", out)):
        if place not in PLACES:
            raise ValueError(f"{name} must be one of {', '.join(PLACES)}, got {place!r}")
        if place != "dram" and live is not None:
            raise ValueError(f'{name}="{place}" is for dense products: operands of sparse ones lie in DRAM')
    tiles = (-(-m // TILE), -(-k // TILE), -(-n // TILE))
    rows = None
    share, multiplied = 1.0, m * k
    if live is not None:
        blocks = (-(-m // block), -(-k // block))
        if not isinstance(live, np.ndarray):
            live = random_blocks(*blocks, live, seed)
        if live.shape != blocks or live.dtype != np.bool_:
            raise ValueError(f"live must be bool of shape {blocks}, got {live.dtype} of shape {live.shape}")
        share, multiplied = float(live.mean()), _live_values(live, block, m, k)
        rows = _tile_rows(live, block // TILE, tiles)
    chips = mesh_of(mesh)
    in_l1 = {"in0_l1": in0 == "l1", "out_l1": out == "l1"}
    if chips == (1, 1):
        runs = [
            _core.tensix_estimate(
                spec.text, tiles, rows, dtype, fidelity, fp32_dest_acc, decide, balance, **in_l1
            )
        ]
    elif any(in_l1.values()):
        raise UnsupportedError(f"unsupported: operands in L1 on a mesh of {chips[0]} x {chips[1]} chips")
    else:
        runs = _core.tensix_estimate_mesh(
            spec.text, chips, tiles, rows, dtype, fidelity, fp32_dest_acc, decide, balance
        )
    return _estimate(spec, (m, k, n), (share, 2.0 * multiplied * n), fidelity, runs)


def _tile_rows(
    live: NDArray[np.bool_], factor: int, tiles: tuple[int, int, int]
) -> tuple[Sequence[int], Sequence[int]]:
    """Return columns of live tiles, and where each row of tiles begins."""
    fine = live.repeat(factor, axis=0).repeat(factor, axis=1)[: tiles[0], : tiles[1]]
    starts = np.concatenate([[0], np.cumsum(fine.sum(axis=1))])
    return np.nonzero(fine)[1].tolist(), starts.tolist()


def _live_values(live: NDArray[np.bool_], block: int, m: int, k: int) -> int:
    """Return how many values live blocks have: those at the ends of rows and columns may have fewer."""
    high, wide = (
        np.minimum(block, size - block * np.arange(count, dtype=np.int64))
        for size, count in zip((m, k), live.shape, strict=True)
    )
    return int(high @ live @ wide)


def _estimate(
    spec: ChipSpec,
    shape: tuple[int, int, int],
    useful: tuple[float, float],
    fidelity: str,
    runs: list[dict[str, Any]],
) -> Estimate:
    share, flops = useful
    parts = [Operation(spec, run, name="matmul", flops=flops if run is runs[-1] else 0.0) for run in runs]
    done = parts[0] if len(parts) == 1 else Operation.after(parts)
    across, down = spec.workers["compute_grid"]
    # Of a mesh the part counts that takes most of the time: operands on their way, or the product.
    longest = max(parts, key=lambda part: part.cycles)
    units = across * down * done.mesh[0] * done.mesh[1]
    peak = TILE_FLOPS / (spec.matrix.tile_cycles * PHASES[fidelity]) * units * spec.clock_ghz * 1e9
    return Estimate(
        chip=spec.name,
        shape=shape,
        density=share,
        cycles=done.cycles,
        seconds=done.seconds,
        flops=flops,
        tflops=done.tflops,
        utilisation=flops / done.seconds / peak if done.seconds else 0.0,
        dram_bytes=done.dram_bytes,
        noc_bytes=done.noc_bytes,
        hop_bytes=done.hop_bytes,
        busy=longest.busiest,
        imbalance=longest.imbalance,
        bound=longest.bound,
        events=done.events,
        mesh=done.mesh,
        ethernet_bytes=done.ethernet_bytes,
        ethernet_cycles=sum(part.cycles for part in parts[:-1]),
    )
