"""``Predictor``: a low-rank guess of which units will be live, made before anything is multiplied."""

from __future__ import annotations

import math
import os
from collections import Counter
from os import PathLike
from typing import Any, Final, Self

import numpy as np
from numpy.typing import ArrayLike

from prunus._arrays import as_floats
from prunus._construct import count_of
from prunus._dtypes import F32, Array
from prunus.pruning._archive import read_archive, write_archive
from prunus.pruning._checks import check_bound, check_count, check_norm, check_share
from prunus.pruning._pieces import product, strips
from prunus.pruning._rows import check_activation, check_branch
from prunus.pruning.lowrank import (
    LowRank,
    activate,
    as_bias,
    as_matrix,
    as_samples,
    fit_low_rank,
    floored,
    spread_after,
)
from prunus.pruning.policies import Policy, Statistics, largest

__all__ = ["Predictor"]

_FORMAT: Final = "prunus.Predictor 1"


class Predictor(Policy):
    """Guesses each row's live branches from two thin products, so that dead ones are not computed at all.

    Made by :meth:`fit` or :meth:`load`. The pre-activations ``x @ w.T`` of a layer are approximated by ``(x @
    narrow.T) @ wide.T + offset``, the best approximation of that rank over sample inputs. Each row then keeps
    the ``keep`` share of branches with the highest scores:

    * one matrix and ReLU: the predicted pre-activation over the standard deviation of its error, which ranks
      units by their probability of being live;
    * otherwise the expected square of the hidden unit, from predicted values and the sizes of their errors:
      ``(act(g)² + error(act(g))²) (u² + error(u)²)`` with a gate, the first factor alone without.

    The idea is Deja Vu's (Liu et al., 2023, arXiv:2310.17157) and PowerInfer's (Song et al., 2023,
    arXiv:2312.12456), who train small networks for it; the closed form is reduced-rank regression (Izenman,
    *Journal of Multivariate Analysis* 5, 1975), see :mod:`prunus.pruning.lowrank`.

    Attributes
    ----------
    keep : float
        Share of the branches that each row keeps: rounded up, at least one.
    branch : int
        Neighbouring units that live and die together.
    units, features, rank : int
        Hidden units, inputs, and the rank of the approximation.
    activation : str or None
        What follows the product that decides.
    norm : str
        "max" or "l2": how the scores of a branch's units are pooled.
    """

    scope = "row"

    def __init__(
        self,
        up: LowRank,
        gate: LowRank | None = None,
        *,
        keep: float,
        branch: int = 1,
        activation: str | None = "relu",
        norm: str = "max",
    ) -> None:
        self.keep = check_share(keep, "keep")
        self.branch = check_branch(branch)
        self.norm = check_norm(norm)
        check_activation(activation)
        self.activation = activation
        if gate is not None and (gate.narrow.shape != up.narrow.shape or gate.wide.shape != up.wide.shape):
            raise ValueError(f"the gate's parts have shapes {gate.shapes}, the units' {up.shapes}")
        # The activation follows the gate, where there is one.
        self._up = up.ready(activation if gate is None else None)
        self._gate = None if gate is None else gate.ready(activation)

    @property
    def units(self) -> int:
        """Hidden units of the layer."""
        return len(self._up.wide)

    @property
    def features(self) -> int:
        """Inputs of the layer."""
        return int(self._up.narrow.shape[1])

    @property
    def rank(self) -> int:
        """Rank of the approximation, of the gate and of the units each."""
        return len(self._up.narrow)

    @property
    def nbytes(self) -> int:
        """Bytes that one prediction reads."""
        return self._up.nbytes + (0 if self._gate is None else self._gate.nbytes)

    # Making one --------------------------------------------------------------------------------------

    @classmethod
    def fit(
        cls,
        x: ArrayLike,
        w_up: ArrayLike,
        *,
        rank: int,
        keep: float,
        w_gate: ArrayLike | None = None,
        b_up: ArrayLike | None = None,
        branch: int = 1,
        activation: str | None = "relu",
        norm: str = "max",
    ) -> Self:
        """Fit a predictor to a layer's weights and samples of its input.

        Parameters
        ----------
        x : array_like
            Shape (*lead, d), finite: inputs as the layer will see them; some 2 d of them or more.
        w_up : array_like
            Shape (H, d).
        rank : int
            From 1 to the smallest of the number of samples, d and H. A prediction costs ``2 rank (d + H)``
            operations for a row, with a gate twice that.
        keep : float
            Share of branches that each row keeps, above 0 and at most 1.
        w_gate : array_like, optional
            Shape (H, d): hidden units are ``activation(x @ w_gate.T) * (x @ w_up.T + b_up)``.
        b_up : array_like, optional
            Shape (H,).
        branch : int, default 1
            Units in a branch.
        activation : {"relu", "gelu", "silu"} or None
            Of the gate, or of the units where there is none.
        norm : {"max", "l2"}
            How units of a branch are pooled.

        Returns
        -------
        Predictor

        Raises
        ------
        ValueError
            If shapes do not fit each other, numbers are out of range, or an array is not finite.
        TypeError
            If an array holds no floats.

        Examples
        --------
        >>> import numpy as np
        >>> import prunus as pr
        >>> rng = np.random.default_rng(0)
        >>> w = (rng.standard_normal((64, 4)) @ rng.standard_normal((4, 16))).astype(np.float32)
        >>> x = rng.standard_normal((200, 16)).astype(np.float32)
        >>> p = pr.Predictor.fit(x, w, rank=4, keep=0.6)
        >>> p
        Predictor(64 units of 16 features, rank 4, keep=0.6)
        >>> bool(p.evaluate(x, w)["recall"] > 0.95)
        True
        """
        samples, up = as_samples(x, "x"), as_matrix(w_up, "w_up")
        gate = None if w_gate is None else as_matrix(w_gate, "w_gate")
        for name, w in (("w_up", up), ("w_gate", gate)):
            if w is not None and w.shape[1] != samples.shape[1]:
                raise ValueError(f"{name} has shape {w.shape}, but x has {samples.shape[1]} features")
        if gate is not None and gate.shape != up.shape:
            raise ValueError(f"w_gate has shape {gate.shape}, w_up {up.shape}")
        bias = as_bias(b_up, len(up))
        most = min(*samples.shape, len(up))
        if not 1 <= check_count(rank, "rank") <= most:
            raise ValueError(
                f"rank must be from 1 to {most} with {len(samples)} samples and weights of {up.shape}, "
                f"got {rank}"
            )
        first = fit_low_rank(samples, up, bias, rank)
        if gate is None:
            if activation == "relu":
                first = first.over(floored(first, samples, up, bias))
                return cls(first, keep=keep, branch=branch, activation=activation, norm=norm)
            # The error that counts is that of what follows the activation.
            first = spread_after(first, samples, up, bias, activation)
            return cls(first, keep=keep, branch=branch, activation=activation, norm=norm)
        zero = np.zeros(len(gate))
        second = fit_low_rank(samples, gate, zero, rank)
        second = spread_after(second, samples, gate, zero, activation)
        return cls(first, second, keep=keep, branch=branch, activation=activation, norm=norm)

    def with_keep(self, keep: float) -> Self:
        """Return a predictor that keeps another share and shares this one's arrays."""
        return type(self)(
            self._up, self._gate, keep=keep, branch=self.branch, activation=self.activation, norm=self.norm
        )

    # Deciding ----------------------------------------------------------------------------------------

    def scores(self, x: Array) -> Array:
        """Return the score of every unit, float32 of shape (rows, units); higher is likelier to be live.

        Parameters
        ----------
        x : ndarray
            Shape (rows, features), floats.
        """
        x = as_floats(x, "x")
        if x.ndim != 2 or x.shape[1] != self.features:
            raise ValueError(f"the predictor was fitted to {self.features} features, x has shape {x.shape}")
        with np.errstate(over="ignore", invalid="ignore"):
            rows = x.astype(np.float32, copy=False)
            if self._gate is None:
                if self.activation == "relu":
                    return self._up.predict(rows)
                return self._up.power(rows, self.activation)
            power = self._gate.power(rows, self.activation)
            power *= self._up.power(rows, None)
            return power

    def foresee(self, x: Array, branches: int) -> Array:
        """Return the branches that are kept: (rows, branches), of equal scores the first.

        Raises
        ------
        ValueError
            If ``x`` or the number of branches is not what the predictor was fitted to.
        """
        own = -(-self.units // self.branch)
        if branches != own:
            raise ValueError(
                f"the predictor knows {own} branches of {self.branch} units, the operation has {branches}"
            )
        scores = self.scores(x)
        if self.branch > 1:
            starts = np.arange(0, self.units, self.branch)
            with np.errstate(over="ignore", invalid="ignore"):
                # Scores are squares already, but for ReLU, where what is below 0 does not count.
                if self.norm == "l2" and self._gate is None and self.activation == "relu":
                    scores = np.maximum(scores, 0) ** 2
                pool = np.maximum if self.norm == "max" else np.add
                scores = pool.reduceat(scores, starts, axis=1)
        return largest(scores, np.full(len(x), self.count(branches)), None)

    def count(self, branches: int) -> int:
        """Return how many of ``branches`` a row keeps."""
        return max(count_of(self.keep, branches), 1)

    def select(self, statistics: Statistics) -> Array:
        """Raise TypeError: a predictor needs the input, not statistics of the result."""
        raise TypeError(
            "a Predictor decides from an operation's input; this operation has none that it knows"
        )

    # Judging -----------------------------------------------------------------------------------------

    def evaluate(
        self,
        x: ArrayLike,
        w_up: ArrayLike,
        w_down: ArrayLike | None = None,
        *,
        w_gate: ArrayLike | None = None,
        b_up: ArrayLike | None = None,
        tau: float = 0.0,
    ) -> dict[str, float]:
        """Compare what the predictor keeps with what is live, on inputs that it was not fitted to.

        Parameters
        ----------
        x : array_like
            Shape (*lead, d).
        w_up, w_gate : array_like
            Shape (H, d).
        w_down : array_like, optional
            Shape (d_out, H), for the error of the layer's output.
        b_up : array_like, optional
            Shape (H,).
        tau : float, default 0
            A branch is live where the norm of its hidden units is above this.

        Returns
        -------
        dict
            "live" and "kept": shares of the branches; "recall": share of the live ones that were kept, 1
            where none is live; "precision": share of the kept ones that are live; "energy": share of the sum
            of squares of the hidden units that was kept; and "error" if ``w_down`` is given: Frobenius norm
            of the output's error relative to the exact output's.

        Raises
        ------
        ValueError
            If shapes are not those that the predictor was fitted to, or an array is not finite.
        TypeError
            If an array holds no floats.
        """
        samples, up = as_samples(x, "x"), as_matrix(w_up, "w_up")
        gate = None if w_gate is None else as_matrix(w_gate, "w_gate")
        down = None if w_down is None else as_matrix(w_down, "w_down")
        layer = self.units, self.features
        if samples.shape[1] != self.features:
            raise ValueError(
                f"x has {samples.shape[1]} features, the predictor was fitted to {self.features}"
            )
        # NumPy would stretch a gate of one unit over all.
        for name, w in (("w_up", up), ("w_gate", gate)):
            if w is not None and w.shape != layer:
                raise ValueError(f"{name} has shape {w.shape}, the predictor was fitted to {layer}")
        if down is not None and down.shape[1] != self.units:
            raise ValueError(f"w_down has shape {down.shape}, expected (d_out, {self.units})")
        bias, tau = as_bias(b_up, len(up)), check_bound(tau, "tau")
        starts = np.arange(0, len(up), self.branch)
        sums: Counter[str] = Counter()
        for part in strips(len(samples), len(up)):
            rows = samples[part]
            hidden = product(rows, up.T) + bias
            if gate is None:
                hidden = activate(hidden, self.activation)
            else:
                hidden *= activate(product(rows, gate.T), self.activation)
            if self.norm == "max":
                norms = np.maximum.reduceat(np.abs(hidden), starts, axis=1)
            else:
                norms = np.sqrt(np.add.reduceat(hidden**2, starts, axis=1))
            live = ~(norms <= tau)
            kept = self.foresee(rows, live.shape[1])
            pruned = np.where(np.repeat(kept, self.branch, axis=1)[:, : hidden.shape[1]], hidden, 0)
            sums.update(all=live.size, live=live.sum(), kept=kept.sum(), both=(live & kept).sum())
            sums.update(energy=np.sum(hidden**2), left=np.sum(pruned**2))
            if down is not None:
                exact, got = product(hidden, down.T), product(pruned, down.T)
                sums.update(exact=np.sum(exact**2), error=np.sum((got - exact) ** 2))
        found = {
            "live": sums["live"] / sums["all"],
            "kept": sums["kept"] / sums["all"],
            "recall": _ratio(sums["both"], sums["live"], 1.0),
            "precision": sums["both"] / sums["kept"],
            "energy": _ratio(sums["left"], sums["energy"], 1.0),
        }
        if down is not None:
            found["error"] = math.sqrt(_ratio(sums["error"], sums["exact"], 0.0))
        return {name: float(value) for name, value in found.items()}

    # Files -------------------------------------------------------------------------------------------

    def save(self, path: str | PathLike[str]) -> None:
        """Write the predictor to an .npz file (no pickle in it), which appears whole or not at all.

        Parameters
        ----------
        path : path-like
            The file, under exactly this name.
        """
        parts: dict[str, Any] = {
            "format": _FORMAT,
            "keep": self.keep,
            "branch": self.branch,
            "activation": self.activation or "",
            "norm": self.norm,
        }
        for name, low in (("up", self._up), ("gate", self._gate)):
            half = None if low is None else low.stored(F32)  # files of this format know no bfloat16
            if half is not None:
                parts |= {f"{name}.{field}": value for field, value in half._asdict().items()}
        write_archive(path, parts)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read what :meth:`save` wrote.

        Raises
        ------
        OSError
            If the file cannot be read.
        ValueError
            If it is no predictor, damaged, or of another version.
        """
        name = os.fspath(path)
        try:
            parts = read_archive(name)
            if str(parts["format"]) != _FORMAT:
                raise ValueError(f"its format is {str(parts['format'])!r}, not {_FORMAT!r}")
            half = {
                which: LowRank(*(parts[f"{which}.{field}"] for field in LowRank._fields))
                for which in ("up", "gate")
                if f"{which}.wide" in parts
            }
            for low in half.values():
                low.check()
            return cls(
                half["up"],
                half.get("gate"),
                keep=float(parts["keep"]),
                branch=int(parts["branch"]),
                activation=str(parts["activation"]) or None,
                norm=str(parts["norm"]),
            )
        except KeyError as error:
            raise ValueError(f"{name} is not a predictor: it has no {error}") from None
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} is not a predictor, or damaged: {error}") from error

    def __repr__(self) -> str:
        kind = "gated units" if self._gate is not None else "units"
        branch = f", branch={self.branch}" if self.branch > 1 else ""
        norm = f", norm={self.norm!r}" if self.norm != "max" else ""
        return (
            f"Predictor({self.units} {kind} of {self.features} features, rank {self.rank}, "
            f"keep={self.keep:g}{branch}{norm})"
        )


def _ratio(part: Any, whole: Any, empty: float) -> float:
    return float(part) / float(whole) if whole else empty
