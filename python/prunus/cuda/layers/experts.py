"""Experts of a mixture on a GPU: what their weights are, and which of them one kernel computes together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from prunus._dtypes import FLOATS
from prunus._errors import PrunusError
from prunus._operands import is_on_disk
from prunus._storage import BlockStorage
from prunus.cuda.arrays import BSR
from prunus.cuda.dtypes import numpy_of
from prunus.cuda.grouped import Matrices, by_themselves, constant
from prunus.cuda.grouped_blocks import Blocks, Member, members, together
from prunus.cuda.layers.packed import FFN
from prunus.cuda.operands import as_floats
from prunus.cuda.paged.matrices import Matrix, kind_of, table_of
from prunus.cuda.runtime import Place
from prunus.cuda.versions import libraries
from prunus.paged.experts import members as stored_members
from prunus.paged.layers import PagedFFN
from prunus.pruning.experts import Style
from prunus.pruning.feed_forward import FeedForward

if TYPE_CHECKING:
    import torch

__all__ = ["Expert", "Group", "check", "experts_of", "group_of", "groups_of", "shared_of"]

_ROLES = ("up", "down", "gate")


class Expert(NamedTuple):
    """One expert's matrices, checked: each a tensor, block-sparse, or on disk; or a layer on disk."""

    name: str
    up: Matrix
    down: Matrix
    gate: Matrix | None
    decide: str = "gate"
    b_up: torch.Tensor | None = None
    b_down: torch.Tensor | None = None
    layer: PagedFFN | None = None

    @property
    def matrices(self) -> list[Matrix]:
        """All of them; none of a layer on disk."""
        return [w for w in (self.up, self.down, self.gate) if w is not None]

    @property
    def is_stored(self) -> bool:
        """Whether any of it is on disk."""
        return self.layer is not None or any(is_on_disk(w) for w in self.matrices)

    @property
    def features(self) -> int:
        """Length of an input."""
        return int(self.up.shape[1]) if self.layer is None else self.layer.features

    @property
    def units(self) -> int:
        """Hidden units."""
        return int(self.up.shape[0]) if self.layer is None else self.layer.hidden

    @property
    def outputs(self) -> int:
        """Length of an output."""
        return int(self.down.shape[0]) if self.layer is None else self.layer.out_features

    @property
    def kinds(self) -> list[Any]:
        """Torch's dtypes of its weights."""
        return [kind_of(w) for w in self.matrices] if self.layer is None else [kind_of(self.layer)]

    @property
    def nbytes(self) -> int:
        """Bytes of all weights, were they dense."""
        if self.layer is not None:
            return self.layer.nbytes
        return sum(math.prod(w.shape) * w.dtype.itemsize for w in self.matrices)

    @property
    def flops(self) -> int:
        """Operations that one row costs where nothing is pruned, with dense weights."""
        if self.layer is not None:
            one = self.layer
            return 2 * one.hidden * (one.features * (1 + one.gated) + one.out_features)
        return sum(2 * math.prod(w.shape) for w in self.matrices)

    @property
    def form(self) -> tuple[Any, ...]:
        """What experts have in common that one kernel computes."""
        biases = tuple(None if b is None else b.dtype for b in (self.b_up, self.b_down))
        return (self.decide, *biases, *(_form(w) for w in self.matrices))


class Group(NamedTuple):
    """Experts that are computed together; ``active`` says which, None: all."""

    up: Matrices | Blocks
    down: Matrices | Blocks
    gate: Matrices | Blocks | None
    style: Style
    active: torch.Tensor | None
    decide: str = "gate"
    b_up: torch.Tensor | None = None
    b_down: torch.Tensor | None = None

    @property
    def deciding(self) -> Matrices | Blocks:
        """What is computed first where a policy decides: the gate, where there is one and it does."""
        return self.up if self.gate is None or self.decide == "up" else self.gate


def experts_of(w_up: Any, w_down: Any, w_gate: Any, where: Place) -> list[Expert]:
    """Return the experts, each checked.

    Raises
    ------
    ValueError, TypeError, PrunusError
        As :func:`prunus.cuda.layers.moe.moe`.
    """
    parts = [_stack(w, name, where) for name, w in (("w_up", w_up), ("w_down", w_down), ("w_gate", w_gate))]
    if parts[0] is None:
        raise TypeError("w_up is missing: pass the experts' weights (E, f, d), or a list")
    count = len(parts[0])
    for name, part in zip(("w_down", "w_gate"), parts[1:], strict=True):
        if part is not None and len(part) != count:
            raise ValueError(f"there are {count} experts in w_up, but {len(part)} in {name}")
    if not count:
        raise ValueError("there are no experts: w_up is empty")
    return [
        _expert(f"expert {e}", [None if part is None else part[e] for part in parts], where)
        for e in range(count)
    ]


def shared_of(shared: Any, where: Place) -> list[Expert]:
    """Return the shared experts, checked.

    Raises
    ------
    ValueError, TypeError, PrunusError
        As :func:`prunus.cuda.layers.moe.moe`.
    """
    if shared is None:
        return []
    found = []
    for i, one in enumerate(shared if isinstance(shared, list) else [shared]):
        parts = (one,) if isinstance(one, (FFN, FeedForward)) else one
        if not isinstance(parts, tuple) or (parts is one and len(parts) not in (2, 3)):
            raise TypeError(
                "a shared expert is an FFN, or a tuple (w_up, w_down) or (w_up, w_down, w_gate); got "
                + (f"a tuple of {len(one)}" if isinstance(one, tuple) else type(one).__name__)
            )
        found.append(_expert(f"shared expert {i}", (*parts, None, None)[:3], where))
    return found


def check(experts: list[Expert], features: int) -> int:
    """Return how many values the experts give, the same for all; raise if they do not take ``features``."""
    width = experts[0].outputs
    for one in experts:
        if one.features != features:
            raise ValueError(f"{one.name} takes {one.features} features, x has {features}")
        if one.outputs != width:
            raise ValueError(f"{one.name} gives {one.outputs} values, {experts[0].name} gives {width}")
    return width


def group_of(one: Expert, style: Style, where: Place) -> Group:
    """Return an expert that is alone in its kernels."""
    roles: list[Any] = []
    for w in (one.up, one.down, one.gate):
        if w is None:
            roles.append(None)
        else:
            roles.append(together([w], where) if isinstance(w, Member) else Matrices(w[None]))
    up, down, gate = roles
    return Group(up, down, gate, style, None, one.decide, _biases([one.b_up]), _biases([one.b_down]))


def groups_of(
    experts: list[Expert],
    styles: list[Style],
    chosen: Iterable[int],
    given: tuple[Any, ...],
    where: Place,
) -> list[Group]:
    """Return experts by what one kernel can compute: their matrices' form, and their policies.

    Parameters
    ----------
    experts : list of Expert
        All that there are.
    styles : list of Style
        How each prunes.
    chosen : iterable of int
        Which experts are wanted in groups.
    given : tuple
        What the caller passed for the matrices up, down and gate.
    where : Place
        Where they live.
    """
    torch = libraries().torch
    kinds: dict[Any, list[int]] = {}
    for e in chosen:
        kinds.setdefault((experts[e].form, id(styles[e].policy)), []).append(e)
    groups = []
    for mine in kinds.values():
        first = experts[mine[0]]
        active = None
        kept = set(mine)
        if len(mine) < len(experts):
            active = constant(tuple(int(e in kept) for e in range(len(experts))), "int32", where)
        # Experts of other groups are not looked at: any address will do for them.
        every = [experts[e] if e in kept else first for e in range(len(experts))]
        # Two dense matrices may be one product's: either both are found by a stride, or both by addresses.
        stacked = all(
            isinstance(stack, torch.Tensor)
            for name, stack in zip(_ROLES, given, strict=True)
            if isinstance(getattr(first, name), torch.Tensor)
        )
        roles: list[Any] = []
        for name, stack in zip(_ROLES, given, strict=True):
            one = getattr(first, name)
            if one is None:
                roles.append(None)
            elif isinstance(one, Member):
                roles.append(together([getattr(expert, name) for expert in every], where))
            elif stacked:
                roles.append(Matrices(stack))
            else:
                roles.append(by_themselves([getattr(expert, name) for expert in every], where))
        biases = _biases([one.b_up for one in every]), _biases([one.b_down for one in every])
        groups.append(Group(roles[0], roles[1], roles[2], styles[mine[0]], active, first.decide, *biases))
    return groups


def _form(w: Matrix) -> tuple[Any, ...]:
    return w.form if isinstance(w, Member) else (tuple(w.shape), w.dtype, w.stride())


def _stack(w: Any, name: str, where: Place) -> Sequence[Any] | torch.Tensor | None:
    if w is None or isinstance(w, (list, tuple)):
        return w
    sparse = isinstance(w, (BSR, BlockStorage))
    stack: Any = w
    if not is_on_disk(w):
        stack = _blocks(w, name, where) if sparse else as_floats(w, name, where)
    if stack.ndim != 3:
        raise ValueError(f"{name} must have the experts on axis 0 of three, got shape {tuple(stack.shape)}")
    if is_on_disk(w):
        return stored_members(w, name)
    return members(stack._operand, stack._batch) if sparse else stack


def _expert(name: str, parts: Sequence[Any], where: Place) -> Expert:
    """Return an expert of ``(up, down, gate)``, or of an FFN."""
    if isinstance(parts[0], (FFN, FeedForward)) and (parts[1] is not None or parts[2] is not None):
        raise TypeError(f"{name} is an FFN, which has its own w_down and w_gate: pass None for them")
    if isinstance(parts[0], PagedFFN):
        return Expert(name, None, None, None, parts[0].decide, layer=parts[0])
    if isinstance(parts[0], FeedForward):
        raise PrunusError(
            f"{name} is an FFN in host memory, the operation runs on {where}; move it with .to('cuda')"
        )
    if isinstance(parts[0], FFN):
        return _packed(name, parts[0], where)
    if parts[1] is None:
        raise TypeError(f"{name} must be an FFN where w_down is not given, got {type(parts[0]).__name__}")
    up = _matrix(parts[0], f"w_up of {name}", where)
    down = _matrix(parts[1], f"w_down of {name}", where, down=True)
    gate = None if parts[2] is None else _matrix(parts[2], f"w_gate of {name}", where)
    if down.shape[1] != up.shape[0]:
        raise ValueError(
            f"w_down of {name} has shape {tuple(down.shape)}: expected {up.shape[0]} columns, as w_up has "
            "rows"
        )
    if gate is not None and gate.shape != up.shape:
        raise ValueError(f"w_gate of {name} has shape {tuple(gate.shape)}, w_up {tuple(up.shape)}")
    return Expert(name, up, down, gate)


def _packed(name: str, layer: FFN, where: Place) -> Expert:
    """Return an expert that is an FFN."""
    if layer._place != where:
        raise PrunusError(
            f"{name} lives on {layer._place}, the operation runs on {where}; move it with "
            f".to({str(where.device)!r})"
        )
    down = layer._down.T
    return Expert(name, layer._up, down, layer._gate, layer.decide, layer._b_up, layer._b_down)


def _biases(given: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """Return the biases of experts (E, n), which all or none have."""
    biases = [b for b in given if b is not None]
    return libraries().torch.stack(biases) if biases else None


def _matrix(w: Any, name: str, where: Place, *, down: bool = False) -> Matrix:
    """Return one matrix of an expert, checked."""
    if isinstance(w, Member):
        return w
    if is_on_disk(w):
        if w.dtype not in FLOATS:
            raise TypeError(f"{name} must hold floats, got dtype {w.dtype}")
        if w.ndim != 2:
            raise ValueError(f"{name} must have two dimensions, got shape {w.shape}")
        table_of(w, name, down=down)  # which raises where it cannot be read so
        return w
    if isinstance(w, (BSR, BlockStorage)):
        w = _blocks(w, name, where)
        if w.ndim != 2:
            raise ValueError(f"{name} must have two dimensions, got shape {w.shape}")
        return members(w._operand, ())[0]
    tensor = as_floats(w, name, where)
    if tensor.ndim != 2:
        raise ValueError(f"{name} must have two dimensions, got shape {tuple(tensor.shape)}")
    return tensor


def _blocks(w: BSR | BlockStorage, name: str, where: Place) -> BSR:
    """Return a block-sparse array; raise unless it lives where the operation runs and holds floats."""
    if isinstance(w, BlockStorage):
        raise PrunusError(
            f"{name} is a BSR in host memory, the operation runs on {where}; move it with .to('cuda')"
        )
    if w._place != where:
        raise PrunusError(
            f"{name} lives on {w._place}, the operation runs on {where}; move it with "
            f".to({str(where.device)!r})"
        )
    if numpy_of(w.dtype) not in FLOATS:
        raise TypeError(f"{name} must hold floats, got dtype {w.dtype}")
    return w
