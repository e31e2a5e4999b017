"""The selective scan of state-space models, with dead gates left out."""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from prunus import _core, engines
from prunus._arrays import as_floats
from prunus._device import on_device
from prunus._dtypes import F32, F64, Array, DType, result_dtype
from prunus._trace import span
from prunus.pruning._rows import check_branch
from prunus.pruning.policies import Policy, as_policy, decide, foreseen

__all__ = ["selective_scan", "selective_step"]

_OPTIONAL: Final = frozenset({"D", "z", "delta_bias", "state"})


@engines.timed
def selective_scan(
    u: ArrayLike,
    delta: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    C: ArrayLike,
    D: ArrayLike | None = None,
    z: ArrayLike | None = None,
    *,
    delta_bias: ArrayLike | None = None,
    delta_softplus: bool = False,
    state: ArrayLike | None = None,
    return_state: bool = False,
    prune: Any = None,
    branch: int = 1,
) -> Any:
    """Run the selective state-space recurrence of Mamba over a whole sequence.

    Every channel has a state h of a few values. At each step t::

        h_t = exp(delta_t * A) * h_{t-1} + delta_t * B_t * u_t
        y_t = (C_t . h_t + D * u_t) * silu(z_t)

    With ``prune``, gates decide which outputs are live: a dead one is exactly 0, and neither its sum nor its
    gate is computed. The state moves on regardless, so it never depends on pruning. Without a state to give
    back, a channel is not computed past its last live step, nor at all if it has none.

    Parameters
    ----------
    u : array_like
        Inputs, shape (*batch, length, channels). Operands are float32, float64, float16 or bfloat16, with any
        strides; leading dimensions of u, delta, B, C and z broadcast.
    delta : array_like
        Step sizes, shape (*batch, length, channels).
    A : array_like
        Rates, shape (channels, states): negative where a state is to decay.
    B, C : array_like
        What writes to the state and what reads from it, shape (*batch, length, states).
    D : array_like, optional
        Shape (channels,): how much of the input goes straight to the output.
    z : array_like, optional
        Gates before their activation, shape (*batch, length, channels).
    delta_bias : array_like, optional
        Shape (channels,), added to ``delta``.
    delta_softplus : bool, default False
        Take ``log(1 + exp(delta + delta_bias))`` for the step sizes.
    state : array_like, optional
        State before the first step, shape (*batch, channels, states), float32 or float64; it is not changed.
        Without it, zeros. A float64 state makes the scan compute in float64, whatever the other operands are;
        with an operand in float64 it must be float64 itself.
    return_state : bool, default False
        Return the state after the last step as well.
    prune : policy, optional
        Decides for every step and branch by the largest absolute value (or the L2 norm, if the policy wants
        that) of ``silu(z)``; rows of its statistics are steps, those of one member of the batch after those
        of another. See :class:`prunus.Threshold`. ``Threshold(0)`` changes no result.
    branch : int, default 1
        Neighbouring channels that live and die together.

    Returns
    -------
    y : ndarray, or Tensor where operands are tensors on a GPU
        Shape (*batch, length, channels), in the common dtype of all operands but the state: float64 if one
        is, else float32 if they differ. For a result in half precision, parameters (A, D, delta_bias) are
        halves too.
    state : ndarray
        Only with ``return_state``: shape (*batch, channels, states). It has the dtype that the scan computes
        in: float64 if any operand or the given state is float64, else float32, also for operands in half
        precision.

    Raises
    ------
    ValueError
        If shapes do not match, or a policy has to see gates and there is no z.
    TypeError
        If an operand's dtype is not one of these four, or the state's is not the one computed in.

    See Also
    --------
    selective_step : One step in real time, on a state of constant size.

    Notes
    -----
    Steps are taken in order, each channel by itself and by the same arithmetic whatever is computed with it:
    the same bits for any number of threads, and for any cuts into parts. Time grows with length *
    channels * states, memory does not grow beyond the result.

    References
    ----------
    .. [1] A. Gu and T. Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023,
       arXiv:2312.00752, algorithm 2 (B discretised by Euler's rule, as in the authors' code).

    Examples
    --------
    An exponential mean of a step, at one rate:

    >>> import numpy as np
    >>> import prunus as pr
    >>> u = np.array([[0.0], [1.0], [1.0], [1.0]], np.float32)
    >>> ones = np.ones((4, 1), np.float32)
    >>> rate = np.array([[-np.log(2)]], np.float32)
    >>> pr.selective_scan(u, ones, rate, 0.5 * ones, ones)[:, 0]
    array([0.   , 0.5  , 0.75 , 0.875], dtype=float32)
    """
    if on_device(u, delta, A, B, C, D, z, delta_bias, state):
        from prunus.cuda.layers import scan as there  # torch may be missing

        return there.selective_scan(
            u,
            delta,
            A,
            B,
            C,
            D,
            z,
            delta_bias=delta_bias,
            delta_softplus=delta_softplus,
            state=state,
            return_state=return_state,
            prune=prune,
            branch=branch,
        )
    given = _arrays(u=u, delta=delta, B=B, C=C, z=z)
    scan = _checked(given, A, D, delta_bias, state)
    branch = check_branch(branch, scan.u.shape[-1])
    before = None
    if scan.state is not None:
        before = scan.state.copy()
    elif return_state:
        before = np.zeros((*scan.batch, *scan.a.shape), scan.compute)
    y = _run(scan, bool(delta_softplus), before, as_policy(prune), branch)
    return (y, before) if return_state else y


@engines.timed
def selective_step(
    u: ArrayLike,
    delta: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    C: ArrayLike,
    D: ArrayLike | None = None,
    z: ArrayLike | None = None,
    *,
    state: Any,
    delta_bias: ArrayLike | None = None,
    delta_softplus: bool = False,
    prune: Any = None,
    branch: int = 1,
) -> Any:
    """Run one step of :func:`selective_scan` and update the caller's state in place.

    A sequence of steps gives the same bits as one scan over all of them, in constant memory.

    Parameters
    ----------
    u, delta, z : array_like
        Shape (*batch, channels).
    B, C : array_like
        Shape (*batch, states).
    A, D, delta_bias, delta_softplus, prune, branch
        See :func:`selective_scan`.
    state : ndarray
        Shape (*batch, channels, states), writeable, any strides; read, and overwritten with the state after
        this step. float32 or float64, and float64 if any operand is: ``np.zeros`` of that to begin with. A
        float64 state makes steps compute in float64, whatever the operands are.

    Returns
    -------
    ndarray
        Shape (*batch, channels), in the dtype of :func:`selective_scan`.

    Raises
    ------
    ValueError, TypeError
        As :func:`selective_scan`, and if the state cannot be written.

    Examples
    --------
    >>> import numpy as np
    >>> import prunus as pr
    >>> one = np.ones(1, np.float32)
    >>> state = np.zeros((1, 1), np.float32)
    >>> rate = np.array([[-np.log(2)]], np.float32)
    >>> [float(pr.selective_step(one, one, rate, 0.5 * one, one, state=state)[0]) for _ in range(3)]
    [0.5, 0.75, 0.875]
    """
    if on_device(u, delta, A, B, C, D, z, delta_bias, state):
        from prunus.cuda.layers import scan as there

        return there.selective_step(
            u,
            delta,
            A,
            B,
            C,
            D,
            z,
            state=state,
            delta_bias=delta_bias,
            delta_softplus=delta_softplus,
            prune=prune,
            branch=branch,
        )
    if not isinstance(state, np.ndarray):
        raise TypeError(f"state must be an ndarray to be updated in place, got {type(state).__name__}")
    given = _arrays(u=u, delta=delta, B=B, C=C, z=z)
    check_steps(dict(zip(["u", "delta", "B", "C", "z"], given, strict=True)))
    steps = [None if operand is None else operand[..., None, :] for operand in given]
    scan = _checked(steps, A, D, delta_bias, state)
    branch = check_branch(branch, scan.u.shape[-1])
    if not state.flags.writeable:
        raise ValueError("state is read-only")
    if state.shape != (*scan.batch, *scan.a.shape):
        raise ValueError(
            f"state must have shape {(*scan.batch, *scan.a.shape)} to be updated in place, got {state.shape}"
        )
    after = state
    if not _core.writes_apart(state, scan.u, scan.delta, scan.a, scan.b, scan.c, scan.d, scan.z, scan.bias):
        after = state.copy()
    y = _run(scan, bool(delta_softplus), after, as_policy(prune), branch)
    if after is not state:
        state[...] = after
    one: Array = y[..., 0, :]
    return one


class _Scan(NamedTuple):
    """Checked operands, with the batch's dimensions."""

    u: Array
    delta: Array
    a: Array
    b: Array
    c: Array
    d: Array | None
    z: Array | None
    bias: Array | None
    state: Array | None
    batch: tuple[int, ...]
    kind: DType
    compute: DType


def _arrays(**operands: Any) -> list[Any]:
    """Return each operand as an ndarray of floats; None for what was left out."""
    return [
        None if operand is None and name in _OPTIONAL else as_floats(operand, name)
        for name, operand in operands.items()
    ]


def _checked(
    given: list[Any],
    A: ArrayLike,
    D: ArrayLike | None,
    bias: Any,
    state: Any,
) -> _Scan:
    """Check shapes and dtypes, and broadcast the batch."""
    u, delta, b, c, z = given
    a, d, bias, state = _arrays(A=A, D=D, delta_bias=bias, state=state)
    named = {"u": u, "delta": delta, "A": a, "B": b, "C": c, "D": d, "z": z}
    named |= {"delta_bias": bias, "state": state}
    batch = check_shapes(named)
    kind = u.dtype
    for operand in (delta, a, b, c, d, z, bias):
        kind = kind if operand is None else result_dtype(kind, operand.dtype)
    compute = F64 if any(x is not None and x.dtype == F64 for x in named.values()) else F32
    if state is not None:
        check_state(state.dtype, compute, compute == F64)
    u, delta, b, c, z = (
        x if x is None or x.shape[:-2] == batch else np.broadcast_to(x, (*batch, *x.shape[-2:]))
        for x in (u, delta, b, c, z)
    )
    return _Scan(u, delta, a, b, c, d, z, bias, state, batch, kind, compute)


def check_shapes(named: dict[str, Any]) -> tuple[int, ...]:
    """Return the batch's dimensions of operands by name: arrays or tensors, None where one is left out.

    Raises
    ------
    ValueError
        If shapes do not match.
    """
    u, a, state = named["u"], named["A"], named["state"]
    if u.ndim < 2:
        raise ValueError(f"u must have shape (*batch, length, channels), got {tuple(u.shape)}")
    if a.ndim != 2:
        raise ValueError(f"A must have shape (channels, states), got {tuple(a.shape)}")
    (length, channels), states = u.shape[-2:], a.shape[1]
    wanted = {
        "delta": (length, channels),
        "A": (channels, states),
        "B": (length, states),
        "C": (length, states),
        "z": (length, channels),
        "state": (channels, states),
    }
    for name, core in wanted.items():
        operand = named[name]
        if operand is not None and tuple(operand.shape[-2:]) != core:
            axes = {"A": "(channels, states)", "state": "(*batch, channels, states)"}.get(name)
            axes = axes or f"(*batch, length, {'states' if name in 'BC' else 'channels'})"
            raise ValueError(f"{name} must have shape {axes} with {core} last, got {tuple(operand.shape)}")
    for name in ("D", "delta_bias"):
        operand = named[name]
        if operand is not None and tuple(operand.shape) != (channels,):
            raise ValueError(
                f"{name} must have shape (channels,) = ({channels},), got {tuple(operand.shape)}"
            )
    lead = [
        tuple(named[name].shape[:-2]) for name in ("u", "delta", "B", "C", "z") if named[name] is not None
    ]
    try:
        batch = np.broadcast_shapes(*lead)
    except ValueError:
        raise ValueError(
            f"batch dimensions do not broadcast: {', '.join(str(dims) for dims in lead)}"
        ) from None
    if state is not None and tuple(state.shape[:-2]) != batch:
        raise ValueError(f"state must have shape {(*batch, channels, states)}, got {tuple(state.shape)}")
    return batch


def check_state(dtype: Any, compute: Any, wide: bool) -> None:
    """Raise TypeError unless a state's dtype is what the scan computes in."""
    if dtype != compute:
        why = "as an operand is float64" if wide else "or float64"
        raise TypeError(f"state must be {compute}, {why}; got {dtype}")


def check_steps(given: dict[str, Any]) -> None:
    """Raise ValueError where an operand of a step is a scalar."""
    for name, operand in given.items():
        if operand is not None and operand.ndim < 1:
            raise ValueError(f"{name} must have at least one dimension, got a scalar")


def _run(scan: _Scan, softplus: bool, state: Array | None, policy: Policy | None, branch: int) -> Array:
    """Decide what is live, and scan."""
    out = np.empty(scan.u.shape, scan.kind)
    with span("selective_scan") as at:
        live = None if policy is None else _live(scan, policy, branch)
        if out.size:
            engine = engines.active()
            engine.scan(
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
            )
            if at:
                at.ran(engine.name)
                at.count(**counted(scan, state is not None, live, branch))
    return out


def _live(scan: _Scan, policy: Policy, branch: int) -> Array:
    """Return which outputs are live, a row for each step of each member of the batch."""
    *_, length, channels = scan.u.shape
    rows, branches = math.prod(scan.batch) * length, -(-channels // branch)
    seen = scan.u if scan.z is None else scan.z
    known = foreseen(policy, seen.reshape(rows, channels), branches)
    if known is not None:
        return np.ascontiguousarray(known)
    if scan.z is None:
        raise ValueError(f"prune={policy!r} decides by gates: pass z")
    norms = np.empty((rows, branches), np.float32)
    engines.active().gates(scan.z, branch, policy.norm, norms)
    return np.ascontiguousarray(decide(policy, norms))


def counted(scan: Any, keeps: bool, live: Array | None, branch: int) -> dict[str, int]:
    """Return what a scan did, for :meth:`prunus._trace.Span.count`.

    Exponentials, softplus and the gate's sigmoid count as nothing.
    """
    *_, length, channels = scan.u.shape
    states, members = scan.a.shape[1], math.prod(scan.batch)
    steps = members * length * channels
    # delta * u; and for each state delta * A, times the state, times B, the sum.
    advance = 1 + 4 * states
    output = 2 * states + (0 if scan.d is None else 2) + (0 if scan.z is None else 2)
    inputs = scan.u.dtype.itemsize + scan.delta.dtype.itemsize
    gate = 0 if scan.z is None else scan.z.dtype.itemsize
    advanced = outputs = steps
    found = {}
    if live is not None:
        widths = np.full(live.shape[1], branch)
        if live.shape[1]:
            widths[-1] = channels - branch * (live.shape[1] - 1)
        cube = live.reshape(members, length, live.shape[1])
        outputs = int((cube.sum(axis=(0, 1)) * widths).sum())
        if not keeps and length:
            needed = np.where(cube.any(axis=1), length - cube[:, ::-1].argmax(axis=1), 0)
            advanced = int((needed.sum(axis=0) * widths).sum())
        found = {"live": int(live.sum()), "total": live.size}
        found |= {"union_live": int(cube.any(axis=1).sum()), "union_total": members * live.shape[1]}
    return found | {
        "flops": advanced * advance + outputs * output,
        "flops_skipped": (steps - advanced) * advance + (steps - outputs) * output,
        "bytes_loaded": advanced * inputs + steps * gate,
        "bytes_skipped": (steps - advanced) * inputs,
    }
