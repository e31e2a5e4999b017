"""Policies: what decides which branches are live. They see statistics, never kernels.

A branch is a unit that can be dead for one row of the input: some neighbouring neurons, an expert, a block
of keys.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

from prunus import _core
from prunus._arrays import as_array, is_torch
from prunus._dtypes import F32, F64, Array
from prunus._mask import BlockMask
from prunus._threads import THREADS
from prunus.pruning._checks import check_bound, check_count, check_norm, check_scope, check_share

__all__ = [
    "Decides",
    "Fixed",
    "Policy",
    "Router",
    "Statistics",
    "Threshold",
    "TopK",
    "as_policy",
    "decide",
    "foreseen",
]


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a policy sees of one call.

    Attributes
    ----------
    norms : ndarray of float32 or float64
        Shape (rows, branches), as sums are kept: of every row and branch the largest absolute activation
        ("max") or the root of the sum of squares ("l2"); router logits in a mixture of experts; pooled
        scores in attention. NaN where the branch holds a NaN.
    visible : ndarray of bool, optional
        Shape (rows, branches): what may be chosen at all, for example by causality. None: everything.
    norm : str
        "max", "l2" or "score".
    """

    norms: Array
    visible: Array | None = None
    norm: str = "max"


@runtime_checkable
class Decides(Protocol):
    """What a class must have to be a policy, besides the defaults of :class:`Policy`."""

    def select(self, statistics: Statistics) -> Array:
        """Return a boolean array (rows, branches): True where a branch is live."""
        ...


class Policy(ABC):
    """Base of policies: derive from it and write ``select``, or pass a plain function in place of a policy.

    Attributes
    ----------
    scope : str
        "tile": a branch is decided by its own statistic alone, so that a kernel can decide as it stores;
        "row": a row's branches are weighed against each other; "host": Python code, called once a call.
    norm : str
        "max" or "l2": which statistic the policy wants.
    rows : int
        Rows that share one decision: their statistics are pooled by maximum. 1 unless asked for.
    """

    scope: str = "host"
    norm: str = "max"
    rows: int = 1

    @abstractmethod
    def select(self, statistics: Statistics) -> Array:
        """Return a boolean array (rows, branches): True where a branch is live."""

    def foresee(self, x: Array, branches: int) -> Array | None:
        """Return what is live before anything was multiplied, or None if that has to be seen first.

        Parameters
        ----------
        x : ndarray
            The operation's input, shape (rows, features).
        branches : int
            How many branches there are.

        Returns
        -------
        ndarray of bool or None
            Shape (rows, branches).
        """
        return None


class Threshold(Policy):
    """A branch is live unless its norm is at most ``tau``: NaN is live.

    Parameters
    ----------
    tau : float
        The threshold. 0 with ReLU is exact: only what contributes nothing is left out.
    norm : {"max", "l2"}
        Largest absolute value, or root of the sum of squares, of the branch's activations.
    rows : int, default 1
        Rows that share a decision: a branch is live for all of them if it is for one.

    Raises
    ------
    ValueError
        If ``tau`` is NaN, infinite or negative, ``norm`` is unknown, or ``rows`` below 1.
    TypeError
        If ``tau`` is no number, or ``rows`` no integer.

    Examples
    --------
    >>> import prunus as pr
    >>> pr.Threshold(0.5)
    Threshold(0.5)
    """

    scope = "tile"

    def __init__(self, tau: float = 0.0, norm: str = "max", rows: int = 1) -> None:
        self.tau = check_bound(tau, "tau")
        self.norm = check_norm(norm)
        self.rows = check_count(rows, "rows")

    def select(self, statistics: Statistics) -> Array:
        """See :meth:`Policy.select`."""
        # A double: a threshold that single precision cannot hold must not become another one.
        live: Array = ~(statistics.norms <= np.float64(self.tau))
        return live

    def __repr__(self) -> str:
        return f"Threshold({self.tau:g}{_options(self)})"


class TopK(Policy):
    """The branches with the largest norms of each row are live; of equal ones the first. NaN comes first.

    Parameters
    ----------
    count : int, optional
        How many are live; all, where a row sees fewer.
    fraction : float, optional
        Share of the branches that the row sees, rounded up, at least one; 1 keeps all. Give this or
        ``count``.
    norm : {"max", "l2"}
        Statistic of a branch.
    rows : int, default 1
        Rows that share a decision.

    Raises
    ------
    ValueError
        If neither or both are given, or a number is out of range, or ``norm`` is unknown.
    TypeError
        If ``fraction`` is no number, or ``count`` or ``rows`` no integer.

    Examples
    --------
    >>> import prunus as pr
    >>> pr.TopK(fraction=0.1)
    TopK(fraction=0.1)
    """

    scope = "row"

    def __init__(
        self, count: int | None = None, fraction: float | None = None, norm: str = "max", rows: int = 1
    ) -> None:
        if (count is None) == (fraction is None):
            raise ValueError("TopK takes either count= or fraction=")
        self.count = None if count is None else check_count(count, "count")
        self.fraction = None if fraction is None else check_share(fraction, "fraction")
        self.norm = check_norm(norm)
        self.rows = check_count(rows, "rows")

    def select(self, statistics: Statistics) -> Array:
        """See :meth:`Policy.select`."""
        norms, visible = statistics.norms, statistics.visible
        rows, branches = norms.shape
        seen = np.full(rows, branches) if visible is None else visible.sum(axis=1)
        if self.count is not None:
            # In Python first: a count may be larger than NumPy's integers.
            wanted = np.minimum(min(self.count, branches), seen)
        else:
            assert self.fraction is not None
            # A share such as 0.1 of 30 is 3: rounding up must not see the rounding of the share.
            wanted = np.minimum(np.ceil(self.fraction * seen * (1 - 1e-12)).astype(np.int64), seen)
            wanted = np.maximum(wanted, np.minimum(seen, 1))
        return largest(norms, wanted, visible)

    def __repr__(self) -> str:
        what = f"count={self.count}" if self.count is not None else f"fraction={self.fraction:g}"
        return f"TopK({what}{_options(self)})"


class Router(Policy):
    """The ``k`` experts with the largest logits are live: what decides in a mixture of experts.

    Parameters
    ----------
    k : int
        Experts for each row.
    renormalize : bool, default True
        Whether the chosen experts' weights sum to 1 (softmax over the chosen), or stay what a softmax over
        all experts gave them.

    Raises
    ------
    ValueError
        If ``k`` is below 1.
    TypeError
        If it is no integer.
    """

    scope = "row"
    norm = "max"

    def __init__(self, k: int = 2, renormalize: bool = True) -> None:
        self.k = check_count(k, "k")
        self.renormalize = bool(renormalize)

    def select(self, statistics: Statistics) -> Array:
        """See :meth:`Policy.select`."""
        logits = statistics.norms
        rows, experts = logits.shape
        if self.k > experts:
            raise ValueError(f"a router cannot choose {self.k} of {experts} experts")
        return largest(logits, np.full(rows, self.k), statistics.visible)

    def __repr__(self) -> str:
        return f"Router({self.k})" if self.renormalize else f"Router({self.k}, renormalize=False)"


class Fixed(Policy):
    """What is live is known: dead branches are not computed at all.

    Parameters
    ----------
    mask : array_like of bool, or BlockMask
        Live branches, (branches,) for all rows alike or (rows, branches); a BlockMask of the activations'
        shape (rows, units) whose blocks are as wide as a branch.

    Raises
    ------
    TypeError
        If the mask holds no booleans.
    """

    scope = "row"

    def __init__(self, mask: ArrayLike | BlockMask) -> None:
        self.blocks: BlockMask | None = None
        if isinstance(mask, BlockMask):
            if mask.ndim != 2:
                raise ValueError(f"mask must have two dimensions where it is a BlockMask, got {mask.shape}")
            self.blocks = mask.copy()
            height = mask.blocksize[0]
            self.mask: Array = np.repeat(mask.to_blocks(), height, axis=0)[: mask.shape[0]]
        else:
            # A copy: the policy stays what it was when it was made.
            self.mask = as_array(mask, "mask", "an array of booleans or a BlockMask").copy()
        if self.mask.dtype != bool:
            raise TypeError(f"mask must hold booleans, got dtype {self.mask.dtype}")
        if self.mask.ndim not in (1, 2):
            raise ValueError(f"mask must have shape (branches,) or (rows, branches), got {self.mask.shape}")

    def _fit(self, rows: int, branches: int) -> Array:
        expected = (branches,) if self.mask.ndim == 1 else (rows, branches)
        if self.mask.shape != expected:
            raise ValueError(
                f"Fixed has a mask of shape {self.mask.shape}; there are {rows} rows of {branches} branches"
            )
        return np.broadcast_to(self.mask, (rows, branches))

    def select(self, statistics: Statistics) -> Array:
        """See :meth:`Policy.select`."""
        return self._fit(*statistics.norms.shape)

    def foresee(self, x: Array, branches: int) -> Array:
        """See :meth:`Policy.foresee`."""
        return self._fit(len(x), branches)

    def __repr__(self) -> str:
        return f"Fixed(<{self.mask.mean():.1%} of {self.mask.shape}>)"


class _Function(Policy):
    """A plain function in a policy's place."""

    scope = "host"

    def __init__(self, function: Callable[[Statistics], Any]) -> None:
        self.function = function

    def select(self, statistics: Statistics) -> Array:
        live: Array = self.function(statistics)
        return live

    def __repr__(self) -> str:
        return f"<policy {getattr(self.function, '__name__', self.function)!r}>"


class _Adapted(Policy):
    """An object that decides but does not derive from Policy."""

    scope = "host"

    def __init__(self, decider: Decides) -> None:
        self.decider = decider
        name = type(decider).__name__
        self.norm = check_norm(getattr(decider, "norm", "max"), f"{name}.norm")
        self.rows = check_count(getattr(decider, "rows", 1), f"{name}.rows")

    def select(self, statistics: Statistics) -> Array:
        return self.decider.select(statistics)

    def __repr__(self) -> str:
        return repr(self.decider)


def as_policy(prune: Any) -> Policy | None:
    """Return a policy: ``prune`` itself, or what makes one of it; None stays None.

    Raises
    ------
    TypeError
        If it is neither a policy, an object with ``select``, a mask, nor a function.
    ValueError
        If its ``scope`` or ``norm`` is unknown, or ``rows`` below 1.
    """
    if prune is None:
        return None
    if isinstance(prune, Policy):
        # Attributes of a class of one's own have been seen by nobody yet.
        name = type(prune).__name__
        check_scope(prune.scope, f"{name}.scope")
        check_norm(prune.norm, f"{name}.norm")
        check_count(prune.rows, f"{name}.rows")
        return prune
    if isinstance(prune, type):
        raise TypeError(f"prune must be a policy, got the class {prune.__name__}: call it")
    # Before what has a ``select``: a tensor of torch has one of its own.
    if isinstance(prune, np.ndarray) or is_torch(prune):
        mask = as_array(prune, "prune", "a policy or an array of booleans")
        if mask.dtype != bool:
            raise TypeError(f"prune must be a policy or an array of booleans, got dtype {mask.dtype}")
        return Fixed(mask)
    if isinstance(prune, BlockMask):
        return Fixed(prune)
    if isinstance(prune, Decides):
        return _Adapted(prune)
    if callable(prune):
        return _Function(prune)
    raise TypeError(
        f"prune must be a policy, such as prunus.Threshold(0), an object with select(), or a function of "
        f"Statistics; got {type(prune).__name__}"
    )


def decide(policy: Policy, norms: Array, visible: Array | None = None, norm: str | None = None) -> Array:
    """Ask a policy, and check what it says.

    Parameters
    ----------
    policy : Policy
        Who decides.
    norms : ndarray
        Shape (rows, branches).
    visible : ndarray of bool, optional
        What may be chosen; nothing else is live.
    norm : str, optional
        What the statistics are; the policy's own norm by default.

    Returns
    -------
    ndarray of bool
        Shape (rows, branches).

    Raises
    ------
    TypeError, ValueError
        If the policy returns anything but booleans of the right shape.
    """
    rows = len(norms)
    group = min(policy.rows, max(rows, 1))
    if group > 1 and rows:
        starts = np.arange(0, rows, group)
        norms = np.maximum.reduceat(norms, starts, axis=0)
        seen = None if visible is None else np.logical_or.reduceat(visible, starts, axis=0)
    else:
        seen = visible
    live = policy.select(Statistics(norms, seen, norm or policy.norm))
    if not isinstance(live, np.ndarray) or live.dtype != bool:
        raise TypeError(f"{policy!r} must return an array of booleans, got {_kind(live)}")
    if live.shape != norms.shape:
        raise ValueError(f"{policy!r} must return shape {norms.shape} (rows, branches), got {live.shape}")
    if group > 1 and rows:
        live = np.repeat(live, group, axis=0)[:rows]
    return live if visible is None else live & visible


def foreseen(policy: Policy, x: Array, branches: int) -> Array | None:
    """Return what the policy knows before the product is computed, checked; or None.

    Parameters
    ----------
    policy : Policy
        Who decides.
    x : ndarray
        Shape (rows, features).
    branches : int
        How many there are.

    Returns
    -------
    ndarray of bool or None
        Shape (rows, branches).

    Raises
    ------
    TypeError, ValueError
        If it is anything but booleans of that shape.
    """
    live = policy.foresee(x, branches)
    if live is None:
        return None
    shape = len(x), branches
    if not isinstance(live, np.ndarray) or live.dtype != bool:
        raise TypeError(f"{policy!r} must foresee booleans {shape} (rows, branches), got {_kind(live)}")
    if live.shape != shape:
        raise ValueError(f"{policy!r} must foresee shape {shape} (rows, branches), got {live.shape}")
    return live


def largest(values: Array, wanted: Array, visible: Array | None) -> Array:
    """Return where each row has its ``wanted`` largest values; of equal ones the first, NaN before all.

    Parameters
    ----------
    values : ndarray
        Shape (rows, n).
    wanted : ndarray of int
        Shape (rows,), none larger than what is visible.
    visible : ndarray of bool, optional
        Shape (rows, n).
    """
    if values.dtype not in (F32, F64):
        values = values.astype(np.float64)
    live = np.empty(values.shape, bool)
    seen = None if visible is None else np.asarray(visible, bool).view(np.uint8)
    _core.largest(values, np.asarray(wanted, np.int64), seen, live.view(np.int8), THREADS.get())
    return live


def _kind(value: Any) -> str:
    return f"dtype {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__


def _options(policy: Policy) -> str:
    shown = f", norm={policy.norm!r}" if policy.norm != "max" else ""
    return shown + (f", rows={policy.rows}" if policy.rows > 1 else "")
