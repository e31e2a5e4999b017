"""``moe`` on a device: a mixture of experts whose rows are grouped, computed and added up there."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from prunus._errors import PrunusError
from prunus._layout import blocks_along
from prunus.cuda import dtypes
from prunus.cuda.deciding import judge, spread
from prunus.cuda.expert_counts import count_experts, count_routes
from prunus.cuda.grouped import Matrices, Routes, everything, gather_sum, project, project_live, route
from prunus.cuda.grouped_blocks import Blocks, project_blocks
from prunus.cuda.layers import stored
from prunus.cuda.layers.experts import Expert, Group, check, experts_of, group_of, groups_of, shared_of
from prunus.cuda.operands import as_floats, where_of
from prunus.cuda.policies import foreseen
from prunus.cuda.runtime import Place, empty, is_captured, zeros
from prunus.cuda.tracing import traced
from prunus.cuda.versions import libraries
from prunus.pruning._checks import check_count
from prunus.pruning._rows import check_activation, check_branch
from prunus.pruning.experts import Style
from prunus.pruning.moe import styles_of
from prunus.pruning.policies import Policy

if TYPE_CHECKING:
    import torch

__all__ = ["moe"]


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

    A policy that is Python code (scope "host") is asked once for every expert that rows chose, with that
    expert's rows alone, as tensors. For these, and for experts on disk, of which those that rows chose are
    read and stream, how many rows each expert has is read back, once a call.

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
        If operands live in different places, or a call that reads back how many rows each expert has is
        captured in a CUDA graph.
    OSError
        If a file cannot be read, or was changed or closed. Nothing is under way then.
    """
    check_activation(activation)
    where = where_of(x, router, logits)
    rows, lead = _rows(x, where)
    experts = experts_of(w_up, w_down, w_gate, where)
    if check_count(top_k, "top_k") > len(experts):
        raise ValueError(f"top_k must be from 1 to the number of experts, {len(experts)}; got {top_k}")
    always = shared_of(shared, where)
    branch = check_branch(branch)
    styles, common = styles_of(prune, len(experts), len(rows), activation, branch)
    source, weights = _logits(rows, lead, router, logits, len(experts), where)
    width = check([*experts, *always], int(rows.shape[1]))
    kind = rows.dtype
    for one in (*experts, *always):
        for own in one.kinds:
            kind = dtypes.result(kind, own, names=("x", "an expert"))
    sums = dtypes.sums(kind)
    alone = [e for e, style in enumerate(styles) if _sees_rows(style.policy) or experts[e].is_stored]
    with traced("moe", where) as step:
        routes = route(where, source, weights, top_k, bool(renormalize), len(experts))
        if step:
            if weights is not None:
                size = weights.numel()
                step.count(flops=2 * size * len(rows), bytes_loaded=size * weights.element_size())
            count_routes(step, routes, experts[0].flops, experts[0].nbytes)
        y = empty((routes.copies, width), sums, where)
        others = (e for e in range(len(experts)) if e not in set(alone))
        for group in groups_of(experts, styles, others, (w_up, w_down, w_gate), where):
            _run(where, rows, routes, group, kind, y)
        if alone:
            _one_by_one(where, rows, routes, [(e, experts[e], styles[e]) for e in alone], kind, y)
        out = empty((len(rows), width), sums if always else kind, where)
        gather_sum(where, y, routes, out)
        for one in always:
            all_rows = everything(len(rows), where)
            part = empty((len(rows), width), sums, where)
            if one.is_stored:
                stored.expert(where, rows, one, common, kind, part)
            else:
                _run(where, rows, all_rows, group_of(one, common, where), kind, part)
            out += part
        return out.to(kind).reshape(*lead, width)


def _sees_rows(policy: Policy | None) -> bool:
    """Say whether a policy must be asked of an expert's rows, and of no others."""
    return policy is not None and policy.scope == "host"


def _one_by_one(
    where: Place,
    x: torch.Tensor,
    routes: Routes,
    experts: list[tuple[int, Expert, Style]],
    kind: Any,
    y: torch.Tensor,
) -> None:
    """Write what experts give for their copies, each by itself; waits for how many copies each has.

    Those that nobody chose are neither asked nor read. Of experts on disk, the next one's weights are read
    while one is computed.
    """
    ends = _read_back(where, routes)
    assert routes.rows is not None
    chosen = [(e, one, style) for e, one, style in experts if ends[e] < ends[e + 1]]
    for number, (e, one, style) in enumerate(chosen):
        if number + 1 < len(chosen):
            _, following, how = chosen[number + 1]
            stored.prefetch(following, how.policy)
        begin, end = ends[e], ends[e + 1]
        at = routes.rows[begin:end]
        mine, part = x.index_select(0, at), y[begin:end]
        if one.is_stored:
            stored.expert(where, mine, one, stored.at_rows(where, style, x, at, one), kind, part)
        else:
            _run(where, mine, everything(end - begin, where), group_of(one, style, where), kind, part)


def _read_back(where: Place, routes: Routes) -> list[int]:
    """Wait for the GPU: where the copies of each expert begin."""
    if is_captured(where):
        raise PrunusError(
            "experts on disk, and policies that are Python code, take each expert's rows, and how many these "
            "are is read back: such a call cannot be captured in a CUDA graph"
        )
    ends: list[int] = routes.offsets.tolist()
    return ends


def _run(where: Place, x: torch.Tensor, routes: Routes, group: Group, kind: Any, y: torch.Tensor) -> None:
    """Write what experts give for their copies of rows to ``y`` (copies, n)."""
    with traced("expert", where) as at:
        live, known = _compute(where, x, routes, group, kind, y)
        if at:
            units = group.up.size[0]
            deciding = group.deciding
            used = [w for w in (group.up, group.down, group.gate) if w is not None]
            matrices = [(w, w is deciding and not known) for w in used]
            branch = min(group.style.branch, max(units, 1))
            count_experts(at, routes, matrices, group.active, live, branch, units)


def _compute(
    where: Place, x: torch.Tensor, routes: Routes, group: Group, kind: Any, y: torch.Tensor
) -> tuple[torch.Tensor | None, bool]:
    """Compute experts; return which branches of copies were live, None: all, and if that was foreseen."""
    torch = libraries().torch
    policy, activation = group.style.policy, group.style.activation
    units = group.up.size[0]
    active = group.active
    h = empty((routes.copies, units), kind, where)
    ups: dict[str, Any] = {"bias": group.b_up, "active": active}
    if policy is None:
        if isinstance(group.up, Matrices) and (group.gate is None or isinstance(group.gate, Matrices)):
            project(where, x, routes, group.up, h, gate=group.gate, activation=activation, **ups)
        elif group.gate is None:
            _project(where, x, routes, group.up, h, activation=activation, **ups)
        else:
            scale = empty((routes.copies, units), y.dtype, where)
            _project(where, x, routes, group.gate, scale, activation=activation, active=active)
            _project(where, x, routes, group.up, h, scale=scale, **ups)
        _project(where, h, routes, group.down, y, gather=False, active=active, bias=group.b_down)
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
    ups |= {"activation": activation if group.gate is None else None}
    gates = {"bias": None, "activation": activation, "active": active}
    # What is not written, because a row chose fewer experts, is judged like everything else.
    first = zeros((routes.copies, units), y.dtype, where)
    style: dict[str, Any] = ups if deciding is group.up else gates
    _project(where, x, routes, deciding, first, live=live, branch=branch, **style)
    if live is None:
        live = judge(where, policy, first, branch).contiguous()
    if group.gate is not None:
        other = group.gate if deciding is group.up else group.up
        style = gates if deciding is group.up else ups
        _project(where, x, routes, other, h, scale=first, live=live, branch=branch, **style)
    elif known:
        h = first.to(kind)
    else:
        h = torch.where(spread(live, branch, units), first, 0).to(kind)
    if isinstance(group.down, Blocks):
        project_blocks(
            where, h, routes, group.down, y, gather=False, live=live, branch=branch, inner=True, active=active
        )
    else:
        project_live(where, h, routes, group.down, live, branch, y, active, group.b_down)
    return live, known


def _project(
    where: Place,
    x: torch.Tensor,
    routes: Routes,
    w: Matrices | Blocks,
    out: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    **options: Any,
) -> None:
    """Write a product with matrices of either kind; only experts that are FFNs have biases."""
    if isinstance(w, Matrices):
        project(where, x, routes, w, out, bias=bias, **options)
    else:
        project_blocks(where, x, routes, w, out, **options)


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
