"""``moe`` on a device: a mixture of experts whose rows are grouped, computed and added up there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from prunus._errors import PrunusError
from prunus._layout import blocks_along
from prunus.cuda import dtypes
from prunus.cuda.deciding import judge, spread
from prunus.cuda.expert_counts import count_experts, count_routes
from prunus.cuda.grouped import (
    Matrices,
    Routes,
    by_themselves,
    constant,
    everything,
    gather_sum,
    project,
    project_live,
    route,
)
from prunus.cuda.layers.packed import FFN
from prunus.cuda.operands import as_floats, where_of
from prunus.cuda.policies import foreseen
from prunus.cuda.runtime import Place, empty, zeros
from prunus.cuda.tracing import traced
from prunus.cuda.versions import libraries
from prunus.pruning._checks import check_count
from prunus.pruning._rows import check_activation, check_branch
from prunus.pruning.experts import Style
from prunus.pruning.feed_forward import FeedForward
from prunus.pruning.moe import styles_of
from prunus.pruning.policies import Policy

if TYPE_CHECKING:
    import torch

__all__ = ["moe"]


class _Expert(NamedTuple):
    """One expert's matrices, checked."""

    name: str
    up: torch.Tensor
    down: torch.Tensor
    gate: torch.Tensor | None
    decide: str = "gate"
    b_up: torch.Tensor | None = None
    b_down: torch.Tensor | None = None

    @property
    def matrices(self) -> list[torch.Tensor]:
        """All of them."""
        return [w for w in (self.up, self.down, self.gate) if w is not None]

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        return sum(w.numel() * w.element_size() for w in self.matrices)

    @property
    def flops(self) -> int:
        """Operations that one row costs where nothing is pruned."""
        return sum(2 * w.numel() for w in self.matrices)

    @property
    def form(self) -> tuple[Any, ...]:
        """What experts have in common that one kernel computes."""
        biases = tuple(None if b is None else b.dtype for b in (self.b_up, self.b_down))
        return (self.decide, *biases, *((w.shape, w.dtype, w.stride()) for w in self.matrices))


class _Group(NamedTuple):
    """Experts that are computed together; ``active`` says which, None: all."""

    up: Matrices
    down: Matrices
    gate: Matrices | None
    style: Style
    active: torch.Tensor | None
    decide: str = "gate"
    b_up: torch.Tensor | None = None
    b_down: torch.Tensor | None = None

    @property
    def deciding(self) -> Matrices:
        """What is computed first where a policy decides: the gate, where there is one and it does."""
        return self.up if self.gate is None or self.decide == "up" else self.gate


def moe(
    x: Any,
    router: Any,
    w_up: Any,
    w_down: Any = None,
    w_gate: Any = None,
    top_k: int = 2,
    *,
    logits: Any = None,
    activation: str | None = "silu",
    renormalize: bool = True,
    shared: Any = None,
    prune: Any = None,
    branch: int = 1,
) -> torch.Tensor:
    """Return a mixture of experts; see :func:`prunus.moe` for the parameters, which are tensors here.

    Rows are sorted by expert on the device, and how many an expert has is not read back.

    Where values decide, it differs from the CPU's. A row whose logits hold NaN or +inf, or are all -inf,
    gives NaN, as nothing can raise without waiting for the device. The result's dtype is that of the products
    with all experts, as which are chosen is not known; all are checked, and of those that no row chose, no
    values are read. Between two products, hidden units are kept in the result's dtype.

    A policy that is Python code cannot be asked: how many rows an expert has is not known to the host.

    Returns
    -------
    Tensor
        Shape (*B, d_out) or (d_out,).

    Raises
    ------
    ValueError
        If shapes do not fit, ``top_k`` is not from 1 to E, or a policy pools rows.
    TypeError
        If an operand holds no floats or is of another kind.
    PrunusError
        If operands live in different places, or a policy is Python code.
    """
    check_activation(activation)
    where = where_of(x, router, logits)
    rows, lead = _rows(x, where)
    experts = _experts(w_up, w_down, w_gate, where)
    if check_count(top_k, "top_k") > len(experts):
        raise ValueError(f"top_k must be from 1 to the number of experts, {len(experts)}; got {top_k}")
    always = _shared(shared, where)
    branch = check_branch(branch)
    styles, common = styles_of(prune, len(experts), len(rows), activation, branch)
    for style in (*styles, common):
        _check_policy(style.policy)
    source, weights = _logits(rows, lead, router, logits, len(experts), where)
    width = _check([*experts, *always], int(rows.shape[1]))
    kind = rows.dtype
    for one in (*experts, *always):
        for w in one.matrices:
            kind = dtypes.result(kind, w.dtype, names=("x", "an expert"))
    sums = dtypes.sums(kind)
    with traced("moe", where) as step:
        routes = route(where, source, weights, top_k, bool(renormalize), len(experts))
        if step:
            if weights is not None:
                size = weights.numel()
                step.count(flops=2 * size * len(rows), bytes_loaded=size * weights.element_size())
            count_routes(step, routes, experts[0].flops, experts[0].nbytes)
        y = empty((routes.copies, width), sums, where)
        for group in _groups(experts, styles, (w_up, w_down, w_gate), where):
            _run(where, rows, routes, group, kind, y)
        out = empty((len(rows), width), sums if always else kind, where)
        gather_sum(where, y, routes, out)
        for one in always:
            all_rows = everything(len(rows), where)
            part = empty((len(rows), width), sums, where)
            gate = None if one.gate is None else Matrices(one.gate[None])
            group = _Group(
                Matrices(one.up[None]),
                Matrices(one.down[None]),
                gate,
                common,
                None,
                one.decide,
                _biases([one.b_up]),
                _biases([one.b_down]),
            )
            _run(where, rows, all_rows, group, kind, part)
            out += part
        return out.to(kind).reshape(*lead, width)


def _run(where: Place, x: torch.Tensor, routes: Routes, group: _Group, kind: Any, y: torch.Tensor) -> None:
    """Write what experts give for their copies of rows to ``y`` (copies, n)."""
    with traced("expert", where) as at:
        live, known = _compute(where, x, routes, group, kind, y)
        if at:
            units = group.up.size[0]
            deciding = group.deciding
            used = [w for w in (group.up, group.down, group.gate) if w is not None]
            matrices = [(w.like, w is deciding and not known) for w in used]
            branch = min(group.style.branch, max(units, 1))
            count_experts(at, routes, matrices, group.active, live, branch, units)


def _compute(
    where: Place, x: torch.Tensor, routes: Routes, group: _Group, kind: Any, y: torch.Tensor
) -> tuple[torch.Tensor | None, bool]:
    """Compute experts; return which branches of copies were live, None: all, and if that was foreseen."""
    torch = libraries().torch
    policy, activation = group.style.policy, group.style.activation
    units = group.up.size[0]
    active = group.active
    h = empty((routes.copies, units), kind, where)
    if policy is None:
        project(
            where,
            x,
            routes,
            group.up,
            h,
            gate=group.gate,
            activation=activation,
            active=active,
            bias=group.b_up,
        )
        project(where, h, routes, group.down, y, gather=False, active=active, bias=group.b_down)
        return None, False
    branch = min(group.style.branch, max(units, 1))
    live = _foreseen(where, policy, x, routes, blocks_along(units, branch))
    known = live is not None
    if live is None and group.decide == "predictor":
        raise ValueError(
            "an expert is an FFN that was packed with decide='predictor': prune must be a policy that "
            f"foresees, such as Predictor or Fixed, got {policy!r}"
        )
    deciding = group.deciding
    # The bias is the up-projection's, and the activation the gate's, or the up-projection's without one.
    ups = {"bias": group.b_up, "activation": activation if group.gate is None else None}
    gates = {"bias": None, "activation": activation}
    # What is not written, because a row chose fewer experts, is judged like everything else.
    first = zeros((routes.copies, units), y.dtype, where)
    style: dict[str, Any] = ups if deciding is group.up else gates
    project(where, x, routes, deciding, first, live=live, branch=branch, active=active, **style)
    if live is None:
        live = judge(where, policy, first, branch).contiguous()
    if group.gate is not None:
        other = group.gate if deciding is group.up else group.up
        style = gates if deciding is group.up else ups
        project(where, x, routes, other, h, scale=first, live=live, branch=branch, active=active, **style)
    elif known:
        h = first.to(kind)
    else:
        h = torch.where(spread(live, branch, units), first, 0).to(kind)
    project_live(where, h, routes, group.down, live, branch, y, active, group.b_down)
    return live, known


def _foreseen(
    where: Place, policy: Policy, x: torch.Tensor, routes: Routes, branches: int
) -> torch.Tensor | None:
    """Return what a policy knows beforehand of each copy (copies, branches), or None."""
    live = foreseen(policy, x, branches, where)
    if live is None or routes.rows is None:
        return None if live is None else live.contiguous()
    # Behind the last copy there may be anything.
    at = routes.rows.clamp(0, max(len(x) - 1, 0))
    return live.index_select(0, at)


def _rows(x: Any, where: Place) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Return ``x`` as rows, and its leading dimensions."""
    tensor = as_floats(x, "x", where)
    if not tensor.ndim:
        raise ValueError("x must have at least one dimension")
    lead = tuple(tensor.shape[:-1])
    return tensor.reshape(math.prod(lead), tensor.shape[-1]), lead


def _logits(
    x: torch.Tensor, lead: tuple[int, ...], router: Any, logits: Any, experts: int, where: Place
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return rows and a router, or logits and None."""
    if (router is None) == (logits is None):
        raise TypeError("moe takes either a router or logits=")
    if logits is not None:
        given = as_floats(logits, "logits", where)
        if given.shape != (*lead, experts):
            raise ValueError(
                f"logits must have shape {(*lead, experts)}: one for each row and expert, got "
                f"{tuple(given.shape)}"
            )
        return given.reshape(len(x), experts), None
    weights = as_floats(router, "router", where)
    if weights.shape != (experts, x.shape[1]):
        raise ValueError(
            f"router must have shape {(experts, int(x.shape[1]))}: experts, features of x; got "
            f"{tuple(weights.shape)}"
        )
    return x, weights


def _check_policy(policy: Policy | None) -> None:
    if policy is not None and policy.scope == "host":
        raise PrunusError(
            f"{policy!r} is Python code that sees the rows of one expert at a time, and how many there are "
            "is known to the GPU alone: on a GPU, moe takes policies of scope 'tile' or 'row'"
        )


def _stack(w: Any, name: str, where: Place) -> Sequence[Any] | torch.Tensor | None:
    if w is None or isinstance(w, (list, tuple)):
        return w
    stack = as_floats(w, name, where)
    if stack.ndim != 3:
        raise ValueError(f"{name} must have the experts on axis 0 of three, got shape {tuple(stack.shape)}")
    return stack


def _experts(w_up: Any, w_down: Any, w_gate: Any, where: Place) -> list[_Expert]:
    """Return the experts, each checked."""
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


def _expert(name: str, parts: Sequence[Any], where: Place) -> _Expert:
    """Return an expert of ``(up, down, gate)``, or of an FFN."""
    if isinstance(parts[0], FeedForward):
        raise PrunusError(
            f"{name} is an FFN in host memory or on disk, the operation runs on {where}: of those in memory, "
            "move it with .to('cuda')"
        )
    if isinstance(parts[0], FFN):
        return _packed(name, parts, where)
    if parts[1] is None:
        raise TypeError(f"{name} must be an FFN where w_down is not given, got {type(parts[0]).__name__}")
    up, down = _matrix(parts[0], f"w_up of {name}", where), _matrix(parts[1], f"w_down of {name}", where)
    gate = None if parts[2] is None else _matrix(parts[2], f"w_gate of {name}", where)
    if down.shape[1] != up.shape[0]:
        raise ValueError(
            f"w_down of {name} has shape {tuple(down.shape)}: expected {up.shape[0]} columns, as w_up has "
            "rows"
        )
    if gate is not None and gate.shape != up.shape:
        raise ValueError(f"w_gate of {name} has shape {tuple(gate.shape)}, w_up {tuple(up.shape)}")
    return _Expert(name, up, down, gate)


def _packed(name: str, parts: Sequence[Any], where: Place) -> _Expert:
    """Return an expert that is an FFN."""
    layer: FFN = parts[0]
    if parts[1] is not None or parts[2] is not None:
        raise TypeError(f"{name} is an FFN, which has its own w_down and w_gate: pass None for them")
    if layer._place != where:
        raise PrunusError(
            f"{name} lives on {layer._place}, the operation runs on {where}; move it with "
            f".to({str(where.device)!r})"
        )
    down = layer._down.T
    return _Expert(name, layer._up, down, layer._gate, layer.decide, layer._b_up, layer._b_down)


def _biases(given: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """Return the biases of experts (E, n), which all or none have."""
    biases = [b for b in given if b is not None]
    return libraries().torch.stack(biases) if biases else None


def _matrix(w: Any, name: str, where: Place) -> torch.Tensor:
    """Return one matrix of an expert, checked."""
    tensor = as_floats(w, name, where)
    if tensor.ndim != 2:
        raise ValueError(f"{name} must have two dimensions, got shape {tuple(tensor.shape)}")
    return tensor


def _shared(shared: Any, where: Place) -> list[_Expert]:
    """Return the shared experts, checked."""
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


def _check(experts: list[_Expert], features: int) -> int:
    """Return how many values the experts give, the same for all; raise if they do not take ``features``."""
    width = int(experts[0].down.shape[0])
    for one in experts:
        if one.up.shape[1] != features:
            raise ValueError(f"{one.name} takes {one.up.shape[1]} features, x has {features}")
        if one.down.shape[0] != width:
            raise ValueError(f"{one.name} gives {one.down.shape[0]} values, {experts[0].name} gives {width}")
    return width


def _groups(
    experts: list[_Expert], styles: list[Style], given: tuple[Any, ...], where: Place
) -> list[_Group]:
    """Return the experts by what one kernel can compute: their matrices' form, and their policies."""
    torch = libraries().torch
    kinds: dict[Any, list[int]] = {}
    for e, (one, style) in enumerate(zip(experts, styles, strict=True)):
        kinds.setdefault((one.form, id(style.policy)), []).append(e)
    stacked = all(w is None or isinstance(w, torch.Tensor) for w in given)
    groups = []
    for members in kinds.values():
        first = experts[members[0]]
        active = None
        if len(members) < len(experts):
            chosen = set(members)
            active = constant(tuple(int(e in chosen) for e in range(len(experts))), "int32", where)
        # Experts of other groups are not looked at: any address will do for them.
        kept = set(members)
        mine = [experts[e] if e in kept else first for e in range(len(experts))]
        roles: list[Matrices | None] = []
        for name, stack in zip(("up", "down", "gate"), given, strict=True):
            if getattr(first, name) is None:
                roles.append(None)
            elif stacked:
                roles.append(Matrices(stack))
            else:
                roles.append(by_themselves([getattr(one, name) for one in mine], where))
        up, down, gate = roles
        assert up is not None
        assert down is not None
        biases = _biases([one.b_up for one in mine]), _biases([one.b_down for one in mine])
        groups.append(_Group(up, down, gate, styles[members[0]], active, first.decide, *biases))
    return groups
