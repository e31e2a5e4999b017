"""How a row's product is laid out and cut."""

from dataclasses import dataclass

from prunus import _core
from prunus.tensix.validation.chips import chip_of, compute_grid, spec_text
from prunus.tensix.validation.rows import Cells

__all__ = ["PHASES", "Product", "product_of"]

TILE = 32

# Passes of the matrix unit over a tile product, of 16 cycles each.
PHASES = {"LoFi": 1, "HiFi2": 2, "HiFi3": 3, "HiFi4": 4}

_FORMATS = {
    "bfp8": "bfloat8_b",
    "bfp8_b": "bfloat8_b",
    "bfloat8": "bfloat8_b",
    "bfp4": "bfloat4_b",
    "bfp4_b": "bfloat4_b",
    "bfloat4": "bfloat4_b",
    "bf16": "bfloat16",
    "fp32": "float32",
}

_CUT = (
    "in0_block_w",
    "per_core_M",
    "per_core_N",
    "out_block_h",
    "out_block_w",
    "out_subblock_h",
    "out_subblock_w",
)


@dataclass(frozen=True)
class Product:
    """A product on a chip, all sizes in tiles but `shape` and numbers of cores.

    Parameters
    ----------
    chip : str
        Name of a shipped chip.
    shape : tuple of int
        m, k and n.
    grid, used : tuple of int
        Columns and rows of cores, and of those that have a part.
    k : int
        Tiles along K, padded.
    per_core, out_block, out_subblock : tuple of int
        Rows and columns: of a core, computed at once, and in the destination registers.
    in0_block_w : int
        Tiles along K of a block.
    format, fidelity : str
        Of all operands, and of the matrix unit.
    in0_sharded, out_sharded : bool
        In L1, a block on each core; otherwise in DRAM.
    packer_l1_acc, wide : bool
        Partial sums are added in L1; sums have 32 bits.
    """

    chip: str
    shape: tuple[int, int, int]
    grid: tuple[int, int]
    used: tuple[int, int]
    k: int
    per_core: tuple[int, int]
    in0_block_w: int
    out_block: tuple[int, int]
    out_subblock: tuple[int, int]
    format: str
    fidelity: str
    in0_sharded: bool
    out_sharded: bool
    packer_l1_acc: bool
    wide: bool

    @property
    def ideal_cycles(self) -> float:
        """Cycles of the matrix units alone, at their peak and on all cores of the grid."""
        m, k, n = self.shape
        return m * k * n / TILE**3 * 16 * PHASES[self.fidelity] / (self.grid[0] * self.grid[1])

    def blocking(self) -> dict[str, int]:
        """Return the cut by the names that files have for it."""
        cut = (self.in0_block_w, *self.per_core, *self.out_block, *self.out_subblock)
        return dict(zip(_CUT, cut, strict=True))


def product_of(cells: Cells, *, configured: bool = True) -> Product:
    """Read a row as a product.

    Parameters
    ----------
    cells : Cells
        The row.
    configured : bool
        Take the configuration from the row where it has one; otherwise it is chosen: as the benchmark is
        tuned, or, where the column ``config`` says something else than ``tuned``, as Tenstorrent's library
        chooses when it is told nothing (``rust/tensix/src/programs/blocking.rs``).
    """
    chip = chip_of(cells.text("device", ""), cells.text("arch", ""))
    across, down = compute_grid(chip)
    grid = (cells.whole("grid_x", across), cells.whole("grid_y", down))
    shape = (cells.whole("m"), cells.whole("k"), cells.whole("n"))
    m, k, n = (-(-size // TILE) for size in shape)
    name = cells.text("dtype").lower()
    number_format = _FORMATS.get(name, name)
    fidelity = cells.one_of("fidelity", list(PHASES))
    in0_sharded, out_sharded = _sharded(cells, "in0"), _sharded(cells, "out")
    if _place(cells, "in1") == "L1":
        raise NotImplementedError("in1 in L1: the program reads it from DRAM")
    wide = cells.yes("fp32_dest_acc", False)
    if configured and all(cells.text(column, "") for column in _CUT):
        block, *sizes = (cells.whole(column) for column in _CUT)
        per_core, out_block, out_subblock = zip(sizes[::2], sizes[1::2], strict=True)
        if per_core[0] * grid[1] < m or per_core[1] * grid[0] < n:
            raise ValueError(f"per_core {per_core} on {grid} cores does not cover {m} x {n} tiles")
        # A shard has the same number of K tiles on each core.
        k = _up(_up(k, grid[0]) if in0_sharded else k, block)
    else:
        tuned = cells.text("config", "tuned").lower() == "tuned"
        cut = _core.tensix_blocking(
            spec_text(chip), (m, k, n), grid, number_format, in0_sharded, out_sharded, wide, tuned
        )
        k, block = cut["k"], cut["in0_block_w"]
        per_core, out_block, out_subblock = cut["per_core"], cut["out_block"], cut["out_subblock"]
    rows, columns = -(-m // per_core[0]), -(-n // per_core[1])
    return Product(
        chip=chip,
        shape=shape,
        grid=grid,
        # Shards of in0 take part in any case.
        used=(grid[0] if in0_sharded else columns, rows),
        k=k,
        per_core=per_core,
        in0_block_w=block,
        out_block=out_block,
        out_subblock=out_subblock,
        format=number_format,
        fidelity=fidelity,
        in0_sharded=in0_sharded,
        out_sharded=out_sharded,
        packer_l1_acc=cells.yes("packer_l1_acc", True),
        wide=wide,
    )


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _place(cells: Cells, operand: str) -> str:
    return cells.one_of(operand, ["L1", "DRAM"], "DRAM")


def _sharded(cells: Cells, operand: str) -> bool:
    """Tell whether an operand lies in L1, a block on each core."""
    in_l1 = _place(cells, operand) == "L1"
    sharded = cells.yes(f"{operand}_sharded", in_l1)
    if in_l1 and not sharded:
        raise NotImplementedError(f"{operand} interleaved in L1: only sharded there, or in DRAM")
    if sharded and not in_l1 and cells.text(operand, ""):
        raise NotImplementedError(f"{operand} sharded in DRAM: only interleaved there, or sharded in L1")
    return sharded
