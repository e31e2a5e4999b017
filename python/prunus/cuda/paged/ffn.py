"""Feed-forward layers on disk for tensors on a GPU: dead units never leave the disk.

The matrix that decides streams to the GPU, or stays there (:func:`prunus.cuda.keep`); which units are live is
decided there. Which of them any row needs is read back once, as a disk is read by the host: this is the one
round trip of a call. Their bundles are then read in ascending order and sent ahead of the kernels that use
them, and sums go on from piece to piece.

Pieces hold as many live units as a buffer has room for, or neighbours where nearly all are live: where sums
are cut depends on shapes and on which units the batch needs, never on budgets or timing. So the same call
gives the same bits; a row's last bits may depend on what other rows of its batch need.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from prunus._dtypes import Array
from prunus._layout import blocks_along
from prunus.cuda import dtypes, policies, rows
from prunus.cuda.branches import Found, settle
from prunus.cuda.deciding import room
from prunus.cuda.finishing import finish
from prunus.cuda.paged import resident
from prunus.cuda.paged.sources import RowsInOrder
from prunus.cuda.runtime import Place, empty
from prunus.cuda.streaming import Ring, borrowed
from prunus.cuda.transfer import send
from prunus.cuda.versions import libraries
from prunus.paged.layers import PagedFFN
from prunus.paged.tables import Span, Table, announced, live_units
from prunus.pruning.policies import Fixed, Policy

if TYPE_CHECKING:
    import torch

__all__ = ["Call", "Outcome"]

_ALIGNED: Final = 16


class Outcome(NamedTuple):
    """What a trace tells of a call.

    Attributes
    ----------
    live : Tensor of bool, optional
        Shape (rows, branches); None: all.
    decided : bool
        Whether all of the matrix that decides was computed.
    """

    live: torch.Tensor | None
    decided: bool


class _Live(NamedTuple):
    """Which branches are live: for each row on the GPU, and for any row on the host."""

    each: torch.Tensor
    any: Array
    same: bool  # for all rows


class _Piece(NamedTuple):
    """Units that go together.

    Attributes
    ----------
    units : ndarray of int64
        Ascending.
    branches : ndarray of int64, optional
        Their branches; None: neighbours from ``units[0]`` on, live or not.
    branch : int
        Units of a branch that are in the piece, but for the last one.
    """

    units: Array
    branches: Array | None
    branch: int


class Call(NamedTuple):
    """A call of a layer on disk; operands are checked.

    Attributes
    ----------
    where : Place
        Where x and y live.
    layer : PagedFFN
        On disk.
    x, y : Tensor
        Shapes (rows, features) and (rows, out_features); y's last axis is contiguous, and it is written.
    activation : str or None
        One of the engines' activations.
    policy : Policy or None
        What decides; None: all are live.
    branch : int
        Units that live and die together.
    """

    where: Place
    layer: PagedFFN
    x: torch.Tensor
    y: torch.Tensor
    activation: str | None
    policy: Policy | None
    branch: int

    def run(self) -> Outcome:
        """Write the layer's output to y.

        Raises
        ------
        OSError
            If the file cannot be read; nothing is under way then.
        PrunusError
            If the policy cannot decide on a GPU, or the pager's budget is too small.
        MemoryError
            If there is no room for buffers; the message has the size.
        """
        layer = self.layer
        least = sum(table.row_bytes for table in layer._tables) + 8 * _ALIGNED
        with borrowed(self.where, least) as ring:
            live = self._foreseen()
            first: torch.Tensor | None = None
            if live is None and layer._panel is not None:
                first, found = self._decide(ring, layer._panel)
                live = None if found is None else self._read_back(found)
            self._add(ring, live, first)
        return Outcome(None if live is None else live.each, first is not None)

    # Which units are live ----------------------------------------------------------------------------

    def _foreseen(self) -> _Live | None:
        policy, branches = self.policy, blocks_along(self.layer.hidden, self.branch)
        if policy is None:
            return None
        each = policies.foreseen(policy, self.x, branches, self.where)
        if each is not None and isinstance(policy, Fixed):  # the host knows it already
            mask = policy._fit(len(self.x), branches)
            return _Live(each, np.logical_or.reduce(mask, axis=0), len(mask) == 1 or mask.strides[0] == 0)
        if each is not None:
            return self._read_back(each)
        if self.layer.decide == "predictor":
            raise ValueError(
                "this FFN was packed with decide='predictor': prune must be a policy that foresees, such as "
                f"Predictor or Fixed, got {policy!r}"
            )
        return None

    def _read_back(self, each: torch.Tensor) -> _Live:
        """Wait for the GPU: which branches any row needs is what the disk is read by."""
        return _Live(each, each.any(dim=0).cpu().numpy(), len(each) == 1)

    def _decide(self, ring: Ring, panel: Table) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return what the deciding matrix gives for all units, and which branches are live; None: all."""
        layer, where, x = self.layer, self.where, self.x
        policy, kind = self.policy, dtypes.torch_of(layer.dtype)
        sums = rows.sums_of(x.dtype, kind)
        first = empty((len(x), layer.hidden), sums, where)
        by_gate = layer.gated and layer.decide == "gate"
        bias = None if by_gate or layer._b_up is None else send(layer._b_up, where)
        applied = None if layer.gated and not by_gate else self.activation
        found: Found | None = None
        if policy is not None:
            found = room(where, policy, len(x), layer.hidden, self.branch, sums)
        late = False
        with closing(self._panel(ring, panel)) as pieces:
            for at, table in pieces:
                # Branches that no piece has whole are judged when all of them are there.
                late = late or (at.stop % self.branch != 0 and at.stop != layer.hidden)
                rows.dots(
                    where,
                    x,
                    table,
                    first[:, at],
                    bias=None if bias is None else bias[at],
                    activation=applied,
                    found=None if late or found is None else self._part_of(found, at),
                )
        if found is None or policy is None:
            return first, None
        if late:
            settle(where, first, None, found)
        return first, policies.decide(policy, found.norms, where=where) if found.live is None else found.live

    def _part_of(self, found: Found, at: slice) -> Found:
        part = slice(at.start // self.branch, blocks_along(at.stop, self.branch))
        return found._replace(
            norms=found.norms[:, part], live=None if found.live is None else found.live[:, part]
        )

    def _panel(self, ring: Ring, panel: Table) -> Generator[tuple[slice, torch.Tensor], None, None]:
        """Yield the rows of the deciding matrix that are on their way, or all of those that stay there."""
        layer, where = self.layer, self.where
        table = resident.there(layer, where)
        if table is not None:
            yield slice(0, layer.hidden), table
            return
        kind = dtypes.torch_of(layer.dtype)
        keeps = resident.room_for(where, panel.shape, kind)
        step = max(ring.size // max(panel.row_bytes, 1) // self.branch * self.branch, 0)
        step = step or max(ring.size // max(panel.row_bytes, 1), 1)
        with closing(_stream(ring, panel, step, self.branch)) as pieces:
            for at, rows_there in pieces:
                if keeps is not None:
                    keeps[at].copy_(rows_there)
                yield at, rows_there
        if keeps is not None:
            resident.stays(layer, where, keeps)

    # What live units contribute ----------------------------------------------------------------------

    def _add(self, ring: Ring, live: _Live | None, first: torch.Tensor | None) -> None:
        """Send bundles piece by piece and add what they contribute."""
        layer, where = self.layer, self.where
        bundle = layer._bundle
        # The panel's rows of live units are wanted too where nothing was decided by it.
        panel = layer._panel if first is None else None
        table = None if panel is None else resident.there(layer, where)
        panel = panel if table is None else None
        needed = None if live is None else live_units(np.flatnonzero(live.any), self.branch, layer.hidden)
        whole = needed is None or bundle.is_coming or bundle.is_mostly(needed)
        if not whole:
            bundle.forget()  # fewer are live than whoever began it thought: its memory is wanted
        each = bundle.row_bytes + 2 * 8 + (0 if panel is None else panel.row_bytes)
        most = max((ring.size - 4 * _ALIGNED) // each, 1)
        if whole:
            plan = list(_neighbours(layer.hidden, most, self.branch))
        else:
            assert live is not None
            plan = list(_chosen(np.flatnonzero(live.any), most, self.branch, layer.hidden))
        b_up, b_down = (None if one is None else send(one, where) for one in (layer._b_up, layer._b_down))
        sums_kind = rows.sums_of(self.x.dtype, dtypes.torch_of(layer.dtype), self.y.dtype)
        alone = len(plan) == 1
        sums = self.y if alone else empty(tuple(self.y.shape), sums_kind, where)
        if not plan:
            sums.zero_()
        parts = _Parts(layer, panel, plan, whole, self.branch)
        with closing(parts) as source:
            for number, (piece, there) in enumerate(ring.pieces(plan, source.fill)):
                got = source.split(piece, there)
                if table is not None:
                    got = got._replace(panel=_columns(table.T, piece, got.units).T)
                part = _live_of(live, piece, got.branches, self.branch)
                h = self._hidden(piece, got, part, first, b_up)
                rows.combine(
                    where,
                    h,
                    got.rest[:, layer._layer.matrices * layer.features :],
                    sums,
                    part,
                    piece.branch,
                    b_down if alone else None,
                    add=number > 0,
                )
        if not alone:
            finish(where, sums.T, self.y.T, b_down)

    def _hidden(
        self,
        piece: _Piece,
        got: _Got,
        live: torch.Tensor | None,
        first: torch.Tensor | None,
        b_up: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return the hidden values of some units, 0 or anything where dead."""
        layer, where, x, branch = self.layer, self.where, self.x, piece.branch
        known = None if first is None else _columns(first, piece, got.units)
        if known is not None and not layer.gated:
            return known
        d = layer.features
        parts = [got.rest[:, at * d : (at + 1) * d] for at in range(layer._layer.matrices)]
        bias = None if b_up is None else _columns(b_up[None], piece, got.units)[0]
        h = empty((len(x), len(piece.units)), rows.sums_of(x.dtype, got.rest.dtype), where)

        def dots(w: Any, out: Any, bias: Any, activation: str | None, scale: Any = None) -> None:
            rows.dots(where, x, w, out, live, branch, bias, activation, scale, clear=False)

        if known is not None:
            if layer.decide == "up":
                dots(parts[0], h, None, self.activation, known)
            else:
                dots(parts[0], h, bias, None, known)
            return h
        up = got.panel if got.panel is not None and layer.decide == "up" else parts[0]
        if not layer.gated:
            dots(up, h, bias, self.activation)
            return h
        other = parts[0 if got.panel is not None else 1]
        gate = got.panel if got.panel is not None and layer.decide == "gate" else other
        scale = empty(tuple(h.shape), h.dtype, where)
        dots(gate, scale, None, self.activation)
        dots(up, h, bias, None, scale)
        return h


def _columns(table: torch.Tensor, piece: _Piece, units: torch.Tensor | None) -> torch.Tensor:
    """Return the columns of some units."""
    if units is None:
        return table[:, int(piece.units[0]) : int(piece.units[-1]) + 1]
    return table.index_select(1, units)


def _live_of(
    live: _Live | None, piece: _Piece, branches: torch.Tensor | None, branch: int
) -> torch.Tensor | None:
    """Return which of a piece's branches are live for each row; None: all are."""
    if live is None:
        return None
    if branches is not None:
        # What any row needs is what all need, where all need the same.
        return None if live.same else live.each.index_select(1, branches)
    first = int(piece.units[0])
    part = slice(first // branch, first // branch + blocks_along(len(piece.units), piece.branch))
    return live.each[:, part]


def _neighbours(units: int, most: int, branch: int) -> Iterator[_Piece]:
    """Cut all units into pieces of so many at most: whole branches, or parts of one."""
    if most >= branch:
        step = most // branch * branch
        for first in range(0, units, step):
            yield _Piece(np.arange(first, min(first + step, units)), None, branch)
        return
    for begin in range(0, units, branch):
        end = min(begin + branch, units)
        for first in range(begin, end, most):
            every = np.arange(first, min(first + most, end))
            yield _Piece(every, None, len(every))


def _chosen(branches: Array, most: int, branch: int, units: int) -> Iterator[_Piece]:
    """Cut the units of some branches into pieces of so many at most: whole branches, or parts of one."""
    if most >= branch:
        step = most // branch
        for first in range(0, len(branches), step):
            at = branches[first : first + step]
            yield _Piece(live_units(at, branch, units), at, branch)
        return
    for at in branches:
        end = min((int(at) + 1) * branch, units)
        for first in range(int(at) * branch, end, most):
            every = np.arange(first, min(first + most, end))
            yield _Piece(every, np.array([at]), len(every))


class _Got(NamedTuple):
    """A piece on the GPU.

    Attributes
    ----------
    rest : Tensor
        Shape (units, values of a bundle).
    panel : Tensor or None
        Shape (units, features): rows of the matrix that decides.
    units, branches : Tensor of int64, or None
        Which they are; None: neighbours.
    """

    rest: torch.Tensor
    panel: torch.Tensor | None
    units: torch.Tensor | None
    branches: torch.Tensor | None


class _Parts:
    """What a piece has in a buffer: bundles, the panel's rows where they are wanted, units and branches."""

    def __init__(
        self, layer: PagedFFN, panel: Table | None, plan: list[_Piece], whole: bool, branch: int
    ) -> None:
        self._kind, self._whole = dtypes.torch_of(layer.dtype), whole
        self._tables = [layer._bundle] if panel is None else [layer._bundle, panel]
        self._streams: list[Generator[tuple[int, Array], None, None]] = []
        self._sources: list[RowsInOrder] = []
        if whole:
            # Table.stream is a generator, which ends its reader when it is closed.
            self._streams = [table.stream(unit=branch) for table in self._tables]  # type: ignore[misc]
            self._sources = [RowsInOrder(stream) for stream in self._streams]
        spans = [] if whole else [Span(piece.units, None, False) for piece in plan]
        self._told = announced(spans, self._tables)

    def close(self) -> None:
        """End what is being read."""
        for stream in self._streams:
            stream.close()

    def fill(self, piece: _Piece, view: Array) -> int:
        """Put a piece into a buffer; returns how many bytes it takes."""
        *tables, units, branches, used = self._layout(piece)
        count = len(piece.units)
        if not self._whole:
            next(self._told)
        for at, (table, part) in enumerate(zip(self._tables, tables, strict=True)):
            into = view[part].reshape(count, table.row_bytes)
            if self._whole:
                self._sources[at].take(into)
            else:
                table.gather_into(piece.units, into)
        if piece.branches is not None:
            view[units].view(np.int64)[...] = piece.units
            view[branches].view(np.int64)[...] = piece.branches
        return used

    def split(self, piece: _Piece, there: torch.Tensor) -> _Got:
        """Return the parts of a piece on the GPU."""
        *tables, units, branches, _ = self._layout(piece)
        count = len(piece.units)
        found = [
            there[part].view(self._kind).view(count, table.shape[1])
            for part, table in zip(tables, self._tables, strict=True)
        ]
        torch = libraries().torch
        chosen = piece.branches is not None
        return _Got(
            found[0],
            found[1] if len(found) > 1 else None,
            there[units].view(torch.int64) if chosen else None,
            there[branches].view(torch.int64) if chosen else None,
        )

    def _layout(self, piece: _Piece) -> Any:
        count, at, parts = len(piece.units), 0, []
        lengths = [count * table.row_bytes for table in self._tables]
        if piece.branches is None:
            lengths += [0, 0]
        else:
            lengths += [count * 8, len(piece.branches) * 8]
        for length in lengths:
            parts.append(slice(at, at + length))
            at += -(-length // _ALIGNED) * _ALIGNED
        return (*parts, at)


def _stream(
    ring: Ring, table: Table, step: int, unit: int
) -> Generator[tuple[slice, torch.Tensor], None, None]:
    """Yield all rows of a table that are on their way, ``step`` at a time."""
    count, row = len(table), table.row_bytes
    kind = dtypes.torch_of(table.dtype)
    stream: Any = table.stream(unit=unit)
    with closing(stream) as runs:
        source = RowsInOrder(runs)

        def fill(first: int, view: Array) -> int:
            size = min(step, count - first)
            source.take(view[: size * row].reshape(size, row))
            return size * row

        for first, there in ring.pieces(range(0, count, step), fill):
            size = min(step, count - first)
            yield slice(first, first + size), there.view(kind).view(size, table.shape[1])
