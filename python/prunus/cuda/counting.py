"""What a trace counts of products of rows with tables: operations, bytes, and branches that were live."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from prunus import _core
from prunus._trace import Span
from prunus.pruning._rows import TILE

if TYPE_CHECKING:
    import torch

__all__ = ["Table", "count_rows"]

_NAMES: Final = (
    "flops",
    "flops_skipped",
    "bytes_loaded",
    "bytes_skipped",
    "live",
    "total",
    "union_live",
    "union_total",
)


class Table(NamedTuple):
    """A table of one row a unit: values of a row, bytes of a value, and whether all of it was computed.

    Of one on ``disk`` what is read is counted where it is read; here what stayed there.
    """

    width: int
    size: int
    whole: bool
    disk: bool = False

    @classmethod
    def of(cls, w: torch.Tensor, whole: bool) -> Table:
        """Return what counts of a table (units, width)."""
        return cls(int(w.shape[1]), w.element_size(), whole)


def count_rows(
    at: Span, live: torch.Tensor | None, branch: int, tables: list[Table], rows: int, units: int
) -> None:
    """Count what was done with tables of one row a unit; as :func:`prunus.pruning._rows.count_rows`.

    What is live is read back when somebody looks at the trace.

    Parameters
    ----------
    at : Span
        Where to count.
    live : Tensor of bool, optional
        Shape (rows, branches).
    branch : int
        Units in a branch.
    tables : list of Table
        Those that were read.
    rows, units : int
        Rows of the input, and units of a row.
    """
    # What is counted are sizes: any dtype of as many bytes will do.
    shown = [(np.broadcast_to(np.empty((), f"V{one.size}"), (units, one.width)), one.whole) for one in tables]

    def numbers() -> dict[str, int]:
        seen = None if live is None else live.cpu().numpy().view(np.uint8)
        found = dict(zip(_NAMES, _core.count_rows(seen, branch, rows, units, TILE, shown), strict=True))
        stored = [one for one in tables if one.disk]
        if stored:
            here = [one for one, table in zip(shown, tables, strict=True) if not table.disk]
            found["bytes_loaded"] = found["bytes_skipped"] = 0
            if here:
                some = _core.count_rows(seen, branch, rows, units, TILE, here)
                found["bytes_loaded"], found["bytes_skipped"] = some[2:4]
            dead = 0
            if seen is not None and seen.size:
                dead = int((np.repeat(seen.any(axis=0), branch)[:units] == 0).sum())
            found["bytes_skipped"] += sum(dead * one.width * one.size for one in stored if not one.whole)
        return found

    if live is None:
        at.count(**numbers())
    else:
        at.later(numbers)
