"""Layers whose branches die as they run: ``linear`` with a policy, ``ffn``, and thresholds that learn."""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple, Protocol

import torch
from torch import Tensor

from prunus._layout import blocks_along
from prunus.pruning._checks import check_bound, check_count, check_norm
from prunus.pruning.policies import Policy, Threshold
from prunus.torch import blocks
from prunus.torch.arrays import BSR
from prunus.torch.deciding import as_prune, decide, foreseen, largest_of, norms_of, sums_dtype
from prunus.torch.functional import activate, as_operand, cast, check_alike, product, refuse_tangent
from prunus.torch.ops import live as ops
from prunus.torch.ops.kernels_live import spread

__all__ = ["Learned", "check_decide", "check_width", "feed_forward", "ffn", "gate", "linear", "masked"]

_DECIDERS: Final = ("up", "gate", "predictor")


class Learned(Protocol):
    """What a threshold that learns has; see :class:`prunus.torch.nn.LearnedThreshold`."""

    bandwidth: float
    norm: str

    @property
    def tau(self) -> Tensor:
        """The threshold, () or (branches,)."""
        ...


class Passed(NamedTuple):
    """What a feed-forward layer gives.

    Attributes
    ----------
    y : Tensor
        Shape (rows, d_out).
    live : Tensor of bool
        Shape (rows, branches).
    decided : Tensor
        What was decided on: activations (rows, units), 0 where they were not computed.
    step : Tensor, optional
        Shape (rows, branches): ``live`` as 0 and 1, which gradients flow through to a threshold that learns.
    cleared : bool
        Whether ``decided`` is 0 where it is dead.
    """

    y: Tensor
    live: Tensor
    decided: Tensor
    step: Tensor | None
    cleared: bool


class _First(NamedTuple):
    """What was decided, and on what."""

    live: Tensor
    reach: Tensor  # what is computed from here on: what is live, and what a threshold learns from
    value: Tensor  # activations before the step
    step: Tensor | None
    gated: Tensor  # activations, 0 where dead


# Public functions ----------------------------------------------------------------------------------------


def gate(
    a: Tensor, tau: Tensor | float, *, branch: int = 1, norm: str = "max", bandwidth: float = 0.05
) -> Tensor:
    """Return ``a`` where a branch's norm is above a threshold that can learn, and 0 elsewhere.

    The gradient of ``a`` is that of what is live. The threshold's is estimated from branches whose norm is
    within half a bandwidth of it, dead ones too: ``-1 / bandwidth`` times what the branch would contribute
    (JumpReLU with a rectangular window: Rajamanoharan et al., *Jumping Ahead*, 2024, arXiv:2407.14435, whose
    factor ``tau`` is the branch's own value here).

    Parameters
    ----------
    a : Tensor
        Activations (*lead, units).
    tau : Tensor or float
        The threshold, of shape () or (branches,); positive if it is to learn.
    branch : int, default 1
        Neighbouring units that live and die together.
    norm : {"max", "l2"}
        Largest absolute value, or root of the sum of squares, of a branch.
    bandwidth : float
        Width of the window, in units of the norm. A wide one learns from more, a narrow one is less biased.

    Returns
    -------
    Tensor
        Shape (*lead, units).

    Raises
    ------
    ValueError
        If ``tau`` has another shape, is not a number, or lives on another device; or a number is out of
        range.
    TypeError
        If an operand holds no floats, or ``tau`` no real numbers.

    Examples
    --------
    >>> import torch
    >>> import prunus.torch as pt
    >>> tau = torch.tensor(0.5, requires_grad=True)
    >>> y = pt.gate(torch.tensor([0.2, 0.45, 0.55, 2.0]), tau, bandwidth=0.2)
    >>> y
    tensor([0.0000, 0.0000, 0.5500, 2.0000], grad_fn=<...>)
    >>> y.sum().backward()
    >>> tau.grad
    tensor(-5.)
    """
    a = as_operand(a, "a")
    if isinstance(a, BSR):
        raise TypeError("a must be a tensor, got a BSR")
    if a.ndim == 0:
        raise ValueError("a must have at least one dimension")
    units = a.shape[-1]
    branch, norm = check_width(branch, units), check_norm(norm)
    bandwidth = check_window(bandwidth)
    rows = a.reshape(-1, units) if units else a.reshape(math.prod(a.shape[:-1]), 0)
    with torch.no_grad():
        norms = norms_of(rows, branch, norm)
    tau = _as_tau(tau, a)
    at = ops.step(norms, _threshold(tau, norms), bandwidth)
    return (rows * spread(at, branch, units).to(a.dtype)).reshape(a.shape)


def linear(
    x: Tensor,
    w: Tensor | BSR,
    b: Tensor | None,
    activation: str | None,
    prune: Any,
    branch: int,
    blockrows: int,
) -> BSR:
    """Return ``activation(x @ w.T + b)`` as a BSR of its live branches: see :func:`prunus.torch.linear`."""
    act = activate(activation)
    branch, blockrows = check_width(branch, w.shape[0]), check_count(blockrows, "blockrows")
    if isinstance(prune, torch.nn.Module):
        raise TypeError("linear takes policies; pt.gate and ffn take thresholds that learn")
    policy = as_prune(prune)
    lead, units = tuple(x.shape[:-1]), w.shape[0]
    rows = x.reshape(math.prod(lead), x.shape[-1])
    # Of a stored block, rows that are dead have a gradient as well.
    first = _first(rows, w, b, act, policy, branch, straight=False, ends=False)
    return _compact(first.gated, first.live, lead, units, branch, blockrows)


def ffn(
    x: Tensor,
    w_up: Tensor | BSR,
    w_down: Tensor | BSR,
    w_gate: Tensor | BSR | None = None,
    b_up: Tensor | None = None,
    b_down: Tensor | None = None,
    activation: str | None = "relu",
    prune: Any = None,
    branch: int = 1,
    *,
    decide: str | None = None,
    straight_through: bool = False,
) -> Tensor:
    """Return a feed-forward layer's output, leaving out what is dead, in the backward pass as well.

    ``down(activation(up x))``, or with a gate ``down(activation(gate x) * up x)``. One product is computed in
    full and decides which branches are live for each row; all others, forward and backward, skip what is
    dead. Results are :func:`prunus.ffn`'s. Gradients are those of what was computed: 0 through dead branches,
    as through ReLU.

    Parameters
    ----------
    x : Tensor
        Shape (*lead, d).
    w_up, w_gate : Tensor or BSR
        Shape (H, d).
    w_down : Tensor or BSR
        Shape (d_out, H). Products with a BSR skip its absent blocks, and what is dead is set to 0.
    b_up, b_down : Tensor, optional
        Biases (H,) and (d_out,).
    activation : {"relu", "gelu", "silu"} or None
        Of the gate, or of the up-projection; None is the identity.
    prune : policy, mask, function or LearnedThreshold, optional
        What decides; ``prunus.Threshold(0.0)`` by default. A mask is a tensor of booleans, (branches,) or
        (rows, branches). Policies that foresee (a mask, ``Fixed``, ``Predictor``) leave no product to compute
        in full. A function of one's own is called once, and ``torch.compile`` breaks the graph there, as for
        ``Fixed`` (a mask does not) and ``Predictor``.
    branch : int, default 1
        Neighbouring hidden units that live and die together.
    decide : {"up", "gate", "predictor"}, optional
        Which product decides: the gate by default, where there is one. Where the up-projection of a gated
        layer does, it is seen before any activation. "predictor": none, the policy has to foresee.
    straight_through : bool
        Have gradients flow as if nothing had been pruned, so that dead branches can come back; all products
        are computed in full then. Not for a LearnedThreshold, which has an estimate of its own.

    Returns
    -------
    Tensor
        Shape (*lead, d_out).

    Raises
    ------
    ValueError
        If shapes do not fit or devices differ, ``decide`` names what is not there, or the policy had to
        foresee and does not.
    TypeError
        If dtypes differ, an operand holds no floats, or the policy is none.

    Examples
    --------
    >>> import torch
    >>> import prunus as pr, prunus.torch as pt
    >>> up, down = torch.eye(2, requires_grad=True), torch.tensor([[2.0, 5.0]], requires_grad=True)
    >>> y = pt.ffn(torch.tensor([1.0, -1.0]), up, down, prune=pr.Threshold(0.0))
    >>> y
    tensor([2.], grad_fn=<...>)
    >>> y.backward()
    >>> up.grad
    tensor([[ 2., -2.],
            [ 0.,  0.]])
    """
    return feed_forward(
        x, w_up, w_down, w_gate, b_up, b_down, activation, prune, branch, decide, straight_through
    ).y


def feed_forward(
    x: Tensor,
    w_up: Tensor | BSR,
    w_down: Tensor | BSR,
    w_gate: Tensor | BSR | None,
    b_up: Tensor | None,
    b_down: Tensor | None,
    activation: str | None,
    prune: Any,
    branch: int,
    decide: str | None,
    straight_through: bool,
) -> Passed:
    """Return what :func:`ffn` does, with ``y`` in its shape, and what was decided on the way."""
    act = activate(activation)
    decide = check_decide(decide, w_gate is not None)
    if isinstance(x, BSR):
        raise TypeError("x must be a tensor, got a BSR")
    given = {"x": x, "w_up": w_up, "w_down": w_down, "w_gate": w_gate, "b_up": b_up, "b_down": b_down}
    operands = cast(*(None if one is None else as_operand(one, name) for name, one in given.items()))
    check_alike(*operands)
    x, w_up, w_down, w_gate, b_up, b_down = operands
    _check_shapes(x, w_up, w_down, w_gate, b_up, b_down)
    branch = check_width(branch, w_up.shape[0])
    prune = as_policy_or_learned(prune)
    if straight_through and not isinstance(prune, Policy):
        raise ValueError("straight_through is for policies: a LearnedThreshold has an estimate of its own")
    lead = x.shape[:-1]
    rows = x.reshape(math.prod(lead), x.shape[-1])
    # Which matrix decides, and what follows it; the other one, and what follows that.
    if w_gate is None:
        deciding, other = (w_up, b_up, act), None
    elif decide == "up":
        deciding, other = (w_up, b_up, _same), (w_gate, None, act)
    else:
        deciding, other = (w_gate, None, act), (w_up, b_up, _same)
    must = decide == "predictor"
    # A product with blocks has gradients for dead units, live_combine has not.
    ends = not (straight_through or isinstance(w_down, BSR))
    first = _first(rows, *deciding, prune, branch, straight=straight_through, ends=ends, must_foresee=must)
    h = first.value if straight_through else first.gated
    mask = None if straight_through else first.reach
    if other is not None:
        w, b, then = other
        h = h * then(_units(rows, w, b, mask, branch, ends))
    if straight_through:
        h = ops.straight(h, first.live, branch)
    if isinstance(w_down, BSR):
        y = product(w_down, h, b_down, flip=True)
    else:
        y = ops.live_combine(h, w_down, mask, branch, mask is not None, True)
        y = y if b_down is None else y + b_down
    cleared = first.step is None and not straight_through
    decided = first.gated if cleared else first.value
    return Passed(y.reshape(*lead, w_down.shape[0]), first.live, decided, first.step, cleared)


# Checks --------------------------------------------------------------------------------------------------


def check_decide(decide: str | None, gated: bool) -> str:
    """Return which matrix decides.

    Raises
    ------
    ValueError
        If there is none of that name.
    """
    if decide is None:
        return "gate" if gated else "up"
    if decide not in _DECIDERS:
        raise ValueError(f"decide must be one of {', '.join(_DECIDERS)}, got {decide!r}")
    if decide == "gate" and not gated:
        raise ValueError("decide='gate' needs w_gate")
    return decide


def check_width(branch: Any, units: int) -> int:
    """Return the width of a branch, no wider than there are units."""
    return min(check_count(branch, "branch"), max(units, 1))


def check_window(bandwidth: Any) -> float:
    """Return the width of a window, above 0."""
    width = check_bound(bandwidth, "bandwidth")
    if not width:
        raise ValueError("bandwidth must be above 0")
    return width


def as_policy_or_learned(prune: Any) -> Any:
    """Return a policy, or a threshold that learns; None is ``Threshold(0.0)``."""
    if prune is None:
        return Threshold(0.0)
    if isinstance(prune, torch.nn.Module) and hasattr(prune, "tau") and hasattr(prune, "bandwidth"):
        return prune
    return as_prune(prune)


def _check_shapes(
    x: Tensor, up: Any, down: Any, gate: Any, b_up: Tensor | None, b_down: Tensor | None
) -> None:
    for w, name in ((up, "w_up"), (down, "w_down"), (gate, "w_gate")):
        if w is not None and w.ndim != 2:
            raise ValueError(f"{name} must have two dimensions (out, in), got shape {tuple(w.shape)}")
    units, features = up.shape
    if x.ndim == 0 or x.shape[-1] != features:
        raise ValueError(f"x has shape {tuple(x.shape)}, the weights expect {features} features")
    if down.shape[1] != units:
        raise ValueError(
            f"w_down has shape {tuple(down.shape)}, expected (d_out, {units}) for w_up {tuple(up.shape)}"
        )
    if gate is not None and tuple(gate.shape) != tuple(up.shape):
        raise ValueError(f"w_gate has shape {tuple(gate.shape)}, w_up {tuple(up.shape)}")
    for b, length, name in ((b_up, units, "b_up"), (b_down, down.shape[0], "b_down")):
        if b is not None and tuple(b.shape) != (length,):
            raise ValueError(f"{name} must have shape ({length},), got {tuple(b.shape)}")


def _as_tau(tau: Any, a: Tensor) -> Tensor:
    """Return a threshold as a tensor where the activations are."""
    if not isinstance(tau, Tensor):
        try:
            number = float(tau)
        except (TypeError, ValueError):
            raise TypeError(f"tau must be a number or a tensor, got {tau!r}") from None
        # Numbers that torch.compile keeps open have no such question.
        if not torch.compiler.is_compiling() and math.isnan(number):
            raise ValueError("tau must be a number, got nan: everything would be live")
        return torch.full((), number, dtype=sums_dtype(a.dtype), device=a.device)
    if tau.is_complex() or tau.dtype == torch.bool:
        raise TypeError(f"tau must hold real numbers, got {tau.dtype}")
    if tau.device != a.device:
        raise ValueError(f"expected operands on one device, got a on {a.device} and tau on {tau.device}")
    refuse_tangent(tau, "tau")
    return tau


def _threshold(tau: Tensor, norms: Tensor) -> Tensor:
    if tau.shape not in ((), (norms.shape[1],)):
        raise ValueError(f"tau must have shape () or ({norms.shape[1]},), got {tuple(tau.shape)}")
    return tau.to(norms.dtype)


# Steps ---------------------------------------------------------------------------------------------------


def _same(x: Tensor) -> Tensor:
    return x


def _units(
    x: Tensor, w: Tensor | BSR, b: Tensor | None, live: Tensor | None, branch: int, ends: bool
) -> Tensor:
    """Return units (rows, H), 0 where they are dead; ``ends`` as in :func:`_first`."""
    if not isinstance(w, BSR):
        return ops.live_linear(x, w, b, live, branch, ends)
    made = product(w, x, b, flip=True)
    return made if live is None else masked(made, live, branch)


def masked(h: Tensor, live: Tensor, branch: int) -> Tensor:
    """Return ``h`` (rows, units) where it is live, and 0 elsewhere; its gradient too."""
    return h.masked_fill(~spread(live, branch, h.shape[1]), 0)


def _first(
    x: Tensor,
    w: Tensor | BSR,
    b: Tensor | None,
    act: Any,
    prune: Any,
    branch: int,
    *,
    straight: bool,
    ends: bool,
    must_foresee: bool = False,
) -> _First:
    """Compute what decides, and decide.

    ``ends`` says that what is made of the result has no gradient where it is dead, as nobody looks there.
    """
    units = w.shape[0]
    policy = isinstance(prune, Policy)
    live = foreseen(prune, x, blocks_along(units, branch)) if policy else None
    if live is None and must_foresee:
        raise ValueError(
            "decide='predictor': prune must be a policy that foresees, such as Predictor or Fixed, got "
            f"{prune!r}"
        )
    if live is not None:
        value = act(_units(x, w, b, None if straight else live, branch, ends))
        return _First(live, live, value, None, value)
    if straight or isinstance(w, BSR):
        sums = None
        value = act(_units(x, w, b, None, branch, False))
        norms = norms_of(value.detach(), branch, prune.norm)
    else:
        with torch.no_grad():
            sums = ops.live_sums(x, w, b)
            if act is torch.nn.functional.relu and prune.norm == "max":
                norms = largest_of(sums, branch).relu_()  # as of what ReLU leaves, in one pass less
            else:
                norms = norms_of(act(sums), branch, prune.norm)
        value = None
    if policy:
        live = reach = decide(prune, norms)
        step = None
    else:
        tau = _threshold(prune.tau, norms)
        step = ops.step(norms, tau, prune.bandwidth)
        live = step.detach() > 0
        # The threshold learns from what is below it, too.
        wide = torch.is_grad_enabled() and tau.requires_grad
        reach = ~(norms <= (tau.detach() - prune.bandwidth / 2)) if wide else live
    if sums is not None:
        assert not isinstance(w, BSR)
        value = ops.live_known(sums, x, w, b, reach, branch, ends)
        # Nobody else has it: as much memory less.
        value = value.relu_() if act is torch.nn.functional.relu else act(value)
    assert value is not None
    gated = value
    if step is not None:
        gated = value * spread(step, branch, units).to(value.dtype)
    elif sums is None and not straight:
        gated = masked(value, live, branch)
    return _First(live, reach, value, step, gated)


def penalty_of(passed: Passed, branch: int, norm: str) -> Tensor:
    """Return the mean over rows and branches of the norms of what is live."""
    count = max(passed.live.numel(), 1)
    if branch == 1 and passed.cleared:
        return torch.linalg.vector_norm(passed.decided, 1, dtype=sums_dtype(passed.decided.dtype)) / count
    norms = norms_of(passed.decided, branch, norm)
    if passed.step is not None:
        norms = norms * passed.step
    elif not passed.cleared:
        norms = torch.where(passed.live, norms, 0)
    return norms.sum() / count


def _compact(h: Tensor, live: Tensor, lead: tuple[int, ...], units: int, branch: int, blockrows: int) -> BSR:
    """Return the live branches of ``h`` (rows, units) as a BSR of shape (*lead, units)."""
    batch, height = (lead[:-1], lead[-1]) if lead else ((), 1)
    block = max(min(blockrows, height), 1)
    tiles, members, branches = blocks_along(height, block), math.prod(batch), live.shape[1]
    grid = torch.nn.functional.pad(live.reshape(members, height, branches), (0, 0, 0, tiles * block - height))
    grid = grid.reshape(members, tiles, block, branches).any(2)
    dense = h.reshape(members, height, units)
    if not batch:
        grid, dense = grid[0], dense[0]
    indices, indptr = blocks.pattern_of(grid)
    data = blocks.gather(dense, indices, indptr, (block, branch))
    return BSR._wrap(data, indices, indptr.reshape(*batch, tiles + 1), (*batch, height, units))
