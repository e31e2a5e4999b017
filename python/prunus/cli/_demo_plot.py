"""Figures of ``python -m prunus demo``."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prunus.bench.machine import cpu
from prunus.cli._demo import Line
from prunus.cli._demo_ffn import FfnLine
from prunus.cli._demo_llm import Way

__all__ = ["figures"]

_COLOURS = {"float32": "#4c78a8", "bfloat16": "#7b2d8b"}


def figures(
    folder: Path, ways: Sequence[Way], lines: Sequence[Line], pruned: Sequence[FfnLine]
) -> list[Path]:
    """Draw what the demo found.

    Parameters
    ----------
    folder : Path
        Where to; exists.
    ways, lines, pruned : sequence
        The rows of the three tables.

    Returns
    -------
    list of Path
        The PNG files.
    """
    made = []
    drawings: list[tuple[str, int, Callable[[Any], None]]] = [
        ("generation", 3, lambda panels: _ways(panels, ways)),
        ("blocks", len({line.tokens for line in lines}), lambda panels: _blocks(panels, lines)),
        ("pruning", len({line.tokens for line in pruned}), lambda panels: _pruned(panels, pruned)),
    ]
    for name, count, draw in drawings:
        made.append(folder / f"{name}.png")
        _figure(made[-1], count, draw)
    return made


def _figure(path: Path, count: int, draw: Callable[[Any], None]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * count, 3), layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure.subplots(1, count, squeeze=False)[0])
    figure.suptitle(f"SmolLM2-135M · {cpu().name} · {cpu().level}", fontsize=8)
    figure.savefig(path, dpi=110)


def _ways(panels: Any, ways: Sequence[Way]) -> None:
    names = [way.name.replace(", ", ",\n") for way in ways]
    parts = (
        ("tokens/s", [way.speed for way in ways]),
        ("MiB read from disk for a token", [way.each / (1 << 20) for way in ways]),
        ("peak memory, MiB", [(way.found["peak"] or 0) / (1 << 20) for way in ways]),
    )
    for panel, (title, values) in zip(panels, parts, strict=True):
        bars = panel.bar(names, values, color=["#999999", "#4c78a8", "#7b2d8b"])
        panel.bar_label(bars, fmt="%.0f", fontsize=7)
        panel.set_title(title, fontsize=8)
        panel.tick_params(labelsize=6)


def _blocks(panels: Any, lines: Sequence[Line]) -> None:
    for panel, rows in zip(panels, sorted({line.tokens for line in lines}), strict=True):
        for dtype in dict.fromkeys(line.dtype for line in lines):
            here = [line for line in lines if (line.dtype, line.tokens) == (dtype, rows)]
            best = [
                min(s for name, s in line.seconds.items() if name.endswith("dense"))
                / min(s for name, s in line.seconds.items() if name.startswith("prunus"))
                for line in here
            ]
            panel.plot([100 * line.density for line in here], best, "o-", color=_COLOURS[dtype], label=dtype)
        panel.axhline(1, color="#444444", lw=0.8)
        panel.set_title(f"{rows} rows, beside the best dense product", fontsize=8)
        panel.set_xlabel("per cent of blocks kept", fontsize=7)
        panel.set_ylabel("speed-up", fontsize=7)
        panel.tick_params(labelsize=7)
        panel.legend(fontsize=7)


def _pruned(panels: Any, pruned: Sequence[FfnLine]) -> None:
    for panel, rows in zip(panels, sorted({line.tokens for line in pruned}), strict=True):
        for dtype in dict.fromkeys(line.dtype for line in pruned):
            here = [line for line in pruned if (line.dtype, line.tokens) == (dtype, rows)]
            speeds = [line.dense / line.seconds for line in here]
            panel.plot([100 * line.live for line in here], speeds, "o-", color=_COLOURS[dtype], label=dtype)
        panel.axhline(1, color="#444444", lw=0.8)
        panel.set_title(f"{rows} rows, beside the best dense layers", fontsize=8)
        panel.set_xlabel("per cent of hidden units live", fontsize=7)
        panel.set_ylabel("speed-up", fontsize=7)
        panel.tick_params(labelsize=7)
        panel.legend(fontsize=7)
