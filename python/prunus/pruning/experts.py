"""Experts of a mixture: where their weights are, and how the rows that chose one run through it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from prunus._arrays import as_array, as_floats
from prunus._dtypes import BFLOAT16, F32, F64, FLOATS, Array, DType, result_dtype
from prunus._layout import blocks_along
from prunus._operands import is_on_disk
from prunus._storage import BlockStorage
from prunus._trace import Span, span
from prunus.engines.base import Engine
from prunus.ops import matmul
from prunus.pruning._rows import TILE, as_table, combine, contribute, dots, find, norms_of, spread, watched
from prunus.pruning.feed_forward import FeedForward
from prunus.pruning.policies import Policy, decide, foreseen

__all__ = ["Expert", "Experts", "Style", "sums_of"]

# Products of a BSR have a kernel of their own for fewer columns than this, which sums in another order.
_WIDE: Final = 5


class Style(NamedTuple):
    """What all experts of a call have in common: ``activation``, ``policy`` or None, and ``branch``."""

    activation: str | None
    policy: Policy | None
    branch: int


def sums_of(kind: DType) -> DType:
    """Return the dtype in which results of ``kind`` are summed."""
    return F64 if kind == F64 else F32


class Expert:
    """One expert, checked: dense or block-sparse matrices, or an FFN; each in memory or on disk.

    Parameters
    ----------
    name : str
        What it is called in error messages.
    up, gate : array_like or BSR
        Shape (f, d); or an FFN for ``up``.
    down : array_like or BSR, optional
        Shape (d_out, f).

    Raises
    ------
    ValueError, TypeError
        If shapes or dtypes do not fit.
    """

    def __init__(self, name: str, up: Any, down: Any = None, gate: Any = None) -> None:
        self.name, self.up, self.down, self.gate = name, up, down, gate
        if isinstance(up, FeedForward):
            if down is not None or gate is not None:
                raise TypeError(f"{name} is an FFN, which has its own w_down and w_gate: pass None for them")
            self.features, self.units, self.out_features = up.features, up.hidden, up.out_features
            return
        if down is None:
            raise TypeError(f"{name} must be an FFN where w_down is not given, got {type(up).__name__}")
        up, down = _matrix(up, f"w_up of {name}"), _matrix(down, f"w_down of {name}")
        gate = None if gate is None else _matrix(gate, f"w_gate of {name}")
        self.up, self.down, self.gate = up, down, gate
        self.units, self.features = up.shape
        self.out_features = down.shape[0]
        if down.shape[1] != self.units:
            raise ValueError(
                f"w_down of {name} has shape {down.shape}: expected {self.units} columns, as w_up has rows"
            )
        if gate is not None and gate.shape != up.shape:
            raise ValueError(f"w_gate of {name} has shape {gate.shape}, w_up {up.shape}")

    @property
    def matrices(self) -> list[Any]:
        """Its matrices; none of an FFN."""
        every = [self.up, self.down, self.gate]
        return [] if isinstance(self.up, FeedForward) else [w for w in every if w is not None]

    @property
    def nbytes(self) -> int:
        """Bytes of all weights, were they dense."""
        if isinstance(self.up, FeedForward):
            return self.up.nbytes
        return sum(w.shape[0] * w.shape[1] * w.dtype.itemsize for w in self.matrices)

    @property
    def flops(self) -> int:
        """Operations that one row costs where nothing is pruned, with dense weights."""
        if isinstance(self.up, FeedForward):
            return 2 * self.units * (self.features * (1 + self.up.gated) + self.out_features)
        return sum(2 * w.shape[0] * w.shape[1] for w in self.matrices)

    def dtype(self, x: DType) -> DType:
        """Return the dtype of the result for an input of dtype ``x``."""
        kind = x
        for w in [self.up] if isinstance(self.up, FeedForward) else self.matrices:
            kind = result_dtype(kind, w.dtype, names=("x", "an expert"))
        return kind

    def prefetch(self, policy: Policy | None) -> None:
        """Have the pager fetch what a call that prunes so reads of an expert on disk whatever is live."""
        sees = policy is not None and type(policy).foresee is Policy.foresee
        if isinstance(self.up, FeedForward):
            wanted: list[Any] = [self.up] if policy is None or sees else []
        elif policy is None:
            wanted = self.matrices
        else:
            first = self.up if self.gate is None else self.gate
            wanted = [first] if sees else []
            wanted += [w for w in self.matrices if _is_sparse(w) or (w is self.down and not _in_line(w))]
        for w in wanted:
            if is_on_disk(w):
                w.prefetch()

    def run(self, engine: Engine, x: Array, style: Style) -> Array:
        """Return the expert's output for the rows of ``x`` (n, d), each the same whatever the others are."""
        if isinstance(self.up, FeedForward):
            layer: Any = self.up
            result: Array = layer(x, activation=style.activation, prune=style.policy, branch=style.branch)
            return result
        style = style._replace(branch=min(style.branch, max(self.units, 1)))
        sums = sums_of(self.dtype(x.dtype))
        with span("expert") as at, watched(at, *(w for w in self.matrices if is_on_disk(w))):
            h, live, known = self._hidden(engine, x, style, sums)
            y = np.empty((len(x), self.out_features), sums)
            every = None if live is None else spread(live, style.branch, self.units)
            if _is_sparse(self.down):
                _down_blocks(h, self.down, y, every)
            elif live is None or every is None:
                _outputs(h, self.down, y)
            elif _in_line(self.down):
                combine(h, as_table(self.down.T, "w_down"), y, live, style.branch)
            else:
                contribute(h, as_table(self.down, "w_down"), y, every, 1)
            if at:
                self._count(at, len(x), live, style.branch, known)
                at.ran(engine.name)
        return y

    def _hidden(
        self, engine: Engine, x: Array, style: Style, sums: DType
    ) -> tuple[Array, Array | None, bool]:
        """Return hidden units (n, f), 0 where dead; live branches, or None: all; if they were foreseen."""
        policy, branch, activation = style.policy, style.branch, style.activation
        first = self.up if self.gate is None else self.gate
        h = np.empty((len(x), self.units), sums)
        live, known = None, False
        if policy is None:
            _project(engine, x, first, h, None, branch, activation)
        elif _is_sparse(first):
            live = foreseen(policy, x, blocks_along(self.units, branch))
            known = live is not None
            _project(engine, x, first, h, live, branch, activation)
            if live is None:
                live = decide(policy, norms_of(h, branch, policy.norm))
                h[~spread(live, branch, self.units)] = 0
            live = np.ascontiguousarray(live)
        else:
            live, known = find(policy, x, as_table(first, "w"), h, branch, None, activation)
        if self.gate is not None:
            scale, h = h, np.empty_like(h)
            _project(engine, x, self.up, h, live, branch, None, scale)
        return h, live, known

    def _count(self, at: Span, rows: int, live: Array | None, branch: int, known: bool) -> None:
        """Count liveness, and what was done with dense matrices; products of a BSR count for themselves."""
        share = union = 1.0
        if live is not None:
            tiles = np.logical_or.reduceat(live, np.arange(0, rows, TILE), axis=0) if rows else live
            at.count(live=live.sum(), total=live.size, union_live=tiles.sum(), union_total=tiles.size)
        if live is not None and live.size:
            share = float(spread(live, branch, self.units).mean())
            union = float(
                spread(np.logical_or.reduce(live, axis=0, keepdims=True), branch, self.units).mean()
            )
        first = self.up if self.gate is None else self.gate
        for w in self.matrices:
            if _is_sparse(w):
                continue
            # What decides is computed whole, and so is a w_down that cannot be skipped in.
            part = (known or w is not first) and (w is not self.down or _in_line(w))
            done = round(2 * w.size * rows * share) if part else 2 * w.size * rows
            read = round(w.nbytes * union) if part else w.nbytes
            at.count(
                flops=done,
                flops_skipped=2 * w.size * rows - done,
                bytes_loaded=0 if is_on_disk(w) else read,  # counted where it is read
                bytes_skipped=w.nbytes - read,
            )


class Experts:
    """The experts of a call. An expert's weights are looked at when it is asked for, not before.

    Parameters
    ----------
    w_up, w_gate : array_like (E, f, d), BSR with that shape, or sequence
        One matrix (f, d) for each expert, or FFNs.
    w_down : array_like (E, d_out, f), BSR, sequence or None
        None where ``w_up`` holds FFNs.

    Raises
    ------
    ValueError, TypeError
        If there are no experts, or not as many in each.
    """

    def __init__(self, w_up: Any, w_down: Any, w_gate: Any) -> None:
        self._parts = [
            _stack(w, name) for name, w in (("w_up", w_up), ("w_down", w_down), ("w_gate", w_gate))
        ]
        if self._parts[0] is None:
            raise TypeError("w_up is missing: pass the experts' weights (E, f, d), or a list")
        self._count = len(self._parts[0])
        for name, part in zip(("w_down", "w_gate"), self._parts[1:], strict=True):
            if part is not None and len(part) != self._count:
                raise ValueError(f"there are {self._count} experts in w_up, but {len(part)} in {name}")
        if not self._count:
            raise ValueError("there are no experts: w_up is empty")

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, at: int) -> Expert:
        return Expert(f"expert {at}", *(None if part is None else part[at] for part in self._parts))


class _Members(Sequence[Any]):
    """The members of a batched BSR, each made when it is asked for."""

    def __init__(self, w: BlockStorage) -> None:
        self._w = w

    def __len__(self) -> int:
        return self._w.shape[0]

    def __getitem__(self, at: Any) -> Any:
        return self._w._member((at,))


def _matrix(w: Any, name: str) -> Any:
    """Return one matrix of an expert, checked: a BSR as it is, or an ndarray."""
    if not isinstance(w, BlockStorage) and not is_on_disk(w):
        w = as_floats(w, name)
    elif w.dtype not in FLOATS:
        raise TypeError(f"{name} must hold floats, got dtype {w.dtype}")
    if w.ndim != 2:
        raise ValueError(f"{name} must have two dimensions, got shape {w.shape}")
    return w


def _stack(w: Any, name: str) -> Sequence[Any] | Array | None:
    if w is None or isinstance(w, (list, tuple)):
        return w
    if not isinstance(w, BlockStorage) and not is_on_disk(w):
        w = as_array(w, name, "an array of numbers, a BSR or a list with one for each expert")
    if w.ndim != 3:
        raise ValueError(f"{name} must have the experts on axis 0 of three, got shape {w.shape}")
    if is_on_disk(w):
        from prunus.paged.experts import members  # it builds on this package

        return members(w, name)
    return _Members(w) if isinstance(w, BlockStorage) else w


def _is_sparse(w: Any) -> bool:
    """Say whether a matrix, in memory or on disk, is block-sparse."""
    return isinstance(w, BlockStorage) or (is_on_disk(w) and hasattr(w, "blocksize"))


def _outputs(h: Array, down: Any, out: Array) -> None:
    """Write ``h @ down.T`` with all units, for a matrix (d_out, f) in any layout."""
    if is_on_disk(down) and _in_line(down):
        combine(h, as_table(down.T, "w_down"), out)
    else:
        dots(h, as_table(down, "w_down"), out)


def _in_line(down: Any) -> bool:
    """Say whether the outputs of each hidden unit are contiguous in ``down`` (d_out, f)."""
    if is_on_disk(down):
        return bool(down.shape[0] == 1 or down._perm == (1, 0))
    return bool(down.shape[0] == 1 or down.strides[0] == down.itemsize)


def _project(
    engine: Engine,
    x: Array,
    w: Any,
    out: Array,
    live: Array | None,
    branch: int,
    activation: str | None,
    scale: Array | None = None,
) -> None:
    """Write ``activation(x @ w.T) * scale`` where it is live and 0 elsewhere, for any kind of ``w``."""
    if not _is_sparse(w):
        dots(x, as_table(w, "w"), out, live, branch, None, activation, scale)
        return
    _product(x, w, out, activation)
    if scale is not None:
        out *= scale
    if live is not None:
        out[~spread(live, branch, out.shape[1])] = 0


def _product(x: Array, w: Any, out: Array, activation: str | None = None) -> None:
    """Write ``activation(x @ w.T)``, where each row is the same to the bit whatever the others are."""
    rows = len(x)
    # A few rows are joined by zeros, and bfloat16 is widened: whether its own kernels pay depends on how many
    # rows there are, and they sum in another order.
    kind = F32 if x.dtype == BFLOAT16 else x.dtype
    if 0 < rows < _WIDE:
        padded = np.zeros((_WIDE, x.shape[1]), kind)
        padded[:rows] = x
        out[...] = matmul(padded, w.T, activation=activation, dtype=out.dtype)[:rows]
    else:
        matmul(x.astype(kind, copy=False), w.T, out, activation=activation, dtype=out.dtype)


def _down_blocks(h: Array, w: Any, out: Array, live: Array | None) -> None:
    """Write ``h @ w.T`` for a BSR where only live units (rows, f) take part; None: all."""
    _product(h, w, out)
    if live is None:
        return
    # As in contribute; the rows are done again with zeros in w's columns of their dead units.
    wrong = np.flatnonzero(~np.isfinite(out).all(axis=1))
    if not wrong.size:
        return
    if is_on_disk(w):
        w = w.load()
    units, values = _units_of(w), w._clean()
    broken = (~np.isfinite(values)).any(axis=-1 if w._t else -2) & (units < w._cols)
    poisoned = np.unique(units[broken])
    dead = ~live[np.ix_(wrong, poisoned)]
    wrong, dead = wrong[dead.any(axis=1)], dead[dead.any(axis=1)]
    # Rows in which the same of these are dead share a copy of w.
    kinds, group = np.unique(dead, axis=0, return_inverse=True)
    for i, kind in enumerate(kinds):
        hit = np.isin(units, poisoned[kind])
        cleaned = values.copy()
        cleaned[np.broadcast_to(hit[:, :, None] if w._t else hit[:, None, :], cleaned.shape)] = 0
        at = wrong[group.reshape(-1) == i]
        part = np.empty((len(at), out.shape[1]), out.dtype)
        _product(h[at], w._with_data(cleaned), part)
        out[at] = part


def _units_of(w: BlockStorage) -> Array:
    """Return which columns of ``w`` each stored block holds: (blocks, width), past the edge too."""
    width = w._data.shape[-2 if w._t else -1]
    first = w._stacked_rows() if w._t else w._indices.astype(np.int64)
    units: Array = first[:, None] * width + np.arange(width)
    return units
