"""``BlockSparseAttention``: attention over live blocks of keys, with its projections."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from prunus._mask import BlockMask
from prunus.pruning._checks import check_count
from prunus.pruning.policies import as_policy
from prunus.torch.attending import attention, grid_of

__all__ = ["BlockSparseAttention"]


class BlockSparseAttention(torch.nn.Module):
    """Attention whose branches are blocks of keys, between projections of queries, keys, values and result.

    Projections are ``torch.nn.Linear``: ``q_proj``, ``k_proj``, ``v_proj`` and ``out_proj``, initialised as
    such. Heads attend as :func:`prunus.torch.attention` does.

    Parameters
    ----------
    embed_dim : int
        Features of inputs and result, a multiple of ``num_heads``.
    num_heads : int
        Heads of queries.
    num_kv_heads : int, optional
        Heads of keys and values, which divide ``num_heads`` and are shared by neighbouring heads; as many as
        ``num_heads`` unless told.
    mask : BlockMask or Tensor of bool, optional
        Which blocks of queries see which blocks of keys, the same for all heads or with one pattern each:
        (n, m) or (num_heads, n, m), as a tensor its grid of blocks. Shorter inputs take its upper left
        corner. It is kept as the buffer ``grid``, a part of the module's state.
    causal : bool, default False
        Query i sees the keys j <= i + m - n.
    prune : policy, optional
        Which visible blocks take part: see :func:`prunus.torch.attention`.
    blocksize : int, default 64
        Queries and keys in a block.
    bias : bool, default True
        Whether projections add one.
    kdim, vdim : int, optional
        Features of ``key`` and ``value``; ``embed_dim`` unless told.
    scale : float, optional
        Factor of the scores.
    device, dtype : optional
        Of parameters, as torch's modules take them.

    Raises
    ------
    ValueError
        If heads do not divide ``embed_dim`` or each other, or ``mask`` is in other blocks.
    TypeError
        If ``mask`` is neither a BlockMask nor booleans, or ``prune`` no policy.

    Examples
    --------
    >>> import torch
    >>> import prunus as pr, prunus.torch as pt
    >>> layer = pt.nn.BlockSparseAttention(32, 4, num_kv_heads=2, causal=True, prune=pr.TopK(2), blocksize=16)
    >>> layer(torch.randn(3, 100, 32)).shape
    torch.Size([3, 100, 32])
    """

    grid: Tensor | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        mask: BlockMask | Tensor | None = None,
        causal: bool = False,
        prune: Any = None,
        blocksize: int = 64,
        bias: bool = True,
        *,
        kdim: int | None = None,
        vdim: int | None = None,
        scale: float | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.embed_dim, self.num_heads = (
            check_count(embed_dim, "embed_dim"),
            check_count(num_heads, "num_heads"),
        )
        self.num_kv_heads = (
            self.num_heads if num_kv_heads is None else check_count(num_kv_heads, "num_kv_heads")
        )
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {embed_dim} must be a multiple of num_heads {num_heads}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {num_heads} must be a multiple of num_kv_heads {num_kv_heads}")
        self.head_dim = self.embed_dim // self.num_heads
        self.blocksize = check_count(blocksize, "blocksize")
        as_policy(prune)  # raises where it is none
        kdim, vdim = (
            self.embed_dim if size is None else check_count(size, name)
            for size, name in ((kdim, "kdim"), (vdim, "vdim"))
        )
        # A tensor would stay behind where the module moves.
        self.prune = as_policy(prune) if isinstance(prune, Tensor) else prune
        self.causal, self.scale = bool(causal), None if scale is None else float(scale)
        if self.scale is not None and not math.isfinite(self.scale):
            raise ValueError(f"scale must be finite, got {scale!r}")
        self.register_buffer("grid", None if mask is None else self._grid(mask, device))
        inner, made = self.num_kv_heads * self.head_dim, {"bias": bias, "device": device, "dtype": dtype}
        self.q_proj = torch.nn.Linear(self.embed_dim, self.embed_dim, **made)
        self.k_proj = torch.nn.Linear(kdim, inner, **made)
        self.v_proj = torch.nn.Linear(vdim, inner, **made)
        self.out_proj = torch.nn.Linear(self.embed_dim, self.embed_dim, **made)

    def _grid(self, mask: Any, device: Any) -> Tensor:
        """Return a mask's grid of blocks, (heads or 1, rows, cols) or (rows, cols)."""
        if isinstance(mask, BlockMask):
            if mask.blocksize != (self.blocksize, self.blocksize):
                raise ValueError(
                    f"mask is in blocks of {mask.blocksize}, attention in blocks of "
                    f"{(self.blocksize, self.blocksize)}: pass blocksize={mask.blocksize[0]}, or a mask in "
                    f"blocks of {self.blocksize}"
                )
            grid = grid_of(mask, device)
        elif isinstance(mask, Tensor) and mask.dtype == torch.bool:
            grid = mask.detach().clone().to(device)
        else:
            raise TypeError(
                "mask must be a BlockMask, or a tensor of booleans; got "
                + (str(mask.dtype) if isinstance(mask, Tensor) else type(mask).__name__)
            )
        if grid.ndim not in (2, 3) or (grid.ndim == 3 and grid.shape[0] not in (1, self.num_heads)):
            raise ValueError(
                f"mask must have two dimensions, or a first one of {self.num_heads} heads; its grid has "
                f"shape {tuple(grid.shape)}"
            )
        return grid

    def forward(self, query: Tensor, key: Tensor | None = None, value: Tensor | None = None) -> Tensor:
        """Return what queries attend to.

        Parameters
        ----------
        query : Tensor
            Shape (*batch, n, embed_dim).
        key : Tensor, optional
            Shape (*batch, m, kdim); the queries unless given.
        value : Tensor, optional
            Shape (*batch, m, vdim); the keys unless given.

        Returns
        -------
        Tensor
            Shape (*batch, n, embed_dim).

        Raises
        ------
        ValueError
            If shapes do not fit, or lengths are beyond the mask's.
        """
        key = query if key is None else key
        value = key if value is None else value
        if query.ndim < 2 or key.ndim != query.ndim or value.ndim != query.ndim:
            raise ValueError(
                "expected inputs (*batch, length, features) of as many dimensions, got "
                f"{tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}"
            )
        q, k, v = (
            self._heads(self.q_proj(query)),
            self._heads(self.k_proj(key)),
            self._heads(self.v_proj(value)),
        )
        mask = self.grid
        # What attention takes for the size of a block: no larger than the lengths.
        size = min(self.blocksize, max(query.shape[-2], key.shape[-2], 1))
        if mask is not None:
            rows, cols = ((x.shape[-2] + size - 1) // size for x in (query, key))
            if rows > mask.shape[-2] or cols > mask.shape[-1]:
                raise ValueError(
                    f"{query.shape[-2]} queries and {key.shape[-2]} keys are {rows} and {cols} blocks of "
                    f"{size}, but mask has {mask.shape[-2]} and {mask.shape[-1]}"
                )
            mask = mask[..., :rows, :cols]
        y = attention(q, k, v, mask, self.prune, self.causal, self.scale, self.blocksize)
        return self.out_proj(y.transpose(-3, -2).flatten(-2))

    def _heads(self, x: Tensor) -> Tensor:
        """Return projections (*batch, length, heads * d) as (*batch, heads, length, d), a view."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(-3, -2)

    def extra_repr(self) -> str:
        """Return what is said of it when it is printed."""
        parts = [f"{self.embed_dim}, {self.num_heads}"]
        if self.num_kv_heads != self.num_heads:
            parts.append(f"num_kv_heads={self.num_kv_heads}")
        if self.grid is not None:
            parts.append(f"mask of {tuple(self.grid.shape)} blocks")
        if self.causal:
            parts.append("causal=True")
        if self.prune is not None:
            parts.append(f"prune={self.prune!r}")
        return ", ".join([*parts, f"blocksize={self.blocksize}"])
