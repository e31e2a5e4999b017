"""What a product costs over densities: dense, with a known pattern, and pruned as it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunus.tensix.estimate import Estimate, estimate_matmul
from prunus.tensix.spec import ChipSpec

__all__ = ["Sweep", "plot", "sweep"]


@dataclass(frozen=True)
class Sweep:
    """Costs of a product.

    Attributes
    ----------
    block : int
        Rows and columns of a block.
    densities : tuple of float
        Shares of the left operand's blocks that are live, ascending.
    dense : Estimate
        Of the product of dense operands, by the kernels of Tenstorrent's benchmark.
    every : Estimate
        Of all blocks by the kernels of ``static``, which write their results another way: what these gain
        beside ``dense`` with nothing left out has nothing to do with dead blocks.
    static, dynamic : tuple of Estimate
        For each density: of the product whose pattern is known before, and of the one that finds it out.
    """

    block: int
    densities: tuple[float, ...]
    dense: Estimate
    every: Estimate
    static: tuple[Estimate, ...]
    dynamic: tuple[Estimate, ...]

    def gains(self, found: Sequence[Estimate]) -> list[float]:
        """Return how many times as fast as the dense product each of some estimates is."""
        return [self.dense.cycles / one.cycles for one in found]

    def break_even(self, found: Sequence[Estimate], beside: Estimate | None = None) -> float | None:
        """Return the density from which on a product is slower than another one.

        Parameters
        ----------
        found : sequence of Estimate
            ``static`` or ``dynamic``.
        beside : Estimate, optional
            What they are compared with: ``dense`` if nothing is said, or ``every``.

        Returns
        -------
        float or None
            Between two densities on the line between their cycles: the last at which it is not slower, and
            the next one. None if it is not slower at the highest density, or slower at all of them.
        """
        over = [one.cycles - (beside or self.dense).cycles for one in found]
        last = max((i for i, more in enumerate(over) if more <= 0), default=None)
        if last is None or last + 1 == len(over):
            return None
        part = over[last] / (over[last] - over[last + 1])
        return self.densities[last] + part * (self.densities[last + 1] - self.densities[last])


def sweep(
    m: int,
    k: int,
    n: int,
    chip: str | ChipSpec,
    densities: Sequence[float],
    *,
    seed: int = 0,
    block: int = 32,
    dtype: str = "bfloat16",
    fidelity: str = "HiFi2",
    done: Callable[[str], None] = lambda what: None,
) -> Sweep:
    """Run a product dense, and with a known pattern and pruned as it runs at each density.

    Parameters
    ----------
    m, k, n : int
        Sizes.
    chip : str or ChipSpec
        The chip.
    densities : sequence of float
        Shares of live blocks, ascending.
    seed, block, dtype, fidelity
        As for :func:`~prunus.tensix.estimate_matmul`.
    done : callable
        Called with what has been run, after each product.

    Returns
    -------
    Sweep
        The estimates.

    Raises
    ------
    ValueError
        If densities do not ascend, or as for :func:`~prunus.tensix.estimate_matmul`.
    """
    if list(densities) != sorted(densities):
        raise ValueError(f"densities must ascend, got {', '.join(f'{one:g}' for one in densities)}")

    def run(live: float | None, decide: str) -> Estimate:
        found = estimate_matmul(
            m, k, n, chip, live=live, seed=seed, block=block, decide=decide, dtype=dtype, fidelity=fidelity
        )
        done("dense" if live is None else f"{100 * live:g} % {decide}")
        return found

    dense = run(None, "static")
    static = tuple(run(live, "static") for live in densities)
    dynamic = tuple(run(live, "dynamic") for live in densities)
    every = static[-1] if densities and densities[-1] == 1 else run(1.0, "static")
    return Sweep(block, tuple(densities), dense, every, static, dynamic)


def plot(path: Path, found: Sweep) -> None:
    """Draw the break-even curve and save the picture.

    Parameters
    ----------
    path : Path
        Where to save; the suffix gives the format.
    found : Sweep
        What is drawn.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    live = [100 * density for density in found.densities]
    panel.axhline(1, color="#444444", lw=0.8, label="dense")
    for name, line in (("static pattern", found.static), ("dynamic pruning", found.dynamic)):
        panel.plot(live, found.gains(line), "o-", ms=3, label=name)
        even = found.break_even(line)
        if even is not None:
            panel.axvline(100 * even, color="#444444", lw=0.5, ls=":")
    panel.set_xlabel("live blocks of the left operand, %", fontsize=8)
    panel.set_ylabel("times as fast as dense", fontsize=8)
    what = " x ".join(str(size) for size in found.dense.shape)
    panel.set_title(f"{found.dense.chip}: {what}, blocks of {found.block} x {found.block}", fontsize=9)
    panel.tick_params(labelsize=7)
    panel.legend(fontsize=7)
    figure.savefig(path, dpi=110)
