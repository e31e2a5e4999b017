"""The picture of a comparison: density against speed-up, with the break-even density marked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunus.bench.analysis import Race, break_even, races
from prunus.bench.machine import Cpu, optional
from prunus.bench.record import Record

__all__ = ["plot", "require_matplotlib"]

_COLOURS = {"prunus": "#7b2d8b", "prunus packed": "#c2559f", "torch bsr": "#e08a1e", "scipy": "#4c78a8"}


def require_matplotlib(option: str = "--plot") -> None:
    """Raise a `ModuleNotFoundError` that says what to install, if matplotlib is missing."""
    if optional("matplotlib") is None:
        raise ModuleNotFoundError(f"{option} needs matplotlib: pip install 'prunus[plot]'", name="matplotlib")


def plot(path: Path, records: Sequence[Record], cpu: Cpu) -> None:
    """Draw one panel for each race of `W @ X` kind and save the picture.

    Parameters
    ----------
    path : Path
        Where to save; the suffix gives the format.
    records : sequence of Record
        What was measured.
    cpu : Cpu
        Named in the title.

    Raises
    ------
    ValueError
        If no race has a dense contestant to compare with.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [race for race in races(records) if race.case.op == "dsd" and race.dense is not None]
    if not shown:
        raise ValueError("nothing to plot: no product with a dense contestant of the same type was run")
    columns = sorted({race.case.columns for race in shown})
    lines: dict[tuple[object, ...], dict[int, Race]] = {}
    for race in shown:
        c = race.case
        lines.setdefault((c.dtype, c.layout, c.threads, c.block), {})[c.columns] = race
    figure = Figure(figsize=(3.4 * len(columns), 2.6 * len(lines)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(lines), len(columns), squeeze=False)
    for panel_row, ((dtype, layout, threads, block), found) in zip(panels, lines.items(), strict=True):
        for panel, n in zip(panel_row, columns, strict=True):
            if n not in found:
                panel.set_axis_off()
                continue
            panel.set_title(f"{dtype} {layout} {threads}t, block {block}, N = {n}", fontsize=8)
            _draw(panel, found[n])
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    figure.suptitle(f"Speed-up over the best dense product · {cpu.name} · {cpu.level}", fontsize=9)
    figure.savefig(path, dpi=110)


def _draw(panel: Any, race: Race) -> None:
    """Draw the curves of one race."""
    if race.dense is None:
        raise ValueError("a race without a dense contestant has no speed-up")
    dense = race.dense.median
    names = sorted({name for found in race.sparse.values() for name in found})
    for name in names:
        points = race.points(name)
        colour = _COLOURS.get(name)
        panel.plot(
            [100 * d for d, _ in points], [dense / t for _, t in points], "o-", ms=3, color=colour, label=name
        )
        crossing = break_even(points, dense)
        if crossing is not None and crossing[0] == "=":
            panel.axvline(100 * crossing[1], color=colour, lw=0.8, ls=":")
            panel.annotate(
                f"{crossing[1]:.0%}",
                (100 * crossing[1], 1),
                fontsize=7,
                color=colour,
                ha="center",
                va="bottom",
            )
    densities = list(race.sparse)
    # All that dense rate on the live blocks could give: the bound set by arithmetic.
    panel.plot(
        [100 * d for d in densities],
        [1 / d for d in densities],
        "--",
        color="#999999",
        lw=0.8,
        label="1 / density",
    )
    panel.axhline(1, color="#444444", lw=0.8)
    panel.set_yscale("log")
    panel.set_xlabel("density %", fontsize=7)
    panel.set_ylabel("speed-up", fontsize=7)
    panel.tick_params(labelsize=7)
