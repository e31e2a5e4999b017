"""``moe`` of tensors with gradients: rows sorted by expert, and products with the chosen experts only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prunus._layout import blocks_along
from prunus.pruning._checks import check_count
from prunus.pruning._rows import check_branch
from prunus.pruning.policies import Fixed, Policy
from prunus.torch.arrays import BSR
from prunus.torch.functional import activate, as_operand, cast, check_alike, linear, without_autocast
from prunus.torch.ops import grouped, grouped_live
from prunus.torch.pruned import check_width, feed_forward, masked
from prunus.torch.units import check_policies, foreseen_units, live_units

__all__ = ["load_balancing_loss", "moe"]


def moe(
    x: Tensor,
    router: Tensor | None,
    w_up: Any,
    w_down: Any,
    w_gate: Any = None,
    top_k: int = 2,
    *,
    logits: Tensor | None = None,
    activation: str | None = "silu",
    renormalize: bool = True,
    shared: Any = None,
    prune: Any = None,
    branch: int = 1,
) -> Tensor:
    """Return a mixture of experts: each row runs through the ``top_k`` that the router scores highest.

    As :func:`prunus.moe`, with gradients for rows, router and experts. No row is dropped or padded; experts
    that no row chose are not multiplied, neither in the backward pass, and their gradients are 0. The
    router's gradient comes through the weights of the experts that were chosen.

    Parameters
    ----------
    x : Tensor
        Shape (*B, d) or (d,).
    router : Tensor or None
        Shape (E, d), of x's dtype or float32: the logits are ``x @ router.T``, in float32 (float64 of
        float64), under autocast too. None with ``logits=``.
    w_up, w_gate : Tensor, BSR or sequence
        Shape (E, f, d), or one tensor or BSR (f, d) for each expert. An expert computes ``activation(x @
        w_up.T) @ w_down.T``, with gates ``(activation(x @ w_gate.T) * (x @ w_up.T)) @ w_down.T``. Tensors of
        a list are read where they are; the blocks of a list of BSRs are joined in each call, those of a BSR
        (E, f, d) are not.
    w_down : Tensor, BSR or sequence
        Shape (E, d_out, f), or one (d_out, f) for each expert.
    top_k : int, default 2
        Experts for each row, of equal logits the first. One whose logit is -inf is never chosen.
    logits : Tensor, optional
        Shape (*B, E): in place of ``router``.
    activation : {"relu", "gelu", "silu"} or None
        "silu" unless told.
    renormalize : bool, default True
        Whether the weights of a row's experts sum to 1, or are what a softmax over all experts gave them.
    shared : optional
        Experts that all rows run through with weight 1: a tuple ``(w_up, w_down)`` or ``(w_up, w_down,
        w_gate)`` of tensors or BSRs, or a list of these.
    prune : policy, or a list with one for each expert, optional
        Which hidden units of chosen experts are live: ``Threshold``, ``TopK`` or ``Fixed``, by the gate's
        activation where there is one, else by the unit's. Dead units are 0, and so is what flows back through
        them; as in :func:`prunus.torch.ffn`, products leave them out, forward and backward. The one that
        decides is computed in full, but for what a ``Fixed`` knows to be dead. Products with BSRs skip their
        absent blocks only; on a GPU, the gradients of experts' matrices are computed in full. A single policy
        prunes shared experts as well, those of a list do not.
    branch : int, default 1
        Hidden units that live and die together.

    Returns
    -------
    Tensor
        Shape (*B, d_out) or (d_out,), of x's dtype.

    Raises
    ------
    ValueError
        If shapes or devices do not fit, ``top_k`` is not from 1 to E, or, in host memory, a row's logits are
        all -inf or hold NaN or +inf; on a GPU such a row gives NaN.
    TypeError
        If dtypes differ, or an operand or a policy is of another kind. Under autocast rows and experts are
        converted to its dtype.

    Examples
    --------
    >>> import torch
    >>> import prunus as pr, prunus.torch as pt
    >>> router, w_up, w_down = (torch.randn(s, requires_grad=True) for s in ((4, 8), (4, 16, 8), (4, 8, 16)))
    >>> x = torch.randn(3, 5, 8)
    >>> y = pt.moe(x, router, w_up, w_down, top_k=2)
    >>> y.shape
    torch.Size([3, 5, 8])
    >>> y.sum().backward()
    >>> w_up.grad.shape
    torch.Size([4, 16, 8])

    Of each row's hidden units the four largest, two and two:

    >>> y = pt.moe(x, router, w_up, w_down, top_k=2, prune=pr.TopK(2), branch=2)
    >>> y.sum().backward()
    """
    act = activate(activation)
    if isinstance(x, BSR):
        raise TypeError("x is a BSR: moe takes dense rows")
    if not as_operand(x, "x").ndim:
        raise ValueError("x must have at least one dimension")
    branch = check_branch(branch)
    lead, features = x.shape[:-1], x.shape[-1]
    rows = x.reshape(math.prod(lead), features)
    up, down = _experts(w_up, "w_up"), _experts(w_down, "w_down")
    gate = None if w_gate is None else _experts(w_gate, "w_gate")
    sizes = _check(up, down, gate, int(features))
    if check_count(top_k, "top_k") > sizes.experts:
        raise ValueError(f"top_k must be from 1 to the number of experts, {sizes.experts}; got {top_k}")
    policies, common = check_policies(prune, sizes.experts, rows.shape[0])
    scores = _logits(rows, lead, router, logits, sizes.experts)
    experts, order, place, offsets = grouped.route(scores, top_k)
    weights = _weights(scores, experts, renormalize)

    rows, *parts = cast(rows, *up, *down, *(gate or ()))
    check_alike(rows, *parts)
    up, down = parts[: len(up)], parts[len(up) : len(up) + len(down)]
    gate = parts[len(up) + len(down) :] if gate is not None else None
    at = torch.div(order, top_k, rounding_mode="floor")
    copies = rows.index_select(0, at)
    first, other = (up, None) if gate is None else (gate, up)
    if any(policy is not None for policy in policies):
        routes = _Routes(at, experts.reshape(-1).index_select(0, order), offsets)
        y = _pruned(copies, routes, first, other, down, act, policies, check_width(branch, sizes.units))
    else:
        hidden = act(_project(copies, first, offsets))
        if other is not None:
            hidden = hidden * _project(copies, other, offsets)
        y = _project(hidden, down, offsets)
    out = _weighted(y, place, weights)
    for one in _shared(shared, sizes.width):
        out = out + _run(rows, one, activation, common, branch)
    return out.to(rows.dtype).reshape(*lead, sizes.width)


def load_balancing_loss(logits: Tensor, top_k: int = 2) -> Tensor:
    """Return how unevenly a router spreads rows over experts, to be added to a model's loss.

    ``E * sum(share * probability)`` over experts: the share of rows' choices that are the expert's, which has
    no gradient, times the mean of the probabilities that a softmax over all experts gives it (Fedus et al.,
    "Switch Transformers", 2021, equation 4). It is 1 where all are chosen alike and E at worst.

    Parameters
    ----------
    logits : Tensor
        Shape (*B, E).
    top_k : int, default 2
        Experts that each row chooses.

    Returns
    -------
    Tensor
        One value, float32, or float64 where the logits are; NaN without rows.

    Examples
    --------
    >>> import torch
    >>> import prunus.torch as pt
    >>> pt.load_balancing_loss(10 * torch.eye(4), top_k=1)
    tensor(1.)
    """
    if isinstance(logits, BSR):
        raise TypeError("logits is a BSR: expected a dense tensor")
    as_operand(logits, "logits")
    if not logits.ndim or check_count(top_k, "top_k") > logits.shape[-1]:
        raise ValueError(
            f"logits must have shape (*B, E) with at least top_k={top_k} experts, got {tuple(logits.shape)}"
        )
    count = logits.shape[-1]
    flat = logits.reshape(-1, count)
    flat = flat if flat.dtype == torch.float64 else flat.float()
    offsets = grouped.route(flat.detach(), top_k)[3]
    share = offsets.diff() / (flat.shape[0] * top_k)
    return count * (share.to(flat.dtype) * torch.softmax(flat, -1).mean(0)).sum()


class _Sizes(NamedTuple):
    """How many experts, and the sizes that they have in common."""

    experts: int
    units: int
    width: int


class _Routes(NamedTuple):
    """Of rows' copies, sorted by expert: which row each is of, its expert, and where each expert's begin."""

    at: Tensor
    chosen: Tensor
    offsets: Tensor


def _experts(w: Any, name: str) -> list[Any]:
    """Return one operand (E, n, k) as a list of it alone, or the matrices of a list, checked."""
    if not isinstance(w, (list, tuple, torch.nn.ParameterList)):
        as_operand(w, name)
        if w.ndim != 3:
            raise ValueError(f"{name} must have the experts on axis 0 of three, got shape {tuple(w.shape)}")
        return [w]
    matrices = [as_operand(one, f"{name} of expert {e}") for e, one in enumerate(w)]
    if not matrices:
        raise ValueError(f"there are no experts: {name} is empty")
    first = matrices[0]
    for e, one in enumerate(matrices):
        if one.ndim != 2:
            raise ValueError(f"{name} of expert {e} must have two dimensions, got shape {tuple(one.shape)}")
        if isinstance(one, BSR) != isinstance(first, BSR):
            raise TypeError(f"{name} must hold tensors or BSRs, not both")
        if tuple(one.shape) != tuple(first.shape):
            raise ValueError(
                f"{name} of expert {e} has shape {tuple(one.shape)}, of expert 0 {tuple(first.shape)}"
            )
    return [_joined(matrices, name)] if isinstance(first, BSR) else matrices


def _joined(matrices: Sequence[BSR], name: str) -> BSR:
    """Return BSRs as one with a pattern for each member."""
    first = matrices[0]
    check_alike(*matrices)
    for e, one in enumerate(matrices):
        if one._t != first._t or one.blocksize != first.blocksize:
            raise ValueError(
                f"{name}: the BSRs of all experts must have blocks of one size, stored alike; expert {e} has "
                f"{one.blocksize}{', transposed' if one._t else ''}, expert 0 {first.blocksize}"
                f"{', transposed' if first._t else ''}"
            )
    starts, count = [], 0
    for one in matrices:
        starts.append(one.indptr + count)
        count += one.data.shape[0]
    data, indices = (torch.cat([getattr(one, part) for one in matrices]) for part in ("data", "indices"))
    return BSR._wrap(data, indices, torch.stack(starts), (len(matrices), *first._stored), first._t)


def _shape(w: list[Any]) -> tuple[int, int, int]:
    """Return experts, rows and columns."""
    return (len(w), *w[0].shape) if w[0].ndim == 2 else tuple(w[0].shape)


def _check(up: list[Any], down: list[Any], gate: list[Any] | None, features: int) -> _Sizes:
    count, units, inner = _shape(up)
    if not count:
        raise ValueError("there are no experts: w_up is empty")
    for name, w in (("w_down", down), ("w_gate", gate)):
        if w is not None and _shape(w)[0] != count:
            raise ValueError(f"there are {count} experts in w_up, but {_shape(w)[0]} in {name}")
    if inner != features:
        raise ValueError(f"w_up takes {inner} features, x has {features}")
    _, width, columns = _shape(down)
    if columns != units:
        raise ValueError(f"w_down has {columns} columns: expected {units}, as w_up has rows")
    if gate is not None and _shape(gate) != _shape(up):
        raise ValueError(f"w_gate has shape {_shape(gate)}, w_up {_shape(up)}")
    return _Sizes(count, units, width)


def _logits(
    x: Tensor, lead: torch.Size, router: Tensor | None, logits: Tensor | None, experts: int
) -> Tensor:
    """Return logits (rows, E) in float32 or float64."""
    if (router is None) == (logits is None):
        raise TypeError("moe takes either a router or logits=")
    given = as_operand(router if logits is None else logits, "router" if logits is None else "logits")
    name = "router" if logits is None else "logits"
    expected = (experts, x.shape[1]) if logits is None else (*lead, experts)
    if tuple(given.shape) != tuple(expected):
        raise ValueError(f"{name} must have shape {tuple(expected)}, got {tuple(given.shape)}")
    if given.device != x.device:
        raise ValueError(f"expected operands on one device, got {x.device} and {given.device}")
    wide = torch.float64 if torch.float64 in (x.dtype, given.dtype) else torch.float32
    if logits is not None:
        return given.reshape(-1, experts).to(wide)
    if given.dtype not in (x.dtype, torch.float32):
        raise TypeError(f"router must be {x.dtype} as x, or float32, got {given.dtype}")
    return without_autocast(x.to(wide), given.to(wide))


def _weights(logits: Tensor, experts: Tensor, renormalize: bool) -> Tensor:
    """Return the weights (rows, top) of chosen experts."""
    count = logits.shape[1]
    picked = logits.gather(1, experts.clamp(max=count - 1)).masked_fill(experts == count, -torch.inf)
    if renormalize:
        return torch.softmax(picked, 1)
    return (picked - logits.logsumexp(1, keepdim=True)).exp()


def _project(x: Tensor, w: list[Any], offsets: Tensor) -> Tensor:
    """Return ``x @ w[e].T`` for each copy and its expert."""
    if len(w) == 1 and isinstance(w[0], BSR):
        one = w[0]
        rows, cols = one._stored[-2:]
        indptr = one.indptr
        return grouped.grouped_dsd(one.data, one.indices, indptr, rows, cols, one._t, x, offsets)
    if w[0].ndim == 3:
        return grouped.grouped_mm(x, w[0], offsets)
    return grouped.grouped_mm_each(x, w, offsets)


def _pruned(
    x: Tensor,
    routes: _Routes,
    first: list[Any],
    other: list[Any] | None,
    down: list[Any],
    act: Any,
    policies: Sequence[Policy | None],
    branch: int,
) -> Tensor:
    """Return what experts make of copies ``x``, leaving out dead units: ``first`` decides which these are."""
    at, chosen, offsets = routes
    units = _shape(first)[1]
    reach = foreseen_units(policies, x.shape[0], blocks_along(units, branch), x.device, at, chosen)
    known = all(policy is None or isinstance(policy, Fixed) for policy in policies)
    # A product with blocks has gradients for dead units, grouped_live_combine has not.
    ends = not _is_sparse(down)
    if known:
        live = reach
        hidden = act(_units(x, first, live, branch, offsets, ends))
    elif _is_sparse(first):
        hidden = act(_project(x, first, offsets))
        live = live_units(policies, hidden, branch, reach, chosen)
        hidden = masked(hidden, live, branch)
    else:
        with torch.no_grad():
            sums = grouped_live.grouped_live_sums(x, first, reach, branch, offsets)
            live = live_units(policies, act(sums), branch, reach, chosen)
        hidden = act(grouped_live.grouped_live_known(sums, x, first, live, branch, offsets, ends))
    if other is not None:
        hidden = hidden * _units(x, other, live, branch, offsets, ends)
    if _is_sparse(down):
        return _project(hidden, down, offsets)
    return grouped_live.grouped_live_combine(hidden, down, live, branch, offsets, True, True)


def _units(x: Tensor, w: list[Any], live: Tensor, branch: int, offsets: Tensor, ends: bool) -> Tensor:
    """Return ``x @ w[e].T`` where it is live; ``ends``: no gradient comes back where it is dead."""
    if _is_sparse(w):
        return masked(_project(x, w, offsets), live, branch)
    return grouped_live.grouped_live_linear(x, w, live, branch, offsets, ends)


def _is_sparse(w: list[Any]) -> bool:
    return isinstance(w[0], BSR)


def _weighted(y: Tensor, place: Tensor, weights: Tensor) -> Tensor:
    """Return the sum of each row's copies times their weights, by ascending experts, as sums are kept."""
    wide = torch.float64 if y.dtype == torch.float64 else torch.float32
    out = None
    for one in range(place.shape[1]):
        part = y.index_select(0, place[:, one]).to(wide) * weights[:, one, None].to(wide)
        out = part if out is None else out + part
    assert out is not None
    return out


def _shared(shared: Any, width: int) -> list[tuple[Any, ...]]:
    """Return shared experts, checked: what does not fit must not broadcast."""
    if shared is None:
        return []
    found = shared if isinstance(shared, list) else [shared]
    for one in found:
        if not isinstance(one, tuple) or len(one) not in (2, 3):
            raise TypeError(
                "a shared expert is a tuple (w_up, w_down) or (w_up, w_down, w_gate); got "
                + (f"a tuple of {len(one)}" if isinstance(one, tuple) else type(one).__name__)
            )
        up, down, *gates = (
            as_operand(w, f"{name} of a shared expert")
            for w, name in zip(one, ("w_up", "w_down", "w_gate"), strict=False)
        )
        if up.ndim != 2 or tuple(down.shape) != (width, up.shape[0]):
            raise ValueError(
                f"a shared expert takes w_up (units, d) and w_down ({width}, units), got {tuple(up.shape)} "
                f"and {tuple(down.shape)}"
            )
        if gates and tuple(gates[0].shape) != tuple(up.shape):
            raise ValueError(
                f"w_gate of a shared expert has shape {tuple(gates[0].shape)}, its w_up {tuple(up.shape)}"
            )
    return found


def _run(
    x: Tensor, parts: tuple[Any, ...], activation: str | None, policy: Policy | None, branch: int
) -> Tensor:
    """Return what an expert that all rows run through gives."""
    up, down, *gates = cast(*parts)
    if policy is not None:
        prune: Any = policy
        if isinstance(policy, Fixed):  # torch.compile follows a mask
            count = blocks_along(up.shape[0], check_width(branch, up.shape[0]))
            prune = foreseen_units([policy], x.shape[0], count, x.device, None, None)
        gate = gates[0] if gates else None
        return feed_forward(x, up, down, gate, None, None, activation, prune, branch, None, False).y
    act = activate(activation)
    first = act(linear(x, gates[0] if gates else up))
    return linear(first * linear(x, up) if gates else first, down)
