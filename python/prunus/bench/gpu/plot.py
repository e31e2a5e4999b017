"""The picture of a run: how near products with blocks come to cuBLAS, by density."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prunus.bench.gpu import peers
from prunus.bench.gpu.bench import OURS
from prunus.bench.gpu.record import Machine, Race, Row, races
from prunus.bench.plot import require_matplotlib

__all__ = ["plot"]

_COLOURS = {OURS: "#7b2d8b", peers.TORCH_BSR: "#e08a1e", peers.CUSPARSE: "#4c78a8"}


def plot(path: Path, machine: Machine, rows: Sequence[Row]) -> None:
    """Draw time over that of the dense product against density, a panel for each size and N.

    Raises
    ------
    ValueError
        If no product with blocks was timed beside a dense one.
    ModuleNotFoundError
        If matplotlib is missing.
    """
    require_matplotlib("a plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels: dict[tuple[str, int, int], list[Race]] = {}
    for race in races(rows):
        case = race.case
        if case.section in ("dsd", "sdd") and race.dense is not None:
            panels.setdefault((case.what, case.size, case.columns), []).append(race)
    if not panels:
        raise ValueError("nothing to plot: no product with blocks was timed beside a dense one")
    across = min(len(panels), 3)
    down = -(-len(panels) // across)
    figure = Figure(figsize=(4.5 * across, 3.4 * down), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for panel in axes[len(panels) :]:
        panel.set_visible(False)
    for panel, ((what, size, columns), group) in zip(axes, panels.items(), strict=False):
        for race in group:
            _lines(panel, race)
        panel.axhline(1, color="black", linewidth=0.8)
        panel.set(
            xlabel="density", ylabel="time / cuBLAS", yscale="log", title=f"{what}, {size}, N={columns}"
        )
    axes[0].legend(fontsize=7)
    figure.suptitle(f"{machine.gpu}, {machine.date}, torch {machine.versions.get('torch', '?')}")
    figure.savefig(path)


def _lines(panel: object, race: Race) -> None:
    """Draw a line for each contestant of a race."""
    dense = race.dense
    points: dict[str, list[tuple[float, float]]] = {}
    for row in race.rows:
        if row.timed and row.kind != "dense" and dense is not None:
            points.setdefault(row.contestant, []).append((row.case.density, row.seconds / dense.seconds))
    styles = {32: ":", 64: "--", 128: "-"}
    for name, line in points.items():
        x, y = zip(*sorted(line), strict=True)
        panel.plot(  # type: ignore[attr-defined]
            x,
            y,
            styles.get(race.case.block, "-."),
            marker=".",
            color=_COLOURS.get(name, "#888888"),
            label=f"{name}, blocks of {race.case.block}",
        )
