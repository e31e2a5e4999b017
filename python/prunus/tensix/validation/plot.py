"""The picture of a validation: what was measured against the error of what was predicted."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from prunus.tensix.validation.run import Prediction

__all__ = ["plot"]

_AXES = {"gemm": "measured cycles", "noc": "measured cycles", "dram": "measured bytes a cycle"}


def plot(path: Path, found: Mapping[str, Sequence[Prediction]]) -> None:
    """Draw one panel for each kind of file, a point for each row that was measured, and save the picture.

    Parameters
    ----------
    path : Path
        Where to save; the suffix gives the format.
    found : mapping of str to sequence of Prediction
        Predictions by kind.

    Raises
    ------
    ValueError
        If there is no row with a measurement and a prediction.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = {kind: [one for one in rows if one.relative_error is not None] for kind, rows in found.items()}
    shown = {kind: rows for kind, rows in shown.items() if rows}
    if not shown:
        raise ValueError("nothing to plot: no row has both a measurement and a prediction")
    figure = Figure(figsize=(5.2 * len(shown), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, (kind, rows) in zip(
        figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True
    ):
        for group in sorted({one.group for one in rows}):
            points = [
                (one.measured, 100 * one.relative_error)
                for one in rows
                if one.group == group and one.relative_error is not None
            ]
            panel.plot(*zip(*points, strict=True), "o", ms=3, alpha=0.7, label=group)
        panel.axhline(0, color="#444444", lw=0.8)
        panel.set_xscale("log")
        panel.set_title(f"{kind}: {len(rows)} rows", fontsize=9)
        panel.set_xlabel(_AXES[kind], fontsize=8)
        panel.set_ylabel("error of the prediction, %", fontsize=8)
        panel.tick_params(labelsize=7)
        panel.legend(fontsize=6)
    figure.savefig(path, dpi=110)
