"""Feed-forward layers that leave dead hidden units alone.

A hidden unit's weights are kept together: one matrix decides which units are live, and all else that belongs
to a unit is one contiguous bundle (row-column bundling, as in "LLM in a flash", Alizadeh et al. 2023), so
that a dead unit is skipped in place.
"""

from __future__ import annotations

from typing import Any, Final, Self

import numpy as np
from numpy.typing import DTypeLike

from prunus import engines
from prunus._arrays import from_panels, in_panels, side_by_side
from prunus._device import on_device
from prunus._dtypes import FLOATS, Array, DType, as_dtype, result_dtype
from prunus._errors import PrunusError
from prunus._layout import blocks_along
from prunus._threads import get_num_threads
from prunus._trace import Span
from prunus.pruning import _rows
from prunus.pruning.feed_forward import FeedForward
from prunus.pruning.policies import Policy, foreseen

__all__ = ["DECIDERS", "FFN", "pitch_of"]

DECIDERS: Final = ("up", "gate", "predictor")
# Bundles of at least half a page begin on a page of their own: a disk reads whole ones.
_PAGE: Final = 4096
_COLUMNS: Final = 32  # columns of a panel are a multiple: whole vectors, and whole cache lines


def pitch_of(size: int) -> int:
    """Return the bytes from one row of so many to the next: long ones begin on pages."""
    return -(-size // _PAGE) * _PAGE if size >= _PAGE // 2 else size


def _aligned(shape: tuple[int, int], dtype: DType) -> Array:
    """Return an array whose rows begin on pages where they are long, with padding between them."""
    rows, cols = shape
    size = cols * dtype.itemsize
    pitch = pitch_of(size)
    raw = np.zeros(rows * pitch + _PAGE, np.uint8)
    first = -raw.ctypes.data % _PAGE
    table = raw[first : first + rows * pitch].reshape(rows, pitch)[:, :size]
    return (
        np.ndarray((rows, cols), dtype, buffer=raw, offset=first, strides=(pitch, dtype.itemsize))
        if (table.size)
        else np.zeros(shape, dtype)
    )


def _copied(vector: Array | None) -> Array | None:
    return None if vector is None else vector.copy()


class FFN(FeedForward):
    """A packed feed-forward layer: ``down(activation(up x))`` or ``down(activation(gate x) · up x)``.

    Made by :meth:`pack`; frozen.

    Attributes
    ----------
    hidden, features, out_features : int
        Units, and the sizes of inputs and outputs.
    dtype : dtype
        Dtype of the weights.
    decide : str
        Which matrix decides: "up", "gate", or "predictor" for none.
    nbytes : int
        Bytes held.
    """

    __slots__ = ("_b_down", "_b_up", "_gate", "_kept", "_out", "_sums", "_up", "decide")

    _up: Array
    _gate: Array | None
    _sums: Array  # the down-projection by units, or panels of its columns
    _out: int
    _b_up: Array | None
    _b_down: Array | None
    _kept: tuple[Array, ...]
    decide: str

    def __init__(self) -> None:
        raise TypeError("an FFN is made by FFN.pack(w_up, w_down, ...)")

    @classmethod
    def pack(
        cls,
        w_up: Any,
        w_down: Any,
        w_gate: Any = None,
        decide: str = "up",
        dtype: DTypeLike | None = None,
        *,
        b_up: Any = None,
        b_down: Any = None,
    ) -> Any:
        """Copy weights into a layout in which what belongs to a hidden unit lies together.

        Parameters
        ----------
        w_up : array_like
            Shape (H, d).
        w_down : array_like
            Shape (d_out, H).
        w_gate : array_like, optional
            Shape (H, d): the layer is gated.
        decide : {"up", "gate", "predictor"}
            Which product is computed first and decides: the rest is left out where a unit is dead.
            "predictor": none; calls that prune need a policy that foresees (:class:`Predictor`,
            :class:`Fixed`), calls without a policy compute everything.
        dtype : dtype-like, optional
            Dtype to keep the weights in; by default what they have in common.
        b_up, b_down : array_like, optional
            Biases (H,) and (d_out,).

        Returns
        -------
        FFN
            A :class:`prunus.cuda.FFN` of tensors on a GPU.

        Raises
        ------
        ValueError
            If shapes do not fit, or ``decide`` names a matrix that is not there.
        TypeError
            If the weights are no floats.
        """
        if on_device(w_up, w_down, w_gate, b_up, b_down):
            from prunus.cuda.layers import packed  # torch may be missing

            return packed.FFN.pack(w_up, w_down, w_gate, decide, dtype, b_up=b_up, b_down=b_down)
        if decide not in DECIDERS:
            raise ValueError(f"decide must be one of {', '.join(DECIDERS)}, got {decide!r}")
        if decide == "gate" and w_gate is None:
            raise ValueError("decide='gate' needs w_gate")
        up, down = _rows.as_table(w_up, "w_up"), _rows.as_table(w_down, "w_down")
        gate = None if w_gate is None else _rows.as_table(w_gate, "w_gate")
        units, features = up.shape
        if down.shape[1] != units:
            raise ValueError(f"w_down has shape {down.shape}, expected (d_out, {units}) for w_up {up.shape}")
        if gate is not None and gate.shape != up.shape:
            raise ValueError(f"w_gate has shape {gate.shape}, w_up {up.shape}")
        if dtype is None:
            kind = result_dtype(up.dtype, down.dtype)
            kind = kind if gate is None else result_dtype(kind, gate.dtype)
        else:
            kind = as_dtype(dtype)
            if kind not in FLOATS:
                raise TypeError(f"weights are kept as floats, got dtype={kind}")
        panel = {"up": up, "gate": gate, "predictor": None}[decide]
        rest = [part for part in (up, gate) if part is not None and part is not panel]
        width = features * len(rest) + down.shape[0]
        bundle = _aligned((units, width), kind)
        for i, part in enumerate(rest):
            bundle[:, i * features : (i + 1) * features] = part
        bundle[:, len(rest) * features :] = down.T
        first = None if panel is None else _aligned(panel.shape, kind)
        if first is not None and panel is not None:
            first[...] = panel
        # Copies, as the weights are: what is frozen does not change with a caller's arrays.
        biases = (
            _copied(_rows.as_vector(b_up, units, "b_up")),
            _copied(_rows.as_vector(b_down, down.shape[0], "b_down")),
        )
        return cls._assemble(first, bundle, decide, features, gate is not None, *biases)

    @classmethod
    def _assemble(
        cls,
        panel: Array | None,
        bundle: Array,
        decide: str,
        features: int,
        gated: bool,
        b_up: Array | None,
        b_down: Array | None,
    ) -> Self:
        """Return a layer made of tables that are laid out as :meth:`pack` does, which become its own."""
        self = object.__new__(cls)
        count = 1 + gated - (panel is not None)
        parts = [bundle[:, i * features : (i + 1) * features] for i in range(count)]
        self._sums = bundle[:, count * features :]
        self._out = int(self._sums.shape[1])
        self._up = panel if decide == "up" and panel is not None else parts[0]
        self._gate = None if not gated else panel if decide == "gate" else parts[-1]
        self._b_up, self._b_down = b_up, b_down
        self._freeze((bundle,) if panel is None else (panel, bundle), decide)
        return self

    @classmethod
    def _over(
        cls, up: Array, down: Array, gate: Array | None, decide: str, b_up: Array | None, b_down: Array | None
    ) -> Self:
        """Return a layer over matrices as :meth:`pack` takes them, which stay where they are; to be saved.

        Nothing is copied: what it holds changes with them.
        """
        self = object.__new__(cls)
        self._up, self._gate, self._sums = up.view(), None if gate is None else gate.view(), down.T
        self._out = len(down)
        self._b_up, self._b_down = b_up, b_down
        self._freeze(tuple(one for one in (self._gate, self._up, self._sums) if one is not None), decide)
        return self

    def _freeze(self, kept: tuple[Array, ...], decide: str) -> None:
        self._kept, self.decide = kept, decide
        for array in (*kept, self._up, self._sums, self._gate):
            if array is not None:
                array.flags.writeable = False

    def to(self, device: Any) -> Any:
        """Return the layer on a device: itself for ``"cpu"``, a :class:`prunus.cuda.FFN` for ``"cuda"``.

        Parameters
        ----------
        device : str or torch.device
            "cpu", "cuda" (torch's current GPU) or "cuda:1".

        Raises
        ------
        PrunusError
            If there is no such device, or torch is missing.
        MemoryError
            If the GPU has not that much memory left.
        """
        name = str(device)
        if name == "cpu":
            return self
        if name.partition(":")[0] != "cuda":
            raise PrunusError(f"no device {name!r}: layers live on 'cpu' or 'cuda'")
        from prunus.cuda import runtime
        from prunus.cuda.layers import packed

        return packed.FFN.from_host(self, runtime.named(name))

    def apart(self) -> Self:
        """Return the layer with each matrix by itself, the down-projection in a panel for each thread.

        It gives the same results, on any number of threads. Where hardly anything is pruned it is faster, as
        memory gives runs sooner than rows with gaps; bundles are for layers that are mostly dead, and for
        disks.
        """
        other = object.__new__(type(self))
        gate = [] if self._gate is None else [self._gate]
        each = -(-self._out // get_num_threads())
        width = -(-each // _COLUMNS) * _COLUMNS
        down = self._down if width >= self._out else in_panels(self._down, width)
        tables = side_by_side([*gate, self._up, down])  # in the order of their use
        other._up, other._sums = tables[-2:]
        other._out = self._out
        other._gate = tables[0] if gate else None
        other._b_up, other._b_down = self._b_up, self._b_down
        other._freeze(tuple(tables), self.decide)
        return other

    def _tables(self) -> tuple[Array | None, list[Array]]:
        """Return the matrix that decides, if one does, and what makes up a bundle."""
        panel = {"up": self._up, "gate": self._gate, "predictor": None}[self.decide]
        rest = [one for one in (self._up, self._gate) if one is not None and one is not panel]
        return panel, [*rest, self._down]

    @property
    def _down(self) -> Array:
        """The down-projection by units, (hidden, out_features); of panels a copy."""
        return from_panels(self._sums, self._out)

    @property
    def hidden(self) -> int:
        """Hidden units."""
        return len(self._up)

    @property
    def features(self) -> int:
        """Length of an input."""
        return int(self._up.shape[1])

    @property
    def out_features(self) -> int:
        """Length of an output."""
        return self._out

    @property
    def gated(self) -> bool:
        """Whether there is a gate."""
        return self._gate is not None

    @property
    def dtype(self) -> DType:
        """Dtype of the weights."""
        return self._up.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of weights, with the padding between bundles."""
        return sum(len(table) * table.strides[0] for table in self._kept)

    def save(self, path: Any, name: str = "ffn", **options: Any) -> None:
        """Write the layer to a safetensors file, in the layout in which it is read from disk.

        Parameters
        ----------
        path : path-like
            Where to.
        name : str
            What it is called there: ``pr.open(path)[name]``, or :meth:`open`.
        **options
            As :func:`prunus.save`: ``metadata``, ``checksums``, ``align``.

        Raises
        ------
        OSError
            If the disk is full or refuses; what was there is untouched then.
        """
        from prunus.paged.save import save  # it builds on this module

        save(path, {name: self}, **options)

    @staticmethod
    def open(path: Any, name: str | None = None, budget: Any = None, resident: str | None = None) -> Any:
        """Open a layer that :meth:`save` or :func:`prunus.save` wrote; its weights stay on disk.

        Parameters
        ----------
        path : path-like
            The file.
        name : str, optional
            Which of its layers; may be left out where there is one.
        budget : int or str, optional
            Bytes of memory of a pager of its own, such as ``"512 MiB"``.
        resident : {"panel", "none"}, optional
            Whether the matrix that decides stays in memory once it was read. It does by default where it
            takes at most a quarter of the budget.

        Returns
        -------
        prunus.paged.PagedFFN
            It is called as an FFN is.
        """
        from prunus.paged.layers import open_layer  # it builds on this module

        return open_layer(path, name, budget, resident)

    def _run(
        self, at: Span, x: Array, y: Array, activation: str | None, policy: Policy | None, branch: int
    ) -> None:
        engine = engines.active()
        up, gate, down = self._up, self._gate, self._sums
        live = None if policy is None else foreseen(policy, x, blocks_along(len(up), branch))
        decided = live is None and policy is not None
        if live is not None:
            live = np.ascontiguousarray(live)
        if decided and policy is not None:
            live = self._decide(policy, x, y, activation, branch)
        else:
            engine.feed_forward(x, up, gate, down, y, live, branch, self._b_up, self._b_down, activation)
        if at:
            at.ran(engine.name)
            # As wide as it is meant: what pads the last panel is not work.
            summed = np.broadcast_to(np.empty((), down.dtype), (self.hidden, self._out))
            tables = [(up, decided and self.decide == "up"), (summed, False)]
            if gate is not None:
                tables.append((gate, decided and self.decide == "gate"))
            _rows.count_rows(at, live, branch, tables, len(x))

    def _decide(self, policy: Policy, x: Array, y: Array, activation: str | None, branch: int) -> Array:
        """Compute what decides, then the rest of what is live; return what is."""
        if self.decide == "predictor":
            raise ValueError(
                "this FFN was packed with decide='predictor': prune must be a policy that foresees, such as "
                f"Predictor or Fixed, got {policy!r}"
            )
        engine, up, gate = engines.active(), self._up, self._gate
        h = np.empty((len(x), len(up)), _rows.sums_dtype(x.dtype, self.dtype))
        if gate is None:
            live, _ = _rows.find(policy, x, up, h, branch, self._b_up, activation, ask=False, clear=False)
        elif self.decide == "up":
            first = np.empty_like(h)
            live, _ = _rows.find(policy, x, up, first, branch, self._b_up, ask=False, clear=False)
            engine.dots(x, gate, h, live, branch, None, activation, first)
        else:
            first = np.empty_like(h)
            live, _ = _rows.find(policy, x, gate, first, branch, None, activation, ask=False, clear=False)
            engine.dots(x, up, h, live, branch, self._b_up, None, first)
        engine.combine(h, self._sums, y, live, branch, self._b_down)
        return live

    def __repr__(self) -> str:
        gate = "gated, " if self.gated else ""
        return (
            f"<prunus.FFN {self.features} -> {self.hidden} -> {self.out_features} {self.dtype}: {gate}"
            f"decided by {self.decide}, {self.nbytes} bytes>"
        )
