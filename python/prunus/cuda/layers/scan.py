"""``selective_scan`` and ``selective_step`` on a device."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from prunus._layout import blocks_along
from prunus.cuda import dtypes
from prunus.cuda import scan as kernels
from prunus.cuda.operands import as_floats, where_of
from prunus.cuda.policies import decide, foreseen
from prunus.cuda.runtime import Place, empty, zeros
from prunus.cuda.tracing import traced
from prunus.cuda.versions import libraries
from prunus.pruning._rows import check_branch
from prunus.pruning.policies import Policy, as_policy
from prunus.pruning.scan import check_shapes, check_state, check_steps, counted

if TYPE_CHECKING:
    import torch

__all__ = ["selective_scan", "selective_step"]


class _Scan(NamedTuple):
    """Checked operands, with the batch's dimensions."""

    u: torch.Tensor
    delta: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor
    c: torch.Tensor
    d: torch.Tensor | None
    z: torch.Tensor | None
    bias: torch.Tensor | None
    state: torch.Tensor | None
    batch: tuple[int, ...]
    kind: Any
    compute: Any


def selective_scan(
    u: Any,
    delta: Any,
    A: Any,
    B: Any,
    C: Any,
    D: Any = None,
    z: Any = None,
    *,
    delta_bias: Any = None,
    delta_softplus: bool = False,
    state: Any = None,
    return_state: bool = False,
    prune: Any = None,
    branch: int = 1,
    where: Place | None = None,
) -> Any:
    """Return a selective scan; see :func:`prunus.selective_scan` for the parameters, which are tensors here.

    Long sequences of few channels are cut into chunks that are computed at once, by the lengths alone: a
    channel's values are the same in any batch, but not to the last bit those of steps one by one.

    Parameters
    ----------
    where : Place, optional
        Where the operands live, if that is known.

    Returns
    -------
    y : Tensor
        Shape (*batch, length, channels).
    state : Tensor
        Only with ``return_state``: shape (*batch, channels, states).

    Raises
    ------
    ValueError, TypeError
        As :func:`prunus.selective_scan`.
    PrunusError
        If operands live in different places.
    """
    if where is None:
        where = where_of(u, delta, A, B, C, D, z, delta_bias, state)
    given = _floats(where, u=u, delta=delta, B=B, C=C, z=z)
    scan = _checked(given, _floats(where, A=A, D=D, delta_bias=delta_bias, state=state))
    branch = check_branch(branch, int(scan.u.shape[-1]))
    before = None
    if scan.state is not None:
        before = scan.state.clone(memory_format=libraries().torch.contiguous_format)
    elif return_state:
        before = zeros((*scan.batch, *scan.a.shape), scan.compute, where)
    y = _run(scan, bool(delta_softplus), before, as_policy(prune), branch, where)
    return (y, before) if return_state else y


def selective_step(
    u: Any,
    delta: Any,
    A: Any,
    B: Any,
    C: Any,
    D: Any = None,
    z: Any = None,
    *,
    state: Any,
    delta_bias: Any = None,
    delta_softplus: bool = False,
    prune: Any = None,
    branch: int = 1,
    where: Place | None = None,
) -> torch.Tensor:
    """Run one step of :func:`selective_scan` and update the caller's state in place.

    See :func:`prunus.selective_step`; ``state`` is a tensor here, of any strides that do not overlap.

    Raises
    ------
    ValueError, TypeError
        As :func:`prunus.selective_step`.
    PrunusError
        If operands live in different places.
    """
    torch = libraries().torch
    if not isinstance(state, torch.Tensor):
        raise TypeError(f"state must be a tensor to be updated in place, got {type(state).__name__}")
    if where is None:
        where = where_of(u, delta, A, B, C, D, z, delta_bias, state)
    given = _floats(where, u=u, delta=delta, B=B, C=C, z=z)
    check_steps(given)
    steps = {name: None if one is None else one[..., None, :] for name, one in given.items()}
    rest = _floats(where, A=A, D=D, delta_bias=delta_bias, state=state)
    scan = _checked(steps, rest)
    branch = check_branch(branch, int(scan.u.shape[-1]))
    if any(stride == 0 and size > 1 for size, stride in zip(state.shape, state.stride(), strict=True)):
        raise ValueError("state repeats values in memory: a step would write them more than once")
    after = state
    if not state.is_contiguous() or _shared(state, scan):
        after = state.clone(memory_format=torch.contiguous_format)
    y = _run(scan, bool(delta_softplus), after, as_policy(prune), branch, where)
    if after is not state:
        state.copy_(after)
    return y[..., 0, :]


def _shared(state: torch.Tensor, scan: _Scan) -> bool:
    """Say whether an operand may lie in the state's memory, where a step writes before all was read."""
    operands = (scan.u, scan.delta, scan.a, scan.b, scan.c, scan.d, scan.z, scan.bias)
    mine = state.untyped_storage().data_ptr()
    return any(one is not None and one.untyped_storage().data_ptr() == mine for one in operands)


def _floats(where: Place, **operands: Any) -> dict[str, Any]:
    """Return operands as tensors of floats; None for what was left out."""
    optional = ("D", "z", "delta_bias", "state")
    return {
        name: None if one is None and name in optional else as_floats(one, name, where)
        for name, one in operands.items()
    }


def _checked(given: dict[str, Any], rest: dict[str, Any]) -> _Scan:
    """Check shapes and dtypes, and expand the batch."""
    torch = libraries().torch
    named = given | rest
    batch = check_shapes(named)
    values = [one for name, one in named.items() if name != "state" and one is not None]
    kind = values[0].dtype
    for one in values[1:]:
        kind = dtypes.result(kind, one.dtype)
    state = named["state"]
    wide = any(one.dtype == torch.float64 for one in values)
    wide = wide or (state is not None and state.dtype == torch.float64)
    compute = torch.float64 if wide else torch.float32
    if state is not None:
        check_state(state.dtype, compute, wide)
    u, delta, b, c, z = (
        one if one is None or tuple(one.shape[:-2]) == batch else one.expand(*batch, *one.shape[-2:])
        for one in (named[name] for name in ("u", "delta", "B", "C", "z"))
    )
    bias = named["delta_bias"]
    return _Scan(u, delta, named["A"], b, c, named["D"], z, bias, state, batch, kind, compute)


def _run(
    scan: _Scan, softplus: bool, state: torch.Tensor | None, policy: Policy | None, branch: int, where: Place
) -> torch.Tensor:
    """Decide what is live, and scan."""
    torch = libraries().torch
    out = empty(scan.u.shape, scan.kind, where)
    with traced("selective_scan", where) as at:
        live = None if policy is None else _live(scan, policy, branch, where).contiguous()
        if 0 not in out.shape:
            kernels.scan(
                where,
                scan.u,
                scan.delta,
                scan.a,
                scan.b,
                scan.c,
                scan.d,
                scan.z,
                scan.bias,
                softplus,
                state,
                out,
                live,
                branch,
                scan.compute == torch.float64,
            )
            if at and live is None:
                at.count(**counted(scan, state is not None, None, branch))
            elif at and live is not None:
                at.later(_counts(scan, state is not None, live, branch))
    return out


def _counts(scan: _Scan, keeps: bool, live: torch.Tensor, branch: int) -> Callable[[], dict[str, int]]:
    """Return a function that says what a scan did, which keeps sizes alone of its operands."""
    sizes = scan._replace(
        **{
            name: one.to("meta")
            for name, one in scan._asdict().items()
            if isinstance(one, libraries().torch.Tensor)
        }
    )
    return lambda: counted(sizes, keeps, live.cpu().numpy(), branch)


def _live(scan: _Scan, policy: Policy, branch: int, where: Place) -> torch.Tensor:
    """Return which outputs are live, a row for each step of each member of the batch."""
    length, channels = (int(size) for size in scan.u.shape[-2:])
    rows, branches = math.prod(scan.batch) * length, blocks_along(channels, branch)
    seen = scan.u if scan.z is None else scan.z
    known = foreseen(policy, seen.reshape(rows, channels), branches, where)
    if known is not None:
        return known
    if scan.z is None:
        raise ValueError(f"prune={policy!r} decides by gates: pass z")
    norms = empty((rows, branches), libraries().torch.float32, where)
    kernels.gates(where, scan.z, branch, policy.norm, norms)
    return decide(policy, norms, where=where)
