"""How long a product would take with a tile, by a small model: what tiles are chosen by.

A multiprocessor works on its share of the programs, several at a time as memory and registers allow. A step
of a program takes as long as its multiply-adds, or as its operands need from the second-level cache,
whichever is more; and what can be asked for at once bounds that rate (Little's law: bytes under way = rate x
latency). A program also takes a while to begin and to end, which others hide where there are several. The
last programs of a product leave multiprocessors idle, so programs are counted in whole rounds.

The constants below order tiles; they do not predict times. None was measured with these kernels:
``prunus.cuda.autotune`` measures, and what it finds is taken first.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from prunus.cuda.chips import CHIPS, REACHED_BYTES, REACHED_FLOPS
from prunus.cuda.runtime import Place

__all__ = ["Cut", "Product", "fits", "held", "roofline", "seconds", "shared"]

# Bytes that the second-level cache gives a multiprocessor in a second: half of the 64 bytes a cycle that its
# port is wide, at about 1.7 GHz.
_PORT: Final = 54e9
# Seconds from asking the cache for bytes until they are there, under load.
_LATENCY: Final = 0.7e-6
# Seconds to begin and end a program: two loads that wait for each other, the first step, and the store.
_BEGIN: Final = 2.5e-6
# Registers of a multiprocessor, and those of a thread that hold no sums.
_REGISTERS: Final = 65536
_OTHER_REGISTERS: Final = 56
# What mma.sync, which tiles of fewer than 64 rows are computed by, reaches of an architecture's own matrix
# instructions. On sm_90, wgmma is needed for more than about 62 % of the peak.
_OLD_UNITS: Final = {"sm_80": 1.0, "sm_90": 0.62, "sm_100": 0.3}
_NATIVE_ROWS: Final = {"sm_80": 16, "sm_90": 64, "sm_100": 64}


class Product(NamedTuple):
    """What is multiplied.

    Attributes
    ----------
    block : tuple of int
        Rows and columns of a block of the operand.
    columns : int
        Of the result.
    kind : str
        "half", "int8", "tf32", "float32" or "float64".
    rows : int
        Rows of blocks, of all members.
    blocks : int
        Blocks of a row, on average.
    """

    block: tuple[int, int]
    columns: int
    kind: str
    rows: int
    blocks: int

    @property
    def size(self) -> int:
        """Bytes of a value of the operands."""
        return {"half": 2, "int8": 1, "tf32": 4, "float32": 4, "float64": 8}[self.kind]

    @property
    def key(self) -> str:
        """What findings of measurements are kept under: sizes in powers of two, as they are chosen by."""
        columns = 1 << max(self.columns - 1, 0).bit_length()
        br, bc = self.block
        return f"{br}x{bc} {self.kind} columns {columns} rows {self.rows} blocks {self.blocks}"


class Cut(NamedTuple):
    """How: as :class:`prunus.cuda.configs.Tile`."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


def roofline(where: Place, flops: float, size: float, kind: str = "half") -> float:
    """Return seconds that a place needs at least, of the rates that good kernels reach.

    Parameters
    ----------
    where : Place
    flops : float
        Operations: two for each multiply-add.
    size : float
        Bytes read and written.
    kind : str
        What operands are: "half", "int8", "tf32", "float32" or "float64".

    Notes
    -----
    Rates are of the GPU that stands for the architecture (:mod:`prunus.cuda.chips`), scaled by the number of
    multiprocessors for operations.
    """
    chip = CHIPS[where.arch]
    share = where.multiprocessors / chip.multiprocessors
    return max(flops / (chip.flops[kind] * share * REACHED_FLOPS), size / (chip.bandwidth * REACHED_BYTES))


def held(where: Place, cut: Cut, inner: int, *, native: bool, own: int = 0, sums: int = 4) -> int:
    """Return bytes of shared memory that the compiler takes for a tile: what it does, counted.

    Parameters
    ----------
    where : Place
    cut : Cut
        Of which ``k`` inner values are a step.
    inner : int
        Bytes of one inner value of all operands that a step loads.
    native : bool
        Whether operands are of a kind that the architecture's own matrix instructions read.
    own : int
        Bytes that are held all the while.
    sums : int
        Bytes of a sum.
    """
    # What wgmma and tcgen05 read may not be written to yet, which takes one more buffer.
    more = native and where.arch != "sm_80" and cut.m >= _NATIVE_ROWS[where.arch]
    buffers = cut.stages if more else max(cut.stages - 1, 1)
    # Sums change places on their way to memory, in what operands leave.
    return max(cut.k * inner * buffers + own, cut.m * cut.n * sums) + 1024


def shared(where: Place, what: Product, cut: Cut) -> int:
    """Return bytes of shared memory that a tile of ``dsd`` takes; see :func:`held`."""
    return held(where, cut, (cut.m + cut.n) * what.size, native=what.kind in ("half", "int8", "tf32"))


def fits(where: Place, what: Product, cut: Cut) -> bool:
    """Say whether a multiprocessor has the shared memory for a tile."""
    return shared(where, what, cut) <= where.shared


def seconds(where: Place, what: Product, cut: Cut) -> float:
    """Return how long a product takes with a tile."""
    chip = CHIPS[where.arch]
    br, bc = what.block
    parts, across = -(-br // cut.m), -(-what.columns // cut.n)
    programs = max(what.rows, 1) * parts * across
    # Steps that span several blocks end with the list, others with each block.
    length = what.blocks * bc
    steps = -(-length // cut.k) if bc % cut.k else length // cut.k
    together = min(
        chip.shared_each // (shared(where, what, cut) + chip.shared_own),
        chip.warps_each // cut.warps,
        _REGISTERS // (32 * cut.warps * min(cut.m * cut.n // (32 * cut.warps) + _OTHER_REGISTERS, 255)),
    )
    together = max(together, 1)
    each = -(-programs // where.multiprocessors)
    rate = chip.flops[what.kind] / chip.multiprocessors * REACHED_FLOPS * _share_of_peak(where, what, cut)
    size = cut.k * (cut.m + cut.n) * what.size
    under_way = min(together, each) * max(cut.stages - 1, 1) * size
    step = max(2 * cut.m * cut.n * cut.k / rate, size / min(_PORT, under_way / _LATENCY))
    return each * steps * step + -(-each // together) * _BEGIN


def _share_of_peak(where: Place, what: Product, cut: Cut) -> float:
    """Return what matrix units reach with a tile: narrow ones wait for operands from shared memory."""
    if what.kind in ("float32", "float64"):
        return 1.0 if cut.m * cut.n >= 64 * 64 else 0.6
    native = cut.m >= _NATIVE_ROWS[where.arch]
    share = 1.0 if native else _OLD_UNITS[where.arch]
    return share * min(1.0, cut.n / 64) * min(1.0, (cut.m + 32) / 96)
