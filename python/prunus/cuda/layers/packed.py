"""``FFN`` on a GPU: a feed-forward layer whose dead hidden units are left alone, laid out for that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np

from prunus._dtypes import FLOATS, Array
from prunus._layout import blocks_along
from prunus._trace import Span
from prunus.cuda import dense, dtypes, plans, rows
from prunus.cuda.counting import Table, count_rows
from prunus.cuda.deciding import decides_as_stored, find
from prunus.cuda.feed_forward import feed_forward
from prunus.cuda.layers.arguments import as_rows, as_table, as_vector
from prunus.cuda.operands import where_of
from prunus.cuda.policies import foreseen
from prunus.cuda.runtime import Place, empty, named
from prunus.cuda.tracing import traced
from prunus.cuda.transfer import download, upload
from prunus.cuda.versions import libraries
from prunus.pruning import packed as host
from prunus.pruning._rows import check_activation, check_branch
from prunus.pruning.policies import Policy, as_policy

if TYPE_CHECKING:
    import torch

__all__ = ["FFN", "Weights", "kept_as"]


class Weights(NamedTuple):
    """A layer's matrices, checked to fit each other: (H, d), (d_out, H), and (H, d) or None."""

    up: torch.Tensor
    down: torch.Tensor
    gate: torch.Tensor | None
    b_up: torch.Tensor | None
    b_down: torch.Tensor | None

    @classmethod
    def of(cls, w_up: Any, w_down: Any, w_gate: Any, b_up: Any, b_down: Any, where: Place) -> Weights:
        """Return arguments as weights; raise what :func:`prunus.ffn` says if they are none."""
        up, down = as_table(w_up, "w_up", where), as_table(w_down, "w_down", where)
        gate = None if w_gate is None else as_table(w_gate, "w_gate", where)
        units = int(up.shape[0])
        if down.shape[1] != units:
            raise ValueError(
                f"w_down has shape {tuple(down.shape)}, expected (d_out, {units}) for w_up {tuple(up.shape)}"
            )
        if gate is not None and gate.shape != up.shape:
            raise ValueError(f"w_gate has shape {tuple(gate.shape)}, w_up {tuple(up.shape)}")
        return cls(
            up,
            down,
            gate,
            as_vector(b_up, units, "b_up", where),
            as_vector(b_down, int(down.shape[0]), "b_down", where),
        )


def kept_as(where: Place, count: int, *kinds: Any) -> Any:
    """Return the dtype that hidden units are kept in between two products.

    That of sums for a few rows; for more of them the result's, where it is a half: they are as many bytes as
    the weights then, and multiplied in that dtype.
    """
    sums = rows.sums_of(*kinds)
    kind = kinds[-1]
    return sums if plans.is_few(where, count) or kind.itemsize > 2 else kind


class FFN:
    """A feed-forward layer on a GPU: ``down(activation(up x))`` or ``down(activation(gate x) · up x)``.

    Made by :meth:`pack`, by ``prunus.FFN.pack`` of tensors there, and by ``F.to("cuda")``; frozen. Each
    matrix lies by itself, all of them by hidden units: what a dead unit has is skipped in rows. With a gate,
    it and the up-projection are neighbours, which one product reads where nothing is pruned.

    Attributes
    ----------
    hidden, features, out_features : int
        Units, and the sizes of inputs and outputs.
    gated : bool
        Whether there is a gate.
    dtype : torch.dtype
        Of the weights.
    device : torch.device
        Where they live.
    decide : str
        Which matrix decides: "up", "gate", or "predictor" for none.
    nbytes : int
        Bytes of weights.
    """

    __slots__ = ("__weakref__", "_b_down", "_b_up", "_down", "_gated", "_place", "_table", "decide")

    on_cuda: ClassVar[bool] = True

    _place: Place
    _table: torch.Tensor  # (H, d): the up-projection; (2 H, d) with the gate before it
    _down: torch.Tensor  # (H, d_out)
    _b_up: torch.Tensor | None
    _b_down: torch.Tensor | None
    _gated: bool
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
        dtype: Any = None,
        *,
        b_up: Any = None,
        b_down: Any = None,
    ) -> Self:
        """Copy weights into the layout that calls read.

        Parameters
        ----------
        w_up : Tensor
            Shape (H, d).
        w_down : Tensor
            Shape (d_out, H).
        w_gate : Tensor, optional
            Shape (H, d): the layer is gated.
        decide : {"up", "gate", "predictor"}
            Which product is computed first and decides: the rest is left out where a unit is dead.
            "predictor": none; calls that prune need a policy that foresees.
        dtype : dtype, optional
            To keep the weights in, torch's or NumPy's; by default what they have in common.
        b_up, b_down : Tensor, optional
            Biases (H,) and (d_out,).

        Returns
        -------
        FFN

        Raises
        ------
        ValueError
            If shapes do not fit, or ``decide`` names a matrix that is not there.
        TypeError
            If the weights are no floats.
        PrunusError
            If they live in different places, or not on a GPU.
        """
        _check_decide(decide, w_gate is not None)
        where = where_of(w_up, w_down, w_gate)
        w = Weights.of(w_up, w_down, w_gate, b_up, b_down, where)
        if dtype is None:
            kind = dtypes.result(w.up.dtype, w.down.dtype)
            kind = kind if w.gate is None else dtypes.result(kind, w.gate.dtype)
        else:
            kind = dtypes.as_torch(dtype)
            if dtypes.numpy_of(kind) not in FLOATS:
                raise TypeError(f"weights are kept as floats, got dtype={kind}")
        return cls._made(w, decide, kind, where)

    @classmethod
    def _made(cls, w: Weights, decide: str, kind: Any, where: Place) -> Self:
        """Return a layer of copies."""
        units, features = (int(size) for size in w.up.shape)
        gated = w.gate is not None
        table = empty((units * (1 + gated), features), kind, where)
        if w.gate is not None:
            table[:units].copy_(w.gate)
        table[units * gated :].copy_(w.up)
        down = empty((units, int(w.down.shape[0])), kind, where)
        down.copy_(w.down.T)
        biases = [None if b is None else b.clone().contiguous() for b in (w.b_up, w.b_down)]
        return cls._assemble(table, down, biases[0], biases[1], gated, decide, where)

    @classmethod
    def _assemble(
        cls,
        table: torch.Tensor,
        down: torch.Tensor,
        b_up: torch.Tensor | None,
        b_down: torch.Tensor | None,
        gated: bool,
        decide: str,
        where: Place,
    ) -> Self:
        """Return a layer of tensors that become its own."""
        self = object.__new__(cls)
        self._table, self._down, self._b_up, self._b_down = table, down, b_up, b_down
        self._gated, self.decide, self._place = gated, decide, where
        return self

    @classmethod
    def from_host(cls, layer: host.FFN, where: Place) -> Self:
        """Return a copy of a :class:`prunus.FFN` on a GPU; see ``F.to("cuda")``."""

        def there(array: Array | None) -> Any:
            return None if array is None else upload(np.ascontiguousarray(array), where)

        parts = (layer._up, layer._down.T, layer._gate, layer._b_up, layer._b_down)
        w = Weights(*(there(part) for part in parts))
        return cls._made(w, layer.decide, dtypes.torch_of(layer.dtype), where)

    def to(self, device: Any) -> Any:
        """Return the layer on a device: "cpu" gives a :class:`prunus.FFN`; itself where it is.

        Raises
        ------
        PrunusError
            If there is no such device.
        """
        name = str(device)
        if name == "cpu":
            return self._host()
        where = named(name)
        if where == self._place:
            return self
        parts = (self._table, self._down, self._b_up, self._b_down)
        moved = [None if part is None else part.to(where.device) for part in parts]
        assert moved[0] is not None
        assert moved[1] is not None
        return self._assemble(moved[0], moved[1], moved[2], moved[3], self._gated, self.decide, where)

    def _host(self) -> host.FFN:
        def here(tensor: torch.Tensor | None) -> Any:
            if tensor is None:
                return None
            array = np.empty(tuple(tensor.shape), dtypes.numpy_of(tensor.dtype))
            download(tensor, array)
            return array

        parts = [here(part) for part in (self._up, self._down, self._gate)]
        return host.FFN.pack(
            parts[0],
            parts[1].T,
            parts[2],
            self.decide,
            b_up=here(self._b_up),
            b_down=here(self._b_down),
        )

    @property
    def _up(self) -> torch.Tensor:
        return self._table[self.hidden :] if self._gated else self._table

    @property
    def _gate(self) -> torch.Tensor | None:
        return self._table[: self.hidden] if self._gated else None

    @property
    def hidden(self) -> int:
        """Hidden units."""
        return int(self._down.shape[0])

    @property
    def features(self) -> int:
        """Length of an input."""
        return int(self._table.shape[1])

    @property
    def out_features(self) -> int:
        """Length of an output."""
        return int(self._down.shape[1])

    @property
    def gated(self) -> bool:
        """Whether there is a gate."""
        return self._gated

    @property
    def dtype(self) -> Any:
        """Torch's dtype of the weights."""
        return self._table.dtype

    @property
    def device(self) -> torch.device:
        """Where it lives."""
        return self._table.device

    @property
    def nbytes(self) -> int:
        """Bytes of weights."""
        return int(self._table.numel() + self._down.numel()) * self._table.element_size()

    def __call__(
        self,
        x: Any,
        activation: str | None = "relu",
        prune: Any = None,
        branch: int = 1,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the layer's output for every row of ``x``.

        What decides is computed first, and of the rest what is live; what a policy foresees is all that is
        computed. Nothing is read back. A few rows are computed each by itself, more in tiles (see
        :mod:`prunus.cuda.rows`), with hidden units in the result's dtype between the products.

        Parameters
        ----------
        x : Tensor
            Shape (*lead, features), any strides.
        activation : {"relu", "gelu", "silu"} or None
            Of the gate, or of the up-projection where there is no gate; None is the identity.
        prune : policy, optional
            Decides which branches are live for each row. Where the up-projection of a gated layer decides,
            the policy sees it before any activation. None: nothing is pruned, and torch's library multiplies.
        branch : int, default 1
            Neighbouring hidden units that live and die together.
        out : Tensor, optional
            Where to write, of the result's shape and dtype, in C order. It may be ``x``, which is read
            before.

        Returns
        -------
        Tensor
            Shape (*lead, out_features).

        Raises
        ------
        ValueError
            If shapes do not fit, or the layer was packed with ``decide="predictor"`` and the policy does not
            foresee.
        TypeError
            If ``x`` is no tensor of floats.
        PrunusError
            If ``x`` lives elsewhere.
        """
        check_activation(activation)
        where = self._place
        flat, lead = as_rows(x, self.features, where)
        policy, branch = as_policy(prune), check_branch(branch, self.hidden)
        kind = dtypes.result(flat.dtype, self.dtype, names=("x", "the layer"))
        shape = (*lead, self.out_features)
        if out is None:
            result = empty(shape, kind, where)
        else:
            _check_out(out, shape, kind, where)
            result = out
        with traced("ffn", where) as at:
            self._run(at, flat, result.view(len(flat), self.out_features), activation, policy, branch)
        return result

    def _run(
        self,
        at: Span,
        x: torch.Tensor,
        y: torch.Tensor,
        activation: str | None,
        policy: Policy | None,
        branch: int,
    ) -> None:
        where, up, gate, units = self._place, self._up, self._gate, self.hidden
        live = None if policy is None else foreseen(policy, x, blocks_along(units, branch), where)
        decided = live is None and policy is not None
        inner = kept_as(where, len(x), x.dtype, self.dtype, y.dtype)
        if decided and policy is not None:
            live = self._decide(policy, x, y, activation, branch, inner)
        elif live is None and x.dtype == self.dtype:
            self._whole(x, y, activation)
        else:
            feed_forward(
                where, x, up, gate, self._down, y, live, branch, self._b_up, self._b_down, activation, inner
            )
        if at:
            tables = [Table.of(up, decided and self.decide == "up"), Table.of(self._down, False)]
            if gate is not None:
                tables.append(Table.of(gate, decided and self.decide == "gate"))
            count_rows(at, live, branch, tables, len(x), units)

    def _whole(self, x: torch.Tensor, y: torch.Tensor, activation: str | None) -> None:
        """Compute everything, by torch's library."""
        where, units, kind = self._place, self.hidden, self.dtype
        if not self._gated:
            h = dense.linear(where, x, self._table, self._b_up, kind, activation)
        else:
            both = dense.linear(where, x, self._table, None, kind)
            h = empty((len(x), units), kind, where)
            dense.gated(where, both[:, :units], both[:, units:], h, self._b_up, activation)
        dense.linear(where, h, self._down.T, self._b_down, kind, out=y)

    def _decide(
        self,
        policy: Policy,
        x: torch.Tensor,
        y: torch.Tensor,
        activation: str | None,
        branch: int,
        inner: Any,
    ) -> torch.Tensor:
        """Compute what decides, then the rest of what is live; return what is."""
        if self.decide == "predictor":
            raise ValueError(
                "this FFN was packed with decide='predictor': prune must be a policy that foresees, such as "
                f"Predictor or Fixed, got {policy!r}"
            )
        where, up, gate, units = self._place, self._up, self._gate, self.hidden
        h = empty((len(x), units), inner, where)
        zeroed = gate is not None or decides_as_stored(policy)
        if gate is None:
            live = _find(where, policy, x, up, h, branch, self._b_up, activation)
        else:
            first = empty((len(x), units), inner, where)
            if self.decide == "up":
                live = _find(where, policy, x, up, first, branch, self._b_up)
                rows.dots(where, x, gate, h, live, branch, None, activation, first, clear=False)
            else:
                live = _find(where, policy, x, gate, first, branch, None, activation)
                rows.dots(where, x, up, h, live, branch, self._b_up, None, first, clear=False)
        rows.combine(where, h, self._down, y, live, branch, self._b_down, zeroed=zeroed)
        return live

    def __repr__(self) -> str:
        gate = "gated, " if self.gated else ""
        return (
            f"<prunus.cuda.FFN {self.features} -> {self.hidden} -> {self.out_features} "
            f"{str(self.dtype).removeprefix('torch.')} on {self._place}: {gate}decided by {self.decide}, "
            f"{self.nbytes} bytes>"
        )


def _find(
    where: Place,
    policy: Policy,
    x: torch.Tensor,
    w: torch.Tensor,
    out: torch.Tensor,
    branch: int,
    bias: torch.Tensor | None,
    activation: str | None = None,
) -> torch.Tensor:
    """Compute what decides; return what is live."""
    return find(where, policy, x, w, out, branch, bias, activation, ask=False, clear=False)[0]


def _check_decide(decide: str, gated: bool) -> None:
    if decide not in host.DECIDERS:
        raise ValueError(f"decide must be one of {', '.join(host.DECIDERS)}, got {decide!r}")
    if decide == "gate" and not gated:
        raise ValueError("decide='gate' needs w_gate")


def _check_out(out: Any, shape: tuple[int, ...], kind: Any, where: Place) -> None:
    from prunus.cuda.operands import check_place

    if not isinstance(out, libraries().torch.Tensor):
        raise TypeError(f"out must be a tensor, got {type(out).__name__}")
    check_place(out, "out", where)
    if tuple(out.shape) != shape or out.dtype != kind or not out.is_contiguous():
        raise ValueError(
            f"out must be {kind} of shape {shape} in C order, got {out.dtype} {tuple(out.shape)}"
        )
