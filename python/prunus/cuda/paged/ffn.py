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

from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from prunus._layout import blocks_along
from prunus.cuda import dtypes, policies, rows
from prunus.cuda.branches import Found, settle
from prunus.cuda.deciding import room
from prunus.cuda.finishing import finish
from prunus.cuda.paged import resident
from prunus.cuda.paged.units import ALIGNED, Live, Parts, Piece, chosen, columns, live_of, neighbours, stream
from prunus.cuda.runtime import Place, empty
from prunus.cuda.streaming import Ring, borrowed
from prunus.cuda.transfer import send
from prunus.paged.layers import PagedFFN
from prunus.paged.tables import Table, live_units
from prunus.pruning.policies import Fixed, Policy

if TYPE_CHECKING:
    import torch

__all__ = ["Call", "Outcome"]


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
        least = sum(table.row_bytes for table in layer._tables) + 8 * ALIGNED
        with borrowed(self.where, least) as ring:
            live = self._foreseen()
            first: torch.Tensor | None = None
            if live is None and layer._panel is not None:
                first, found = self._decide(ring, layer._panel)
                live = None if found is None else self._read_back(found)
            self._add(ring, live, first)
        return Outcome(None if live is None else live.each, first is not None)

    # Which units are live ----------------------------------------------------------------------------

    def _foreseen(self) -> Live | None:
        policy, branches = self.policy, blocks_along(self.layer.hidden, self.branch)
        if policy is None:
            return None
        each = policies.foreseen(policy, self.x, branches, self.where)
        if each is not None and isinstance(policy, Fixed):  # the host knows it already
            mask = policy._fit(len(self.x), branches)
            return Live(each, np.logical_or.reduce(mask, axis=0), len(mask) == 1 or mask.strides[0] == 0)
        if each is not None:
            return self._read_back(each)
        if self.layer.decide == "predictor":
            raise ValueError(
                "this FFN was packed with decide='predictor': prune must be a policy that foresees, such as "
                f"Predictor or Fixed, got {policy!r}"
            )
        return None

    def _read_back(self, each: torch.Tensor) -> Live:
        """Wait for the GPU: which branches any row needs is what the disk is read by."""
        return Live(each, each.any(dim=0).cpu().numpy(), len(each) == 1)

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
        with closing(stream(ring, panel, step, self.branch)) as pieces:
            for at, rows_there in pieces:
                if keeps is not None:
                    keeps[at].copy_(rows_there)
                yield at, rows_there
        if keeps is not None:
            resident.stays(layer, where, keeps)

    # What live units contribute ----------------------------------------------------------------------

    def _add(self, ring: Ring, live: Live | None, first: torch.Tensor | None) -> None:
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
        most = max((ring.size - 4 * ALIGNED) // each, 1)
        if whole:
            plan = list(neighbours(layer.hidden, most, self.branch))
        else:
            assert live is not None
            plan = list(chosen(np.flatnonzero(live.any), most, self.branch, layer.hidden))
        b_up, b_down = (None if one is None else send(one, where) for one in (layer._b_up, layer._b_down))
        sums_kind = rows.sums_of(self.x.dtype, dtypes.torch_of(layer.dtype), self.y.dtype)
        alone = len(plan) == 1
        sums = self.y if alone else empty(tuple(self.y.shape), sums_kind, where)
        if not plan:
            sums.zero_()
        tables = [bundle] if panel is None else [bundle, panel]
        parts = Parts(tables, plan, whole, self.branch)
        with closing(parts) as source:
            for number, (piece, there) in enumerate(ring.pieces(plan, source.fill)):
                got = source.split(piece, there)
                rest = got.tables[0]
                decider = got.tables[1] if panel is not None else None
                if table is not None:
                    decider = columns(table.T, piece, got.units).T
                part = live_of(live, piece, got.branches, self.branch)
                h = self._hidden(piece, (rest, decider), got.units, part, first, b_up)
                rows.combine(
                    where,
                    h,
                    rest[:, layer._layer.matrices * layer.features :],
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
        piece: Piece,
        tables: tuple[torch.Tensor, torch.Tensor | None],
        units: torch.Tensor | None,
        live: torch.Tensor | None,
        first: torch.Tensor | None,
        b_up: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return the hidden values of some units, 0 or anything where dead."""
        layer, where, x, branch = self.layer, self.where, self.x, piece.branch
        rest, panel = tables
        known = None if first is None else columns(first, piece, units)
        if known is not None and not layer.gated:
            return known
        d = layer.features
        parts = [rest[:, at * d : (at + 1) * d] for at in range(layer._layer.matrices)]
        bias = None if b_up is None else columns(b_up[None], piece, units)[0]
        h = empty((len(x), len(piece.units)), rows.sums_of(x.dtype, rest.dtype), where)

        def dots(w: Any, out: Any, bias: Any, activation: str | None, scale: Any = None) -> None:
            rows.dots(where, x, w, out, live, branch, bias, activation, scale, clear=False)

        if known is not None:
            if layer.decide == "up":
                dots(parts[0], h, None, self.activation, known)
            else:
                dots(parts[0], h, bias, None, known)
            return h
        up = panel if panel is not None and layer.decide == "up" else parts[0]
        if not layer.gated:
            dots(up, h, bias, self.activation)
            return h
        other = parts[0 if panel is not None else 1]
        gate = panel if panel is not None and layer.decide == "gate" else other
        scale = empty(tuple(h.shape), h.dtype, where)
        dots(gate, scale, None, self.activation)
        dots(up, h, bias, None, scale)
        return h
