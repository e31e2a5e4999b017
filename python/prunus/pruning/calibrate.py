"""``calibrate``: from a wanted live fraction, or a bound on the error, to thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, overload

import numpy as np
from numpy.typing import ArrayLike

from prunus._arrays import as_floats
from prunus._device import what
from prunus._dtypes import Array
from prunus.pruning._checks import check_bound, check_norm, check_share
from prunus.pruning._rows import as_rows
from prunus.pruning.packed import FFN
from prunus.pruning.policies import Policy, Statistics, Threshold

__all__ = ["calibrate"]

# The error is tried at quantiles that are multiples of this.
_STEPS: Final = 1024


@overload
def calibrate(
    ffn: FFN,
    samples: ArrayLike,
    target: float | None = None,
    *,
    error: float | None = None,
    activation: str | None = "relu",
    branch: int = 1,
    norm: str = "max",
) -> Threshold: ...


@overload
def calibrate(
    ffn: Sequence[FFN],
    samples: Sequence[ArrayLike],
    target: float | None = None,
    *,
    error: float | None = None,
    activation: str | None = "relu",
    branch: int = 1,
    norm: str = "max",
) -> list[Threshold]: ...


def calibrate(
    ffn: FFN | Sequence[FFN],
    samples: ArrayLike | Sequence[ArrayLike],
    target: float | None = None,
    *,
    error: float | None = None,
    activation: str | None = "relu",
    branch: int = 1,
    norm: str = "max",
) -> Threshold | list[Threshold]:
    """Return the threshold that leaves a wanted share of branches live, or keeps the error below a bound.

    The threshold is a quantile of the magnitudes that decide, over sample inputs: CATS does so with a gate's
    activations (Lee et al., 2024, arXiv:2404.08763), TEAL with hidden states in general (Liu et al., 2024,
    arXiv:2408.14690).

    Parameters
    ----------
    ffn : FFN or sequence of FFN
        The layer, or layers. What decides is what ``ffn`` was packed for: its up- or its gate-projection.
    samples : array_like, or sequence of them
        Shape (*lead, d), finite: inputs as the layer will see them; for several layers a list with one array
        each.
    target : float, optional
        Share of branches to be live over all samples, above 0 and at most 1. Fewer are, where the activation
        leaves fewer than that above 0. Where equal magnitudes lie on both sides of the quantile, all of them
        are live or none, whichever is nearer to the target; all, where both are as near. Give this or
        ``error``.
    error : float, optional
        Bound on the Frobenius norm of the output's error over the samples, relative to the exact output's.
        The threshold is found by bisection over 1024 quantiles.
    activation : {"relu", "gelu", "silu"} or None
        As ``ffn`` will be called.
    branch : int, default 1
        As ``ffn`` will be called.
    norm : {"max", "l2"}
        Statistic of a branch.

    Returns
    -------
    Threshold, or list of Threshold
        One for each layer.

    Raises
    ------
    ValueError
        If neither or both of ``target`` and ``error`` are given, a number is out of range, samples are empty
        or not finite, there are not as many as layers, or activations are NaN.
    TypeError
        If ``ffn`` is no FFN, or samples hold no floats.

    Examples
    --------
    >>> import numpy as np
    >>> import prunus as pr
    >>> rng = np.random.default_rng(0)
    >>> w_up, w_down = rng.standard_normal((2, 64, 64)).astype(np.float32)
    >>> F, x = pr.FFN.pack(w_up, w_down), rng.standard_normal((256, 64)).astype(np.float32)
    >>> tau = pr.calibrate(F, x, target=0.25)
    >>> with pr.trace() as t:
    ...     y = F(x, activation="relu", prune=tau)
    >>> round(t.live_fraction, 3)
    0.25
    """
    if (target is None) == (error is None):
        raise ValueError("calibrate takes either target= or error=")
    target = None if target is None else check_share(target, "target")
    error = None if error is None else check_bound(error, "error")
    check_norm(norm)
    if isinstance(ffn, FFN):
        return _one(ffn, _samples(samples, "samples", ffn), target, error, activation, branch, norm)
    if not isinstance(ffn, Sequence):
        raise TypeError(f"ffn must be an FFN or a list of them, got {what(ffn)}")
    for i, layer in enumerate(ffn):
        if not isinstance(layer, FFN):
            raise TypeError(f"ffn[{i}] must be an FFN, got {what(layer)}")
    if not isinstance(samples, (list, tuple)):
        raise TypeError(
            f"samples must be a list of {len(ffn)} arrays, one for each layer, got {type(samples).__name__}"
        )
    if len(samples) != len(ffn):
        raise ValueError(f"samples must hold {len(ffn)} arrays, one for each layer, got {len(samples)}")
    return [
        _one(layer, _samples(x, f"samples[{i}]", layer), target, error, activation, branch, norm)
        for i, (layer, x) in enumerate(zip(ffn, samples, strict=True))
    ]


class _Probe(Policy):
    """Lets everything live, and keeps what it saw."""

    scope = "host"

    def __init__(self, norm: str) -> None:
        self.norm = norm
        self.seen: list[Array] = []

    def select(self, statistics: Statistics) -> Array:
        self.seen.append(statistics.norms.copy())
        return np.ones(statistics.norms.shape, bool)


def _samples(value: Any, name: str, layer: FFN) -> Array:
    """Return samples as finite rows of what the layer takes, at least one."""
    given = as_floats(value, name)
    if not given.ndim or given.shape[-1] != layer.features or not given.size:
        raise ValueError(
            f"{name} must have shape (*lead, {layer.features}), as the layer has {layer.features} features, "
            f"and hold something; got shape {given.shape}"
        )
    rows = as_rows(given, layer.features, name).x
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if bad.size:
        at = tuple(int(i) for i in np.unravel_index(bad[0], given.shape[:-1]))
        where = f"row {at[0] if len(at) == 1 else at} is not" if at else "are not"
        raise ValueError(f"{name} must be finite, but {where}")
    return rows


def _one(
    ffn: FFN,
    x: Array,
    target: float | None,
    error: float | None,
    activation: str | None,
    branch: int,
    norm: str,
) -> Threshold:
    """Calibrate one layer."""
    probe = _Probe(norm)
    exact = ffn(x, activation=activation, prune=probe, branch=branch).astype(np.float64)
    norms = np.sort(np.concatenate([part.reshape(-1) for part in probe.seen]).astype(np.float32))
    if np.isnan(norms[-1]):
        raise ValueError("the layer's activations are NaN on these samples")
    if target is not None:
        return _nearest(norms, round(target * norms.size), norm)
    assert error is not None
    size = float(np.linalg.norm(exact))

    def holds(step: int) -> bool:
        policy = _at(norms, norms.size - norms.size * step // _STEPS, norm)
        got = ffn(x, activation=activation, prune=policy, branch=branch)
        return float(np.linalg.norm(got - exact)) <= error * size

    # The error grows with the threshold as a rule, not by law; what is returned was tried and holds.
    low, high = 0, _STEPS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return _at(norms, norms.size - norms.size * low // _STEPS, norm)


def _at(norms: Array, live: int, norm: str) -> Threshold:
    """Return the least threshold that leaves at most ``live`` of the sorted norms above it."""
    dead = norms.size - live
    largest = np.finfo(np.float32).max
    return Threshold(0.0 if dead <= 0 else float(min(norms[dead - 1], largest)), norm=norm)


def _nearest(norms: Array, live: int, norm: str) -> Threshold:
    """Return a threshold with about ``live`` of the sorted norms above it; ties live or die together."""
    below = _at(norms, live, norm)
    tau = np.float32(below.tau)
    # What is live with the ties dead, and with them alive. Zeros cannot be.
    fewer, more = norms.size - np.searchsorted(norms, tau, "right"), norms.size - np.searchsorted(norms, tau)
    if tau == 0 or live - fewer < more - live:
        return below
    return _at(norms, int(more), norm)
