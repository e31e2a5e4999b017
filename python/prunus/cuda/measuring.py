"""``prunus.cuda.autotune``: tiles measured on the GPU at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from prunus._errors import PrunusError
from prunus._layout import blocks_along
from prunus._table import format_table
from prunus.cuda import configs, dtypes, products, tuning
from prunus.cuda.blocks import Operand
from prunus.cuda.configs import Tile
from prunus.cuda.costs import Product, fits, seconds
from prunus.cuda.runtime import Place, current, empty, on
from prunus.cuda.versions import libraries

if TYPE_CHECKING:
    import torch

__all__ = ["Measured", "Tuned", "autotune", "candidates"]

#: How long one call takes, in seconds: measures, as often as it likes, what it is given.
Timer = Callable[[Callable[[], object]], float]

_ROUNDS: Final = 15


class Measured(NamedTuple):
    """One candidate.

    Attributes
    ----------
    tile : Tile
    seconds : float
        Median over rounds; infinite where it did not run.
    model : float
        What the model of costs says.
    why : str
        Why it did not run, or was refused.
    """

    tile: Tile
    seconds: float
    model: float
    why: str = ""


class Tuned(NamedTuple):
    """What :func:`autotune` found.

    Attributes
    ----------
    best : Tile
    measured : list of Measured
        All candidates, the fastest first.
    kept : Path or None
        The file that has it now.
    """

    best: Tile
    measured: list[Measured]
    kept: Path | None

    def __str__(self) -> str:
        rows = [
            [
                f"{one.tile.m}x{one.tile.n}x{one.tile.k}",
                one.tile.loads,
                str(one.tile.warps),
                str(one.tile.stages),
                one.why or f"{one.seconds * 1e6:.1f}",
                f"{one.model * 1e6:.1f}",
            ]
            for one in self.measured
        ]
        return format_table(["tile", "loads", "warps", "stages", "us", "model us"], rows, left=2)


def autotune(
    shape: tuple[int, int],
    blocksize: tuple[int, int],
    columns: int,
    dtype: Any = "bfloat16",
    density: float = 0.1,
    *,
    device: int | None = None,
    keep: bool = True,
    timer: Timer | None = None,
) -> Tuned:
    """Measure which tile is fastest for ``W @ x`` on this GPU, and have it serve such products from now on.

    Problems are alike where blocks are, and columns, rows of blocks and blocks of a row round up to the same
    powers of two. Loads by tensor descriptors, and by warps of their own, are among the candidates of
    architectures that have them; they are only ever chosen where this function has found them faster.

    Parameters
    ----------
    shape : tuple of int
        Of the block-sparse operand.
    blocksize : tuple of int
        Rows and columns of its blocks, at least 16.
    columns : int
        Of the dense operand.
    dtype : torch.dtype or str
        Of both.
    density : float
        Share of blocks that are stored.
    device : int, optional
        Which GPU; torch's current one by default.
    keep : bool
        Write what was found to the file of findings (``PRUNUS_CUDA_TUNING``, by default in the user's cache
        folder), where later processes find it.
    timer : callable, optional
        Given a function that runs the product once, returns seconds. By default CUDA events around it, after
        the second-level cache was overwritten.

    Returns
    -------
    Tuned
        Prints as a table.

    Raises
    ------
    ValueError, TypeError
        For sizes below 1, blocks of fewer than 16 rows or columns, densities that are not above 0 and at most
        1, and dtypes that products do not take.
    PrunusError
        If there is no GPU, or no candidate runs.

    Notes
    -----
    Candidates take turns, a call each in every round, so that clocks that change slow all of them; the median
    over rounds counts. Operands are random: matrix units draw less power on zeros and run faster. A candidate
    whose result is not that of the first one, which the model would choose, is refused.
    """
    (m, k), (br, bc) = shape, blocksize
    if min(m, k, columns) < 1 or min(br, bc) < 16:
        raise ValueError(
            f"expected sizes of at least 1 and blocks of at least 16 x 16, got {shape}, {columns} columns "
            f"and blocks {blocksize}"
        )
    if not 0 < density <= 1:
        raise ValueError(f"density must be above 0 and at most 1, got {density}")
    torch = libraries().torch
    kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(kind, torch.dtype):
        raise TypeError(f"no torch dtype: {dtype!r}")
    dtypes.numpy_of(kind, "W")
    where = current(device)
    if where.interpreted and timer is None:
        raise PrunusError("Triton's interpreter is not measured: tiles are chosen for GPUs")
    # Events are the current device's, whichever one the product runs on.
    with on(where):
        return _tune(where, shape, blocksize, columns, kind, density, keep, timer or _Events(where).seconds)


def _tune(
    where: Place,
    shape: tuple[int, int],
    blocksize: tuple[int, int],
    columns: int,
    kind: Any,
    density: float,
    keep: bool,
    timer: Timer,
) -> Tuned:
    m, k = shape
    w = _random(where, shape, blocksize, kind, density)
    x = _values(where, (k, columns), kind)
    out = dtypes.result(kind, kind)
    down = blocks_along(m, blocksize[0])
    what = configs.problem(
        blocksize,
        columns,
        kind.itemsize * 8,
        products.precision(),
        down,
        blocks_along(len(w.indices), down),
    )
    first: torch.Tensor | None = None
    runs: list[tuple[Tile, Callable[[], object]]] = []
    refused: list[Measured] = []
    for tile in candidates(where, what):
        y = empty((m, columns), out, where)
        run: Callable[[], object] = partial(products.dsd, where, w, x, y, tile=tile)
        model = seconds(where, what, tile.cut)
        try:
            run()
        except Exception as error:
            refused.append(Measured(tile, float("inf"), model, f"{type(error).__name__}: {error}"[:200]))
            continue
        if first is None:
            first = y
        elif not _alike(y, first):
            refused.append(Measured(tile, float("inf"), model, "another result"))
            continue
        runs.append((tile, run))
    if not runs:
        raise PrunusError(f"no tile runs on {where.name}: {'; '.join(one.why for one in refused)}")
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(_ROUNDS):
        for own, (_, again) in zip(times, runs, strict=True):
            own.append(timer(again))
    measured = [
        Measured(tile, median(own), seconds(where, what, tile.cut))
        for own, (tile, _) in zip(times, runs, strict=True)
    ]
    measured.sort(key=lambda one: one.seconds)
    best = measured[0].tile
    kept = tuning.keep(where, "dsd", what.key, (*best,)) if keep else None
    return Tuned(best, [*measured, *refused], kept)


def candidates(where: Place, what: Product) -> list[Tile]:
    """Return the tiles that are tried, those first that should be fast, with all kinds of loads."""
    found: dict[Tile, None] = {}
    br, bc = what.block
    for tile in configs.dsd_tiles(where, what):
        for stages in (tile.stages - 1, tile.stages, tile.stages + 1):
            other = tile._replace(stages=stages)
            if stages > 1 and fits(where, what, other.cut):
                found[other] = None
                if what.kind == "half" and bc % tile.k == 0 and br % tile.m == 0:
                    for loads in configs.loads_of(where.arch)[1:]:
                        found[other._replace(loads=loads)] = None
    return sorted(found, key=lambda tile: seconds(where, what, tile.cut))


def _random(
    where: Place, shape: tuple[int, int], blocksize: tuple[int, int], kind: Any, density: float
) -> Operand:
    """Return an operand with blocks at random, as many in all as density says."""
    torch = libraries().torch
    down, across = (blocks_along(size, block) for size, block in zip(shape, blocksize, strict=True))
    count = max(round(down * across * density), 1)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(down * across, generator=generator)[:count].sort().values
    counts = torch.bincount(chosen // across, minlength=down)
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]).to(torch.int32)
    indices = (chosen % across).to(torch.int32)
    data = _values(where, (count, *blocksize), kind)
    return Operand(data, indices.to(where.device), indptr.to(where.device), shape)


def _values(where: Place, shape: Sequence[int], kind: Any) -> Any:
    torch = libraries().torch
    if kind == torch.int8:
        return torch.randint(-128, 128, tuple(shape), dtype=kind, device=where.device)
    return torch.randn(tuple(shape), device=where.device).to(kind)


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Say whether two results differ by rounding alone."""
    torch = libraries().torch
    scale = b.abs().max().to(torch.float64).item()
    return bool((a.double() - b.double()).abs().max().item() <= 0.02 * scale)


class _Events:
    """Times calls on a GPU."""

    def __init__(self, where: Place) -> None:
        torch = libraries().torch
        self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in "be")
        cache = getattr(torch.cuda.get_device_properties(where.device), "L2_cache_size", 128 << 20)
        # To overwrite so much takes longer than to launch a kernel, which is then not measured.
        self._flushed = empty((max(4 * cache, 512 << 20),), torch.int8, where)

    def seconds(self, run: Callable[[], object]) -> float:
        """Return seconds of one call, with nothing of its operands in the second-level cache."""
        self._flushed.zero_()
        self._begin.record()
        run()
        self._end.record()
        self._end.synchronize()
        return float(self._begin.elapsed_time(self._end)) * 1e-3
