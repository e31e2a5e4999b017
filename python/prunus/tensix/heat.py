"""Pictures of a report: how busy cores and links are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunus.tensix.spec import ChipSpec
from prunus.tensix.usage import PORTS, Usage

__all__ = ["draw"]

_COLOURS = "magma_r"
# Links of a network lie beside the line between their nodes, as ends of two links would cover each other.
_ASIDE = 0.12


def draw(spec: ChipSpec, usage: Usage) -> Any:
    """Draw matrix units, data-movement threads, and the links of both networks on the grid of the chip."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        text = "plot() needs matplotlib: pip install 'prunus[plot]'"
        raise ModuleNotFoundError(text, name="matplotlib") from error

    columns, rows = spec.grid.columns, spec.grid.rows
    figure = Figure(figsize=(2 + columns * 0.9, 1 + rows * 0.9), layout="constrained")
    panels = figure.subplots(2, 2)
    cycles = usage.cycles or 1.0
    cores = usage.cores
    places = [(spec.workers.x[x], spec.workers.y[y]) for x, y in cores["at"].tolist()]
    math = np.where(cores["computes"], cores["math_busy"], np.nan)
    threads = np.where(cores["has_thread"], usage.thread_busy(), np.nan)
    count = np.maximum(cores["has_thread"].sum(axis=1), 1)
    moving = np.where(cores["has_thread"].any(axis=1), np.nansum(threads, axis=1) / count, np.nan)
    for panel, title, work in ((panels[0, 0], "math", math), (panels[0, 1], "data movement", moving)):
        shares = np.full((rows, columns), np.nan)
        for (x, y), busy in zip(places, work.tolist(), strict=True):
            shares[y, x] = busy / cycles
        image = panel.imshow(shares, vmin=0, vmax=1, cmap=_COLOURS)
        panel.set_title(f"{title}: share of the time that cores work")
    for noc in (0, 1):
        _links(panels[1, noc], spec, usage, noc, cycles)
        panels[1, noc].set_title(f"NoC {noc}: share of the time that links work")
    for panel in panels.flat:
        panel.set(xlim=(-0.7, columns - 0.3), ylim=(rows - 0.3, -0.7), aspect="equal")
        panel.set_xticks(range(columns))
        panel.set_yticks(range(rows))
        _channels(panel, usage, cycles)
    figure.colorbar(image, ax=panels, shrink=0.6, label="busy (squares: channels of DRAM)")
    figure.suptitle(f"{spec.name}: {usage.cycles:.0f} cycles")
    return figure


def _links(panel: Any, spec: ChipSpec, usage: Usage, noc: int, cycles: float) -> None:
    """Draw a network: links to the next node as lines, those into and out of a node as a disc."""
    from matplotlib.collections import LineCollection

    links = usage.links[usage.links["noc"] == noc]
    forward = 1 if noc == 0 else -1
    lines, shares = [], []
    for kind, step in (("x", np.array([forward, 0])), ("y", np.array([0, forward]))):
        aside = _ASIDE * np.array([step[1], step[0]])
        for one in links[links["port"] == PORTS.index(kind)]:
            start = one["at"] + aside
            # A link that closes its ring leaves the picture.
            lines.append([start, start + step])
            shares.append(one["busy"] / cycles)
    drawn = LineCollection(lines, cmap=_COLOURS, linewidths=3)
    drawn.set_array(np.array(shares))
    drawn.set_clim(0, 1)
    panel.add_collection(drawn)
    nodes: dict[tuple[int, int], float] = {}
    for one in links[links["port"] >= PORTS.index("in")]:
        at = (int(one["at"][0]), int(one["at"][1]))
        nodes[at] = max(nodes.get(at, 0.0), one["busy"] / cycles)
    _marks(panel, np.array(list(nodes)), np.array(list(nodes.values())), "o", 40)
    panel.set_facecolor("0.93")


def _channels(panel: Any, usage: Usage, cycles: float) -> None:
    """Draw the channels of DRAM."""
    _marks(panel, usage.channels["at"], usage.channels["busy"] / cycles, "s", 90)


def _marks(panel: Any, at: NDArray[Any], shares: NDArray[Any], marker: str, size: int) -> None:
    if len(at):
        look = {"cmap": _COLOURS, "vmin": 0, "vmax": 1, "edgecolors": "0.4", "linewidths": 0.6, "zorder": 3}
        panel.scatter(at[:, 0], at[:, 1], c=shares, marker=marker, s=size, **look)
