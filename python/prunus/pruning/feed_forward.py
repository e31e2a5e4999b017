"""What feed-forward layers in memory and on disk have in common."""

from __future__ import annotations

from typing import Any

import numpy as np

from prunus import engines
from prunus._device import on_device
from prunus._dtypes import Array, DType, result_dtype
from prunus._errors import PrunusError
from prunus._trace import Span, span
from prunus.pruning import _rows
from prunus.pruning.policies import Policy, as_policy

__all__ = ["FeedForward"]


class FeedForward:
    """A feed-forward layer: how it is called."""

    __slots__ = ()

    decide: str

    @property
    def hidden(self) -> int:
        """Hidden units."""
        raise NotImplementedError

    @property
    def features(self) -> int:
        """Length of an input."""
        raise NotImplementedError

    @property
    def out_features(self) -> int:
        """Length of an output."""
        raise NotImplementedError

    @property
    def gated(self) -> bool:
        """Whether there is a gate."""
        raise NotImplementedError

    @property
    def dtype(self) -> DType:
        """Dtype of the weights."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes of weights, with the padding between bundles."""
        raise NotImplementedError

    def _run(
        self, at: Span, x: Array, y: Array, activation: str | None, policy: Policy | None, branch: int
    ) -> None:
        raise NotImplementedError

    @engines.timed
    def __call__(
        self,
        x: Any,
        activation: str | None = "relu",
        prune: Any = None,
        branch: int = 1,
        out: Array | None = None,
    ) -> Array:
        """Return the layer's output for every row of ``x``.

        Parameters
        ----------
        x : array_like
            Shape (*lead, features).
        activation : {"relu", "gelu", "silu"} or None
            Of the gate, or of the up-projection where there is no gate; None is the identity.
        prune : policy, optional
            Decides which branches are live for each row. Where the up-projection of a gated layer decides,
            the policy sees it before any activation. None: nothing is pruned, whatever the layer was packed
            for.
        branch : int, default 1
            Neighbouring hidden units that live and die together.
        out : ndarray, optional
            Where to write, of the result's shape and dtype, in C order.

        Returns
        -------
        ndarray
            Shape (*lead, out_features). A row's result does not depend on the other rows.

        Raises
        ------
        ValueError
            If shapes do not fit, or the layer was packed with ``decide="predictor"`` and the policy does not
            foresee.
        TypeError
            If ``x`` is no array of floats.
        PrunusError
            If ``x`` is on a GPU: :meth:`FFN.to` moves a layer there.
        """
        if on_device(x):
            raise PrunusError(
                "x is on a GPU, the layer's weights are in host memory; move them with layer.to('cuda')"
            )
        _rows.check_activation(activation)
        rows = _rows.as_rows(x, self.features)
        policy, branch = as_policy(prune), _rows.check_branch(branch, self.hidden)
        kind = result_dtype(rows.x.dtype, self.dtype)
        if out is None:
            y = np.empty((len(rows.x), self.out_features), kind)
        else:
            shape = (*rows.lead, self.out_features)
            if not isinstance(out, np.ndarray):
                raise TypeError(f"out must be an ndarray, got {type(out).__name__}")
            if out.shape != shape or out.dtype != kind or not out.flags.c_contiguous:
                raise ValueError(
                    f"out must be {kind} of shape {shape} in C order, got {out.dtype} {out.shape}"
                )
            if np.may_share_memory(out, rows.x):
                raise ValueError("out overlaps x")
            y = out.reshape(len(rows.x), self.out_features)
        with span("ffn") as at:
            self._run(at, rows.x, y, activation, policy, branch)
        return rows.restore(y) if out is None else out
