"""How far predictions are from what was measured, by group."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from prunus._table import format_table
from prunus.tensix.validation.run import Prediction, null_cycles

__all__ = ["Summary", "null_summary", "report", "summaries", "summary"]

_TITLES = {
    "gemm": "gemm: cycles of the math thread",
    "noc": "noc: cycles",
    "dram": "dram: bytes a cycle",
}


@dataclass(frozen=True)
class Summary:
    """Absolute relative errors of a group, in per cent.

    Parameters
    ----------
    name : str
        Of the group.
    rows : int
        How many rows were compared.
    mean, median, p90 : float
        Of the absolute errors; the percentile is interpolated linearly.
    worst : float
        The largest absolute error, with its sign.
    line : int
        The line of the file that it is at.
    """

    name: str
    rows: int
    mean: float
    median: float
    p90: float
    worst: float
    line: int


def summary(name: str, errors: Sequence[tuple[float, int]]) -> Summary:
    """Summarise relative errors.

    Parameters
    ----------
    name : str
        Of the group.
    errors : sequence of (float, int)
        Each error, as a share, and the line of its row; at least one.
    """
    shares = 100 * np.abs([error for error, _ in errors])
    at = int(np.argmax(shares))
    return Summary(
        name,
        len(errors),
        float(np.mean(shares)),
        float(np.median(shares)),
        float(np.percentile(shares, 90)),
        100 * errors[at][0],
        errors[at][1],
    )


def summaries(predictions: Iterable[Prediction]) -> list[Summary]:
    """Summarise each group, in the order of their names, and all together at the end.

    Rows of which nothing was measured, or that could not be run, are left out; without any the list is empty.
    """
    found: dict[str, list[tuple[float, int]]] = {}
    for one in predictions:
        error = one.relative_error
        if error is not None:
            found.setdefault(one.group, []).append((error, one.row.line))
    every = [error for group in found.values() for error in group]
    parts = [summary(name, errors) for name, errors in sorted(found.items())]
    return [*parts, summary("all", every)] if every else []


def null_summary(predictions: Iterable[Prediction]) -> Summary | None:
    """Summarise what the null model says of products: cycles = 7500 + ideal / 0.82."""
    errors = [
        (null_cycles(one.ideal) / one.measured - 1, one.row.line)
        for one in predictions
        if one.ideal is not None and one.measured is not None
    ]
    return summary("null model", errors) if errors else None


def report(kind: str, predictions: Sequence[Prediction]) -> str:
    """Return the table of one file's errors, or of its predictions where nothing was measured.

    Below it stands how many rows of the file are not in it.
    """
    found = summaries(predictions)
    left = "".join(f"\n{line}" for line in _left_out(predictions, compared=bool(found)))
    if not found:
        return f"{_TITLES[kind]}\n\n{_plain(kind, predictions)}{left}"
    null = null_summary(predictions)
    if null is not None:
        found.append(null)
    header = ["error in %", "rows", "mean", "median", "90th", "worst", "at line"]
    cells = [
        [
            s.name,
            str(s.rows),
            f"{s.mean:.1f}",
            f"{s.median:.1f}",
            f"{s.p90:.1f}",
            f"{s.worst:+.1f}",
            str(s.line),
        ]
        for s in found
    ]
    return f"{_TITLES[kind]}\n\n{format_table(header, cells)}{left}"


def _left_out(predictions: Sequence[Prediction], *, compared: bool) -> Iterator[str]:
    """Tell how many rows a table leaves out, and why."""
    count = len(predictions)
    failed = sum(bool(one.error) for one in predictions)
    if failed:
        yield f"{failed} of {count} rows could not be run"
    unmeasured = sum(not one.error and one.relative_error is None for one in predictions)
    if compared and unmeasured:
        yield f"{unmeasured} of {count} rows are predicted only: nothing was measured"


def _plain(kind: str, predictions: Sequence[Prediction]) -> str:
    """Return what was predicted, where there is nothing to compare it with."""
    cells = [
        [
            str(one.row.line),
            one.group,
            f"{one.cycles:.0f}",
            *([f"{one.predicted:.2f}"] if kind == "dram" else []),
        ]
        for one in predictions
        if one.cycles is not None and one.predicted is not None
    ]
    header = ["line", "group", "cycles", *(["bytes a cycle"] if kind == "dram" else [])]
    return format_table(header, cells, left=2) if cells else "nothing could be run"
