"""``moe``: a mixture of experts, where experts are the branches and a router decides."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from prunus import _core, engines
from prunus._arrays import as_floats
from prunus._device import on_device
from prunus._dtypes import Array, result_dtype
from prunus._trace import Span, span
from prunus.engines.base import Engine
from prunus.pruning._checks import check_count
from prunus.pruning._rows import check_activation, check_branch
from prunus.pruning.experts import Expert, Experts, Style, sums_of
from prunus.pruning.feed_forward import FeedForward
from prunus.pruning.policies import Fixed, Policy, Router, as_policy, decide

__all__ = ["moe"]


@engines.timed
def moe(
    x: ArrayLike,
    router: ArrayLike | None,
    w_up: Any,
    w_down: Any = None,
    w_gate: Any = None,
    top_k: int = 2,
    *,
    logits: ArrayLike | None = None,
    activation: str | None = "silu",
    renormalize: bool = True,
    shared: Any = None,
    prune: Any = None,
    branch: int = 1,
) -> Any:
    """Return a mixture of experts: each row runs through the ``top_k`` that the router scores highest.

    No row is dropped (dropless, as MegaBlocks: Gale et al., 2022, arXiv:2211.15841). Rows are grouped by
    expert, and the experts' outputs, times their weights, are added in ascending order of the experts.
    Experts that no row chose are not looked at, whatever they hold.

    Parameters
    ----------
    x : array_like
        Shape (*B, d) or (d,); floats.
    router : array_like or None
        Shape (E, d): the logits are ``x @ router.T``. None with ``logits=``.
    w_up, w_gate : array_like, BSR or sequence
        Shape (E, f, d), or one (f, d) array or BSR for each expert, in memory or on disk: of experts on disk
        only those that rows chose are read, the next one's weights while one is computed. An expert without
        ``w_gate`` computes ``activation(x @ w_up.T) @ w_down.T``, with it ``(activation(x @ w_gate.T) * (x @
        w_up.T)) @ w_down.T``. A sequence of FFNs for ``w_up`` is all there is to say; ``w_down`` and
        ``w_gate`` are None then.
    w_down : array_like, BSR or sequence, optional
        Shape (E, d_out, f), or one (d_out, f) for each expert.
    top_k : int, default 2
        Experts for each row, of equal logits the first. One whose logit is -inf is never chosen.
    logits : array_like, optional
        Shape (*B, E): in place of ``router``.
    activation : {"relu", "gelu", "silu"} or None
        "silu" unless told, as in Mixtral; None is the identity.
    renormalize : bool, default True
        Whether the weights of a row's experts sum to 1, or are what a softmax over all experts gave them.
    shared : optional
        Experts that all rows run through with weight 1: an FFN, a tuple ``(w_up, w_down)`` or
        ``(w_up, w_down, w_gate)`` of matrices, or a list of these. They are added after the chosen ones.
    prune : policy, or a list with one for each expert, optional
        What decides which hidden units of an expert are live: by the gate's activation where there is one,
        else by the unit's. With FFNs as they do. Shared experts are pruned by a single policy, not by a
        list's. A policy is asked once for every expert that rows chose, and sees that expert's rows alone, in
        ascending order: so is a function, whose statistics have a row for each of them. A mask of two
        dimensions has a row for every row of x, the leading dimensions laid out in line.
    branch : int, default 1
        Hidden units that live and die together.

    Returns
    -------
    ndarray
        Shape (*B, d_out) or (d_out,), in the dtype of the products; sums are float32, or float64 for float64.
        A tensor where ``x`` is one on a GPU: then all operands are, and :func:`prunus.cuda.layers.moe.moe`
        says what differs.

    Raises
    ------
    ValueError
        If shapes do not fit, ``top_k`` is not from 1 to E, a row's logits are all -inf, or hold NaN or +inf,
        or a policy pools rows (``rows=``): which rows of an expert are neighbours is an accident.
    TypeError
        If an operand holds no floats or is of another kind.

    Notes
    -----
    A row's result and liveness do not depend on the other rows, to the bit, unless a policy looks at several
    rows. BSRs are multiplied in float32, or float64, and with at least 5 rows, of which some are zeros where
    fewer chose an expert: so that sums have the same order for one row and for many.

    Dead units contribute exactly 0, also where weights hold infinities or NaN.

    Dead units of dense experts are left out of ``w_down`` only where the units lie in line, that is where
    ``w_down`` is a view ``np.swapaxes(w, 1, 2)`` of an array (E, f, d_out); other weights are read whole and
    never copied. ``FFN.pack`` lays them out for that.

    Examples
    --------
    >>> import numpy as np
    >>> import prunus as pr
    >>> rng = np.random.default_rng(0)
    >>> router, w_up, w_down = (rng.standard_normal(s) for s in ((4, 8), (4, 16, 8), (4, 8, 16)))
    >>> pr.moe(rng.standard_normal((3, 5, 8)), router, w_up, w_down, top_k=2).shape
    (3, 5, 8)
    """
    if on_device(x, router, logits):  # experts are not looked at before one is chosen
        from prunus.cuda.layers.moe import moe as there  # torch may be missing

        return there(
            x,
            router,
            w_up,
            w_down,
            w_gate,
            top_k,
            logits=logits,
            activation=activation,
            renormalize=renormalize,
            shared=shared,
            prune=prune,
            branch=branch,
        )
    check_activation(activation)
    rows, lead = _rows(x)
    experts = Experts(w_up, w_down, w_gate)
    if check_count(top_k, "top_k") > len(experts):
        raise ValueError(f"top_k must be from 1 to the number of experts, {len(experts)}; got {top_k}")
    always = _shared(shared)
    branch = check_branch(branch)
    styles, common = styles_of(prune, len(experts), len(rows), activation, branch)
    engine = engines.active()
    with span("moe") as step:
        scores = _logits(engine, rows, lead, router, logits, len(experts), step)
        live, weights = route(scores, Router(top_k, renormalize))
        chosen = [(e, np.flatnonzero(live[:, e])) for e in np.flatnonzero(live.any(axis=0)).tolist()]
        used = {e: experts[e] for e, _ in chosen}
        every = [*used.values(), *always] or [experts[0]]
        width = _check(every, rows.shape[1])
        kind = rows.dtype
        for one in every:
            kind = result_dtype(kind, one.dtype(rows.dtype))
        sums = np.zeros((len(rows), width), sums_of(kind))
        with np.errstate(all="ignore"):
            for number, (e, at) in enumerate(chosen):
                if number + 1 < len(chosen):
                    following = chosen[number + 1][0]
                    used[following].prefetch(styles[following].policy)
                whole = len(at) == len(rows)
                style = styles[e] if whole else _at_rows(styles[e], at)
                part = used[e].run(engine, rows if whole else rows[at], style)
                # Each row chose an expert once, so no position repeats.
                sums[at] += weights[at, e, None] * part
            for one in always:
                sums += one.run(engine, rows, common)
            if step:
                _count(step, live, every[0])
                step.ran(engine.name)
            result: Array = sums.astype(kind, copy=False).reshape(*lead, width)
    return result


def route(logits: Array, router: Router) -> tuple[Array, Array]:
    """Return which experts each row takes, and with which weights.

    Parameters
    ----------
    logits : ndarray
        Shape (rows, E), float32 or float64.
    router : Router
        How many experts, and whether their weights are to sum to 1.

    Returns
    -------
    live : ndarray of bool
        Shape (rows, E).
    weights : ndarray
        Shape (rows, E): softmax over all experts, or over the chosen; 0 for the others.

    Raises
    ------
    ValueError
        If a row's logits are all -inf, or hold NaN or +inf, or there are fewer experts than it takes.
    """
    top = logits.max(axis=1, initial=-np.inf)
    for wrong, what in (
        (np.isnan(logits).any(axis=1), "hold NaN"),
        (top == np.inf, "hold +inf"),
        (top == -np.inf, "are all -inf"),
    ):
        if wrong.any():
            raise ValueError(f"the router's logits of row {int(np.argmax(wrong))} {what}")
    live = decide(router, logits, norm="score") & (logits > -np.inf)
    power = np.exp(logits - top[:, None])
    taken = np.where(live, power, 0)
    weights: Array = taken / (taken if router.renormalize else power).sum(axis=1, keepdims=True)
    return live, weights


def _rows(x: ArrayLike) -> tuple[Array, tuple[int, ...]]:
    """Return ``x`` as rows, and its leading dimensions."""
    array = as_floats(x, "x")
    if not array.ndim:
        raise ValueError("x must have at least one dimension")
    lead = array.shape[:-1]
    return array.reshape(int(np.prod(lead, dtype=np.int64)), array.shape[-1]), lead


def _logits(
    engine: Engine,
    x: Array,
    lead: tuple[int, ...],
    router: ArrayLike | None,
    logits: ArrayLike | None,
    experts: int,
    step: Span,
) -> Array:
    """Return logits (rows, E) in float32, or float64 where they come from float64."""
    if (router is None) == (logits is None):
        raise TypeError("moe takes either a router or logits=")
    if logits is not None:
        given = as_floats(logits, "logits")
        if given.shape != (*lead, experts):
            raise ValueError(
                f"logits must have shape {(*lead, experts)}: one for each row and expert, got {given.shape}"
            )
        return given.reshape(len(x), experts).astype(sums_of(given.dtype), copy=False)
    weights = as_floats(router, "router")
    if weights.shape != (experts, x.shape[1]):
        raise ValueError(
            f"router must have shape {(experts, x.shape[1])}: experts, features of x; got {weights.shape}"
        )
    result = np.empty((len(x), experts), sums_of(result_dtype(x.dtype, weights.dtype)))
    engine.dots(x, np.ascontiguousarray(weights), result)
    if step:
        step.count(flops=2 * weights.size * len(x), bytes_loaded=weights.nbytes)
    return result


def styles_of(
    prune: Any, experts: int, rows: int, activation: str | None, branch: int
) -> tuple[list[Style], Style]:
    """Return how each expert prunes, and how the shared ones do."""
    if not isinstance(prune, (list, tuple)):
        common = Style(activation, _policy(prune, rows), branch)
        return [common] * experts, common
    if len(prune) != experts:
        raise ValueError(f"prune has {len(prune)} policies for {experts} experts")
    policies = [_policy(one, rows) for one in prune]
    return [Style(activation, one, branch) for one in policies], Style(activation, None, branch)


def _policy(prune: Any, rows: int) -> Policy | None:
    """Return a policy that fits a call with ``rows`` rows, or None."""
    policy = as_policy(prune)
    if policy is not None and policy.rows > 1:
        raise ValueError(
            f"{policy!r} pools {policy.rows} neighbouring rows, but the rows that chose an expert are "
            "neighbours by accident: moe takes policies with rows=1"
        )
    if isinstance(policy, Fixed) and policy.mask.ndim == 2 and len(policy.mask) != rows:
        raise ValueError(
            f"Fixed has a mask of shape {policy.mask.shape}: in moe one of two dimensions has a row for each "
            f"of the {rows} rows of x"
        )
    return policy


def _at_rows(style: Style, at: Array) -> Style:
    """Return the style of an expert that the rows ``at`` of x chose."""
    policy = style.policy
    if not isinstance(policy, Fixed) or policy.mask.ndim == 1:
        return style
    own = copy.copy(policy)
    own.mask = policy.mask[at]
    return style._replace(policy=own)


def _shared(shared: Any) -> list[Expert]:
    """Return the shared experts, checked."""
    if shared is None:
        return []
    if not isinstance(shared, list):
        shared = [shared]
    found = []
    for i, one in enumerate(shared):
        parts = one if isinstance(one, tuple) else (one,)
        if not isinstance(one, (tuple, FeedForward)) or (isinstance(one, tuple) and len(one) not in (2, 3)):
            raise TypeError(
                "a shared expert is an FFN, or a tuple (w_up, w_down) or (w_up, w_down, w_gate); got "
                + (f"a tuple of {len(one)}" if isinstance(one, tuple) else type(one).__name__)
            )
        found.append(Expert(f"shared expert {i}", *parts))
    return found


def _check(experts: list[Expert], features: int) -> int:
    """Return how many values the experts give, the same for all; raise if they do not take ``features``."""
    width = experts[0].out_features
    for one in experts:
        if one.features != features:
            raise ValueError(f"{one.name} takes {one.features} features, x has {features}")
        if one.out_features != width:
            raise ValueError(f"{one.name} gives {one.out_features} values, {experts[0].name} gives {width}")
    return width


def _count(step: Span, live: Array, like: Expert) -> None:
    """Count what routing left out; experts nobody chose are not looked at and count as ``like``."""
    rows, count = live.shape
    taken, _, touched, _ = _core.count_rows(live.view(np.uint8), 1, rows, count, max(rows, 1), [])[4:]
    step.count(
        flops_skipped=(live.size - taken) * like.flops,
        bytes_skipped=(live.shape[1] - touched) * like.nbytes,
        live=taken,
        total=live.size,
        union_live=touched,
        union_total=live.shape[1],
    )
