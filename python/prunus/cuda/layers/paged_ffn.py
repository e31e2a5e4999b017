"""Calls of feed-forward layers on disk with tensors on a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunus._trace import span
from prunus.cuda import dtypes
from prunus.cuda.layers.arguments import as_rows
from prunus.cuda.layers.matmul import check_out, shares
from prunus.cuda.operands import where_of
from prunus.cuda.paged.ffn import Call
from prunus.cuda.runtime import empty
from prunus.paged.layers import PagedFFN
from prunus.paged.reading import reading
from prunus.pruning import _rows
from prunus.pruning.policies import as_policy

if TYPE_CHECKING:
    import torch

__all__ = ["call"]


def call(
    layer: PagedFFN,
    x: Any,
    activation: str | None = "relu",
    prune: Any = None,
    branch: int = 1,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return a layer's output for every row of ``x``; as :meth:`prunus.FFN.__call__`.

    The host waits once for the GPU, for which units are live, unless the policy is ``Fixed`` or None; and for
    the disk.

    Parameters
    ----------
    layer : PagedFFN
        On disk.
    x : Tensor
        Shape (*lead, features), on a GPU.
    activation, prune, branch
        As :meth:`prunus.FFN.__call__`.
    out : Tensor, optional
        Where to write: shape (*lead, out_features), contiguous, of the result's dtype.

    Returns
    -------
    Tensor
        Shape (*lead, out_features), on the same GPU.

    Raises
    ------
    ValueError, TypeError
        As :meth:`prunus.FFN.__call__`.
    OSError
        If the file cannot be read, or was changed or closed. Nothing is under way then.
    PrunusError
        If the policy cannot decide on a GPU, the pager's budget is too small, or the call is captured in a
        CUDA graph.
    MemoryError
        If there is no room for buffers or the result.
    """
    _rows.check_activation(activation)
    where = where_of(x, out)
    rows, lead = as_rows(x, layer.features, where)
    policy, branch = as_policy(prune), _rows.check_branch(branch, layer.hidden)
    kind = dtypes.result(rows.dtype, dtypes.torch_of(layer.dtype))
    shape = *lead, layer.out_features
    if out is None:
        out = empty(shape, kind, where)
    else:
        check_out(out, shape, kind, where)
        if not out.is_contiguous():
            raise ValueError(f"out must be contiguous, got strides {tuple(out.stride())}")
        if shares(out, rows):
            raise ValueError("out overlaps x")
    target = out.view(len(rows), layer.out_features)
    with span("ffn") as at:
        with reading(at, [table.store for table in layer._tables]):
            done = Call(where, layer, rows, target, activation, policy, branch).run()
            if at:
                at.ran("cuda")
        if at:
            live = None if done.live is None else done.live.cpu().contiguous().numpy()
            layer._count(at, live, branch, done.decided, len(rows))
    return out
