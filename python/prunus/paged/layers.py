"""Feed-forward layers whose weights stay on disk, where dead units are never read.

The layout is that of :class:`prunus.FFN`: the matrix that decides is a table of its own (the panel), and all
else that belongs to a unit is one row of another (its bundle). A call decides from the panel, which streams
or stays in memory, and then reads the live units' bundles in ascending order: the pager is told of all of
them first, and each span of units is multiplied while later ones are on their way.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import numpy as np

from prunus import engines
from prunus._device import on_device, what
from prunus._dtypes import Array, DType
from prunus._errors import PrunusError
from prunus._format import size_text
from prunus._layout import blocks_along
from prunus._trace import Span as Traced
from prunus.paged.array import from_file
from prunus.paged.blocks import stream_panel
from prunus.paged.headers import Layer, load, numpy_dtype
from prunus.paged.pagers import panel_of
from prunus.paged.reading import reading
from prunus.paged.sources import Source, source_of
from prunus.paged.tables import MOSTLY, Span, Table, Total, announced, live_units, spans
from prunus.pruning import _rows
from prunus.pruning.feed_forward import FeedForward
from prunus.pruning.packed import FFN, pitch_of
from prunus.pruning.policies import Policy, foreseen

__all__ = ["PagedFFN", "layer_parts", "open_layer"]

RESIDENT: Final = ("panel", "none")
_UNIT: Final = 64
# Of the budget, what tables that stay may take unless they are asked for.
_SHARE: Final = 4
_PIECE: Final = 4 << 20
_PAGE: Final = 4096


class Resident(Table):
    """A table that stays in memory once it was streamed: its panels are kept, in the pager's own memory.

    Unless it is ``asked`` for, it stays only while what is held of the pager's memory is a quarter of it or
    less: tables of many layers would leave no room to read with. Otherwise it is read as others are.
    """

    def __init__(self, table: Table, asked: bool) -> None:
        super().__init__(table.store, table.start, table.shape, table.dtype, table.pitch)
        self._asked = asked
        self._lock = threading.Lock()
        self._panels: list[Array] | None = None

    @property
    def is_there(self) -> bool:
        """Whether it was read."""
        return self._panels is not None

    def _kept(self) -> list[Array] | None:
        """Return all rows in panels of one height, but the last one, read once; None: no room."""
        with self._lock:
            if self._panels is None:
                pager = self.store.pager
                held = int(pager.stats().get("pinned", 0)) + len(self) * self.pitch
                if not self._asked and held > int(pager.budget) // _SHARE:
                    return None
                panel = stream_panel(int(self.store.pager.budget), self.pitch)
                # Whole branches of usual widths. Rows longer than a panel come in memory that is used again.
                unit, lies = max(min(_UNIT, panel // max(self.pitch, 1)), 1), panel >= self.pitch
                stream = super().stream(unit=unit)
                self._panels = [rows if lies else rows.copy() for _, rows in stream]
            return self._panels

    def stream(self, rows: int | None = None, unit: int = 1) -> Iterator[tuple[int, Array]]:
        """Yield rows as :meth:`Table.stream`."""
        panels = self._kept()
        if panels is None:
            yield from super().stream(rows, unit)
            return
        height = len(panels[0]) if panels else 1
        if rows is None and height % unit == 0:
            yield from zip(range(0, len(self), height), panels, strict=True)
            return
        step = rows or unit
        for first in range(0, len(self), step):
            yield first, self.gather(np.arange(first, min(first + step, len(self))))

    def gather(self, units: Array) -> Array:
        """Return rows, in a new array."""
        panels = self._kept()
        if panels is None:
            return super().gather(units)
        out = np.empty((len(units), self.shape[1]), self.dtype)
        if not len(units):
            return out
        height = len(panels[0])
        cuts = np.searchsorted(units, np.arange(len(panels) + 1) * height)
        for number in range(int(units[0]) // height, int(units[-1]) // height + 1):
            part = slice(int(cuts[number]), int(cuts[number + 1]))
            np.take(panels[number], units[part] - number * height, axis=0, out=out[part])
        return out

    def gather_into(self, units: Array, raw: Array) -> None:
        """Write the bytes of rows; as :meth:`Table.gather_into`."""
        raw.view(self.dtype)[...] = self.gather(units)

    def prefetch(self, units: Array) -> None:
        """Do nothing: it is there, or is read whole."""


class PagedFFN(FeedForward):
    """A packed feed-forward layer on disk; made by ``pr.open(path)[name]`` or ``FFN.open``.

    It is called as an :class:`prunus.FFN` is, with the same result to the bit: units are taken in ascending
    order, 16 MiB of bundles at a time, and sums go on from one such span to the next.

    Attributes
    ----------
    hidden, features, out_features : int
        Units, and the sizes of inputs and outputs.
    dtype : dtype
        Dtype of the weights.
    decide : str
        Which matrix decides: "up", "gate", or "predictor" for none.
    nbytes : int
        Bytes on disk.
    resident : str
        "panel" if the matrix that decides stays in memory, else "none".
    """

    __slots__ = ("__weakref__", "_b_down", "_b_up", "_bundle", "_layer", "_panel", "decide", "name")

    def __init__(
        self,
        layer: Layer,
        name: str,
        bundle: Table,
        panel: Table | None,
        b_up: Array | None,
        b_down: Array | None,
    ) -> None:
        self._layer, self.name = layer, name
        self._bundle, self._panel = bundle, panel
        self._b_up, self._b_down = b_up, b_down
        self.decide = layer.decide

    @classmethod
    def from_file(
        cls, file: Any, layer: Layer, name: str, pager: Any, resident: str | None = None
    ) -> PagedFFN:
        """Return the layer that an open file describes; its biases are read.

        Raises
        ------
        ValueError
            If ``resident`` is neither "panel" nor "none".
        """
        if resident is not None and resident not in RESIDENT:
            raise ValueError(
                f"resident must be one of {', '.join(map(repr, RESIDENT))} or None, got {resident!r}"
            )
        kind = numpy_dtype(layer.bundle)
        tables = []
        for tensor in (layer.bundle, layer.panel):
            if tensor is None:
                continue
            array = from_file(file, tensor.begin, tensor.shape, kind, name=tensor.name, pager=pager)
            width = layer.features if tensor is layer.panel else layer.width
            pitch = tensor.shape[1] * kind.itemsize
            tables.append(Table(array._store, array._start, (layer.units, width), kind, pitch))
        panel = tables[1] if len(tables) > 1 else None
        if panel is not None and (
            resident == "panel"
            or (resident is None and len(panel) * panel.pitch <= int(pager.budget) // _SHARE)
        ):
            panel = Resident(panel, resident is not None)
        size = panel_of(pager)
        b_up, b_down = (None if one is None else load(file, one, size) for one in (layer.b_up, layer.b_down))
        return cls(layer, name, tables[0], panel, b_up, b_down)

    @property
    def hidden(self) -> int:
        """Hidden units."""
        return self._layer.units

    @property
    def features(self) -> int:
        """Length of an input."""
        return self._layer.features

    @property
    def out_features(self) -> int:
        """Length of an output."""
        return self._layer.out_features

    @property
    def gated(self) -> bool:
        """Whether there is a gate."""
        return self._layer.gated

    @property
    def dtype(self) -> DType:
        """Dtype of the weights."""
        return self._bundle.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of weights, with the padding between bundles."""
        return sum(len(table) * table.pitch for table in self._tables)

    @property
    def resident(self) -> str:
        """What stays in memory once it was read: "panel" or "none"."""
        return "panel" if isinstance(self._panel, Resident) else "none"

    @property
    def _tables(self) -> list[Table]:
        return [self._bundle] if self._panel is None else [self._panel, self._bundle]

    def _needed(self, live: Array, branch: int) -> Array:
        """Return the units that are live for any row."""
        return live_units(np.flatnonzero(np.logical_or.reduce(live, axis=0)), branch, self.hidden)

    def streamed(self, live: float = 1.0) -> list[Table]:
        """Return the tables that a call will probably read from end to end, in order.

        Parameters
        ----------
        live : float
            Share of units that will be live, in no order.
        """
        panel = [] if self._panel is None or isinstance(self._panel, Resident) else [self._panel]
        # A page is read if any of the units that it has a part of is live.
        beside = 1 + _PAGE / max(self._bundle.pitch, 1) if self._bundle.pitch % _PAGE else 1
        return [*panel, self._bundle] if 1 - (1 - live) ** beside > MOSTLY else panel

    def prefetch(self) -> None:
        """Have the pager fetch what every call reads: the matrix that decides. Returns at once."""
        panel = self._panel
        if panel is not None and not (isinstance(panel, Resident) and panel.is_there):
            Table.prefetch(panel, np.arange(self.hidden))

    def load(self) -> FFN:
        """Return the layer in memory."""
        tables = []
        for table in self._tables:
            values = np.empty((len(table), table.pitch), np.uint8)
            rows = values[:, : table.row_bytes].view(table.dtype)
            for first, part in table.stream():
                rows[first : first + len(part)] = part
            tables.append(rows)
        panel = tables[0] if self._panel is not None else None
        return FFN._assemble(
            panel, tables[-1], self.decide, self.features, self.gated, self._b_up, self._b_down
        )

    # A call --------------------------------------------------------------------------------------------

    def __call__(
        self,
        x: Any,
        activation: str | None = "relu",
        prune: Any = None,
        branch: int = 1,
        out: Any = None,
    ) -> Any:
        """Return the layer's output for every row of ``x``; as :meth:`prunus.FFN.__call__`.

        Of a tensor on a GPU a tensor there, to which the weights stream.
        """
        if on_device(x):
            from prunus.cuda.layers.paged_ffn import call  # torch is only imported where it is used

            return call(self, x, activation, prune, branch, out)
        return super().__call__(x, activation, prune, branch, out)

    def _run(
        self, at: Traced, x: Array, y: Array, activation: str | None, policy: Policy | None, branch: int
    ) -> None:
        live = None if policy is None else foreseen(policy, x, blocks_along(self.hidden, branch))
        decided = live is None and policy is not None
        if live is not None:
            live = np.ascontiguousarray(live)
        if decided and self.decide == "predictor":
            raise ValueError(
                "this FFN was packed with decide='predictor': prune must be a policy that foresees, such as "
                f"Predictor or Fixed, got {policy!r}"
            )
        with reading(at, [table.store for table in self._tables]):
            first: Array | None = None
            if live is None and self._panel is not None:
                first, live = self._decide(x, activation, policy, branch)
            self._add(x, y, activation, live, branch, first)
            if at:
                at.ran(engines.active().name)
        if at:
            self._count(at, live, branch, first is not None, len(x))

    def _decide(
        self, x: Array, activation: str | None, policy: Policy | None, branch: int
    ) -> tuple[Array, Array | None]:
        """Return what the deciding matrix gives for all units, and which branches are live; None: all."""
        first = np.empty((len(x), self.hidden), _rows.sums_dtype(x.dtype, self.dtype))
        by_gate = self.gated and self.decide == "gate"
        bias = None if by_gate else self._b_up
        applied = None if self.gated and not by_gate else activation
        if policy is None:
            _rows.dots(x, self._panel, first, None, branch, bias, applied)
            return first, None
        live, _ = _rows.find(policy, x, self._panel, first, branch, bias, applied, ask=False, clear=False)
        return first, live

    def _add(
        self,
        x: Array,
        y: Array,
        activation: str | None,
        live: Array | None,
        branch: int,
        first: Array | None,
    ) -> None:
        """Read bundles span by span and add what they contribute."""
        d = self.features
        # The panel's rows of live units are wanted too where nothing was decided by it.
        panel = self._panel if first is None else None
        chunks: Iterator[tuple[Span, Array]]
        bundle = self._bundle
        whole = live is None or bundle.is_coming or bundle.is_mostly(self._needed(live, branch))
        if not whole:
            bundle.forget()  # fewer are live than whoever began it thought: its memory is wanted
        every = [] if whole or live is None else list(spans(self.hidden, bundle.span, live, branch))
        total = Total(y, self._b_down, len(every) == 1)
        if whole:
            chunks = bundle.panels(live, branch)
        else:
            told = announced(every, [bundle] if panel is None else [panel, bundle])
            chunks = ((part, bundle.gather(part.units)) for _, part in zip(told, every, strict=True))
        count = self._layer.matrices
        for part, rows in chunks:
            parts = [rows[:, i * d : (i + 1) * d] for i in range(count)]
            own = None if panel is None else panel.gather(part.units)
            known = None if first is None else part.of(first)
            h = self._hidden(x, parts, own, known, part.live, branch, activation, part.part(self._b_up))
            total.add(h, rows[:, count * d :], part.live, branch)
        total.finish()

    def _hidden(
        self,
        x: Array,
        parts: list[Array],
        panel: Array | None,
        first: Array | None,
        live: Array | None,
        branch: int,
        activation: str | None,
        bias: Array | None,
    ) -> Array:
        """Return the hidden values of some units, 0 or anything where dead."""
        engine = engines.active()
        if first is not None and not self.gated:
            return first
        h = np.empty(
            (len(x), len(parts[0] if panel is None else panel)), _rows.sums_dtype(x.dtype, self.dtype)
        )
        if first is not None:
            if self.decide == "up":
                engine.dots(x, parts[0], h, live, branch, None, activation, first)
            else:
                engine.dots(x, parts[0], h, live, branch, bias, None, first)
            return h
        up = panel if panel is not None and self.decide == "up" else parts[0]
        if not self.gated:
            engine.dots(x, up, h, live, branch, bias, activation)
            return h
        gate = panel if panel is not None and self.decide == "gate" else parts[0 if panel is not None else 1]
        scale = np.empty_like(h)
        engine.dots(x, gate, scale, live, branch, None, activation)
        engine.dots(x, up, h, live, branch, bias, None, scale)
        return h

    def _count(self, at: Traced, live: Array | None, branch: int, decided: bool, rows: int) -> None:
        # Each matrix as a table of its own, as an FFN counts them.
        widths = [self.features] * self._layer.matrices + [self.out_features]
        store = self._bundle.store
        tables: list[tuple[Any, bool]] = [
            (Table(store, 0, (self.hidden, width), self.dtype, 0), False) for width in widths
        ]
        if self._panel is not None:
            tables.append((self._panel, decided))
        _rows.count_rows(at, live, branch, tables, rows)

    def __repr__(self) -> str:
        gate = "gated, " if self.gated else ""
        return (
            f"<prunus.paged.PagedFFN {self.features} -> {self.hidden} -> {self.out_features} {self.dtype}: "
            f"{gate}decided by {self.decide}, {size_text(self.nbytes)} on disk, resident {self.resident}>"
        )


def open_layer(path: Any, name: str | None, budget: Any, resident: str | None) -> PagedFFN:
    """Open a layer in a file; see :meth:`prunus.FFN.open`.

    Raises
    ------
    KeyError
        If the file has no such layer.
    PrunusError
        If it has none, or several and no name is given.
    """
    from prunus.paged.files import File, open_file

    file = open_file(path, budget)
    try:
        names = file.layers if isinstance(file, File) else []
        if not isinstance(file, File) or not names:
            raise PrunusError(f"{path}: expected a file with a feed-forward layer, as FFN.save writes")
        if name is None and len(names) > 1:
            raise PrunusError(f"{path} has the layers {', '.join(names)}: say which one with name=")
        wanted = names[0] if name is None else name
        if wanted not in names:
            raise KeyError(f"{path} has no layer {wanted!r}; it has {', '.join(names)}")
        return file.layer(wanted, resident)
    except BaseException:
        file.close()
        raise


def layer_parts(layer: FeedForward, name: str) -> tuple[dict[str, Any], dict[str, Source]]:
    """Return what a file's metadata say of a layer, and its tensors: tables with rows of whole pages.

    Raises
    ------
    TypeError
        If it is neither an FFN nor one on disk.
    """
    described = {
        "decide": layer.decide,
        "gated": layer.gated,
        "hidden": layer.hidden,
        "features": layer.features,
        "out_features": layer.out_features,
    }
    if not isinstance(layer, (FFN, PagedFFN)):
        raise TypeError(f"arrays[{name!r}] must be an FFN, got {what(layer)}")
    biases = (layer._b_up, layer._b_down)
    tables: list[list[Any]]
    if isinstance(layer, PagedFFN):
        tables = [[table] for table in layer._tables]
    else:
        panel, rest = layer._tables()
        tables = [rest] if panel is None else [[panel], rest]
    keys = ["bundle"] if len(tables) == 1 else ["panel", "bundle"]
    found: dict[str, Source] = {}
    for key, parts in zip(keys, tables, strict=True):
        first = parts[0]
        tight = sum(part.shape[1] for part in parts) * first.dtype.itemsize
        pitch = first.pitch if isinstance(first, Table) else pitch_of(tight)
        shape = (len(first), pitch // first.dtype.itemsize)
        found[f"{name}.{key}"] = Source(first.dtype, shape, partial(_padded, parts, shape))
    for key, vector in zip(("b_up", "b_down"), biases, strict=True):
        if vector is not None:
            found[f"{name}.{key}"] = source_of(vector, name)
    return described, found


def _padded(tables: list[Any], shape: tuple[int, int]) -> Iterator[Array]:
    """Yield the rows of tables side by side, in pieces, with zeros after each."""
    first = tables[0]
    step = max(_PIECE // max(shape[1] * first.dtype.itemsize, 1), 1)
    pieces: Iterator[list[Array]]
    if isinstance(first, Table):
        pieces = ([rows] for _, rows in first.stream(step))
    else:
        pieces = ([one[at : at + step] for one in tables] for at in range(0, len(first), step))
    for parts in pieces:
        piece = np.zeros((len(parts[0]), shape[1]), first.dtype)
        at = 0
        for part in parts:
            piece[:, at : at + part.shape[1]] = part
            at += part.shape[1]
        yield piece
