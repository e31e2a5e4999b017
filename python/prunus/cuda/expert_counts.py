"""What a trace counts of mixtures of experts, asked of the GPU when somebody looks at the trace."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from prunus import _core
from prunus._trace import Span
from prunus.cuda.grouped import Matrices, Routes
from prunus.cuda.grouped_blocks import Blocks
from prunus.pruning._rows import TILE

if TYPE_CHECKING:
    import torch

__all__ = ["count_experts", "count_routes"]

_BRANCHES: Final = ("live", "total", "union_live", "union_total")


def count_routes(at: Span, routes: Routes, flops: int, nbytes: int) -> None:
    """Count which experts rows chose, and what the others would have cost.

    Parameters
    ----------
    at : Span
        Where to count.
    routes : Routes
        Of a router.
    flops, nbytes : int
        Operations of an expert for one row, and bytes of its weights.
    """

    def numbers() -> dict[str, int]:
        assert routes.live is not None
        live = routes.live.cpu().numpy()
        taken, touched = int(live.sum()), int(live.any(axis=0).sum())
        return {
            "flops_skipped": (live.size - taken) * flops,
            "bytes_skipped": (live.shape[1] - touched) * nbytes,
            "live": taken,
            "total": live.size,
            "union_live": touched,
            "union_total": live.shape[1],
        }

    at.later(numbers)


def count_experts(
    at: Span,
    routes: Routes,
    matrices: Sequence[tuple[Matrices | Blocks, bool]],
    active: torch.Tensor | None,
    live: torch.Tensor | None,
    branch: int,
    units: int,
) -> None:
    """Count what experts did with their matrices for the copies that they have.

    Parameters
    ----------
    at : Span
        Where to count.
    routes : Routes
        Whose copies are whose.
    matrices : sequence of (Matrices or Blocks, bool)
        Each, and whether it was computed whole, live or not. Of blocks, those that are stored count.
    active : Tensor, optional
        Shape (E,): which experts; None: all.
    live : Tensor of bool, optional
        Shape (copies, branches).
    branch, units : int
        Units of a branch, and all of an expert.
    """
    sizes = [(math.prod(w.size), _width(w), _stored(w), whole) for w, whole in matrices]

    def numbers() -> dict[str, int]:
        ends = routes.offsets.cpu().tolist()
        which = None if active is None else active.cpu().tolist()
        seen = None if live is None else live.cpu().numpy()
        made = dict.fromkeys(("flops", "flops_skipped", "bytes_loaded", "bytes_skipped"), 0)
        made |= dict.fromkeys(_BRANCHES, 0)
        for e in range(len(ends) - 1):
            rows = ends[e + 1] - ends[e]
            if not rows or (which is not None and not which[e]):
                continue
            share = union = 1.0
            if seen is not None:
                mine = np.ascontiguousarray(seen[ends[e] : ends[e + 1]])
                found = _core.count_rows(mine.view(np.uint8), branch, rows, units, TILE, [])
                for name, number in zip(
                    ("live", "total", "union_live", "union_total"), found[4:], strict=True
                ):
                    made[name] += number
                every = np.repeat(mine, branch, axis=1)[:, :units]
                share, union = (float(one.mean()) if one.size else 1.0 for one in (every, every.any(axis=0)))
            for size, width, stored, whole in sizes:
                there = size if stored is None else int(stored[e])
                done = 2 * there * rows if whole else round(2 * there * rows * share)
                read = there * width if whole else round(there * width * union)
                made["flops"] += done
                made["flops_skipped"] += max(2 * size * rows - done, 0)
                made["bytes_loaded"] += read
                made["bytes_skipped"] += max(size * width - read, 0)
        return made

    at.later(numbers)


def _width(w: Matrices | Blocks) -> int:
    """Return the bytes of a value."""
    return w.like.element_size()


def _stored(w: Matrices | Blocks) -> list[torch.Tensor] | None:
    """Return how many values each expert has stored, counted now; None: all."""
    return [one.stored() for one in w.every] if isinstance(w, Blocks) else None
