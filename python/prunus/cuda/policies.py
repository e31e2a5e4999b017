"""Policies on a GPU: which branches are live, decided there, from tensors, without a round trip.

The rules are :mod:`prunus.pruning.policies`'. What a user wrote, a function or a class with a ``select`` of
its own, is called once an operation with :class:`prunus.Statistics` whose ``norms`` and ``visible`` are
tensors on the GPU, and returns a tensor of booleans there (an ndarray is uploaded): what it does with them
decides whether the host waits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from prunus._layout import blocks_along
from prunus.cuda import rows
from prunus.cuda.branches import as_bytes
from prunus.cuda.configs import power
from prunus.cuda.keeping import kept
from prunus.cuda.runtime import Place, empty, launch, place_of
from prunus.cuda.versions import libraries
from prunus.pruning.policies import Fixed, Policy, Router, Statistics, Threshold, TopK
from prunus.pruning.predictor import Predictor

if TYPE_CHECKING:
    import torch

__all__ = ["decide", "foreseen", "largest"]

# Bytes of a row's values that a program keeps in registers, and values that one of the interpreter has.
_WIDEST: Final = 1 << 16
_INTERPRETED: Final = 1 << 17


def decide(
    policy: Policy,
    norms: torch.Tensor,
    visible: torch.Tensor | None = None,
    norm: str | None = None,
    where: Place | None = None,
) -> torch.Tensor:
    """Ask a policy which branches are live.

    Parameters
    ----------
    policy : Policy
        Who decides.
    norms : Tensor
        Shape (rows, branches), float32 or float64.
    visible : Tensor of bool, optional
        What may be chosen; nothing else is live.
    norm : str, optional
        What the statistics are; the policy's own norm by default.
    where : Place, optional
        Where the tensors live; only needed for tensors without data.

    Returns
    -------
    Tensor of bool
        Shape (rows, branches).

    Raises
    ------
    TypeError, ValueError
        If the policy returns anything but booleans of the right shape.
    """
    torch = libraries().torch
    count, branches = norms.shape
    group = min(policy.rows, max(count, 1))
    seen = visible
    if group > 1 and count:
        norms = _pooled(norms, group)
        seen = None if visible is None else _pooled(visible, group)
    kind = type(policy)
    if kind.select is Threshold.select:
        assert isinstance(policy, Threshold)
        # In double precision: a threshold that single precision cannot hold must not become another one.
        live = ~(norms.double() <= policy.tau)
    elif kind.select is TopK.select:
        assert isinstance(policy, TopK)
        live = _top(policy, norms, seen, where)
    elif kind.select is Router.select:
        assert isinstance(policy, Router)
        if policy.k > branches:
            raise ValueError(f"a router cannot choose {policy.k} of {branches} experts")
        live = largest(norms, policy.k, seen, where)
    elif kind.select is Fixed.select:
        assert isinstance(policy, Fixed)
        live = _mask(policy, len(norms), branches, norms.device)
    else:
        live = _own(policy, Statistics(_any(norms), _any(seen), norm or policy.norm), norms)
    if group > 1 and count:
        live = live.repeat_interleave(group, 0)[:count]
    return live if visible is None else torch.logical_and(live, visible)


def foreseen(
    policy: Policy, x: torch.Tensor, branches: int, where: Place | None = None
) -> torch.Tensor | None:
    """Return what a policy knows before anything is multiplied, (rows, branches), or None.

    Parameters
    ----------
    policy : Policy
        Who decides.
    x : Tensor
        Shape (rows, features).
    branches : int
        How many there are.
    where : Place, optional
        Where ``x`` lives; only needed for tensors without data.

    Raises
    ------
    TypeError, ValueError
        If it is anything but booleans of that shape.
    """
    kind = type(policy)
    if kind.foresee is Policy.foresee:
        return None
    if kind.foresee is Fixed.foresee:
        assert isinstance(policy, Fixed)
        return _mask(policy, len(x), branches, x.device)
    if isinstance(policy, Predictor) and kind.foresee is Predictor.foresee:
        return _predicted(policy, x, branches, where)
    live = policy.foresee(_any(x), branches)
    return None if live is None else _checked(policy, live, (len(x), branches), x.device, "foresee")


def largest(
    values: torch.Tensor,
    wanted: int | torch.Tensor,
    visible: torch.Tensor | None = None,
    where: Place | None = None,
) -> torch.Tensor:
    """Return where each row has its largest values; of equal ones the first, NaN before all.

    Not by sorting: the smallest value that stays is found bit by bit, in one launch.

    Parameters
    ----------
    values : Tensor
        Shape (rows, n), floats.
    wanted : int or Tensor of int
        How many, of each row: shape (rows,).
    visible : Tensor of bool, optional
        Shape (rows, n): what may be chosen.
    where : Place, optional
        Where the tensors live; only needed for tensors without data.
    """
    from prunus.cuda.kernels import largest as kernels

    torch = libraries().torch
    where = place_of(values) if where is None else where
    if values.dtype not in (torch.float32, torch.float64):
        values = values.to(torch.float32)
    count, n = (int(size) for size in values.shape)
    live = empty((count, n), torch.bool, where)
    if 0 in (count, n):
        return live
    values, seen = rows.rowwise(values), None
    if visible is not None:
        seen = as_bytes(visible)
        # A row that sees fewer keeps these.
        wanted = torch.clamp(visible.sum(1), max=wanted)
    each = wanted if isinstance(wanted, torch.Tensor) else None
    wide = power(n, 16, _WIDEST // values.element_size())
    height = power(count, 1, max(1, _INTERPRETED // wide)) if where.interpreted else 1
    out = live.view(torch.uint8)
    launch(
        where,
        kernels.largest,
        (blocks_along(count, height),),
        values,
        out if each is None else each,
        out if seen is None else seen,
        out,
        count,
        n,
        min(wanted, n) if isinstance(wanted, int) else 0,
        values.stride(0),
        0 if seen is None else seen.stride(0),
        out.stride(0),
        EACH=each is not None,
        VISIBLE=seen is not None,
        BITS=values.element_size() * 8,
        TM=height,
        TN=wide,
        num_warps=4 if wide <= 1024 else 8 if wide <= 4096 else 16,
    )
    return live


def _pooled(values: torch.Tensor, group: int) -> torch.Tensor:
    """Return the largest of each column over groups of neighbouring rows; NaN where there is one."""
    torch = libraries().torch
    count = len(values)
    groups = blocks_along(count, group)
    # Past the last row, that row again.
    at = torch.arange(groups * group, device=values.device).clamp(max=count - 1)
    return values[at].reshape(groups, group, -1).amax(1)


def _top(
    policy: TopK, norms: torch.Tensor, visible: torch.Tensor | None, where: Place | None
) -> torch.Tensor:
    torch = libraries().torch
    branches = norms.shape[1]
    if visible is None:
        if policy.count is not None:
            return largest(norms, min(policy.count, branches), None, where)
        assert policy.fraction is not None
        wanted = int(np.ceil(policy.fraction * branches * (1 - 1e-12)))
        return largest(norms, min(max(wanted, 1), branches), None, where)
    seen = visible.sum(1)
    if policy.count is not None:
        return largest(norms, seen.clamp(max=min(policy.count, branches)), visible, where)
    assert policy.fraction is not None
    share = torch.ceil(policy.fraction * seen.double() * (1 - 1e-12)).to(torch.int64)
    return largest(norms, torch.minimum(torch.maximum(share, seen.clamp(max=1)), seen), visible, where)


def _mask(policy: Fixed, count: int, branches: int, device: torch.device) -> torch.Tensor:
    """Return a fixed mask, fitted to an operation; one for all rows has a stride of 0."""
    policy._fit(count, branches)  # which raises
    mask = _on(device, policy, "mask", policy.mask)
    return mask.expand(count, branches)


def _on(device: torch.device, policy: Policy, name: str, array: Any) -> torch.Tensor:
    """Return an array of a policy on a device, uploaded once."""
    return kept(policy, name, Place(device, "", "", 0, 0), lambda: array, array)


class _Parts(NamedTuple):
    """A low-rank approximation on a device."""

    narrow: torch.Tensor
    wide: torch.Tensor
    offset: torch.Tensor
    spread: torch.Tensor


def _predicted(policy: Predictor, x: torch.Tensor, branches: int, where: Place | None = None) -> torch.Tensor:
    """Return what a predictor foresees; the arithmetic is :meth:`prunus.Predictor.scores`'s."""
    torch = libraries().torch
    where = place_of(x) if where is None else where
    own = blocks_along(policy.units, policy.branch)
    if branches != own:
        raise ValueError(
            f"the predictor knows {own} branches of {policy.branch} units, the operation has {branches}"
        )
    if x.shape[1] != policy.features:
        raise ValueError(
            f"the predictor was fitted to {policy.features} features, x has shape {tuple(x.shape)}"
        )

    def parts(name: str) -> _Parts:
        low = getattr(policy, name)
        return _Parts(*(_on(x.device, policy, f"{name}.{part}", getattr(low, part)) for part in low._fields))

    def predict(low: _Parts, activation: str | None) -> Any:
        thin = empty((len(x), len(low.narrow)), torch.float32, where)
        rows.dots(where, x, low.narrow, thin)
        result = empty((len(x), len(low.wide)), torch.float32, where)
        rows.dots(where, thin, low.wide, result, bias=low.offset, activation=activation)
        return result

    def power(low: _Parts, activation: str | None) -> Any:
        return predict(low, activation).square_().add_(low.spread.square())

    plain = policy._gate is None and policy.activation == "relu"
    if plain:
        scores = predict(parts("_up"), None)
    elif policy._gate is None:
        scores = power(parts("_up"), policy.activation)
    else:
        scores = power(parts("_gate"), policy.activation) * power(parts("_up"), None)
    if policy.branch > 1:
        if policy.norm == "l2" and plain:
            scores = scores.clamp(min=0).square()
        short = own * policy.branch - policy.units
        filling = -torch.inf if policy.norm == "max" else 0.0
        whole = torch.nn.functional.pad(scores, (0, short), value=filling).view(len(x), own, policy.branch)
        scores = whole.amax(2) if policy.norm == "max" else whole.sum(2)
    return largest(scores, policy.count(branches), None, where)


def _any(value: Any) -> Any:
    """Return a tensor where the host's classes expect an ndarray: they only hand it on."""
    return value


def _own(policy: Policy, statistics: Statistics, norms: torch.Tensor) -> torch.Tensor:
    """Return what a user's policy says."""
    live = policy.select(statistics)
    return _checked(policy, live, tuple(norms.shape), norms.device, "return")


def _checked(
    policy: Policy, live: Any, shape: tuple[int, ...], device: torch.device, verb: str
) -> torch.Tensor:
    torch = libraries().torch
    if isinstance(live, np.ndarray) and live.dtype == bool:
        live = torch.from_numpy(np.ascontiguousarray(live)).to(device)
    if not isinstance(live, torch.Tensor) or live.dtype != torch.bool:
        got = f"dtype {live.dtype}" if hasattr(live, "dtype") else type(live).__name__
        raise TypeError(f"{policy!r} must {verb} a tensor of booleans, got {got}")
    if tuple(live.shape) != shape:
        raise ValueError(f"{policy!r} must {verb} shape {shape} (rows, branches), got {tuple(live.shape)}")
    if live.device != device:
        raise ValueError(f"{policy!r} must {verb} a tensor on {device}, got one on {live.device}")
    return live
